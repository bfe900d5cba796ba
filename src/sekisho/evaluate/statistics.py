"""What can be said about one series of numbers: quantiles, shares and agreement, with intervals that assume no shape.

An interval is missing where the numbers are too few for it, and `needed` says how many would do.
Two series that belong together are in `paired`, a 2^k ablation in `factorial`.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from math import ceil, isfinite, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from sekisho.core.wilson import wilson
from sekisho.evaluate.figures import Interval

LEVEL = 0.95
POWER = 0.80
TAIL_FLOOR = 80
"""A tail quantile (beyond P10 and P90) gets an interval from this many successes on: from 72 to 79 the interval of P95
would end at the slowest request of all."""
_CENTRE = (10.0, 90.0)
Label = TypeVar("Label", bound=Hashable)


class Quantile(msgspec.Struct, frozen=True):
    """A percentile of `n` values. `interval` None: fewer values than `needed`; `interval_missing` says it in words."""

    percent: float
    value: float | None
    n: int
    needed: int
    interval: Interval | None

    @property
    def interval_missing(self) -> str:
        if self.interval is not None:
            return ""
        return f"an interval for P{self.percent:g} needs at least {self.needed} values, not {self.n}"


class Agreement(msgspec.Struct, frozen=True):
    """How far two raters agree on the same `n` items.

    `share`: of the items on which they agree; `by_chance`: the share that two raters with these habits, rating
    blindly, would agree on. `kappa` (Cohen 1960) and `kappa_weighted` (quadratic, Cohen 1968; None for labels that are
    no numbers) are 0 by chance and 1 in full agreement; None where chance alone agrees fully.
    """

    n: int
    agreed: int
    share: float | None
    interval: Interval | None
    by_chance: float | None
    kappa: float | None
    kappa_weighted: float | None


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Nearest rank: the smallest value with at least `percent` % of all values at or below it. None without values.

    It is always one of the values; the median of an even number is the lower of the two in the middle.
    """
    ordered = sorted(values)
    if not 0 < percent <= 100:
        raise ValueError(f"percent is above 0 and at most 100, not {percent}")
    return ordered[_rank(len(ordered), percent) - 1] if ordered else None


def _rank(count: int, percent: float) -> int:
    return max(1, ceil(round(count * percent / 100, 9)))


def quantile(values: Iterable[float], percent: float, level: float = LEVEL, floor: int | None = None) -> Quantile:
    """The nearest-rank percentile with its distribution-free interval between two order statistics.

    Each end is wrong with probability (1 − level)/2 at most, whatever the distribution (David & Nagaraja, Order
    Statistics, 7.1). `floor`: the least number of values, `TAIL_FLOOR` in the tails and none in the centre.
    """
    if not 0 < percent < 100:
        raise ValueError(f"percent is between 0 and 100, not {percent}")
    ordered = sorted(values)
    count = len(ordered)
    if floor is None:
        floor = 0 if _CENTRE[0] <= percent <= _CENTRE[1] else TAIL_FLOOR
    needed = max(floor, smallest_n(percent, level))
    interval = None
    if count >= needed:
        low, high = _order_ranks(count, percent / 100, level)
        interval = Interval(ordered[low - 1], ordered[high - 1], "order statistics", level)
    return Quantile(percent, percentile(ordered, percent), count, needed, interval)


def median(values: Iterable[float], level: float = LEVEL) -> Quantile:
    """P50; its interval exists from 6 values on."""
    return quantile(values, 50, level)


def smallest_n(percent: float, level: float = LEVEL) -> int:
    """How many values a distribution-free interval needs: 72 for P95, 368 for P99, 6 for the median, at 95 %."""
    side = max(percent, 100 - percent) / 100
    return ceil(round(log((1 - level) / 2) / log(side), 9))


@lru_cache(maxsize=256)
def _order_ranks(count: int, share: float, level: float) -> tuple[int, int]:
    """Ranks (from 1) of the interval's ends: B values lie below the quantile, B binomial."""
    tail = (1 - level) / 2
    below = binomial_cdf(count, share)
    low = int(np.searchsorted(below, tail, side="right"))  # P(B < low) = below[low - 1] <= tail
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1  # P(B >= high) = 1 - below[high - 1] <= tail
    return max(1, low), min(count, high)


def binomial_cdf(count: int, share: float) -> npt.NDArray[np.float64]:
    """P(B <= k) for k = 0 … count, 0 < share < 1."""
    k = np.arange(count + 1)
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    logs = factorials[-1] - factorials - factorials[::-1] + k * log(share) + (count - k) * log1p(-share)
    cumulative: npt.NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return cumulative


def share_interval(hits: int, count: int, level: float = LEVEL) -> Interval | None:
    """The Wilson score interval of `hits` in `count`; None where nothing was counted."""
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is no share")
    return Interval(*wilson(hits, count, normal_quantile((1 + level) / 2)), "wilson", level) if count else None


def exact_share_interval(hits: int, count: int, level: float = LEVEL) -> Interval | None:
    """The Clopper–Pearson interval: never too narrow, wider than Wilson's."""
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is no share")
    if not count:
        return None
    tail = (1 - level) / 2
    high = 1 - _exact_low(count - hits, count, tail)
    return Interval(_exact_low(hits, count, tail), high, "clopper-pearson", level)


def highest_rate(failures: int, count: int, level: float = LEVEL) -> float | None:
    """One-sided exact bound: with `failures` seen in `count`, the true rate is below it at this confidence.

    Without a failure it is 1 − (1 − level)^(1/count), the exact form of the rule of three (3/count).
    """
    if not 0 <= failures <= count:
        raise ValueError(f"{failures} of {count} is no share")
    return 1 - _exact_low(count - failures, count, 1 - level) if count else None


def _exact_low(hits: int, count: int, tail: float) -> float:
    """The share at which `hits` or more of `count` have the probability `tail`: by bisection."""
    if hits == 0:
        return 0.0
    if hits == count:
        return float(tail ** (1 / count))
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - binomial_cdf(count, middle)[hits - 1] < tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def ecdf(values: Iterable[float], at_most: int = 200) -> tuple[tuple[float, float], ...]:
    """Steps `(x, share of values <= x)` for a chart, thinned to `at_most` points.

    With m = (at_most − 2) / 2, no dropped step is more than 1/m of the height above the drawn line or more than 1/m of
    the width away from the next drawn step.
    """
    if at_most < 4:
        raise ValueError(f"a line needs at least 4 points, not {at_most}")
    xs, counts = np.unique(np.fromiter(values, dtype=float), return_counts=True)
    if not xs.size:
        return ()
    shares = np.cumsum(counts) / counts.sum()
    if xs.size > at_most:
        marks = (at_most - 2) // 2
        by_height = np.searchsorted(shares, np.linspace(0, 1, marks + 1)[1:] - 1e-12)
        edges = np.linspace(xs[0], xs[-1], marks + 1)[:-1]
        by_width = np.searchsorted(xs, edges, side="right") - 1
        kept = np.unique(np.concatenate(([0, xs.size - 1], by_height, by_width)))
        xs, shares = xs[kept], shares[kept]
    return tuple(zip(xs.tolist(), shares.tolist(), strict=True))


def agreement(first: Sequence[Label], second: Sequence[Label], within: float = 0) -> Agreement:
    """Agreement of two raters on the same items, in the same order. `within`: numbers this far apart count as agreed,
    for `share` and `by_chance`; the kappas do not depend on it. Raises ValueError for unequal lengths."""
    if len(first) != len(second):
        raise ValueError(f"two raters of the same items: {len(first)} and {len(second)} ratings")
    count = len(first)
    if not count:
        return Agreement(0, 0, None, None, None, None, None)
    pairs = Counter(zip(first, second, strict=True))
    ones, others = Counter(first), Counter(second)
    blind = {(a, b): ones[a] * others[b] / count**2 for a in ones for b in others}
    agreed = sum(times for (a, b), times in pairs.items() if _close(a, b, within))
    by_chance = sum(weight for (a, b), weight in blind.items() if _close(a, b, within))
    numeric = all(isinstance(label, int | float) and isfinite(label) for label in {*ones, *others})

    def kappa(distance: "list[tuple[Label, Label, float]]") -> float | None:
        seen = sum(pairs[a, b] / count * far for a, b, far in distance)
        expected = sum(blind.get((a, b), 0.0) * far for a, b, far in distance)
        return None if expected < 1e-12 else 1 - seen / expected

    return Agreement(
        n=count,
        agreed=agreed,
        share=agreed / count,
        interval=share_interval(agreed, count),
        by_chance=by_chance,
        kappa=kappa([(a, b, float(a != b)) for a, b in blind]),
        kappa_weighted=kappa([(a, b, float(a - b) ** 2) for a, b in blind]) if numeric else None,  # type: ignore[operator]
    )


def _close(one: object, other: object, within: float) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= within
    return one == other


def pairs_for_share(difference: float, discordant: float, power: float = POWER, level: float = LEVEL) -> int:
    """Pairs needed to see a `difference` of two shares when a share `discordant` of pairs differs (Connor 1987)."""
    if not 0 < difference <= discordant <= 1:
        raise ValueError(f"a difference of {difference} with {discordant} discordant is not possible")
    spread = normal_quantile((1 + level) / 2) * sqrt(discordant)
    spread += normal_quantile(power) * sqrt(discordant - difference**2)
    return ceil((spread / difference) ** 2)


def pairs_for_margin(margin: float, discordant: float, power: float = POWER, level: float = LEVEL) -> int:
    """Pairs needed to show that B is no worse by `margin` when both arms are equal and a share `discordant` of pairs
    differs. Never below z²(1 − margin)/margin, which a score interval needs even if no pair differs."""
    if not 0 < margin < 1 or not 0 <= discordant <= 1:
        raise ValueError(f"no number of pairs shows a margin of {margin} at {discordant} discordant")
    z = normal_quantile((1 + level) / 2)
    return ceil(max(z * z * (1 - margin) / margin, (z + normal_quantile(power)) ** 2 * discordant / margin**2))


def pairs_for_ratio(ratio: float, log_sd: float, power: float = POWER, level: float = LEVEL) -> int:
    """Pairs needed to see a `ratio` other than 1 when the pairs' log-ratios have the standard deviation `log_sd`."""
    if ratio <= 0 or ratio == 1 or log_sd < 0:
        raise ValueError(f"no number of pairs tells a ratio of {ratio} at a log-sd of {log_sd}")
    both = normal_quantile((1 + level) / 2) + normal_quantile(power)
    return max(1, ceil((both * log_sd / log(ratio)) ** 2))


def normal_quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)


def log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
