"""What a tuner found, and why: every candidate with its figures, what became of it, and the winner's gain."""

from typing import Literal

import msgspec

from sekisho.control.comparison import Comparison, Ratio
from sekisho.control.measured import Measured, middle
from sekisho.control.policy import Policy
from sekisho.control.tuner_limits import Budget, Limits
from sekisho.control.tuner_reasons import Dropped, Why
from sekisho.control.tuner_target import Goal, Target
from sekisho.control.tuner_words import told

Outcome = Literal["better", "not distinguishable", "nothing better", "not measured", "stopped"]


class Observation(msgspec.Struct, frozen=True):
    """One measurement. `round` counts through the whole search."""

    rung: int
    round: int
    effort: float
    measured: Measured


class Tried(msgspec.Struct, frozen=True):
    """One candidate. `figures`: medians. `score`: of the last rung, a logarithm against the baseline. `dropped`: why,
    None for the winner. `missed`: goals that it does not reach."""

    name: str
    policy: Policy
    observations: tuple[Observation, ...]
    score: float | None
    dropped: Dropped | None
    missed: tuple[Goal, ...]

    @property
    def figures(self) -> Measured:
        return middle(each.measured for each in self.observations)


class RungNoise(msgspec.Struct, frozen=True):
    """What scores scattered by in one rung; None where nothing could be compared."""

    rung: int
    effort: float
    score_sd: float | None
    prefill_sd: float | None


class TuningReport(msgspec.Struct, frozen=True):
    """`policy` is the one to use: the winner's, or the baseline where nothing was better beyond the noise. `winner` is
    the best candidate's name even where its gain was not confirmed. `comparison`: baseline (A) against winner (B),
    measured afresh, so that luck in the search is not counted as gain. `missed`: goals that `policy` does not reach.
    `untried`: combinations that the budget did not reach."""

    outcome: Outcome
    why: Why
    policy: Policy
    winner: str | None
    gain: Ratio | None
    missed: tuple[Goal, ...]
    baseline: Tried
    tried: tuple[Tried, ...]
    comparison: Comparison | None
    noise: tuple[RungNoise, ...]
    untried: int
    measurements: int
    seconds: float
    target: Target
    limits: Limits
    budget: Budget


_HEAD = ("policy", "contexts", "decode tok/s", "prefill tok/s", "first token ms", "KV MiB", "memory MiB", "dPPL")


def lines(report: TuningReport) -> list[str]:
    """The report for a terminal."""
    rows = [_HEAD, *(_row(each) for each in (report.baseline, *report.tried))]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    fates = ["", "the baseline", *(_fate(each) for each in report.tried)]
    table = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)), fate]
        )
        for row, fate in zip(rows, fates, strict=True)
    ]
    end = [f"{report.outcome}: {told(report.why)}"]
    if report.comparison is not None:
        end += [f"  {_ratio(each)}" for each in report.comparison.ratios]
    end += [f"not reached: {told(goal)}" for goal in report.missed]
    scatter = [f"{each.score_sd:.3f} at effort {each.effort:g}" for each in report.noise if each.score_sd is not None]
    if scatter:
        end.append(f"noise of scores: {', '.join(scatter)}")
    spent = f"{report.measurements} measurements in {report.seconds:.0f} s; {report.untried} combinations not tried"
    return [*(line.rstrip() for line in table), *end, spent]


def _fate(tried: Tried) -> str:
    return "the winner" if tried.dropped is None else told(tried.dropped)


def _row(tried: Tried) -> tuple[str, ...]:
    figures = tried.figures
    mib = [None if size is None else size / 2**20 for size in (figures.kv_bytes, figures.memory_bytes)]
    return (
        tried.name,
        _number(figures.contexts, "d"),
        _number(figures.decode_tokens_per_s, ".1f"),
        _number(figures.prefill_tokens_per_s, ".1f"),
        _number(figures.first_token_ms, ".0f"),
        *(_number(each, ".0f") for each in mib),
        _number(figures.delta_ppl, ".3f"),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _ratio(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.figure} x {ratio.value:.3f} over {ratio.n} blocks; an interval needs {ratio.needed}"
    return (
        f"{ratio.figure} x {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}, {ratio.n} blocks): {ratio.verdict}"
    )
