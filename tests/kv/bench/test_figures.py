"""Figures with their spread."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from sekisho.kv.bench.figures import bootstrapped, bootstrapped_mean, counted, mean, missing

pytestmark = pytest.mark.kv

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


@settings(max_examples=25)
@given(numbers)
def test_the_value_lies_within_its_interval_where_there_is_one(values: list[float]) -> None:
    """The value is the plain mean; fewer than five blocks have no interval, more have one inside the values' range."""
    figure = bootstrapped_mean(values)
    assert figure.value == pytest.approx(np.mean(values), abs=1e-9)
    assert figure.n == figure.blocks == len(values)
    assert (figure.low is None) == (figure.high is None) == (len(values) < 5)
    if figure.low is not None and figure.high is not None:
        assert min(values) - 1e-9 <= figure.low <= figure.high <= max(values) + 1e-9


def test_blocks_and_not_their_members_are_drawn() -> None:
    """Hundreds of equal observations in a few unlike blocks are as uncertain as the blocks are."""
    inside = bootstrapped([np.full(500, level) for level in (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)], mean)
    assert inside.n == 3000
    assert inside.blocks == 6
    assert inside.low is not None
    assert inside.low < 0.3


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_share_lies_within_wilsons_interval(right: int, more: int) -> None:
    """Never below 0 or above 1, never empty, and narrower with ten times as many trials."""
    of = right + more
    few, many = counted(right, of), counted(10 * right, 10 * of)
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert 0 <= few.low <= right / of <= few.high <= 1
    assert many.high - many.low < few.high - few.low


def test_what_is_missing_says_why() -> None:
    """No observation is no number, and there is a reason for it."""
    for figure in (missing("the backend is not installed"), bootstrapped([], mean), counted(0, 0)):
        assert figure.value is None
        assert figure.reason
