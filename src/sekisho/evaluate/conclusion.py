"""From a run's folder to its figures, its scorecard and its signed report; as often as wanted, and always anew: raters
and records come later than the measurements."""

import datetime
import math
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate import evaluation, evidence
from sekisho.evaluate.definitions import Group, Language, Words
from sekisho.evaluate.environment import Section
from sekisho.evaluate.figures import Figure, Figures
from sekisho.evaluate.report.data import ReportData
from sekisho.evaluate.report.file import write_report
from sekisho.evaluate.report.parts import (
    bench_charts,
    commands,
    criteria_rows,
    disagreements,
    fault_counts,
    gap_remarks,
    notices,
    read_bench,
    thresholds_part,
    verdict_part,
)
from sekisho.evaluate.rubric.verdict_figures import rubric_figures
from sekisho.evaluate.verdict import approvals, cost, records
from sekisho.evaluate.verdict.scorecard import Scorecard
from sekisho.ops.home import Home, write_atomically

PLAN_FILE = "plan.json"
FIGURES_FILE = "figures.json"
SCORECARD_FILE = "scorecard.json"
RECORDS_FILE = "records.json"
ATTESTABLE = ("ui.fatal_errors", "codex.tasks", "codex.connection_failures", "codex.cuts")
"""What people see in a browser or an editor. Everything else is measured."""


T = TypeVar("T")


class Conclusion(msgspec.Struct, frozen=True):
    """What a run came to. `signed` False: this home has no signing key, so that nobody can tell a changed report."""

    run: str
    figures: Figures
    scorecard: Scorecard
    report: Path
    signed: bool


class Found(msgspec.Struct, frozen=True):
    """The server's own records and accounts of the same days."""

    records: records.Records
    accounts: cost.Accounts


class _Environment(msgspec.Struct):
    sections: tuple[Section, ...] = ()


def conclude(
    home: Home,
    folder: Path,
    *,
    key: bytes | None,
    language: Language = "en",
    profile: str | None = None,
    found: Found | None = None,
    changes: tuple[Words, ...] = (),
    now: float,
) -> Conclusion:
    """Writes figures.json, scorecard.json, report.html and manifest.json. `found`: the server's records up to now; None
    keeps those that are there. `profile` None: the plan's. `changes`: of `untouched.check`, for the reader.

    Raises NotFound for a folder that holds no evaluation, ThresholdsError, OSError.
    """
    plan = read_plan(folder)
    if found is not None:
        _write(folder, RECORDS_FILE, found.records)
        _write(folder, cost.ACCOUNTS_FILE, found.accounts)
    seen = evidence.read_steps(folder, evaluation.step_keys(plan))
    figures = _figures(folder, plan, seen)
    card = approvals.scorecard(home, figures, profile or plan.profile, folder.name)
    _write(folder, FIGURES_FILE, figures)
    _write(folder, SCORECARD_FILE, card)
    data = _data(folder, plan, seen, figures, card, now)
    data = msgspec.structs.replace(data, notices=(*unfinished(folder, plan), *changes, *data.notices))
    report = write_report(folder, data, key, language)
    return Conclusion(folder.name, figures, card, report, key is not None)


def unfinished(folder: Path, plan: evaluation.Plan) -> tuple[Words, ...]:
    """What the run has not come to; nothing for a whole one."""
    missing = evidence.missing_steps(folder, evaluation.step_keys(plan))
    if not missing:
        return ()
    listed = ", ".join(missing)
    return ((f"This run is not finished: {listed}.", f"この実行は完了していません（未実施: {listed}）。"),)


def read_plan(folder: Path) -> evaluation.Plan:
    """Raises NotFound for a folder that holds no evaluation."""
    try:
        return decoded((folder / PLAN_FILE).read_bytes(), evaluation.Plan)
    except (OSError, Undecodable) as error:
        raise NotFound(f"{folder} holds no evaluation ({error}): sekisho evaluate list") from error


def _figures(folder: Path, plan: evaluation.Plan, seen: evidence.Evidence) -> Figures:
    """Measured, then the raters', then the server's records, then what people counted."""
    figures = Figures(seen.figures)
    if plan.rubric:
        figures = figures.with_(rubric_figures(folder))
    if (folder / RECORDS_FILE).exists():
        kept = _whole(folder / RECORDS_FILE, records.Records)
        figures = figures.with_(records.figures(kept))
        accounts = _whole(folder / cost.ACCOUNTS_FILE, cost.Accounts)
        figures = figures.with_(cost.account_figures(accounts))
    told = evidence.attested_figures(evidence.read_attested(folder), folder.name)
    return figures.with_([each for each in told if not _is_talked_away(figures, each)])


def _is_talked_away(figures: Figures, attested: Figure) -> bool:
    """Measured figures count before told ones; and what Codex is said to do better than the same requests did when they
    were measured, is not believed."""
    measured = figures.get(attested.id)
    if measured is not None and measured.value is not None:
        return True
    alike = figures.get(attested.id.replace("codex.", "sessions.responses."))
    if alike is None or alike.value is None or attested.value is None or attested.id == "codex.tasks":
        return False
    return alike.value > attested.value


def _data(
    folder: Path,
    plan: evaluation.Plan,
    seen: evidence.Evidence,
    figures: Figures,
    card: Scorecard,
    now: float,
) -> ReportData:
    environment = _optional(folder / "environment.json", _Environment)
    conditions = _optional(folder / "conditions.json", evaluation.Conditions)
    whole = read_bench(folder)
    return ReportData(
        run=folder.name,
        title=("Evaluation of " + _models(plan), _models(plan) + " の評価"),
        made_at=datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds"),
        notices=notices(plan, card, conditions),
        verdict=verdict_part(card),
        criteria=criteria_rows(card),
        figures=figures,
        remarks=(*(() if whole is None else gap_remarks(whole, conditions)), *_window(folder)),
        charts=() if whole is None else bench_charts(whole, card),
        faults=fault_counts(seen.tally),
        exchanges=seen.exchanges,
        disagreements=disagreements(folder) if plan.rubric else (),
        plan=_plain(plan),
        environment=() if environment is None else environment.sections,
        thresholds=thresholds_part(card),
        commands=commands(plan, folder.name),
    )


def _window(folder: Path) -> "tuple[tuple[Group, Words], ...]":
    """Of which days the server's records are."""
    if not (folder / RECORDS_FILE).exists():
        return ()
    kept = _whole(folder / RECORDS_FILE, records.Records)
    begin, end = (
        datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        for moment in (kept.since, kept.until)
    )
    return (("stability", (f"The server's records from {begin} to {end}.", f"サーバーの記録の期間: {begin} 〜 {end}")),)


def _models(plan: evaluation.Plan) -> str:
    return ", ".join(dict.fromkeys(model for _, model in plan.places.values()))


def _plain(plan: evaluation.Plan) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(plan)
    return value


def _optional(path: Path, kind: type[T]) -> T | None:
    return _whole(path, kind) if path.exists() else None  # None: the run has not come so far


def _whole(path: Path, kind: type[T]) -> T:
    """Raises NotFound for a file that is damaged, OSError."""
    try:
        return decoded(path.read_bytes(), kind)
    except Undecodable as error:
        raise NotFound(f"{path} is damaged ({error}): put it back from a backup of the folder") from error


def _write(folder: Path, name: str, value: object) -> None:
    write_atomically(folder / name, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def attest(
    folder: Path, figure: str, value: float, *, by: str, n: int | None, note: str, now: float
) -> evidence.Attested:
    """Adds a figure that a person counted; earlier ones are kept. Raises InvalidRequest for one that is measured, for
    one without a name, and for what is no count."""
    if figure not in ATTESTABLE:
        raise InvalidRequest(
            f"{figure} is not a figure that a person counts; those are: {', '.join(ATTESTABLE)}", param="figure"
        )
    if not by.strip():
        raise InvalidRequest("Who counted it? Name that person with --by.", param="by")
    if not math.isfinite(value) or value < 0:
        raise InvalidRequest(f"{value} is no count.", param="value")
    made = evidence.Attested(figure=figure, value=value, n=n, by=by.strip(), note=note, at=now)
    evidence.keep_attested(folder, made)
    return made
