"""Exact inference on a mean from few values, without Student's t (Hartigan 1969, typical values)."""

from collections.abc import Sequence
from math import ceil, log2
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES: Final = 9_999
_ENUMERATED: Final = 13
_CHUNK: Final = 4_000_000


class SubsetMeans:
    """The mean of independent values, each symmetric about it.

    It lies between any two neighbours of the sorted means of all subsets with the same probability: the sign-flip test
    turned round. All 2^n − 1 subsets up to 13 values, beyond that `RESAMPLES` random ones, drawn by `seed`.
    """

    def __init__(self, values: Sequence[float] | Floats, seed: int) -> None:
        data = np.asarray(values, dtype=float)
        self.n = int(data.size)
        self.sorted = np.sort(_subset_means(data, np.random.default_rng(seed)))

    def bounds(self, level: float) -> tuple[float, float] | None:
        """None where even the two outermost means hold less than `level`: below `fewest(level)` values."""
        outside = int((1 - level) / 2 * (self.sorted.size + 1) + 1e-9)
        return None if outside < 1 else (float(self.sorted[outside - 1]), float(self.sorted[-outside]))

    def p_below(self, at: float) -> float:
        """The p-value of the claim that the mean is below `at`; at least 1/2^n."""
        reaching = self.sorted.size - int(np.searchsorted(self.sorted, at, side="left"))
        return (1 + reaching) / (self.sorted.size + 1)

    def p_above(self, at: float) -> float:
        return (1 + int(np.searchsorted(self.sorted, at, side="right"))) / (self.sorted.size + 1)

    def p_other_than(self, at: float) -> float:
        return min(1.0, 2 * min(self.p_below(at), self.p_above(at)))


def fewest(level: float) -> int:
    """How many values an interval of this level needs: 6 at 95 %."""
    return ceil(log2(2 / (1 - level)) - 1e-9)


def _subset_means(values: Floats, random: np.random.Generator) -> Floats:
    count = values.size
    if not count:
        return values
    if count <= _ENUMERATED:
        members = (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
        return np.asarray(members @ values / members.sum(axis=1))
    means = []
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, rows):
        drawn = random.integers(0, 2, (min(rows, RESAMPLES - start), count), dtype=np.int8)
        drawn[~drawn.any(axis=1)] = 1
        means.append(drawn @ values / drawn.sum(axis=1, dtype=np.int64))
    return np.concatenate(means)
