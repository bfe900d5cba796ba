"""Is B as good as A? Both are asked in turn, block by block, and judged against margins that were set before.

`run_comparison` asks; `compare_runs` takes two runs that are over. What a plan is: `compare_plan`. How it is judged:
`compare_verdict`. The rest here is how a result becomes figures and a chart.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.comparison import compare_words
from sekisho.evaluate.comparison.compare_plan import (
    DEFAULT_MARGINS,
    LEAST_BLOCKS,
    SPEEDS,
    BlockResult,
    ComparePlan,
    Item,
    Margin,
    Observation,
    Speed,
    check_arms,
    check_margins,
    is_speed,
    schedule,
)
from sekisho.evaluate.comparison.compare_plan import Unit as Counted
from sekisho.evaluate.comparison.compare_verdict import Data, MetricResult, Pair, SpeedData, judge, surely_failed
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.paired import Decision, log_ratio
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.statistics import pairs_for_margin
from sekisho.evaluate.verdict.criterion import Words

Ask = Callable[[str, Item], Awaitable[Observation]]
"""Asks one arm, by its label, one item. A failed request is an observation; what it raises ends the comparison."""
Keep = Callable[[BlockResult], Awaitable[None]]
"""Takes a finished block and returns when it is safe."""

_UNITS: dict[Speed, Unit] = {"ttft": "ms", "total": "ms", "tok_s": "tok/s"}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on B, `arms[1]`, against A. `interleaved` False: two runs one after the other, which judges no speed
    and has no `plan_sha256`. `stopped_early`: B had surely failed before the last block."""

    arms: tuple[str, str]
    verdict: Decision
    reasons: tuple[Words, ...]
    metrics: tuple[MetricResult, ...]
    interleaved: bool
    gates_ok: bool
    blocks: int = 0
    blocks_planned: int = 0
    stopped_early: bool = False
    plan_sha256: str = ""


class ForestRow(msgspec.Struct, frozen=True):
    """A metric on the common scale: B's advantage as a share (0.1: 10 % better, or 10 points), to the right is better,
    the limit is at −`margin`."""

    metric: str
    name: Words
    estimate: float
    low: float
    high: float
    margin: float
    verdict: Decision


class Sample(msgspec.Struct, frozen=True):
    """One request of a finished run; `prompt` is the id by which two runs are matched."""

    prompt: str
    observation: Observation


def shortfalls(plan: ComparePlan) -> tuple[Words, ...]:
    """What this plan cannot show however well B does: to be told before the first request."""
    told: list[Words] = []
    if plan.blocks < LEAST_BLOCKS and any(is_speed(margin.metric) for margin in plan.margins):
        told.append(compare_words.few_blocks(LEAST_BLOCKS, plan.blocks))
    for margin in plan.margins:
        unit: Counted = "pairs"
        needed, there = pairs_for_margin(margin.value, 0.0), 2 * plan.blocks
        if margin.metric == "correct":
            judged = sum(bool(item.expected) for item in plan.items) or len(plan.items)
            unit, there = "items", min(judged, there * judged // len(plan.items))
        if not is_speed(margin.metric) and there < needed:
            told.append(compare_words.few_pairs(margin.metric, margin.value, unit, needed, there))
    return tuple(told)


async def run_comparison(
    plan: ComparePlan,
    ask: Ask,
    progress: Progress = silent,
    *,
    finished: Sequence[BlockResult] = (),
    keep: Keep | None = None,
    gates_ok: bool = True,
) -> Comparison:
    """Asks what is left of the plan, one request at a time, and judges all of it.

    `finished`: blocks of this plan from before an interruption, of which none is asked again. Raises InvalidRequest if
    they belong to another plan.
    """
    blocks = schedule(plan)
    done = {result.block.index: result for result in finished}
    if len(done) != len(finished) or any(result.block not in blocks for result in finished):
        raise InvalidRequest("These finished blocks belong to another plan. Start a new comparison.", param="finished")
    items = {item.id: item for item in plan.items}
    label = {"A": plan.arms[0], "B": plan.arms[1]}
    warm = False
    for block in blocks:
        if plan.stop_early and surely_failed(_data(plan, done, gates_ok)):
            break
        if block.index in done:
            continue
        if not warm:
            for item in (plan.items * plan.warmups)[: plan.warmups]:
                for arm in plan.arms:
                    await ask(arm, item)
            warm = True
        progress("compare", len(done), len(blocks))
        seen = [await ask(label[arm], items[item]) for arm, item in block.requests()]
        result = BlockResult(block, (seen[0], seen[1], seen[2], seen[3]))
        if keep is not None:
            await keep(result)
        done[block.index] = result
    progress("compare", len(done), len(blocks))
    return _concluded(plan, done, gates_ok)


def _concluded(plan: ComparePlan, done: Mapping[int, BlockResult], gates_ok: bool) -> Comparison:
    judged = judge(_data(plan, done, gates_ok))
    early = len(done) < plan.blocks
    reasons = (*judged.reasons, compare_words.stopped_early(len(done), plan.blocks)) if early else judged.reasons
    return Comparison(
        arms=plan.arms,
        verdict=judged.verdict,
        reasons=reasons,
        metrics=judged.metrics,
        interleaved=True,
        gates_ok=gates_ok,
        blocks=len(done),
        blocks_planned=plan.blocks,
        stopped_early=early,
        plan_sha256=plan.sha256,
    )


def _data(plan: ComparePlan, done: Mapping[int, BlockResult], gates_ok: bool) -> Data:
    blocks = [done[index].pairs() for index in sorted(done)]
    speeds = {speed: _speed_data(speed, [[(a, b) for _, a, b in block] for block in blocks]) for speed in SPEEDS}
    return Data(
        arms=plan.arms,
        margins=plan.margins,
        seed=plan.seed,
        pairs=tuple(Pair(item, a, b) for block in blocks for item, a, b in block),
        speeds=speeds,
        speed_unit="blocks",
        gates_ok=gates_ok,
    )


def _speed_data(speed: Speed, units: Sequence[Sequence[tuple[Observation, Observation]]]) -> SpeedData:
    """A unit (a block, a prompt) has a ratio only where each of its requests has the figure."""
    log_ratios: list[float | None] = []
    every: tuple[list[float], list[float]] = ([], [])
    for unit in units:
        values = [(a.speed(speed), b.speed(speed)) for a, b in unit]
        ones, others = [a for a, _ in values if a is not None], [b for _, b in values if b is not None]
        every[0].extend(ones)
        every[1].extend(others)
        log_ratios.append(log_ratio(ones, others) if len(ones) == len(others) == len(unit) else None)
    return SpeedData(tuple(log_ratios), tuple(every[0]), tuple(every[1]))


def compare_runs(
    samples_a: Sequence[Sample],
    samples_b: Sequence[Sample],
    *,
    arms: tuple[str, str],
    margins: tuple[Margin, ...] = DEFAULT_MARGINS,
    seed: int = 1,
    gates_ok: bool = True,
) -> Comparison:
    """Judges two finished runs of the same prompts. Success and correctness are paired by prompt, in the order in which
    a prompt was asked; speed is told but never judged, because the machine may have changed between the runs.

    Raises InvalidRequest for runs without a common prompt.
    """
    check_arms(arms)
    check_margins(margins)
    of_a, of_b = _by_prompt(samples_a), _by_prompt(samples_b)
    common = [prompt for prompt in of_a if prompt in of_b]
    if not common:
        raise InvalidRequest(
            "The two runs share no prompt, so nothing can be paired. Run both with the same task set.", param="samples"
        )
    matched = {prompt: list(zip(of_a[prompt], of_b[prompt], strict=False)) for prompt in common}
    judged = judge(
        Data(
            arms=arms,
            margins=margins,
            seed=seed,
            pairs=tuple(Pair(prompt, a, b) for prompt, pairs in matched.items() for a, b in pairs),
            speeds={speed: _speed_data(speed, list(matched.values())) for speed in SPEEDS},
            speed_unit="prompts",
            gates_ok=gates_ok,
            interleaved=False,
        )
    )
    reasons = judged.reasons
    if any(is_speed(margin.metric) for margin in margins):
        reasons = (*reasons, compare_words.drift())
    alone = len(of_a.keys() ^ of_b.keys())
    if alone:
        reasons = (*reasons, compare_words.unmatched(alone))
    return Comparison(
        arms=arms,
        verdict=judged.verdict,
        reasons=reasons,
        metrics=judged.metrics,
        interleaved=False,
        gates_ok=gates_ok,
    )


def _by_prompt(samples: Sequence[Sample]) -> dict[str, list[Observation]]:
    found: dict[str, list[Observation]] = {}
    for sample in samples:
        found.setdefault(sample.prompt, []).append(sample.observation)
    return found


def forest(comparison: Comparison) -> tuple[ForestRow, ...]:
    """What a forest plot shows; metrics without an interval are not in it."""
    rows = []
    for result in comparison.metrics:
        interval = result.advantage_interval
        if interval is not None and result.estimate is not None:
            middle = result.advantage(result.estimate)
            name = compare_words.NAMES[result.metric]
            row = ForestRow(result.metric, name, middle, interval.low, interval.high, result.margin, result.verdict)
            rows.append(row)
    return tuple(rows)


def figures(comparison: Comparison, *, command: str = "", file: str = "") -> tuple[Figure, ...]:
    """`compare.adopt`, and for each metric `compare.<metric>.ratio` or `.difference`, `.limit`, `.a`, `.b`,
    `.p_difference`, `.p_worse`, `.adopt` and, where pairs are what is missing, `.pairs_needed`."""
    found = [_adopt("compare", comparison.verdict, comparison.reasons[0][0])]
    if comparison.interleaved:
        found.append(Figure(id="compare.blocks", value=comparison.blocks, unit="count"))
    for result in comparison.metrics:
        found.extend(_metric_figures(result))
    return tuple(msgspec.structs.replace(figure, command=command, file=file) for figure in found)


def _adopt(prefix: str, verdict: Decision, why: str) -> Figure:
    """True, False, or None for `limited`."""
    value = {"adopt": True, "reject": False, "limited": None}[verdict]
    return Figure(id=f"{prefix}.adopt", value=value, why_null="" if verdict != "limited" else why, note=verdict)


def _metric_figures(result: MetricResult) -> list[Figure]:
    at = f"compare.{result.metric}"
    unit: Unit = _UNITS[result.metric] if is_speed(result.metric) else "share"
    scale: Unit = "ratio" if result.kind == "ratio" else "share"
    why = result.reasons[0][0] if result.estimate is None else ""
    missing = "" if result.interval or result.estimate is None else f"too few {result.unit}: {result.n}"
    found = [
        Figure(
            id=f"{at}.{result.kind}",
            value=result.estimate,
            unit=scale,
            n=result.n,
            interval=result.interval,
            interval_missing=missing,
            why_null=why,
            note=f"B against A; counted in {result.unit}, {result.left_out} left out",
        ),
        Figure(id=f"{at}.limit", value=result.limit, unit=scale),
    ]
    for name, arm in (("a", result.a), ("b", result.b)):
        figure = Figure(id=f"{at}.{name}", value=arm.value, unit=unit, n=arm.n, interval=arm.interval)
        found.append(msgspec.structs.replace(figure, why_null="no value was measured" if arm.value is None else ""))
    if result.estimate is not None:
        found.append(Figure(id=f"{at}.p_difference", value=result.p_difference, n=result.n, note="Holm"))
        found.append(Figure(id=f"{at}.p_worse", value=result.p_worse, n=result.n, note="Holm"))
    if result.pairs_needed is not None:
        found.append(Figure(id=f"{at}.pairs_needed", value=result.pairs_needed, unit="count"))
    found.append(_adopt(at, result.verdict, result.reasons[-1][0]))
    return found
