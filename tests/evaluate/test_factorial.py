import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.regression.linear_model import OLS

from sekisho.evaluate.factorial import Cell, cells, effects, schedule

NAMES = ("cache", "batch", "draft", "quant", "pin")


def measured(
    factors: tuple[str, ...], rounds: int, seed: int, spread: float = 0.1, **ratios: float
) -> dict[Cell, list[float]]:
    """Values of all cells: a factor named in `ratios` multiplies; `a_b` multiplies where both are on."""
    chance = np.random.default_rng(seed)
    drift = chance.normal(0, 0.5, rounds)
    found = {}
    for cell in cells(factors):
        log_value = sum(math.log(ratio) for name, ratio in ratios.items() if set(name.split("_")) <= cell)
        found[cell] = np.exp(log_value + drift + chance.normal(0, spread, rounds)).tolist()
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_effects_are_those_of_a_regression(count: int) -> None:
    """All effects of a 2^k design are the coefficients of least squares on codes of ± one half."""
    factors = NAMES[:count]
    data = measured(factors, 7, count, cache=0.8)
    chosen = [which for size in range(1, count + 1) for which in itertools.combinations(factors, size)]
    rows, logs = [], []
    for cell, values in data.items():
        codes = {factor: 0.5 if factor in cell else -0.5 for factor in factors}
        rows += [[1.0, *(math.prod(codes[factor] for factor in which) for which in chosen)]] * len(values)
        logs += np.log(values).tolist()
    expected = np.exp(OLS(np.array(logs), np.array(rows)).fit().params[1:])
    found = effects(factors, data, seed=1)
    assert [effect.factors for effect in found] == chosen
    assert [effect.ratio for effect in found] == pytest.approx(expected.tolist())


def test_effects_and_interaction_are_found() -> None:
    """A cache that saves 20 %, a batch that saves 10 %, and 10 % more together: each is told apart, a third part that
    does nothing is not, and the rounds' large drift does not matter."""
    factors = NAMES[:3]
    found = {
        e.factors: e for e in effects(factors, measured(factors, 24, 3, cache=0.8, batch=0.9, cache_batch=0.9), seed=1)
    }
    half = math.sqrt(0.9)  # the interaction's share in each main effect: it is there in half of the cells
    for which, ratio in (
        (("cache",), 0.8 * half),
        (("batch",), 0.9 * half),
        (("cache", "batch"), 0.9),
        (("draft",), 1.0),
    ):
        interval = found[which].interval
        assert interval is not None
        assert interval.low <= ratio <= interval.high
        assert interval.high / interval.low < 1.25
    assert found["cache",].p_holm < 0.05
    assert found["draft",].p_holm > 0.05


def test_nothing_found_where_nothing_is() -> None:
    """Where no part does anything, Holm lets one of 7 effects through in at most one ablation of twenty."""
    factors = NAMES[:3]
    false = [
        min(effect.p_holm for effect in effects(factors, measured(factors, 12, seed), seed=seed)) <= 0.05
        for seed in range(40)
    ]
    assert sum(false) <= 4


@settings(max_examples=25)
@given(st.floats(0.1, 10))
def test_a_scale_is_no_effect(scale: float) -> None:
    """Another unit of all values changes no effect; the inverse of all values (times for speeds) inverts each."""
    factors = NAMES[:2]
    data = measured(factors, 6, 1, cache=0.8)
    before = [effect.ratio for effect in effects(factors, data, seed=1)]
    scaled = effects(factors, {cell: [scale * v for v in values] for cell, values in data.items()}, seed=1)
    inverse = effects(factors, {cell: [1 / v for v in values] for cell, values in data.items()}, seed=1)
    assert [effect.ratio for effect in scaled] == pytest.approx(before)
    assert [1 / effect.ratio for effect in inverse] == pytest.approx(before)


def test_schedule_measures_every_cell_in_every_round() -> None:
    """Each round holds all combinations once, in an order that the seed gives and that changes."""
    rounds = schedule(NAMES[:3], 10, seed=5)
    assert rounds == schedule(NAMES[:3], 10, seed=5)
    assert all(sorted(map(sorted, one)) == sorted(map(sorted, cells(NAMES[:3]))) for one in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize("factors", [(), (*NAMES, "more"), ("a", "a")])
def test_factors_are_few_and_different(factors: tuple[str, ...]) -> None:
    """No factor, six factors and a repeated name are mistakes."""
    with pytest.raises(ValueError, match="different factors"):
        cells(factors)


def test_holes_are_told() -> None:
    """A cell that is missing, has a round less, or holds a zero, is a mistake; few rounds have no interval."""
    data = measured(("a", "b"), 3, 1)
    assert all(effect.interval is None for effect in effects(("a", "b"), data, seed=1))
    with pytest.raises(ValueError, match="in every round"):
        effects(("a", "b"), {cell: values for cell, values in data.items() if cell}, seed=1)
    with pytest.raises(ValueError, match="'a': 2"):
        effects(("a", "b"), {**data, frozenset("a"): [1.0, 2.0]}, seed=1)
    with pytest.raises(ValueError, match="above zero"):
        effects(("a", "b"), {**data, frozenset("a"): [1.0, 2.0, 0.0]}, seed=1)
