"""The parts of the report, each from what it tells of: the scorecard, the samples, the raters, the plan."""

import datetime
from collections.abc import Iterable
from pathlib import Path

from sekisho.core.errors import RequestError
from sekisho.evaluate import evaluation
from sekisho.evaluate.client.faults import MEANINGS, Fault
from sekisho.evaluate.definitions import Group, define, field_words
from sekisho.evaluate.evidence import Tally
from sekisho.evaluate.report.data import (
    Approval,
    Command,
    CriterionRow,
    Disagreement,
    EcdfChart,
    FaultCount,
    Outcome,
    Rating,
    Series,
    ThresholdChange,
    ThresholdsPart,
    VerdictPart,
)
from sekisho.evaluate.rubric.agreement import assess
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import AXES, Axis, Score
from sekisho.evaluate.speed import bench_tables
from sekisho.evaluate.speed.bench import Bench
from sekisho.evaluate.speed.bench_gap import explain, gaps
from sekisho.evaluate.speed.bench_plan import PLACES
from sekisho.evaluate.speed.samples import Sample
from sekisho.evaluate.verdict.criterion import Criterion, Result, Words, shown
from sekisho.evaluate.verdict.scorecard import Decision, Scorecard, title
from sekisho.ops.hardware import usable_threads

BUSY_STOLEN_SHARE = 0.05
BUSY_LOAD_PER_THREAD = 1.0

_OUTCOMES: dict[Decision, Outcome] = {
    "adopt": "adopt",
    "limited_a": "limited",
    "limited_b": "limited",
    "reject": "reject",
    "undecided": "undecided",
}
_AXES: dict[Axis, Words] = {
    "correctness": ("correctness", "正確性"),
    "instructions": ("instructions followed", "指示追従性"),
    "readability": ("readability", "可読性"),
}


def verdict_part(card: Scorecard) -> VerdictPart:
    """The decision with what failed, or else what is open."""
    verdict = card.verdict
    failed = [result for result in card.results if result.outcome == "fail"]
    opened = [result for result in card.results if result.outcome == "open"]
    counts = (
        f"{len(card.results) - len(failed) - len(opened)} of {len(card.results)} criteria pass, {len(failed)} fail, "
        f"{len(opened)} are open.",
        f"{len(card.results)} 項目中、合格 {len(card.results) - len(failed) - len(opened)}、不合格 {len(failed)}、"
        f"未判定 {len(opened)}。",
    )
    return VerdictPart(
        outcome=_OUTCOMES[verdict.decision],
        sentence=(f"{verdict.title[0]}. {counts[0]}", f"{verdict.title[1]}。{counts[1]}"),
        a=verdict.a,
        b=verdict.b,
        certain=verdict.certain,
        reasons=tuple(_because(result) for result in (failed or opened)),
        next=verdict.next_actions,
    )


def _because(result: Result) -> Words:
    name, reason = result.criterion.name, _reason(result)
    return f"{name[0]}: {reason[0]}", f"{name[1]}: {reason[1]}"


def _reason(result: Result) -> Words:
    """With names of figures in place of their ids."""
    english, japanese = result.reason
    for figure_id in (*((result.figure.id,) if result.figure is not None else ()), *result.missing):
        if "*" not in figure_id:
            name = define(figure_id).full_name
            english, japanese = english.replace(figure_id, name[0]), japanese.replace(figure_id, name[1])
    return english, japanese


def criteria_rows(card: Scorecard) -> tuple[CriterionRow, ...]:
    return tuple(_criterion_row(result) for result in card.results)


def _criterion_row(result: Result) -> CriterionRow:
    criterion = result.criterion
    both = set(criterion.patterns) == {"a", "b"}
    return CriterionRow(
        id=criterion.id,
        pattern="both" if both else "A" if "a" in criterion.patterns else "B",
        name=criterion.name,
        threshold=_threshold(criterion, result),
        figure=result.figure.id if result.figure is not None else "",
        state=result.outcome,
        certain=result.certain,
        why=_reason(result),
        next=result.next_action or ("", ""),
    )


def _threshold(criterion: Criterion, result: Result) -> Words:
    enough = (f", n ≥ {criterion.minimal_n}", f"、n ≥ {criterion.minimal_n}") if criterion.minimal_n else ("", "")
    if criterion.operator == "is":
        held = ("yes", "はい") if criterion.value else ("no", "いいえ")
        return held[0] + enough[0], held[1] + enough[1]
    sign = "≥" if criterion.operator == "at_least" else "≤"
    if criterion.value == "n":
        return f"{sign} n{enough[0]}", f"{sign} n{enough[1]}"
    limit = shown(criterion.value, result.figure.unit if result.figure is not None else "")
    return f"{sign} {limit}{enough[0]}", f"{sign} {limit}{enough[1]}"


def thresholds_part(card: Scorecard) -> ThresholdsPart:
    state = card.approval
    approval = None
    if state.approved_at is not None:
        approval = Approval(
            who=state.approved_by,
            when=_moment(state.approved_at),
            why=state.why + (f" (alone: {state.alone})" if state.alone else ""),
            run=state.run_id,
            measured_by=state.measured_by,
        )
    changes = tuple(
        ThresholdChange(
            what=f"{change.criterion}: {change.what}",
            before=change.before or "—",
            after=change.after or "—",
            when="" if state.changed_at is None else _moment(state.changed_at),
        )
        for change in state.changes
    )
    return ThresholdsPart(
        profile=card.profile,
        sha256=card.rules_sha256,
        approval=approval,
        changes=changes,
        by_approved=("", "") if card.by_approved is None else title(card.by_approved),
        problem=state.problem,
        notes=card.notes,
    )


def fault_counts(tallies: Iterable[Tally]) -> tuple[FaultCount, ...]:
    return tuple(
        FaultCount(
            kind=each.kind,
            count=each.count,
            means=MEANINGS[each.kind].what,
            next=MEANINGS[each.kind].next,
            example=each.example,
            spoils=Fault(each.kind).fails,
        )
        for each in tallies
    )


def read_bench(folder: Path) -> Bench | None:
    """The benchmark of a run; None where it has not come so far."""
    try:
        return bench_tables.read_json((folder / "bench.json").read_bytes())
    except FileNotFoundError:
        return None


def gap_remarks(bench: Bench, conditions: evaluation.Conditions | None) -> tuple[tuple[Group, Words], ...]:
    """Where the differences between the places come from."""
    held = None if conditions is None else conditions.held_characters
    return tuple(("speed", explain(gap, bench, held)) for gap in gaps(bench))


def bench_charts(bench: Bench, card: Scorecard | None = None) -> tuple[EcdfChart, ...]:
    """How many requests had their first token, and were done, by when: a chart for each size of answer, at the highest
    parallelism, a curve a place. `card`: whose limits are drawn."""
    charts: list[EcdfChart] = []
    for loop, parallel, rate, tokens in _cells(bench):
        for what, name, criterion in (
            ("ttft", ("Time to first token", "最初のトークンまで"), "first_token"),
            ("total", ("Whole answer", "応答全体"), "whole_answer"),
        ):
            series = tuple(
                Series(_place_words(place), _values(bench, (place, loop, parallel, rate, tokens), what))
                for place in PLACES
            )
            series = tuple(each for each in series if each.values)
            level = f"p{parallel}" if rate is None else f"r{rate:g}"
            loops = field_words("loop", loop), field_words("level", level), field_words("tokens", str(tokens))
            charts.append(
                EcdfChart(
                    id=f"ecdf-{what}-{loop}-{level}-{tokens}",
                    title=(
                        f"{name[0]}: " + ", ".join(words[0] for words in loops),
                        f"{name[1]}: " + "、".join(words[1] for words in loops),
                    ),
                    series=series,
                    threshold=_limit(card, criterion),
                )
            )
    return tuple(charts)


def _cells(bench: Bench) -> list[tuple[str, int, float | None, int]]:
    """(loop, parallel, rate, tokens) of the cells that are drawn."""
    samples = [each for each in bench.samples if each.prompt_wanted is None]
    most = max((each.parallel for each in samples if each.loop == "closed"), default=0)
    drawn = {
        (each.loop, each.parallel, each.rate, each.tokens): None
        for each in samples
        if each.loop == "open" or each.parallel == most
    }
    return list(drawn)


def _values(bench: Bench, cell: tuple[str, str, int, float | None, int], what: str) -> tuple[float, ...]:
    """Seconds; infinite for a request that was no success."""
    found = []
    for each in bench.samples:
        if (each.place, each.loop, each.parallel, each.rate, each.tokens) == cell and each.prompt_wanted is None:
            found.append(_seconds(each, what))
    return tuple(found)


def _seconds(each: Sample, what: str) -> float:
    ms = each.ttft_ms if what == "ttft" else each.total_ms
    return ms / 1e3 if each.ok and ms is not None else float("inf")


def _limit(card: Scorecard | None, criterion_id: str) -> float | None:
    for result in card.results if card is not None else ():
        if result.criterion.id == criterion_id and isinstance(result.criterion.value, float | int):
            return float(result.criterion.value)
    return None


def _place_words(place: str) -> Words:
    return field_words("place", place)


def disagreements(folder: Path) -> tuple[Disagreement, ...]:
    """Where the raters differ, side by side; none while there are no two finished ratings."""
    rubric = RubricFolder(folder)
    try:
        assessment, tasks, answers = assess(rubric), rubric.tasks(), rubric.answers()
    except RequestError:
        return ()
    if assessment.round_due is not None:
        return ()  # the raters are to rate these again, without having seen each other's scores
    prompts = {task.id: task.prompt for task in tasks.all}
    rows = []
    for each in assessment.disagreements:
        answer = answers.get(each.task)
        rows.append(
            Disagreement(
                task=f"{each.task} {each.title}",
                prompt=prompts.get(each.task, ""),
                answer="" if answer is None else answer.text,
                ratings=tuple(_rating(who, score) for who, score in zip(assessment.raters, each.scores, strict=True)),
            )
        )
    return tuple(rows)


def _rating(rater: str, score: Score) -> Rating:
    scores = tuple((_AXES[axis], float(getattr(score, axis)), float(most)) for axis, most in AXES.items())
    return Rating(rater=rater, scores=scores, severe=score.severe, adoptable=score.adoptable, comment=score.note)


def notices(plan: evaluation.Plan, card: Scorecard, conditions: evaluation.Conditions | None) -> tuple[Words, ...]:
    """What a reader must know before the figures."""
    told: list[Words] = []
    if plan.name == "quick":
        told.append(
            (
                "A quick run: fewer requests. It shows that everything works; decide on a full one.",
                "簡易実行です。要求の件数を減らしています。動作確認用であり、採否は完全な実行で判断してください。",
            )
        )
    if conditions is not None:
        told += _busy(conditions)
    if "engine" in plan.places and len(plan.places) > 1:
        told.append(
            (
                "Client, gateway and engine may share this machine's processors; the engine's own figures count for "
                "speed.",
                "測定側・ゲートウェイ・エンジンが同じマシンで動いている場合があります。"
                "速度の判定にはエンジン直接の値を使います。",
            )
        )
    return tuple(told)


def _busy(conditions: evaluation.Conditions) -> list[Words]:
    """What else took the machine's time."""
    told: list[Words] = []
    load, stolen = conditions.before.load_1min, conditions.after.stolen_share
    if stolen is not None and stolen > BUSY_STOLEN_SHARE:
        told.append(
            (
                f"The hypervisor kept {stolen:.0%} of the processor time while speed was measured.",
                f"速度の測定中、プロセッサー時間の {stolen:.0%} がハイパーバイザーに取られていました。",
            )
        )
    if load is not None and load > BUSY_LOAD_PER_THREAD * usable_threads():
        told.append(
            (
                f"The machine was busy when the benchmark began (load {load:.1f}).",
                f"ベンチマーク開始時、マシンは別の処理で混んでいました（負荷 {load:.1f}）。",
            )
        )
    return told


def commands(plan: evaluation.Plan, run: str) -> tuple[Command, ...]:
    return (
        Command(("Measure it all again", "全体をもう一度測る"), plan.command),
        Command(("Go on with this run", "この実行を再開する"), f"sekisho evaluate --resume {run}"),
        Command(("Rate the answers", "回答を採点する"), f"sekisho rubric rate {run} --rater NAME"),
        Command(("Make this report anew", "レポートを作り直す"), f"sekisho evaluate report {run}"),
        Command(("Judge by the thresholds of now", "現在の基準で判定する"), f"sekisho scorecard show {run}"),
        Command(("Check that nothing was changed", "改ざんがないか確かめる"), f"sekisho evaluate verify {run}"),
    )


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
