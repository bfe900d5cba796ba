"""What vLLM makes of a policy, before a server that speaks its published interface."""

import shlex
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from actuator_harness import KEY, UNLIKE, VLLM_METRICS, Vllm
from hypothesis import given
from policy_strategies import policies

from sekisho.control.actuators import create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.engine_http import Answer
from sekisho.control.actuators.metrics_text import samples
from sekisho.control.actuators.vllm import Launch, changes, launched
from sekisho.control.base import Actuator
from sekisho.control.policy import GIB, EngineSection, KvSection, Policy
from sekisho.engines.config import ModelConfig

KNOWN = Launch("org/model", "auto", 8192, True, 0, False)


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Vllm, Actuator]]:
    server = Vllm()
    await server.start()
    config = ModelConfig("m", engine="openai_http", upstream_model="org/served", options={"actuator": "vllm"})
    actuator = create(config, server.url, KEY)
    yield server, actuator
    await actuator.close()
    await server.stop()


@given(policies)
def test_no_field_is_forgotten_whatever_the_policy(policy: Policy) -> None:
    """Each that differs from its default is answered, and nothing of it happens while vLLM runs."""
    for launch in (KNOWN, Launch("m")):
        answered = changes(policy, "m", launch)
        assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= {
            e.field for e in answered
        }
        assert {each.effect for each in answered} <= {"unchanged", "restart", "unsupported"}


async def test_one_command_line_has_all_flags(engine: tuple[Vllm, Actuator]) -> None:
    """Each field that needs a restart tells the same line, quoted for a shell."""
    server, actuator = engine
    policy = msgspec.structs.replace(UNLIKE, kv=KvSection("dynamic"))
    applied = await actuator.apply(policy)
    lines = {each.reason.split("start it with: ")[1] for each in applied if each.effect == "restart" and each.reason}
    assert [shlex.split(line) for line in lines] == [
        [
            *("vllm", "serve", "org/model", "--kv-cache-dtype", "fp8", "--max-num-seqs", "3", "--max-model-len", "512"),
            *("--enable-prefix-caching", "--kv-offloading-size", "0.0625", "--speculative-config"),
            '{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":4}',
        ]
    ]
    assert server.wrote() == []


def test_what_it_tells_of_its_start_is_compared() -> None:
    """Equal is unchanged; what it does not tell is asked for, with that reason."""
    policy = Policy(
        KvSection("disabled"), engine=EngineSection(slots=4, context=8192, prompt_cache_bytes=0, speculation="off")
    )
    found = {each.field: each for each in changes(policy, "m", KNOWN)}
    assert found["kv.mode"].effect == found["engine.context"].effect == "unchanged"
    assert found["engine.speculation"].effect == "unchanged"
    assert found["engine.slots"].effect == "restart"
    assert "does not tell what it was started with" in (found["engine.slots"].reason or "")


@pytest.mark.parametrize(
    ("keys", "values", "effect", "value"),
    [
        ("f16", "bf16", "unchanged", "auto"),
        ("q8_0", "q8_0", "restart", "fp8"),
        ("q8_0", "q4_0", "restart", "turboquant_k8v4"),
        ("q4_0", "q4_0", "restart", "turboquant_4bit_nc"),
        ("q4_0", "f16", "unsupported", "q4_0/f16"),
    ],
)
def test_types_are_the_nearest_of_vllm(keys: Any, values: Any, effect: str, value: str) -> None:
    """By their bits; there is one for each pair that vLLM has, and a reason for the others."""
    policy = Policy(KvSection("dynamic", key_type=keys, value_type=values))
    found = {each.field: each for each in changes(policy, "m", KNOWN)}
    assert (found["kv.mode"].effect, found["kv.mode"].value) == (effect, value)


async def test_a_state_is_read_from_its_metrics(engine: tuple[Vllm, Actuator]) -> None:
    """Engines of one server are summed, their shares averaged; bytes where the cache's size was set in bytes."""
    _, actuator = engine
    state = await actuator.state()
    assert (state.running, state.waiting, state.slots, state.accept_rate) == (4, 5, None, 0.6)
    assert state.kv is not None
    assert (state.kv.used_bytes, state.kv.limit_bytes) == (GIB, 2 * GIB)
    assert state.settings["version"] == "0.32.0"
    assert state.settings["max_model_len"] == 8192
    assert state.settings["kv_used_share"] == 0.5


def test_older_and_silent_ones_are_believed_nothing() -> None:
    """No metrics, no list: what is not told is None."""
    assert launched("m", {}, Answer(200, b"{}")) == Launch("m")
    told = samples(VLLM_METRICS.replace('cache_dtype="auto"', 'cache_dtype="fp8_e4m3"'))
    assert launched("m", told, Answer(200, b'{"data": [7]}')).cache_dtype == "fp8"
