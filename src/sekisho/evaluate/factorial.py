"""A 2^k ablation: what each part brings, and what two parts bring together beyond what each brings alone.

Every round measures all 2^k combinations once, in random order, so that the machine's drift hits them alike. Effects
are ratios: on the log scale a part that saves 20 % is the same with and without another part.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import exp

import msgspec
import numpy as np

from sekisho.evaluate.figures import Interval
from sekisho.evaluate.paired import Floats, SubsetMeans, block_ratio, holm

MAX_FACTORS = 5
Cell = frozenset[str]
"""The parts that are switched on."""


class Effect(msgspec.Struct, frozen=True):
    """What `factors` do, over `rounds` rounds.

    One factor: the value with it over the value without it, averaged over all settings of the others. Two: the ratio
    of the first one's effect with the second to that without it (1: they do not meddle with each other); more: the
    same again. `interval` is exact and exists from 6 rounds on, `bootstrap` is over rounds; `p_holm` is the p-value
    against no effect, adjusted for the number of effects.
    """

    factors: tuple[str, ...]
    ratio: float
    rounds: int
    interval: Interval | None
    bootstrap: Interval | None
    p_holm: float


def cells(factors: Sequence[str]) -> tuple[Cell, ...]:
    """All 2^k combinations, from none to all. Raises ValueError for none, for more than 5 and for repeated names."""
    if not 1 <= len(factors) <= MAX_FACTORS or len(set(factors)) != len(factors):
        raise ValueError(f"one to {MAX_FACTORS} different factors, not {list(factors)}")
    return tuple(frozenset(chosen) for size in range(len(factors) + 1) for chosen in combinations(factors, size))


def schedule(factors: Sequence[str], rounds: int, seed: int) -> tuple[tuple[Cell, ...], ...]:
    """The order in which each round measures its cells."""
    random = np.random.default_rng(seed)
    every = cells(factors)
    return tuple(tuple(every[place] for place in random.permutation(len(every))) for _ in range(rounds))


def effects(factors: Sequence[str], measured: Mapping[Cell, Sequence[float]], *, seed: int) -> tuple[Effect, ...]:
    """All main effects, then all interactions, from the values of each cell, round by round.

    Raises ValueError where a cell or a round is missing, or a value is not above zero.
    """
    every = cells(factors)
    rounds = {len(measured.get(cell, ())) for cell in every}
    if set(measured) != set(every) or len(rounds) != 1 or rounds == {0}:
        counts = {"+".join(sorted(cell)) or "none": len(values) for cell, values in measured.items()}
        raise ValueError(f"each of the {len(every)} combinations needs a value in every round, not {counts}")
    values = np.array([measured[cell] for cell in every], dtype=float)
    if not (values > 0).all():
        raise ValueError("a ratio needs values above zero")
    logs = np.log(values)
    chosen = [which for size in range(1, len(factors) + 1) for which in combinations(factors, size)]
    return from_contrasts({which: _contrast(which, every, len(factors)) @ logs for which in chosen}, seed=seed)


def from_contrasts(contrasts: Mapping[tuple[str, ...], Floats], *, seed: int) -> tuple[Effect, ...]:
    """The effects whose log-ratios these are, round by round, with p-values that count how many there are (Holm)."""
    p_values = holm([SubsetMeans(contrast, seed).p_other_than(0.0) for contrast in contrasts.values()])
    return tuple(
        _effect(which, contrast, p, seed) for (which, contrast), p in zip(contrasts.items(), p_values, strict=True)
    )


def _contrast(which: tuple[str, ...], every: tuple[Cell, ...], count: int) -> Floats:
    """Weights of the cells: + where an even number of these factors is off, scaled to a difference of differences."""
    signs = [(-1.0) ** sum(factor not in cell for factor in which) for cell in every]
    return np.asarray(np.array(signs) / 2 ** (count - len(which)))


def _effect(which: tuple[str, ...], contrast: Floats, p_holm: float, seed: int) -> Effect:
    over = block_ratio(contrast.tolist(), seed=seed)
    return Effect(which, exp(float(contrast.mean())), over.n, over.interval, over.bootstrap, p_holm)
