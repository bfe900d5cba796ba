"""`sekisho rubric verdict`: the assessment as tables and as JSON."""

from typing import TYPE_CHECKING, Any

from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.evaluate.figures import Interval
    from sekisho.evaluate.rubric.agreement import Assessment
    from sekisho.evaluate.rubric.sheets import Score
    from sekisho.evaluate.statistics import Agreement


def show(out: Output, run: str, found: "Assessment", *, reveal: bool = False) -> None:
    """While another round is due the scores stay hidden, but for who asks for them."""
    hidden = found.round_due is not None and not reveal
    out.json(_as_json(run, found, hidden=hidden))
    if out.as_json:
        return
    out.line(
        out.text("rubric_passed" if found.passed else "rubric_failed"),
        style="bold green" if found.passed else "bold red",
    )
    out.say("rubric_raters", raters=", ".join(found.raters), rounds=found.rounds, tasks=found.tasks)
    out.line()
    columns = ("rubric_measure", "rubric_value", "rubric_interval", "rubric_by_chance", "rubric_needed")
    out.table(out.columns(*columns), _rows(out, found), unbroken=len(columns))
    out.line()
    if not found.disagreements:
        out.say("rubric_none_apart")
    elif hidden:
        names = ", ".join(each.task for each in found.disagreements)
        out.say("rubric_hidden", count=len(found.disagreements), tasks=names, round=found.round_due)
    else:
        _side_by_side(out, found)
    if found.round_due is not None:
        out.say("rubric_again", run=run, round=found.round_due)


def _as_json(run: str, found: "Assessment", *, hidden: bool) -> dict[str, Any]:
    from sekisho.evaluate.rubric.verdict_figures import figures

    told: dict[str, Any] = {
        "run": run,
        "passed": found.passed,
        "enough_adoptable": found.enough_adoptable,
        "enough_agreement": found.enough_agreement,
        "round_due": found.round_due,
        **plain(found),
        "figures": plain(figures(found, f"sekisho rubric verdict {run}")),
    }
    told["disagreements"] = [
        {"task": each.task, "title": each.title, "kind": each.kind}
        if hidden
        else {
            **plain(each),
            "scores": {rater: _of(score) for rater, score in zip(found.raters, each.scores, strict=True)},
        }
        for each in found.disagreements
    ]
    return told


def _of(score: "Score") -> dict[str, Any]:
    return {**plain(score), "total": score.total, "adoptable": score.adoptable}


def _rows(out: Output, found: "Assessment") -> list[tuple[object, ...]]:
    from sekisho.evaluate.rubric.agreement import ADOPTABLE_SHARE, AGREEMENT_SHARE

    def count(
        hits: int, of: int, interval: "Interval | None" = None, needed: float | None = None
    ) -> tuple[object, ...]:
        share = f" = {100 * hits / of:.0f} %" if of else ""
        return f"{hits}/{of}{share}", _interval(interval), None, None if needed is None else f"≥ {100 * needed:.0f} %"

    def agreed(one: "Agreement", needed: float | None = None) -> tuple[object, ...]:
        value, interval, _, line = count(one.agreed, one.n, one.interval, needed)
        return value, interval, None if one.by_chance is None else f"{100 * one.by_chance:.0f} %", line

    kappa = found.agreement.kappa
    rows: list[tuple[object, ...]] = [
        (out.text("rubric_m_both"), *count(found.both, found.tasks, found.interval, ADOPTABLE_SHARE)),
        (out.text("rubric_m_either"), *count(found.either, found.tasks)),
    ]
    for rater, hits in zip(found.raters, found.each, strict=True):
        rows.append((out.text("rubric_m_each", rater=rater), *count(hits, found.tasks)))
    for language, one in found.by_language.items():
        rows.append((out.text("rubric_m_language", spoken=language), *count(one.adoptable, one.tasks)))
    rows.append((out.text("rubric_m_agreement"), *agreed(found.agreement, AGREEMENT_SHARE)))
    if found.rounds > 1:
        rows.append((out.text("rubric_m_first"), *agreed(found.first_agreement)))
    rows.append((out.text("rubric_m_kappa"), None if kappa is None else f"{kappa:.2f}", None, None, None))
    rows.append((out.text("rubric_m_total"), *agreed(found.total)))
    rows.append((out.text("rubric_m_within"), *agreed(found.total_within_one)))
    rows += [(out.text("rubric_m_axis", axis=out.text(axis)), *agreed(one)) for axis, one in found.axes.items()]
    rows.append((out.text("rubric_m_severe"), *count(found.severe, found.agreement.n)))
    if found.unanswered:
        rows.append((out.text("rubric_m_unanswered"), *count(len(found.unanswered), found.tasks)))
    return rows


def _interval(interval: "Interval | None") -> str | None:
    return None if interval is None else f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}] %"


def _side_by_side(out: Output, found: "Assessment") -> None:
    out.say("rubric_apart", count=len(found.disagreements))
    axes = ("correctness", "instructions", "readability")
    for each in found.disagreements:
        out.line()
        out.line(f"{each.task}  {each.title}", style="bold")
        rows = [
            (
                rater,
                *(getattr(score, axis) for axis in axes),
                score.total,
                out.text("rubric_yes" if score.severe else "rubric_no"),
                out.text("rubric_adoptable" if score.adoptable else "rubric_not_adoptable"),
                score.note,
            )
            for rater, score in zip(found.raters, each.scores, strict=True)
        ]
        columns = ("rubric_rater", *axes, "rubric_points", "rubric_severe", "rubric_verdict", "rubric_note")
        out.table(out.columns(*columns), rows, unbroken=len(columns) - 1)
    out.line()
