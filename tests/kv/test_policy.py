"""What a policy may say."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from sekisho.kv.policy import WIDTHS, KVPolicy, LevelThresholds, PolicyError

pytestmark = pytest.mark.kv

ascending = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)


@given(
    window=st.integers(16, 512),
    thresholds=ascending,
    sinks=st.integers(0, 256),
    budget=st.none() | st.floats(0, 1, exclude_min=True),
    evict=st.booleans(),
    host_copy=st.booleans(),
)
def test_a_policy_within_bounds_survives_json(
    window: int, thresholds: list[float], sinks: int, budget: float | None, evict: bool, host_copy: bool
) -> None:
    """Every policy within the bounds exists, and is itself again after JSON."""
    low, middle, high = thresholds
    limits = LevelThresholds(high, middle, low)
    policy = KVPolicy("dynamic", window, limits, sinks, budget, evict=evict, host_copy=host_copy)
    assert msgspec.json.decode(msgspec.json.encode(policy), type=KVPolicy) == policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recent_window", 15),
        ("recent_window", 513),
        ("sinks", -1),
        ("sinks", 257),
        ("budget", 0.0),
        ("budget", 1.01),
        ("budget", math.nan),
        ("hysteresis", -0.1),
        ("hysteresis", math.nan),
        ("decay", 1.5),
        ("ladder", ()),
        ("ladder", ((4, 4), (8, 8))),
        ("ladder", ((4, 4), (4, 4))),
        ("ladder", ((5, 4),)),
        ("ladder", ((16, 16),)),
    ],
)
def test_a_field_out_of_bounds_is_named(field: str, value: object) -> None:
    """What is out of bounds is refused, and the error says which field it is."""
    with pytest.raises(PolicyError, match=field) as refused:
        KVPolicy(**{field: value})  # type: ignore[arg-type]
    assert refused.value.field == field


@given(thresholds=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
def test_thresholds_must_fall(thresholds: tuple[float, float, float]) -> None:
    """Thresholds exist where each is at most the one before, and nowhere else."""
    first, second, third = thresholds
    if first >= second >= third:
        LevelThresholds(first, second, third)
    else:
        with pytest.raises(PolicyError, match="level_thresholds"):
            LevelThresholds(first, second, third)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_threshold_is_between_zero_and_one(value: float) -> None:
    """Also where the three of them fall."""
    with pytest.raises(PolicyError, match="level_thresholds"):
        LevelThresholds(value, value, value)


def test_an_unknown_field_is_an_error() -> None:
    """A misspelt field is not passed over, neither by the decoder nor by Python."""
    with pytest.raises(msgspec.ValidationError, match="budgte"):
        msgspec.json.decode(b'{"budgte": 0.5}', type=KVPolicy)


def test_the_default_goes_through_all_widths() -> None:
    """The default takes no more than a quarter of the bytes, without evicting anything, and from eight bits to two."""
    policy = KVPolicy()
    assert policy.budget is not None
    assert policy.budget <= 0.25
    assert not policy.evict
    assert policy.ladder[0] == (8, 8)
    assert {bits for step in policy.ladder for bits in step} == set(WIDTHS)
