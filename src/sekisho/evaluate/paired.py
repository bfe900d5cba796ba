"""Two arms on the same items: how large is the difference, and is B no worse than A by more than a margin?

    right or wrong   McNemar (mid-p), Tango's score interval; while it runs: an e-value
    numbers          paired bootstrap over clusters
    ratios           log-ratios of interleaved blocks, means of subsets (exact), bootstrap over blocks
    many metrics     Holm

All random numbers come from a seed: the same data give the same answer.
"""

from collections.abc import Hashable, Sequence
from math import exp, inf, log, sqrt
from statistics import NormalDist
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from sekisho.control import subset_means
from sekisho.control.subset_means import RESAMPLES
from sekisho.evaluate.figures import Interval
from sekisho.evaluate.statistics import LEVEL, binomial_cdf, log_beta, normal_quantile

Decision = Literal["adopt", "reject", "limited"]
Floats = npt.NDArray[np.float64]

E_VALUE_STOP = 20.0
"""Reached by chance with probability 1/20 at most, however often one looks (Ville's inequality)."""
_CHUNK = 4_000_000


class Difference(msgspec.Struct, frozen=True):
    """A mean of differences B − A over `n` items in `clusters` clusters. `interval` None: less than two clusters."""

    value: float
    n: int
    clusters: int
    interval: Interval | None


class BlockRatio(msgspec.Struct, frozen=True):
    """The ratio B/A (geometric mean) over `n` blocks. `interval` is exact for symmetric log-ratios, which is what
    a random order within the blocks makes them, and exists from 6 blocks on; `bootstrap` is percentile bootstrap, too
    narrow below some 20 blocks. `log_sd`: standard deviation of the blocks' log-ratios, None for one block."""

    value: float
    n: int
    log_sd: float | None
    interval: Interval | None
    bootstrap: Interval | None


class SubsetMeans(subset_means.SubsetMeans):
    """With its bounds as an interval of the report."""

    def interval(self, level: float = LEVEL) -> Interval | None:
        """None where even the two outermost means hold less than `level`: below 6 values at 95 %."""
        bounds = self.bounds(level)
        return None if bounds is None else Interval(*bounds, "subset means", level)


def bootstrap_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Mean of `second` − `first`, paired by place, with a percentile bootstrap interval.

    `clusters`: what each pair belongs to (its prompt, its conversation); whole clusters are drawn, so that answers to
    one prompt do not count as independent. Not for shares: without any difference it is [0, 0] at any n; see
    `score_interval`. Raises ValueError for unequal lengths or no pairs.
    """
    labels = list(clusters) if clusters is not None else list(range(len(first)))
    if not len(first) == len(second) == len(labels) or not labels:
        raise ValueError(f"pairs: {len(first)} and {len(second)} values, {len(labels)} clusters")
    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    member = np.fromiter((places[label] for label in labels), dtype=np.intp)
    sums = np.bincount(member, weights=differences).astype(np.float64)
    sizes = np.bincount(member).astype(np.float64)
    value = float(differences.mean())
    if len(places) < 2:
        return Difference(value, len(labels), len(places), None)
    drawn = _resampled(sums, sizes, resamples, np.random.default_rng(seed))
    return Difference(value, len(labels), len(places), _percentile_interval(drawn, level))


def _resampled(sums: Floats, sizes: Floats, resamples: int, random: np.random.Generator) -> Floats:
    """Sum of sums over sum of sizes, for each draw of as many clusters with replacement."""
    rows = max(1, _CHUNK // sums.size)
    drawn = []
    for start in range(0, resamples, rows):
        picks = random.integers(0, sums.size, (min(rows, resamples - start), sums.size))
        drawn.append(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1))
    return np.concatenate(drawn)


def _percentile_interval(drawn: Floats, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high), "bootstrap", level)


def log_ratio(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The mean log of `second` minus that of `first`: one block A B B A, in which a steady drift cancels. None where a
    value is missing on either side or is not above zero."""
    if not first or len(first) != len(second) or min(*first, *second) <= 0:
        return None
    return sum(map(log, second)) / len(second) - sum(map(log, first)) / len(first)


def block_ratio(log_ratios: Sequence[float], *, seed: int, level: float = LEVEL) -> BlockRatio:
    """The ratio over blocks from each block's `log_ratio`. Raises ValueError without blocks."""
    if not log_ratios:
        raise ValueError("no block to take a ratio of")
    data = np.asarray(log_ratios, dtype=float)
    exact = SubsetMeans(data, seed).interval(level)
    drawn = bootstrap_difference([0.0] * len(log_ratios), log_ratios, seed=seed, level=level).interval
    return BlockRatio(
        value=exp(data.mean()),
        n=int(data.size),
        log_sd=float(data.std(ddof=1)) if data.size > 1 else None,
        interval=_exponential(exact),
        bootstrap=_exponential(drawn),
    )


def _exponential(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    return msgspec.structs.replace(interval, low=exp(interval.low), high=exp(interval.high))


def mcnemar(wins: int, losses: int) -> float:
    """Mid-p of McNemar's exact test: `wins` pairs only B got right, `losses` only A (Fagerland 2013). Two-sided."""
    count, fewer = wins + losses, min(wins, losses)
    if wins < 0 or losses < 0:
        raise ValueError(f"counts of pairs: {wins} and {losses}")
    if wins == losses:
        return 1.0
    below = binomial_cdf(count, 0.5)
    return float(below[fewer] + (below[fewer - 1] if fewer else 0.0))


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided sign test; ties are left out beforehand."""
    if wins < 0 or losses < 0:
        raise ValueError(f"counts of pairs: {wins} and {losses}")
    return 1.0 if wins == losses else min(1.0, 2 * float(binomial_cdf(wins + losses, 0.5)[min(wins, losses)]))


def score_z(wins: float, losses: float, count: float, difference: float) -> float:
    """Tango's score statistic (1998) against a true `difference` B − A of two paired shares, −1 < difference < 1.

    Counts may be fractions: an item asked several times counts as one, with its mean; that errs to the wide side.
    """
    a = 2 * count
    b = (2 * count - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    only_first = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * only_first + difference * (1 - difference))
    gap = wins - losses - count * difference
    if variance <= 0:
        return 0.0 if gap == 0 else inf if gap > 0 else -inf
    return gap / sqrt(variance)


def score_interval(wins: float, losses: float, count: float, level: float = LEVEL) -> Interval | None:
    """Tango's interval for B − A. Unlike Wald or bootstrap it has a width without any discordant pair: ± z²/(n + z²).

    None without pairs.
    """
    if min(wins, losses) < 0 or wins + losses > count * (1 + 1e-9):
        raise ValueError(f"{wins} and {losses} of {count} pairs")
    if count == 0:
        return None
    z, seen = normal_quantile((1 + level) / 2), (wins - losses) / count
    low = _crossing(wins, losses, count, (-1.0, seen), z)
    high = _crossing(wins, losses, count, (seen, 1.0), -z)
    return Interval(low, high, "tango score", level)


def _crossing(wins: float, losses: float, count: float, between: tuple[float, float], z: float) -> float:
    """Where the statistic, which falls with the difference, passes `z`."""
    low, high = between
    for _ in range(60):
        middle = (low + high) / 2
        if score_z(wins, losses, count, middle) > z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def p_worse_than(wins: float, losses: float, count: float, margin: float) -> float:
    """The p-value of the claim that B is worse than A by more than `margin`; agrees with `score_interval`."""
    return NormalDist().cdf(score_z(wins, losses, count, -margin)) if count else 1.0


def e_value(wins: int, losses: int, prior: float = 10.0) -> float:
    """Evidence that discordant pairs do not fall evenly: Beta(`prior`, `prior`) mixture against one half.

    Valid at every look, so one may stop at `E_VALUE_STOP`: over any number of looks an even stream gets there with
    probability 1/20 at most (Ramdas et al. 2023). Which arm is better, the counts tell.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts of pairs: {wins} and {losses}")
    logarithm = log_beta(prior + wins, prior + losses) - log_beta(prior, prior) + (wins + losses) * log(2)
    return exp(min(logarithm, 600.0))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return tuple(adjusted)


def non_inferiority(interval: Interval | None, margin: float, gates_ok: bool) -> Decision:
    """B against A on a scale where more is better: `adopt` where B is surely not worse by `margin` and the gates hold,
    `reject` where it surely is worse by more, else `limited`."""
    if margin <= 0:
        raise ValueError(f"a margin is above zero, not {margin}")
    if interval is None:
        return "limited"
    if interval.high < -margin:
        return "reject"
    return "adopt" if interval.low > -margin and gates_ok else "limited"
