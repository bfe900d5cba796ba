"""What llama.cpp makes of a policy."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest
from actuator_harness import KEY, LLAMA_METRICS, UNLIKE, Llama, NotedSwapper
from hypothesis import given
from llama_cpp_harness import CONFIG, F16, TOKEN_BYTES
from policy_strategies import policies

from sekisho.control.actuators import create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.engine_http import Answer
from sekisho.control.actuators.llama_cpp import changes, flags, read, target
from sekisho.control.actuators.metrics_text import samples
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import EngineSection, KvSection, Policy, SchedulerSection
from sekisho.engines import builtin, kv_size
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_demotion import why_not


def kinds(policy: Policy, config: ModelConfig = CONFIG, **how: bool) -> dict[str, tuple[str, Any, Any]]:
    return {each.field: (each.effect, each.was, each.value) for each in changes(policy, config, **how)}


@pytest.fixture
async def noted() -> AsyncIterator[tuple[NotedSwapper, Actuator]]:
    """The actuator of a small server, and who is asked for swaps."""
    server = Llama()
    await server.start()
    config = msgspec.structs.replace(CONFIG, options={"cache_ram_mib": 7})
    swapper = NotedSwapper(config, server.url)
    actuator = create(config, server.url, KEY, swapper, swapper.placed)
    yield swapper, actuator
    await actuator.close()
    await server.stop()


# --- what a policy means ---------------------------------------------------------------------------------------------


@given(policies)
def test_no_field_is_forgotten_whatever_the_policy(policy: Policy) -> None:
    """Each that differs from its default is answered; what is swapped for is what the new settings hold; and a default
    policy leads back to the model's own settings."""
    answered = {each.field for each in changes(policy, CONFIG)}
    assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= answered
    swapped = target(policy, CONFIG, CONFIG)
    assert not {each.effect for each in changes(policy, swapped, CONFIG)} & {"swap", "restart", "now"}
    assert target(Policy(), swapped, CONFIG) == CONFIG
    assert ("swap" in {each.effect for each in changes(Policy(), swapped, CONFIG)}) == (swapped != CONFIG)
    assert ("swap" in {each.effect for each in changes(policy, CONFIG)}) == (swapped != CONFIG)


def test_the_mode_decides_the_types_and_named_types_win() -> None:
    """One type for keys and one for values; what is in force already is left alone."""
    assert kinds(Policy(KvSection("dynamic")))["kv.mode"] == ("swap", "f16/f16", "q8_0/q8_0")
    assert kinds(F16) == {"kv.mode": ("unchanged", "f16/f16", "f16/f16")}
    named = kinds(Policy(KvSection(mode="disabled", value_type="q4_0")))
    assert named["kv.value_type"] == ("swap", "f16", "q4_0")
    assert named["kv.mode"] == ("swap", "f16/f16", "f16/q4_0")
    assert "kv.key_type" not in named


Q8 = msgspec.structs.replace(CONFIG, kv_type_k="q8_0", kv_type_v="q8_0")


@pytest.mark.parametrize(
    ("config", "kv", "answered"),
    [
        (CONFIG, KvSection("dynamic"), ("swap", False, True)),
        (Q8, KvSection(), ("swap", False, True)),
        (CONFIG, KvSection("disabled", value_type="q4_0"), ("swap", False, True)),
        (CONFIG, KvSection(), ("unchanged", False, False)),
        (Q8, KvSection("disabled"), ("unchanged", False, False)),
        (Q8, KvSection(key_type="q5_1"), ("unsupported", False, True)),
        (msgspec.structs.replace(Q8, embeddings=True), KvSection(), ("unsupported", False, True)),
        (msgspec.structs.replace(Q8, mmproj="x"), KvSection(), ("unsupported", False, True)),
    ],
)
def test_demotion_goes_with_the_types_that_result(
    config: ModelConfig, kv: KvSection, answered: tuple[str, bool, bool]
) -> None:
    """A swap where they are quantised and can be stored anew; at 16 bits there is nothing to do, and the reason says
    so; else the reason says what it does not go with. The new settings have it in the first case only."""
    policy = Policy(msgspec.structs.replace(kv, demote_after_prefill=True))
    (answer,) = (each for each in changes(policy, config) if each.field == "kv.demote_after_prefill")
    assert (answer.effect, answer.was, answer.value) == answered
    assert (answer.reason is None) == (answered[0] == "swap")
    new = target(policy, config, config)
    assert new.options == ({"demote_after_prefill": True} if answered[0] == "swap" else {})
    assert answered[0] != "swap" or why_not(new) is None
    alone = kinds(policy, config, can_swap=False)["kv.demote_after_prefill"]
    assert alone[0] == (answered[0] if answered[0] != "swap" else "unsupported")


def test_demotion_of_the_settings_ends_where_the_types_forbid_it_and_comes_back() -> None:
    """A policy of 16 bits could not start a worker with it; the default brings the settings' own back."""
    own = msgspec.structs.replace(Q8, options={"demote_after_prefill": True})
    assert "kv.demote_after_prefill" not in kinds(Policy(), own)
    assert kinds(F16, own)["kv.demote_after_prefill"] == ("swap", True, False)
    swapped = target(F16, own, own)
    assert swapped.options == {"demote_after_prefill": False}
    assert target(Policy(), swapped, own) == own


def test_settings_of_the_engine_that_a_policy_leaves_open_stay() -> None:
    """Layers, threads, options and all that no policy knows of."""
    config = ModelConfig("m", path="x", gpu_layers=12, threads=3, options={"cache_ram_mib": 5}, embeddings=True)
    assert target(F16, config, config) == target(Policy(), config, config) == config


def test_memory_for_prompts_is_rounded_up_to_whole_mebibytes() -> None:
    """What is asked for fits; what llama.cpp has by itself needs no swap; nothing is nothing."""
    for asked, mib in ((1, 1), (2**20, 1), (2**20 + 1, 2), (0, 0)):
        policy = msgspec.structs.replace(F16, engine=EngineSection(prompt_cache_bytes=asked))
        assert kinds(policy)["engine.prompt_cache_bytes"] == ("swap", 8192, mib)
    same = msgspec.structs.replace(F16, engine=EngineSection(prompt_cache_bytes=8 * 2**30, speculation="off"))
    assert {effect for effect, _, _ in kinds(same).values()} == {"unchanged"}
    assert target(same, CONFIG, CONFIG) == CONFIG


def test_the_built_in_model_gets_no_more_context_than_it_was_made_for() -> None:
    """The answer says so, and a context that is cut to what is in force is no change."""
    policy = msgspec.structs.replace(F16, engine=EngineSection(context=100_000))
    (answer,) = (each for each in changes(policy, CONFIG) if each.field == "engine.context")
    assert (answer.effect, answer.was, answer.value) == ("swap", 1024, 2048)
    assert "no more than 2048 tokens" in (answer.reason or "")
    full = msgspec.structs.replace(CONFIG, context=2048)
    (answer,) = (each for each in changes(policy, full) if each.field == "engine.context")
    assert (answer.effect, answer.done) == ("unchanged", True)


@pytest.mark.parametrize(
    ("scheduler", "answered"),
    [
        (
            SchedulerSection("gpu_only", "dml", "dml"),
            {"mode": "swap", "prefill_device": "swap", "decode_device": "swap"},
        ),
        (SchedulerSection("hybrid", "cpu", "cpu"), {"prefill_device": "unchanged", "decode_device": "unchanged"}),
        (SchedulerSection("npu_only", "npu", "npu"), {"mode": "unsupported", "prefill_device": "unsupported"}),
        (SchedulerSection("hybrid", "dml", "cpu"), {"decode_device": "unsupported"}),
        (SchedulerSection(), {}),
    ],
)
def test_placement_is_layers_on_the_card_or_none(scheduler: SchedulerSection, answered: dict[str, str]) -> None:
    """All on the card, none, or not possible here: one device does both phases, and no NPU."""
    config = msgspec.structs.replace(CONFIG, gpu_layers=0)
    found = kinds(msgspec.structs.replace(F16, scheduler=scheduler), config)
    assert {name: effect for name, (effect, _, _) in found.items() if name.startswith("scheduler.")} == {
        f"scheduler.{name}": effect for name, effect in answered.items()
    }


def test_layers_that_are_named_win_over_the_placement() -> None:
    """The nearer to the engine, the more it counts."""
    policy = Policy(
        KvSection("disabled"), scheduler=SchedulerSection("gpu_only", "dml", "dml"), engine=EngineSection(gpu_layers=5)
    )
    found = kinds(policy)
    assert found["engine.gpu_layers"] == ("swap", -1, 5)
    assert found["scheduler.mode"][0] == "unsupported"


def test_without_anybody_to_start_it_anew_the_flags_are_told() -> None:
    """As llama-server takes them."""
    policy = msgspec.structs.replace(UNLIKE, engine=EngineSection(3, 512, 0, 2, 64 * 2**20, "ngram"))
    answers = changes(policy, CONFIG, can_swap=False)
    line = "-c 1536 -np 3 -ctk q4_0 -ctv q4_0 -ngl 0 -t 2 --cache-ram 64 --spec-type ngram-simple"
    restarts = [each for each in answers if each.effect == "restart"]
    assert len(restarts) == 9
    assert all((each.reason or "").endswith(line) and not each.done for each in restarts)
    assert flags(CONFIG) == "-c 2048 -np 2 -ctk f16 -ctv f16 -ngl all -t 1 --spec-type none"


# --- what it does with it --------------------------------------------------------------------------------------------


async def test_only_what_differs_is_swapped_for(noted: tuple[NotedSwapper, Actuator]) -> None:
    """Whole fields of the settings, the options with those that were there before."""
    swapper, actuator = noted
    await actuator.apply(msgspec.structs.replace(F16, engine=EngineSection(slots=3, speculation="ngram")))
    assert swapper.asked == [{"slots": 3, "options": {"cache_ram_mib": 7, "speculation": "ngram"}}]
    await actuator.apply(msgspec.structs.replace(F16, engine=EngineSection(slots=3, speculation="ngram")))
    assert len(swapper.asked) == 1
    await actuator.apply(Policy())
    assert swapper.asked[1:] == [{"slots": 2, "options": {"cache_ram_mib": 7}}]


async def test_a_swap_that_fails_is_told_with_the_reason(noted: tuple[NotedSwapper, Actuator]) -> None:
    """And the next plan begins from the settings that are still in force."""
    swapper, actuator = noted
    swapper.fails = "the new worker ended: no memory"
    with pytest.raises(ActuatorFailed, match=r"m \(llama\.cpp\): the swap failed: the new worker ended: no memory; .*"):
        await actuator.apply(Policy(KvSection("dynamic")))
    assert {each.effect for each in await actuator.plan(Policy(KvSection("dynamic")))} == {"swap"}


def test_a_state_is_computed_from_tokens_and_the_models_shape() -> None:
    """Of two slots one holds 200 tokens; the other was never used. Levels follow the types."""
    listed = [{"id": 0, "n_ctx": 1024}, {"id": 1, "n_ctx": 1024, "id_task": 4, "n_prompt_tokens": 200}]
    slots, shape = Answer(200, msgspec.json.encode(listed)), kv_size.shape(builtin.path())
    state = read(CONFIG, slots, samples(LLAMA_METRICS), shape)
    assert (state.running, state.waiting, state.slots, state.accept_rate) == (1, 2, 2, 0.25)
    assert state.kv is not None
    assert (state.kv.used_bytes, state.kv.limit_bytes) == (200 * TOKEN_BYTES, 2048 * TOKEN_BYTES)
    assert state.kv.levels == {"L0": 200 * TOKEN_BYTES, "L1": 0, "L2": 0, "L3": 0}
    mixed = read(msgspec.structs.replace(CONFIG, kv_type_k="q8_0", kv_type_v="q4_0"), slots, {}, shape)
    assert mixed.kv is not None
    assert mixed.kv.levels == {"L0": 0, "L1": 200 * TOKEN_BYTES * 8.5 / 32, "L2": 200 * TOKEN_BYTES * 4.5 / 32, "L3": 0}
    assert mixed.kv.full_precision_bytes == 200 * TOKEN_BYTES
    assert mixed.running == 0
    assert "no metrics" in (mixed.reason or "")


@pytest.mark.parametrize("listed", [[{"id_task": 1, "n_ctx": 5}], None])
def test_a_llama_cpp_that_does_not_tell_its_tokens_is_believed_nothing(listed: Any) -> None:
    """An older one, or one with its slots hidden: no bytes, with the reason."""
    slots = Answer(200 if listed else 501, msgspec.json.encode(listed))
    state = read(CONFIG, slots, {}, kv_size.shape(builtin.path()))
    assert state.kv is None or state.kv.used_bytes is None
    assert "does not tell" in (state.reason or "")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("attention.sliding_window", 512, "sliding window"), ("ssm.state_size", 16, "state"), ("x", 0, "lacks sizes")],
)
def test_a_model_whose_layers_differ_is_not_computed(tmp_path: Path, key: str, value: int, reason: str) -> None:
    """A wrong figure is worse than none."""
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "any")
    if key != "x":
        writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_uint32(f"any.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert reason in str(kv_size.shape(tmp_path / "m.gguf"))


def test_key_value_heads_by_layer_are_summed(tmp_path: Path) -> None:
    """And keys may be longer than values."""
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "any")
    writer.add_block_count(3)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_array("any.attention.head_count_kv", [4, 2, 4])
    writer.add_key_length(32)
    writer.add_value_length(16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert kv_size.shape(tmp_path / "m.gguf") == kv_size.KvShape(10, 32, 16)
