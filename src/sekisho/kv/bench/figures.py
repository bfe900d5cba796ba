"""Figures with their spread: percentile bootstrap over blocks of positions, Wilson's interval for shares."""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from sekisho.core.wilson import wilson

Array = npt.NDArray[np.float64]
_DRAWS: Final = 1000
_LEAST_BLOCKS: Final = 5


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number from `n` observations in `blocks` independent blocks. `low` and `high`: 95 %, None with too few blocks.
    `value` None: it could not be measured, and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    blocks: int = 0
    reason: str | None = None


def missing(reason: str) -> Figure:
    """No number, and why."""
    return Figure(value=None, reason=reason)


def bootstrapped(blocks: Sequence[Array], statistic: Callable[[Array], float], seed: int = 0) -> Figure:
    """`statistic` of all observations together. Blocks are drawn with replacement, as neighbours are alike."""
    whole = np.concatenate(list(blocks)) if blocks else np.empty(0)
    if whole.size == 0:
        return missing("nothing was observed")
    low = high = None
    if len(blocks) >= _LEAST_BLOCKS:
        chance = np.random.default_rng(seed)
        draws = chance.integers(0, len(blocks), (_DRAWS, len(blocks)))
        values = [statistic(np.concatenate([blocks[index] for index in draw])) for draw in draws]
        low, high = (float(each) for each in np.quantile(values, (0.025, 0.975)))
    return Figure(value=statistic(whole), low=low, high=high, n=whole.size, blocks=len(blocks))


def mean(values: Array) -> float:
    """Arithmetic."""
    return float(values.mean())


def bootstrapped_mean(values: Sequence[float]) -> Figure:
    """The mean of observations that are independent of each other."""
    return bootstrapped([np.array([float(each)]) for each in values], mean)


def counted(right: int, of: int) -> Figure:
    """A share of independent trials, with Wilson's interval (1927)."""
    if of == 0:
        return missing("nothing was tried")
    low, high = wilson(right, of)
    return Figure(value=right / of, low=low, high=high, n=of, blocks=of)
