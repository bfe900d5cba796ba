"""What a report is made of: values only. `page.render` turns them into the file.

Pairs are (English, Japanese). Text from outside (answers, server errors, names) is plain `str`; it is escaped and
made visible when it is written, never before.
"""

from typing import Any, Literal

import msgspec

from sekisho.evaluate.definitions import Group, Words
from sekisho.evaluate.environment import Section
from sekisho.evaluate.figures import Figures, Unit

State = Literal["pass", "fail", "open"]
Outcome = Literal["adopt", "limited", "reject", "undecided"]


class CriterionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the scorecard. `figure` is the id of the figure that decided, empty where there is none. `certain`
    False: the figure's interval reaches across the threshold, or is not known. `next` is empty for what passed."""

    id: str
    pattern: Literal["A", "B", "both"]
    name: Words
    threshold: Words
    figure: str = ""
    state: State
    certain: bool = True
    why: Words = ("", "")
    next: Words = ("", "")


class VerdictPart(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing that is read. `sentence` is whole; `a`, `b`: the two client patterns, where it is about them.
    `certain` False: a result that decides lies within its interval of the threshold."""

    outcome: Outcome
    sentence: Words
    a: State | None = None
    b: State | None = None
    certain: bool = True
    reasons: tuple[Words, ...] = ()
    next: tuple[Words, ...] = ()


class Series(msgspec.Struct, frozen=True):
    """`values` in the chart's unit, one a request; infinite: it never came. What is not a number is left out."""

    name: Words
    values: tuple[float, ...]


class EcdfChart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Which share of the requests had ended by when. `threshold` in the chart's unit."""

    id: str
    title: Words
    series: tuple[Series, ...]
    unit: Unit = "s"
    log: bool = True
    threshold: float | None = None
    note: Words = ("", "")


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A value with its interval, one row of an interval chart. Rows of one `group` stand together; `series` colours."""

    name: Words
    group: Words = ("", "")
    series: int = 0
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class IntervalChart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    id: str
    title: Words
    marks: tuple[Mark, ...]
    unit: Unit = ""
    log: bool = False
    threshold: float | None = None
    note: Words = ("", "")


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a comparison: a ratio above zero, 1 is no difference; or a share, 0 is no difference. `margin`:
    where it would be too much worse, on whichever side that is."""

    name: Words
    value: float | None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    n: int | None = None


class ForestChart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`below`, `above`: what a value on that side of no difference means. `scale`: what the values are."""

    id: str
    title: Words
    ratios: tuple[Ratio, ...]
    scale: Literal["ratio", "share"] = "ratio"
    below: Words = ("", "")
    above: Words = ("", "")
    note: Words = ("", "")


Chart = EcdfChart | IntervalChart | ForestChart


class FaultCount(msgspec.Struct, frozen=True, kw_only=True):
    """`spoils` False: the requests still count as successes, but figures that rest on the fault are left out."""

    kind: str
    count: int
    means: Words
    next: Words
    example: str = ""
    spoils: bool = True


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """One rater's scores of one answer: (axis, points, out of)."""

    rater: str
    scores: tuple[tuple[Words, float, float], ...]
    severe: bool = False
    adoptable: bool = False
    comment: str = ""


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    task: str
    prompt: str
    answer: str
    ratings: tuple[Rating, ...]


class ComparisonRow(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of two arms. `difference` with its interval and margin is written out by the caller."""

    name: Words
    a: str
    b: str
    difference: Words
    interval: Words = ("", "")
    margin: Words = ("", "")
    n: int | None = None
    decision: Words = ("", "")
    state: State = "open"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two arms, A the present one and B the candidate. `method` tells how they were interleaved and tested."""

    a: str
    b: str
    sentence: Words
    state: State
    rows: tuple[ComparisonRow, ...]
    method: Words = ("", "")
    charts: tuple[Chart, ...] = ()


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """Who froze the thresholds, when and why, and on which run's figures."""

    who: str
    when: str
    why: str
    run: str
    measured_by: str = ""


class ThresholdChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is no longer as it was approved."""

    what: str
    before: str
    after: str
    when: str = ""


class ThresholdsPart(msgspec.Struct, frozen=True, kw_only=True):
    """`approval` None: never approved. `problem`: the records of approvals cannot be trusted. `by_approved`: what the
    figures would mean by the approved thresholds, where others were used."""

    profile: str = ""
    sha256: str = ""
    approval: Approval | None = None
    changes: tuple[ThresholdChange, ...] = ()
    by_approved: Words = ("", "")
    problem: str = ""
    notes: tuple[Words, ...] = ()


class Command(msgspec.Struct, frozen=True):
    purpose: Words
    command: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page. `made_at`: ISO 8601. `notices` stand under the verdict (a quick run, a busy machine).
    `exchanges`: how many requests `faults` were counted over. `data_sha256`: `signing.data_digest` of the run's folder.
    `plan` is shown as names and values, nested or not; `remarks` stand above the figures of their group; `verify` is
    the command that checks this file."""

    run: str
    title: Words
    made_at: str = ""
    notices: tuple[Words, ...] = ()
    verdict: VerdictPart | None = None
    criteria: tuple[CriterionRow, ...] = ()
    figures: Figures = Figures()
    remarks: tuple[tuple[Group, Words], ...] = ()
    charts: tuple[Chart, ...] = ()
    faults: tuple[FaultCount, ...] = ()
    exchanges: int | None = None
    disagreements: tuple[Disagreement, ...] = ()
    comparison: Comparison | None = None
    plan: dict[str, Any] = {}
    environment: tuple[Section, ...] = ()
    thresholds: ThresholdsPart | None = None
    commands: tuple[Command, ...] = ()
    signer: str = ""
    data_sha256: str = ""
    verify: str = "sekisho evaluate verify report.html"
