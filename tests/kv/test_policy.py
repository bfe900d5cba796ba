"""What a policy may say."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import given

from sekisho.kv.policy import PRESETS, WIDTHS, KVPolicy, LevelThresholds, PolicyError, from_plain

pytestmark = pytest.mark.kv

modes = st.sampled_from(sorted(PRESETS))
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
    policy = KVPolicy(window, limits, sinks, budget, evict=evict, host_copy=host_copy)
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


def test_a_mode_is_where_the_other_fields_start() -> None:
    """`mode` takes a preset whole, and what stands beside it changes that preset; without it the default is changed."""
    assert from_plain({}) == KVPolicy()
    for mode, preset in PRESETS.items():
        assert from_plain({"mode": mode}) == preset
        changed = from_plain({"mode": mode, "sinks": 3, "budget": None})
        assert changed == msgspec.structs.replace(preset, sinks=3, budget=None)
    assert len(set(map(str, PRESETS.values()))) == len(PRESETS)


@given(base=modes, mode=st.none() | modes, sinks=st.integers(0, 256))
def test_fields_change_the_policy_in_force(base: str, mode: str | None, sinks: int) -> None:
    """What is not named stays as it was; of thresholds too. A mode leaves nothing of it."""
    before = msgspec.structs.replace(PRESETS[base], level_thresholds=LevelThresholds(0.8, 0.6, 0.4))
    named = {} if mode is None else {"mode": mode}
    start = before if mode is None else PRESETS[mode]
    found = from_plain({**named, "sinks": sinks, "level_thresholds": {"L1_int8": 0.9}}, before)
    limits = msgspec.structs.replace(start.level_thresholds, L1_int8=0.9)
    assert found == msgspec.structs.replace(start, sinks=sinks, level_thresholds=limits)


@given(mode=modes, budget=st.none() | st.floats(0.01, 1))
def test_all_fields_win_over_any_mode(mode: str, budget: float | None) -> None:
    """A policy in plain values is itself again, whatever mode stands beside it, as in the first saved caches."""
    policy = KVPolicy(recent_window=100, budget=budget, ladder=((4, 4), (2, 2)))
    assert from_plain({"mode": mode} | msgspec.to_builtins(policy)) == policy


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"mode": "fast"}, "mode"),
        ({"mode": ["dynamic"]}, "mode"),
        ({"mode": None}, "mode"),
        ({"budgte": 0.5}, "budgte"),
        ({"budget": "much"}, "budget"),
        ({"budget": 7}, "budget"),
        ({"budget": 10**400}, "budget"),
        ({"evict": 1}, "evict"),
        ({"ladder": [[8]]}, "ladder"),
        ({"ladder": [[5, 5]]}, "ladder"),
        ({"level_thresholds": 5}, "level_thresholds"),
        ({"level_thresholds": {"L4": 0.5}}, "level_thresholds"),
        ({"level_thresholds": {"L1_int8": 3}}, "level_thresholds.L1_int8"),
        ({"level_thresholds": {"L1_int8": 0.1}}, "level_thresholds"),
    ],
)
def test_plain_values_that_are_no_policy_are_named(fields: dict[str, object], field: str) -> None:
    """An unknown mode or field, a wrong type, a value out of bounds: the error says which field it is."""
    with pytest.raises(PolicyError, match=field) as refused:
        from_plain({"recent_window": 32, **fields})
    assert refused.value.field == field
    assert str(refused.value) == f"{field} {refused.value.fault}"


def test_the_default_goes_through_all_widths() -> None:
    """The default takes no more than a quarter of the bytes, without evicting anything, and from eight bits to two."""
    policy = KVPolicy()
    assert policy.budget is not None
    assert policy.budget <= 0.25
    assert not policy.evict
    assert policy.ladder[0] == (8, 8)
    assert {bits for step in policy.ladder for bits in step} == set(WIDTHS)
