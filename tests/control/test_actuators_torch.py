"""What the torch engine makes of a policy. The contract's tests run on its real worker, too."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from actuator_harness import KEY, NotedSwapper, Torch
from hypothesis import given
from policy_strategies import policies

from sekisho.control.actuators import create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.torch import changes, target, wanted_kv
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.engines.config import ModelConfig
from sekisho.kv.policy import KVPolicy, LevelThresholds, from_plain

CONFIG = ModelConfig("m", engine="torch", path="builtin", context=1024, slots=2, kv={"sinks": 8, "hysteresis": 0.1})
Engine = tuple[Torch, NotedSwapper, Actuator]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    server = Torch()
    await server.start()
    swapper = NotedSwapper(CONFIG, server.url, server.began)
    server.began(CONFIG)
    actuator = create(CONFIG, server.url, KEY, swapper, swapper.placed)
    yield server, swapper, actuator
    await actuator.close()
    await server.stop()


@given(policies)
def test_no_field_is_forgotten_whatever_the_policy(policy: Policy) -> None:
    """Each that differs from its default is answered; what is changed at once or swapped for is in force afterwards;
    and a default policy leads back to the model's own settings."""
    answered = {each.field for each in changes(policy, CONFIG, KVPolicy())}
    assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= answered
    new, kv = target(policy, CONFIG, CONFIG), wanted_kv(policy, CONFIG)
    assert not {each.effect for each in changes(policy, new, kv, CONFIG)} & {"swap", "restart", "now"}
    assert new == CONFIG or from_plain(new.kv or {}) == kv
    back = target(Policy(), new, CONFIG)
    assert (back.slots, back.context, back.threads) == (CONFIG.slots, CONFIG.context, CONFIG.threads)
    assert wanted_kv(Policy(), CONFIG) == from_plain(CONFIG.kv or {})


async def test_the_caches_policy_changes_while_it_runs(engine: Engine) -> None:
    """Only what differs is sent; sinks and ladder, of which a policy here knows nothing, stay; nobody swaps."""
    server, swapper, actuator = engine
    assert server.policy == KVPolicy(sinks=8, hysteresis=0.1)
    applied = await actuator.apply(Policy(KvSection(recent_window=32, budget=0.3, evict=True)))
    assert {each.field for each in applied if each.effect == "now"} == {"kv.recent_window", "kv.budget", "kv.evict"}
    assert server.wrote() == [("PUT", "/kv/policy", {"recent_window": 32, "budget": 0.3, "evict": True})]
    assert server.policy == KVPolicy(recent_window=32, budget=0.3, evict=True, sinks=8, hysteresis=0.1)
    assert swapper.asked == []
    await actuator.apply(Policy(KvSection(recent_window=32, budget=0.3, evict=True)))
    assert len(server.wrote()) == 1
    await actuator.apply(Policy())
    assert server.policy == KVPolicy(sinks=8, hysteresis=0.1)


async def test_disabled_puts_everything_above_the_first_threshold(engine: Engine) -> None:
    """One answer for it, and fields that it leaves no room for say so."""
    server, _, actuator = engine
    applied = {each.field: each for each in await actuator.apply(Policy(KvSection("disabled", budget=0.3)))}
    assert (applied["kv.mode"].effect, applied["kv.mode"].done) == ("now", True)
    assert (applied["kv.budget"].effect, applied["kv.budget"].reason) == ("unchanged", "kv.mode is disabled")
    assert server.policy.level_thresholds == LevelThresholds(0.0, 0.0, 0.0)
    assert server.policy.budget is None


async def test_a_new_worker_begins_with_the_policy_of_its_cache(engine: Engine) -> None:
    """What needs a swap and what does not come into force together, without a word to the new worker."""
    server, swapper, actuator = engine
    policy = Policy(KvSection(recent_window=32, budget=0.3), engine=EngineSection(slots=5))
    applied = await actuator.apply(policy)
    assert all(each.done for each in applied)
    (asked,) = swapper.asked
    assert asked["slots"] == 5
    assert from_plain(asked["kv"]) == wanted_kv(policy, CONFIG)
    assert server.wrote() == []


async def test_a_refused_policy_is_told_with_the_workers_words(engine: Engine) -> None:
    """And with the engine's name."""
    server, _, actuator = engine
    server.answer = lambda *asked: Torch.answer(server, *asked) if asked[0] == "GET" else refusal()  # type: ignore[method-assign]
    with pytest.raises(ActuatorFailed, match=r"m \(the torch engine\): PUT /kv/policy answered 400: budget must"):
        await actuator.apply(Policy(KvSection("dynamic")))


def refusal() -> object:
    from aiohttp import web

    return web.json_response({"error": {"message": "budget must be above 0", "param": "budget"}}, status=400)


async def test_a_state_is_what_the_worker_tells(engine: Engine) -> None:
    """Bytes, pages, requests; nothing was evicted, so that all attention found its tokens."""
    server, _, actuator = engine
    state = await actuator.state()
    assert (state.running, state.waiting, state.slots) == (2, 2, 4)
    assert state.kv is not None
    assert (state.kv.used_bytes, state.kv.limit_bytes, state.kv.full_precision_bytes) == (100, 5000, 400)
    assert (state.kv.chunks, state.kv.hit_rate) == (6, 1.0)
    assert state.kv.levels == {"L0": 40, "L1": 30, "L2": 20, "L3": 0}
    assert state.settings["levels"] == {"L0": 1, "L1": 2, "L2": 3, "L3": 0}
    assert state.settings["kv"] == msgspec.to_builtins(server.policy)


def test_without_a_swapper_the_cache_changes_and_the_rest_waits_for_a_restart() -> None:
    """With the settings to start it with."""
    policy = Policy(KvSection(recent_window=32), engine=EngineSection(slots=5))
    answered = {each.field: each for each in changes(policy, CONFIG, KVPolicy(), can_swap=False)}
    assert answered["kv.recent_window"].effect == "now"
    assert answered["engine.slots"].effect == "restart"
    assert "slots: 5, context: 1024" in (answered["engine.slots"].reason or "")
