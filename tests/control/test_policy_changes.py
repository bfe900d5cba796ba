import math
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import changes, policies, thresholds

from sekisho.control.policy import GIB, EngineSection, KvSection, Policy
from sekisho.control.policy_changes import (
    PolicyProblem,
    completed,
    difference,
    dotted,
    exactly,
    kv_policy,
    kv_types,
    merged,
    normalised,
    overlaid,
    plain,
)
from sekisho.engines.config import ModelConfig
from sekisho.kv.policy import PRESETS, KVPolicy, LevelThresholds


@given(policies, policies)
def test_a_whole_policy_in_plain_values_is_that_policy(policy: Policy, before: Policy) -> None:
    """`plain` and `merged` undo each other, whatever was in force, through JSON as well."""
    assert merged(before, plain(policy)) == policy
    assert merged(before, msgspec.json.decode(msgspec.json.encode(plain(policy)))) == policy


@given(policies, policies)
def test_difference_is_empty_for_equal_policies_only(old: Policy, new: Policy) -> None:
    """What `difference` names is what differs, and laying it over the old gives the new."""
    told = difference(old, new)
    assert (told == {}) == (old == new)
    for name, (before, after) in told.items():
        assert before != after
        steps = name.split(".")
        for fields, value in ((plain(old), before), (plain(new), after)):
            found: Any = fields
            for step in steps:
                found = found[step]
            assert found == value
    rebuilt: dict[str, Any] = plain(old)
    for name, (_, after) in told.items():
        *sections, last = name.split(".")
        place = rebuilt
        for section in sections:
            place = place[section]
        place[last] = after
    assert completed(rebuilt) == new


def in_order(policy: Policy) -> Policy:
    """The same with thresholds that no partial change of ours can bring out of order."""
    return msgspec.structs.replace(policy, kv=msgspec.structs.replace(policy.kv, level_thresholds=LevelThresholds()))


@given(policies.map(in_order), changes)
def test_merging_is_idempotent(policy: Policy, wanted: dict[str, Any]) -> None:
    """The same change a second time changes nothing."""
    once = merged(policy, wanted)
    assert merged(once, wanted) == once


@given(policies.map(in_order), changes, changes)
def test_normalised_changes_do_the_same_and_can_be_laid_over_each_other(
    policy: Policy, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """One after the other, or both at once: the policy is the same."""
    stepwise = merged(merged(policy, first), then)
    assert merged(policy, normalised(first)) == merged(policy, first)
    assert completed(overlaid(plain(policy), overlaid(normalised(first), normalised(then)))) == stepwise


@given(policies.map(in_order), changes)
def test_only_what_is_named_or_follows_changes(policy: Policy, wanted: dict[str, Any]) -> None:
    """No field changes that neither is named nor belongs to what is named."""
    assert set(difference(policy, merged(policy, wanted))) <= set(dotted(normalised(wanted)))


REFUSED = [
    ({"kvv": {}}, "kvv", "kv, io, scheduler, quality, engine"),
    ({"kv": {"window": 64}}, "kv.window", "recent_window"),
    ({"kv": {"level_thresholds": {"L4": 0.1}}}, "kv.level_thresholds.L4", "L1_int8, L2_int4, L3_evict"),
    ({"kv": {"mode": "fast"}}, "kv.mode", "throughput_optimized"),
    ({"kv": {"mode": None}}, "kv.mode", "one of"),
    ({"kv": {"recent_window": 15}}, "kv.recent_window", "between 16 and 512, not 15"),
    ({"kv": {"recent_window": 513}}, "kv.recent_window", "between 16 and 512"),
    ({"kv": {"recent_window": 64.0}}, "kv.recent_window", "whole number"),
    ({"kv": {"recent_window": "64"}}, "kv.recent_window", "whole number"),
    ({"kv": {"recent_window": True}}, "kv.recent_window", "not true"),
    ({"kv": {"recent_window": None}}, "kv.recent_window", "not null"),
    ({"kv": {"level_thresholds": {"L2_int4": 1.5}}}, "kv.level_thresholds.L2_int4", "between 0 and 1"),
    ({"kv": {"level_thresholds": {"L2_int4": math.nan}}}, "kv.level_thresholds.L2_int4", "between 0 and 1"),
    ({"kv": {"level_thresholds": {"L2_int4": "0.5"}}}, "kv.level_thresholds.L2_int4", "a number"),
    ({"kv": {"level_thresholds": {"L2_int4": 0.9}}}, "kv.level_thresholds", "L1_int8 >= L2_int4"),
    ({"kv": {"level_thresholds": 0.5}}, "kv.level_thresholds", "an object"),
    ({"kv": {"budget": 0}}, "kv.budget", "above 0 and at most 1, or null"),
    ({"kv": {"budget": math.nan}}, "kv.budget", "not nan"),
    ({"kv": {"evict": 1}}, "kv.evict", "true or false"),
    ({"kv": {"key_type": "int8"}}, "kv.key_type", "q8_0"),
    ({"kv": []}, "kv", "an object"),
    ({"io": {"dml_pool_bytes": "512MiB"}}, "io.dml_pool_bytes", "at least 1 GiB, not 512 MiB"),
    ({"io": {"host_pool_bytes": "4 gigs"}}, "io.host_pool_bytes", "KiB"),
    ({"io": {"host_pool_bytes": 2**60}}, "io.host_pool_bytes", str(2**53)),
    ({"io": {"host_pool_bytes": True}}, "io.host_pool_bytes", "2GiB"),
    ({"engine": {"prompt_cache_bytes": -1}}, "engine.prompt_cache_bytes", "at least 0 B, or null"),
    ({"engine": {"slots": 0}}, "engine.slots", "between 1 and 1024, or null"),
    ({"engine": {"slots": "2GiB"}}, "engine.slots", "whole number"),
    ({"engine": {"gpu_layers": 10**30}}, "engine.gpu_layers", "at most"),
    ({"engine": {"speculation": "draft"}}, "engine.speculation", "ngram"),
    ({"scheduler": {"decode_device": "cuda"}}, "scheduler.decode_device", "one of"),
    ({"quality": {"max_delta_ppl": 2.1}}, "quality.max_delta_ppl", "between 0 and 2"),
    ([], "policy", "an object"),
    (None, "policy", "an object"),
    ({3: {}}, "3", "valid"),
]


@pytest.mark.parametrize(("wanted", "field", "told"), REFUSED)
def test_a_wrong_field_refuses_the_whole_and_is_named(wanted: Any, field: str, told: str) -> None:
    """The error has the dotted path and says what is allowed there; a right field beside it is not taken either."""
    with pytest.raises(PolicyProblem) as refused:
        merged(Policy(), {"quality": {"min_accept_rate": 0.25}} | wanted if isinstance(wanted, dict) else wanted)
    assert refused.value.field == field
    assert told in refused.value.message
    assert str(refused.value) == f"{field}: {refused.value.message}"


def test_a_name_that_is_not_printable_is_quoted() -> None:
    """A line break in a field's name cannot forge a line of the log."""
    with pytest.raises(PolicyProblem) as refused:
        merged(Policy(), {"kv\nERROR": 1})
    assert "\n" not in str(refused.value)


def test_null_resets() -> None:
    """A field that may be null, thresholds and a section go back to their defaults."""
    policy = Policy(
        kv=KvSection(
            mode="dynamic", recent_window=32, budget=0.5, key_type="q4_0", level_thresholds=LevelThresholds(1)
        ),
        engine=EngineSection(slots=8),
    )
    assert merged(policy, {"kv": {"key_type": None}}).kv.key_type is None
    assert merged(policy, {"engine": {"slots": None}}) == msgspec.structs.replace(policy, engine=EngineSection())
    assert merged(policy, {"kv": {"level_thresholds": None}}).kv.level_thresholds == LevelThresholds()
    assert merged(policy, {"kv": None, "engine": None}) == Policy()


def test_sizes_take_units() -> None:
    """`io` pools and the prompt cache are given in bytes or with a unit."""
    policy = merged(
        Policy(),
        {"io": {"dml_pool_bytes": "2048MiB", "host_pool_bytes": "8 gib"}, "engine": {"prompt_cache_bytes": "1.5GB"}},
    )
    assert (policy.io.dml_pool_bytes, policy.io.host_pool_bytes) == (2 * GIB, 8 * GIB)
    assert policy.engine.prompt_cache_bytes == 1_500_000_000


def test_any_mapping_is_an_object() -> None:
    """Changes need not be dicts."""
    wanted = MappingProxyType({"kv": MappingProxyType({"recent_window": 128})})
    assert merged(Policy(), wanted).kv.recent_window == 128


@pytest.mark.parametrize("mode", PRESETS)
def test_a_mode_brings_its_figures(mode: str) -> None:
    """`kv.mode` alone sets window and budget; what is named beside it wins, and types that were named stay."""
    before = Policy(kv=KvSection(recent_window=333, budget=0.9, key_type="q4_0"))
    after = merged(before, {"kv": {"mode": mode}}).kv
    assert (after.recent_window, after.budget) == (PRESETS[mode].recent_window, PRESETS[mode].budget)
    named = merged(before, {"kv": {"mode": mode, "recent_window": 17, "budget": None}}).kv
    assert (named.recent_window, named.budget, named.key_type) == (17, None, "q4_0")


def test_disabled_is_16_bits_whatever_types_were_named() -> None:
    """It takes them away and has no figures of its own; a type that is named beside it wins."""
    before = Policy(kv=KvSection(recent_window=333, budget=0.9, key_type="q4_0", value_type="q4_0"))
    after = merged(before, {"kv": {"mode": "disabled"}})
    assert kv_types(after) == ("f16", "f16")
    assert set(difference(before, after)) == {"kv.mode", "kv.key_type", "kv.value_type"}
    assert merged(before, {"kv": {"mode": "disabled", "key_type": "bf16"}}).kv.key_type == "bf16"


@given(policies.map(in_order), changes)
def test_exactly_changes_what_is_named_and_no_more(policy: Policy, wanted: dict[str, Any]) -> None:
    """A mode can be put back without what it would bring; all else is as with `merged`."""
    after = merged(policy, exactly(policy, wanted))
    named = dotted(wanted)
    for name in difference(policy, after):
        assert any(name == each or name.startswith(f"{each}.") for each in named)
    for name, value in dotted(plain(merged(policy, wanted))).items():
        if name not in BROUGHT or name in named or "kv" in named:
            assert dotted(plain(after))[name] == value


BROUGHT = {"kv.recent_window", "kv.budget", "kv.key_type", "kv.value_type"}


def test_a_mode_can_be_put_back_alone() -> None:
    """Window and budget that somebody chose survive a mode that came and went."""
    chosen = merged(Policy(), {"kv": {"mode": "quality_optimized", "recent_window": 100, "key_type": "q5_1"}})
    away = merged(chosen, exactly(chosen, {"kv": {"mode": "disabled", "key_type": None}}))
    assert (away.kv.mode, away.kv.key_type) == ("disabled", None)
    assert merged(away, exactly(away, {"kv": {"mode": "quality_optimized", "key_type": "q5_1"}})) == chosen


@pytest.mark.parametrize("mode", PRESETS)
def test_a_mode_means_the_same_to_the_tiered_cache(mode: str) -> None:
    """By policy or by `sekisho.kv`'s own preset: one and the same cache."""
    assert kv_policy(merged(Policy(), {"kv": {"mode": mode}})) == PRESETS[mode]


@given(policies, st.integers(0, 256), thresholds)
def test_the_tiered_cache_gets_what_the_policy_says(policy: Policy, sinks: int, limits: LevelThresholds) -> None:
    """Every field of `kv` that the cache has arrives; what a policy does not say stays as the model has it, and in the
    mode `configured` that is all that is at its default."""
    base = KVPolicy(sinks=sinks, host_copy=True, level_thresholds=limits, recent_window=99)
    told, kv = kv_policy(policy, base), policy.kv
    assert (told.sinks, told.host_copy, told.ladder) == (sinks, True, base.ladder)
    if kv.mode == "configured":
        for field in ("recent_window", "level_thresholds", "budget", "evict"):
            named = getattr(kv, field) != getattr(KvSection(), field)
            assert getattr(told, field) == getattr(kv if named else base, field)
        return
    assert told.recent_window == policy.kv.recent_window
    if policy.kv.mode == "disabled":
        assert (told.budget, told.evict) == (None, False)
    else:
        assert (told.level_thresholds, told.budget, told.evict) == (
            policy.kv.level_thresholds,
            policy.kv.budget,
            policy.kv.evict,
        )


@pytest.mark.kv
@given(policies, st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20))
def test_disabled_leaves_every_page_in_full_precision(policy: Policy, masses: list[float]) -> None:
    """Whatever attention its pages get, and whatever else the policy says."""
    torch = pytest.importorskip("torch")
    from sekisho.kv.formats import DENSE
    from sekisho.kv.plan import Pages, plan

    mass = torch.tensor([[masses]], dtype=torch.float32)
    pages = Pages(
        formats=torch.full_like(mass, DENSE.id, dtype=torch.int8),
        mass=mass,
        settled=torch.full_like(mass, math.nan),
        restorable=torch.zeros_like(mass, dtype=torch.bool),
        count=torch.tensor([len(masses)]),
    )
    disabled = merged(policy, {"kv": {"mode": "disabled"}})
    formats = plan(pages, kv_policy(disabled), 64, 2, torch.zeros(1, dtype=torch.float64))
    assert formats.unique().tolist() == [DENSE.id]


@pytest.mark.parametrize(
    ("mode", "type_"),
    [
        ("disabled", "f16"),
        ("latency_optimized", "f16"),
        ("dynamic", "q8_0"),
        ("quality_optimized", "q8_0"),
        ("throughput_optimized", "q8_0"),
    ],
)
def test_types_follow_from_the_mode_unless_they_are_named(mode: Any, type_: str) -> None:
    """Each of the two by itself, and as the settings of a llama.cpp model take them."""
    assert kv_types(Policy(kv=KvSection(mode=mode))) == (type_, type_)
    assert kv_types(Policy(kv=KvSection(mode=mode, key_type="q5_1"))) == ("q5_1", type_)
    key, value = kv_types(Policy(kv=KvSection(mode=mode, value_type="q4_0")))
    fields = {"name": "m", "path": "builtin", "kv_type_k": key, "kv_type_v": value}
    config = msgspec.convert(fields, ModelConfig)
    assert (config.kv_type_k, config.kv_type_v) == (type_, "q4_0")


@pytest.mark.parametrize(
    ("mode", "types"),
    [
        ("configured", ("q4_0", "f16")),
        ("dynamic", ("q4_0", "q8_0")),
        ("throughput_optimized", ("q4_0", "q8_0")),
        ("quality_optimized", ("q8_0", "q8_0")),
        ("disabled", ("f16", "f16")),
    ],
)
def test_modes_that_save_memory_never_give_more_bits_than_the_settings(mode: Any, types: tuple[str, str]) -> None:
    """A model set up with q4_0 keeps it; more bits are for those who ask for quality or for none fewer."""
    assert kv_types(Policy(kv=KvSection(mode=mode)), ("q4_0", "f16")) == types
    named = Policy(kv=KvSection(mode=mode, key_type="q8_0"))
    assert kv_types(named, ("q4_0", "f16")) == ("q8_0", types[1])
