"""From observations to a verdict: for each metric an interval against the margin that was set before, then one word.

Everything is put on one scale, B's advantage: the share of A's time that B saves, of A's speed that it adds, or the
difference of two shares. The limit is then −margin for each metric.

    adopt     every metric: the whole interval lies above −margin. All must hold, which needs no correction.
    reject    some metric: the whole interval lies below −margin, also after Holm's correction for their number.
    limited   anything else, with what is missing.
"""

from collections.abc import Sequence
from math import ceil, fsum, log
from typing import Literal

import msgspec

from sekisho.evaluate.comparison import compare_words as words
from sekisho.evaluate.comparison.compare_plan import LEAST_BLOCKS, Margin, Metric, Observation, Speed, Unit, is_speed
from sekisho.evaluate.figures import Interval
from sekisho.evaluate.paired import (
    E_VALUE_STOP,
    Decision,
    SubsetMeans,
    block_ratio,
    e_value,
    holm,
    mcnemar,
    non_inferiority,
    p_worse_than,
    score_interval,
)
from sekisho.evaluate.statistics import LEVEL, median, pairs_for_margin, pairs_for_ratio, share_interval
from sekisho.evaluate.verdict.criterion import Words

LEFT_OUT_SHARE = 0.05
"""More blocks or pairs without a figure than this, and what is left may be the easy part: no `adopt`."""
_HOPELESS = 100_000


class Pair(msgspec.Struct, frozen=True):
    """Both arms on one item."""

    item: str
    a: Observation
    b: Observation


class SpeedData(msgspec.Struct, frozen=True):
    """`log_ratios`: B against A in each block (or on each prompt); None where one of its requests has no figure.
    `a`, `b`: all measured values of each arm."""

    log_ratios: tuple[float | None, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What was observed, ready to be judged. `speed_unit`: what a log-ratio belongs to."""

    arms: tuple[str, str]
    margins: tuple[Margin, ...]
    seed: int
    pairs: tuple[Pair, ...]
    speeds: dict[Speed, SpeedData]
    speed_unit: Literal["blocks", "prompts"]
    gates_ok: bool = True
    interleaved: bool = True


class ArmValue(msgspec.Struct, frozen=True):
    """One arm alone: median (ms, tok/s) or share, of `n` requests, pairs or items."""

    value: float | None
    n: int
    interval: Interval | None


class MetricResult(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. `estimate` and `interval` are the ratio B/A (times, speeds) or the difference B − A (shares); `limit`
    is where, on that scale, too much worse begins. `n` counts `unit`s, `left_out` those without a figure. `spread`:
    standard deviation of the log-ratios, or the share of pairs in which the arms differ.

    `only_b`, `only_a`: pairs that one arm alone got right. p-values are Holm's over all metrics: `p_difference` of any
    difference, `p_worse` of one beyond the margin. `pairs_needed`: where pairs are what is missing.
    """

    metric: Metric
    kind: Literal["ratio", "difference"]
    unit: Unit
    verdict: Decision = "limited"
    margin: float
    limit: float
    better: Literal["lower", "higher"]
    n: int
    left_out: int
    a: ArmValue
    b: ArmValue
    estimate: float | None = None
    interval: Interval | None = None
    bootstrap: Interval | None = None
    spread: float | None = None
    only_b: int | None = None
    only_a: int | None = None
    e_value: float | None = None
    p_difference: float = 1.0
    p_worse: float = 1.0
    pairs_needed: int | None = None
    reasons: tuple[Words, ...] = ()

    def advantage(self, value: float) -> float:
        """A value on the scale of `estimate` as B's advantage; the limit becomes −margin."""
        if self.kind == "difference":
            return value
        return 1 - value if self.better == "lower" else value - 1

    @property
    def advantage_interval(self) -> Interval | None:
        if self.interval is None:
            return None
        low, high = sorted((self.advantage(self.interval.low), self.advantage(self.interval.high)))
        return msgspec.structs.replace(self.interval, low=low, high=high)


class Judged(msgspec.Struct, frozen=True):
    verdict: Decision
    metrics: tuple[MetricResult, ...]
    reasons: tuple[Words, ...]


def judge(data: Data) -> Judged:
    """Pure: the same observations give the same verdict."""
    measured = [_measured(margin, data) for margin in data.margins]
    differences = holm([result.p_difference for result in measured])
    worse = holm([result.p_worse for result in measured])
    results = tuple(
        _decided(msgspec.structs.replace(result, p_difference=p_difference, p_worse=p_worse), data)
        for result, p_difference, p_worse in zip(measured, differences, worse, strict=True)
    )
    verdicts = {result.verdict for result in results}
    verdict: Decision = "limited"
    if "reject" in verdicts:
        verdict = "reject"
    elif verdicts == {"adopt"}:
        verdict = "adopt"
    which = tuple(result.metric for result in results if result.verdict == verdict)
    return Judged(verdict, results, words.overall(verdict, data.arms, which, data.gates_ok))


def surely_failed(data: Data) -> bool:
    """B is rejected, and an e-value, at which one may look after every block, shows it behind on success or on
    correctness (of each item's first answer)."""
    judged = {margin.metric for margin in data.margins}
    for metric in ("success", "correct"):
        only_b, only_a = _discordant(_outcomes(data.pairs, metric, repeats=metric == "success"))
        if metric in judged and only_a > only_b and e_value(only_b, only_a) >= E_VALUE_STOP:
            return judge(data).verdict == "reject"
    return False


def _measured(margin: Margin, data: Data) -> MetricResult:
    """All but the verdict; the p-values are not yet Holm's."""
    metric = margin.metric
    if is_speed(metric):
        return _measured_speed(metric, margin.value, data.speeds[metric], data)
    return _measured_share(metric, margin.value, data.pairs)


def _measured_speed(metric: Speed, margin: float, speed: SpeedData, data: Data) -> MetricResult:
    lower = metric != "tok_s"
    limit = 1 + margin if lower else 1 - margin
    logs = [value for value in speed.log_ratios if value is not None]
    of_a, of_b = median(speed.a), median(speed.b)
    result = MetricResult(
        metric=metric,
        kind="ratio",
        unit=data.speed_unit,
        margin=margin,
        limit=limit,
        better="lower" if lower else "higher",
        n=len(logs),
        left_out=len(speed.log_ratios) - len(logs),
        a=ArmValue(of_a.value, of_a.n, of_a.interval),
        b=ArmValue(of_b.value, of_b.n, of_b.interval),
    )
    if not logs:
        return result
    ratio = block_ratio(logs, seed=data.seed)
    sign = -1 if lower else 1
    gains = SubsetMeans([sign * value for value in logs], data.seed)
    return msgspec.structs.replace(
        result,
        estimate=ratio.value,
        interval=ratio.interval,
        bootstrap=ratio.bootstrap,
        spread=ratio.log_sd,
        p_difference=gains.p_other_than(0.0),
        p_worse=gains.p_below(sign * log(limit)),
    )


def _measured_share(metric: Metric, margin: float, pairs: Sequence[Pair]) -> MetricResult:
    """Success counts every pair: it is the server that fails. Correctness counts every item once, with the mean of its
    answers: to ask an item again tells nothing new about other items."""
    outcomes = _outcomes(pairs, metric)
    per_pair = metric == "success"
    units = list(outcomes.values())
    if per_pair:
        units = [[pair] for unit in units for pair in unit]
    means = [(_mean([a for a, _ in unit]), _mean([b for _, b in unit])) for unit in units]
    n = len(means)
    wins = fsum(max(0.0, b - a) for a, b in means)
    losses = fsum(max(0.0, a - b) for a, b in means)
    only_b, only_a = sum(b > a for a, b in means), sum(a > b for a, b in means)
    return MetricResult(
        metric=metric,
        kind="difference",
        unit="pairs" if per_pair else "items",
        margin=margin,
        limit=-margin,
        better="higher",
        n=n,
        left_out=len(pairs) - n if per_pair else len({pair.item for pair in pairs if _is_judged(pair)}) - n,
        a=_arm_share([a for a, _ in means]),
        b=_arm_share([b for _, b in means]),
        estimate=(wins - losses) / n if n else None,
        interval=score_interval(wins, losses, n),
        spread=(wins + losses) / n if n else None,
        only_b=only_b,
        only_a=only_a,
        e_value=e_value(only_b, only_a),
        p_difference=mcnemar(only_b, only_a),
        p_worse=p_worse_than(wins, losses, n, margin),
    )


def _outcomes(pairs: Sequence[Pair], metric: Metric, repeats: bool = True) -> dict[str, list[tuple[bool, bool]]]:
    """(A, B) by item. A failed answer to an item that is judged is a wrong one."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for pair in pairs:
        if metric == "success":
            found.setdefault(pair.item, []).append((pair.a.ok, pair.b.ok))
            continue
        a, b = (seen.correct if seen.ok else False for seen in (pair.a, pair.b))
        if _is_judged(pair) and a is not None and b is not None and (repeats or pair.item not in found):
            found.setdefault(pair.item, []).append((a, b))
    return found


def _is_judged(pair: Pair) -> bool:
    """Some items are there for speed alone; nobody says whether their answers are right."""
    return any(seen.ok and seen.correct is not None for seen in (pair.a, pair.b))


def _discordant(outcomes: dict[str, list[tuple[bool, bool]]]) -> tuple[int, int]:
    every = [pair for unit in outcomes.values() for pair in unit]
    return sum(b and not a for a, b in every), sum(a and not b for a, b in every)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _arm_share(means: Sequence[float]) -> ArmValue:
    """With an interval where each mean is of one answer."""
    whole = all(mean in (0.0, 1.0) for mean in means)
    interval = share_interval(int(sum(means)), len(means)) if whole else None
    return ArmValue(fsum(means) / len(means) if means else None, len(means), interval)


def _decided(result: MetricResult, data: Data) -> MetricResult:
    """With its verdict, its reasons and, where they are what is missing, the pairs needed."""
    interval = result.advantage_interval
    if result.estimate is None:
        return msgspec.structs.replace(result, reasons=(words.nothing(result.metric),))
    reasons = [words.figure(result.metric, result.estimate, result.interval, result.limit, result.n, result.unit)]
    decision = non_inferiority(interval, result.margin, data.gates_ok)
    needed = None
    straddles = interval is None or interval.low <= -result.margin <= interval.high
    if straddles and (result.kind == "difference" or data.interleaved):
        needed, near = _needed(result)
        have = result.n * (2 if result.unit == "blocks" else 1)
        reasons.append(
            words.too_few(result.margin, have, "pairs" if result.unit == "blocks" else result.unit, needed, near)
        )
    elif decision == "limited" and not data.gates_ok:
        reasons.append(words.gates())
    every = result.n + result.left_out
    if result.left_out > LEFT_OUT_SHARE * every:
        decision = "limited" if decision == "adopt" else decision
        reasons.append(words.left_out(result.left_out, every, result.unit))
    if decision == "reject" and result.p_worse > (1 - LEVEL) / 2:
        decision = "limited"
        reasons.append(words.not_after_holm(len(data.margins)))
    if result.kind == "ratio" and not data.interleaved:
        decision = "limited"
        reasons.append(words.drift())
    return msgspec.structs.replace(result, verdict=decision, pairs_needed=needed, reasons=tuple(reasons))


def _needed(result: MetricResult) -> tuple[int | None, bool]:
    """How many pairs would do, and whether that is because the estimate lies near the limit.

    First as if both arms were equal; if there are that many already, then from the distance that was seen. None: no
    number that anyone would wait for.
    """
    if result.kind == "ratio":
        each = 2 if result.unit == "blocks" else 1
        have = result.n * each
        spread = result.spread if result.spread is not None else 0.0
        equal = max(LEAST_BLOCKS, pairs_for_ratio(result.limit, spread)) * each
        distance = abs(log((result.estimate or 1.0) / result.limit)) / abs(log(result.limit))
    else:
        have = result.n
        discordant = ((result.spread or 0.0) * have + 0.5) / (have + 1)
        equal = pairs_for_margin(result.margin, discordant)
        distance = abs((result.estimate or 0.0) - result.limit) / result.margin
    if have < equal:
        return equal, False
    needed = ceil(equal / distance**2) if distance > 0 else _HOPELESS + 1
    return (max(needed, have + 1) if needed <= _HOPELESS else None), True
