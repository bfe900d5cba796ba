"""What Lemonade makes of a policy, before a server that speaks its published interface."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from actuator_harness import KEY, UNLIKE, Lemonade
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import policies

from sekisho.control.actuators import create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.lemonade_options import Loaded, changes, flag_of, target, with_flags
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import EngineSection, KvSection, Policy, SchedulerSection
from sekisho.engines.config import ModelConfig

BACKENDS = {"vulkan": ("cpu", "amd_gpu"), "rocm": ("amd_gpu",), "cpu": ("cpu",)}
LLAMA = Loaded("llamacpp", {"ctx_size": 8192, "llamacpp_args": "", "llamacpp_backend": "vulkan"}, {}, "gpu", BACKENDS)
HYBRID = Loaded("ryzenai-llm", {"ctx_size": 4096}, {}, "gpu npu", {"default": ("amd_npu",)})
NPU = Loaded("flm", {"ctx_size": 4096, "flm_args": ""}, {}, "npu", {"default": ("amd_npu",)})
F16 = Policy(KvSection("disabled"))


async def opened(server: Lemonade) -> Actuator:
    await server.start()
    config = ModelConfig("m", engine="openai_http", upstream_model="Qwen3-0.6B-GGUF", options={"actuator": "lemonade"})
    return create(config, server.url, KEY)


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Lemonade, Actuator]]:
    server = Lemonade()
    actuator = await opened(server)
    yield server, actuator
    await actuator.close()
    await server.stop()


@given(policies, st.sampled_from((LLAMA, HYBRID, NPU)))
def test_no_field_is_forgotten_whatever_the_policy(policy: Policy, loaded: Loaded) -> None:
    """Each that differs from its default is answered, and what is swapped for is in force with the new options."""
    answered = changes(policy, "m", loaded)
    assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= {e.field for e in answered}
    again = changes(policy, "m", msgspec.structs.replace(loaded, options=target(policy, loaded)))
    assert "swap" not in {each.effect for each in again}


words = st.lists(st.sampled_from(("--no-mmap", "-fa", "on", "--flash-attn", "-kvu", "a b", "'", "-1", "--x=y")))


@given(words, st.sampled_from(("q8_0", "f16", "q4_0")), st.integers(1, 9))
def test_flags_of_others_stay_as_they_are(others: list[str], kind: str, slots: int) -> None:
    """In their order and with their quotes; setting twice is setting once."""
    import shlex

    line = with_flags(shlex.join(others), {"-ctk": kind, "-np": str(slots)})
    assert [word for word in shlex.split(line) if word in others][: len(others)] == others
    assert (flag_of(line, "-ctk"), flag_of(line, "-np")) == (kind, str(slots))
    assert with_flags(line, {"-ctk": kind, "-np": str(slots)}) == line


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-ctk q8_0 --no-mmap", "-ctk f16 --no-mmap"),
        ("--cache-type-k q8_0", "--cache-type-k f16"),
        ("--cache-type-k=q8_0", "--cache-type-k f16"),
        ("-ctk q8_0 -ctk q4_0", "-ctk f16"),
        ("--no-mmap", "--no-mmap"),
        ("", ""),
    ],
)
def test_a_flag_is_replaced_where_it_stands_and_a_default_is_not_added(before: str, after: str) -> None:
    """Whatever name it has."""
    assert with_flags(before, {"-ctk": "f16"}) == after


def test_the_context_is_that_of_all_slots() -> None:
    """With more slots each keeps what it had; a context that lemond chooses is left to it."""
    assert target(msgspec.structs.replace(F16, engine=EngineSection(slots=3)), LLAMA)["ctx_size"] == 3 * 8192
    assert target(msgspec.structs.replace(F16, engine=EngineSection(slots=3, context=512)), LLAMA)["ctx_size"] == 1536
    auto = msgspec.structs.replace(LLAMA, options=LLAMA.options | {"ctx_size": -1})
    assert target(msgspec.structs.replace(F16, engine=EngineSection(slots=3)), auto)["ctx_size"] == -1
    two = msgspec.structs.replace(LLAMA, options=LLAMA.options | {"llamacpp_args": "-np 2"})
    assert target(F16, two)["ctx_size"] == 8192


@pytest.mark.parametrize(
    ("loaded", "mode", "devices", "effect", "value"),
    [
        (LLAMA, "gpu_only", ("dml", "dml"), "unchanged", "vulkan"),
        (
            msgspec.structs.replace(LLAMA, options={"llamacpp_backend": "cpu"}),
            "gpu_only",
            ("dml", "dml"),
            "swap",
            "vulkan",
        ),
        (LLAMA, "npu_only", ("npu", "npu"), "unsupported", "npu_only"),
        (HYBRID, "hybrid", ("dml", "npu"), "unchanged", "gpu npu"),
        (NPU, "npu_only", ("npu", "npu"), "unchanged", "npu"),
        (NPU, "gpu_only", ("dml", "dml"), "unsupported", "gpu_only"),
    ],
)
def test_the_recipe_decides_where_a_model_runs(
    loaded: Loaded, mode: Any, devices: tuple[Any, Any], effect: str, value: str
) -> None:
    """llama.cpp's backend can be chosen; another recipe needs another model, and the reason names it."""
    policy = msgspec.structs.replace(F16, scheduler=SchedulerSection(mode, *devices))
    found = {each.field: each for each in changes(policy, "m", loaded)}["scheduler.mode"]
    assert (found.effect, found.value) == (effect, value)
    assert (found.reason is not None) == (effect == "unsupported")


def test_no_layers_on_the_card_is_the_backend_cpu() -> None:
    """All is what lemond sets by itself; a number in between it does not take."""
    for layers, effect in ((0, "swap"), (-1, "unchanged"), (7, "unsupported")):
        policy = msgspec.structs.replace(F16, engine=EngineSection(gpu_layers=layers))
        found = {each.field: each for each in changes(policy, "m", LLAMA)}["engine.gpu_layers"]
        assert found.effect == effect


async def test_options_are_checked_saved_and_loaded(engine: tuple[Lemonade, Actuator]) -> None:
    """First a question that saves nothing; then what differs, and a load. Options of others stay."""
    server, actuator = engine
    applied = await actuator.apply(Policy(KvSection("dynamic"), engine=EngineSection(slots=3, speculation="ngram")))
    assert all(each.done for each in applied)
    line = "--no-mmap -ctk q8_0 -ctv q8_0 -np 3 --spec-type ngram-simple"
    posts = [each for each in server.asked if each[0] == "POST"]
    options = {"ctx_size": 3 * 8192, "llamacpp_args": line}
    assert posts == [
        ("POST", "/v1/models/Qwen3-0.6B-GGUF/options", options | {"dry_run": True}),
        ("POST", "/v1/models/Qwen3-0.6B-GGUF/options", options),
        ("POST", "/v1/load", {"model_name": "Qwen3-0.6B-GGUF"}),
    ]
    assert server.running["llamacpp_args"] == line


async def test_what_does_not_load_is_put_back(engine: tuple[Lemonade, Actuator]) -> None:
    """Saved options and the running model are as before, and the failure has lemond's words."""
    server, actuator = engine
    saved, running = dict(server.saved), dict(server.running)
    server.refuses_to_load = lambda options: "-np" in options["llamacpp_args"]
    with pytest.raises(ActuatorFailed, match=r"m \(Lemonade\): POST /v1/load answered 500: llama-server ended"):
        await actuator.apply(Policy(engine=EngineSection(slots=3)))
    assert (server.saved, server.running) == (saved, running)
    server.refuses_to_load = lambda options: True
    with pytest.raises(
        ActuatorFailed, match=r"could not be put back.*curl -X DELETE http://127\.0\.0\.1:\d+/v1/models"
    ):
        await actuator.apply(Policy(engine=EngineSection(slots=3)))


async def test_an_option_that_lemond_refuses_is_found_by_the_plan() -> None:
    """The question that saves nothing is refused, and so is the plan."""
    server = Lemonade()
    actuator = await opened(server)
    known = server.effective
    server.effective = lambda saved: {k: v for k, v in known(saved).items() if k != "llamacpp_args"}  # type: ignore[method-assign]
    with pytest.raises(ActuatorFailed, match="Unknown option 'llamacpp_args' for recipe 'llamacpp'"):
        await actuator.plan(UNLIKE)
    assert server.wrote() == []
    await actuator.close()
    await server.stop()


async def test_a_state_is_of_the_one_model(engine: tuple[Lemonade, Actuator]) -> None:
    """Others of the same lemond are not counted."""
    state = await engine[1].state()
    assert (state.running, state.slots, state.accept_rate, state.kv) == (2, 2, 0.75, None)
    assert state.settings["device"] == "gpu"
    assert state.settings["stats"]["tokens_per_second"] == 33.3


async def test_a_model_that_is_not_loaded_is_ready_all_the_same() -> None:
    """The next request loads it; the reason says so."""
    server = Lemonade()
    actuator = await opened(server)
    server._told = lambda path: {"all_models_loaded": []}  # type: ignore[method-assign]
    state = await actuator.state()
    assert (state.state, state.running) == ("ready", 0)
    assert "has not loaded it" in (state.reason or "")
    await actuator.close()
    await server.stop()


async def test_a_recipe_without_flags_takes_a_context_and_says_what_it_lacks() -> None:
    """FastFlowLM on an NPU: one option of a policy is its own."""
    server = Lemonade("flm", "npu")
    actuator = await opened(server)
    planned = {each.field: each for each in await actuator.plan(UNLIKE)}
    assert planned["engine.context"].effect == "swap"
    assert planned["scheduler.mode"].effect == "unchanged"
    assert "with the recipe flm" in (planned["engine.slots"].reason or "")
    await actuator.close()
    await server.stop()
