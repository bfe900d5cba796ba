import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem, difference, dotted, kv_types, merged, plain
from sekisho.control.presets import BASELINE, PRESETS, by_size, preset


@pytest.mark.parametrize("name", [*PRESETS, "baseline"])
def test_every_preset_is_a_change_that_a_policy_takes(name: str) -> None:
    """From any policy it leads to the same values in all the fields that it names, and says why."""
    chosen = PRESETS.get(name, BASELINE)
    far_off = {
        "kv": {"recent_window": 500, "budget": 0.99, "key_type": "q4_0", "evict": True},
        "scheduler": {"mode": "npu_only", "prefill_device": "npu"},
    }
    after = merged(merged(Policy(), far_off), chosen.changes)
    assert chosen.name == name
    assert len(chosen.why) > 20
    for field, value in dotted(chosen.changes).items():
        assert dotted(plain(after))[field] == value
    if name != "baseline":
        fresh = merged(Policy(), chosen.changes)
        assert (after.kv, after.scheduler) == (fresh.kv, fresh.scheduler)


def test_presets_can_be_told_as_json() -> None:
    """The interface lists them."""
    assert set(msgspec.json.decode(msgspec.json.encode(PRESETS))) == set(PRESETS)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        *((135_000_000, "3b"), (3_200_000_000, "3b"), (3_800_000_000, "3b"), (5_000_000_000, "8b")),
        *((7_000_000_000, "8b"), (8_030_000_000, "8b"), (9_200_000_000, "8b"), (13_000_000_000, "20b")),
        *((20_900_000_000, "20b"), (70_000_000_000, "20b")),
    ],
)
def test_a_size_belongs_to_the_class_it_is_nearest_to(parameters: int, name: str) -> None:
    """Sizes between 3B, 7/8B and 13/20B, and above, have a preset as well."""
    assert by_size(parameters).name == name


@given(st.integers(1, 10**13), st.integers(1, 10**13))
def test_a_larger_model_never_gets_more_cache(one: int, other: int) -> None:
    """Window and budget fall with the size."""
    small, large = (merged(Policy(), by_size(each).changes).kv for each in sorted((one, other)))
    assert (large.recent_window, large.budget) <= (small.recent_window, small.budget)
    assert small.budget is not None
    assert large.budget is not None
    assert large.budget <= small.budget


def test_uses_differ_as_they_should() -> None:
    """Batches take the least memory, quality the most, and chat reads prompts at 16 bits."""
    batch, chat, quality = (merged(Policy(), preset(use).changes) for use in ("batch", "chat", "quality"))
    assert batch.kv.budget < chat.kv.budget < quality.kv.budget  # type: ignore[operator]
    assert batch.kv.recent_window < chat.kv.recent_window < quality.kv.recent_window
    assert quality.quality.max_delta_ppl < chat.quality.max_delta_ppl < batch.quality.max_delta_ppl
    assert kv_types(chat) == ("f16", "f16")


def test_the_baseline_switches_everything_off() -> None:
    """After any preset, types that were named included."""
    busy = merged(merged(Policy(), PRESETS["batch"].changes), {"kv": {"key_type": "q4_0", "evict": True}})
    bare = merged(busy, BASELINE.changes)
    assert kv_types(bare) == ("f16", "f16")
    assert {"kv.mode", "kv.key_type", "kv.evict", "io.enable_iobinding"} <= set(difference(busy, bare))
    assert bare.engine.speculation == "off"


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    """And a size below one parameter with what is allowed."""
    with pytest.raises(PolicyProblem, match="3b, 8b, 20b, chat, batch, quality"):
        preset("turbo")
    with pytest.raises(PolicyProblem, match="at least 1"):
        by_size(0)
