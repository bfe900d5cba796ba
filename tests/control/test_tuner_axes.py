import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.control import trial_settings
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.control.tuner_axes import Fitting, axes, present_budget, with_slots
from sekisho.control.tuner_space import Space
from sekisho.engines.config import ModelConfig
from sekisho.engines.kv_size import KvShape

AS_IT_IS = Policy()
OWN = ModelConfig("m", path="builtin", context=1024, slots=4)
SHAPE = KvShape(8, 64, 64)
F16 = int(SHAPE.token_bytes("f16", "f16") * 1024)


def space(budget_bytes: int, *names: str, base: Policy = AS_IT_IS) -> Space:
    offered = axes("llama_cpp", names)
    fitting = Fitting(OWN, base, SHAPE, budget_bytes, may_keep="slots" in names)
    return Space(base, offered, fitting)


def slots(found: Space) -> dict[str, int | None]:
    return {each.name: each.policy.engine.slots for each in found.candidates.values()}


def test_slots_are_as_many_contexts_as_fit() -> None:
    """In the memory of four at 16 bits: 7 at 8.5 bits, 14 at 4.5; demoted ones leave room for the one that reads."""
    assert present_budget(OWN, Policy(), SHAPE) == 4 * F16
    assert slots(space(4 * F16, "kv", "prompt")) == {
        "kv=q8_0 prompt=direct": 7,
        "kv=q8_0 prompt=demoted": 5,
        "kv=q8_0/q4_0 prompt=direct": 9,
        "kv=q8_0/q4_0 prompt=demoted": 7,
        "kv=q4_0 prompt=direct": 14,
        "kv=q4_0 prompt=demoted": 10,
    }


def test_the_base_is_left_out_however_it_is_said() -> None:
    """16 bits by name are 16 bits by default, and the threads of the default those of a number."""
    assert "kv=f16" not in slots(space(4 * F16, "kv"))
    assert "threads=1" not in slots(space(4 * F16, "threads"))  # a small model has one by itself
    with pytest.raises(ValueError, match="nothing to choose"):
        space(F16 // 8, "kv")


def test_slots_may_stay_as_they_are() -> None:
    """Where that is an axis of its own."""
    found = slots(space(4 * F16, "kv", "slots"))
    assert (found["kv=q8_0 slots=kept"], found["kv=q8_0 slots=filled"]) == (4, 7)


@settings(max_examples=15)
@given(st.integers(F16, 64 * F16), st.sampled_from(["f16", "q8_0", "q4_0"]))
def test_no_combination_is_beyond_the_budget(budget_bytes: int, kind: str) -> None:
    """Counted as a measurement counts it."""
    base = with_slots(Policy(kv=KvSection(key_type=kind)), 1)  # type: ignore[arg-type]
    for each in space(budget_bytes, "kv", "prompt", base=base).candidates.values():
        assert trial_settings.kv_bytes(trial_settings.meant(each.policy, OWN), SHAPE) <= budget_bytes


def test_an_engine_is_offered_what_it_takes() -> None:
    """Wrong names are answered with the right ones."""
    assert [axis.name for axis in axes("llama_cpp")] == ["kv", "prompt", "threads"]
    assert [axis.name for axis in axes("torch")] == ["kv", "threads"]
    with pytest.raises(ValueError, match="nix, slots: torch has the axes kv, threads"):
        axes("torch", ["nix", "slots"])
    own = ModelConfig("m", engine="torch", path="x")
    for axis in axes("torch"):
        for each in Space(Policy(), [axis]).candidates.values():
            assert trial_settings.unsupported(each.policy, own) == {}
    kept = [
        trial_settings.meant(each.policy, own).kv for each in Space(Policy(), axes("torch", ["kv"])).candidates.values()
    ]
    assert [None if each is None else each["budget"] for each in kept] == [None, 0.3, 0.23, 0.18]


def test_settings_follow_the_policy() -> None:
    policy = Policy(engine=EngineSection(slots=9, context=700))
    assert trial_settings.meant(policy, OWN) == msgspec.structs.replace(OWN, slots=9, context=700)
