from math import inf, sqrt
from random import Random

import numpy as np
import pytest
from scipy import stats

from sekisho.control.tuner_noise import Noise, between_rounds, within


def test_the_margin_is_student_s() -> None:
    """Within 1.5 % of scipy's quantile at every number of degrees of freedom."""
    for freedom in range(1, 200):
        assert Noise(1.0, freedom).margin(1) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.015)
    assert Noise(2.0, 10).margin(2, 2) == pytest.approx(2 * stats.t.ppf(0.975, 10), rel=0.01)


def test_what_all_share_in_a_round_is_not_noise() -> None:
    """Shifts of whole rounds change nothing; without them it is the residual of a two-way table."""
    draw = Random(4)
    rows = [[draw.gauss(row, 0.1) for _ in range(5)] for row in range(4)]
    shifted = [[value + 10 * place for place, value in enumerate(row)] for row in rows]
    assert between_rounds(shifted).sd == pytest.approx(between_rounds(rows).sd)
    table = np.array(rows)
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    assert between_rounds(rows).sd == pytest.approx(sqrt((residual**2).sum() / 12))
    assert between_rounds(rows).freedom == 12


def test_scatter_within_rows_is_pooled() -> None:
    rows = [[1.0, 3.0], [10.0, 10.0, 13.0], [7.0]]
    assert within(rows).sd == pytest.approx(sqrt((2 + 6) / 3))
    assert within(rows).freedom == 3


def test_without_repeats_nothing_can_be_told_apart() -> None:
    for noise in (
        between_rounds([]),
        between_rounds([[1.0, 2.0]]),
        between_rounds([[1.0], [2.0]]),
        within([[1.0], []]),
    ):
        assert noise == Noise(None, 0)
        assert noise.margin(2, 2) == inf
