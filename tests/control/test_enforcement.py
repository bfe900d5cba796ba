"""Engines that are not as the policy wants them are brought to it again, less and less often."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_harness import PERSON, ValueEngine, make_agent

from sekisho.control.base import ActuatorFailed, Applied, EngineState
from sekisho.control.policy import Policy
from sekisho.control.policy_service import refusal


class Refusing(ValueEngine):
    """`refuses`: does not take what needs a swap; with `aloud` it raises, else it says so field by field."""

    def __init__(self, model: str, *, aloud: bool = True) -> None:
        super().__init__(model)
        self.refuses, self.aloud = False, aloud
        self.asked_at: list[float] = []

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        if not self.refuses:
            return await super().apply(policy)
        planned = await self.plan(policy)
        if not any(each.effect == "swap" for each in planned):
            return await super().apply(policy)
        if self.aloud:
            raise ActuatorFailed(f"{self.model}: the new worker ended with 1")
        engine = self.policy.engine
        done = await super().apply(msgspec.structs.replace(policy, engine=engine))
        return done + tuple(each for each in planned if each.effect == "swap")


class Scene:
    """An agent with two engines, looked at every five seconds; `second` refuses swaps from now on."""

    def __init__(self, folder: Path, *, aloud: bool = True) -> None:
        self.first, self.second = ValueEngine("first"), Refusing("second", aloud=aloud)
        self.agent, self.clock = make_agent(folder, self.first, self.second)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(5)
            await self.agent._middle()

    async def set(self, model: str | None = None, **changes: Any) -> str:
        return (await self.agent.policies.change(changes, PERSON, by="api", model=model)).outcome

    def tries(self, rule: str = "engine_again") -> list[float]:
        told = [each.record for each in self.agent.history.read("decisions")]
        return [each["at"] for each in told if each["rule"] == rule and each["model"] == "second"]

    def reasons(self) -> list[str]:
        return [each for each in self.agent.health().reasons if "policy wants" in each]


@pytest.mark.parametrize("aloud", [True, False])
async def test_a_swap_that_one_of_two_engines_refuses_is_tried_again(tmp_path: Path, aloud: bool) -> None:
    """Only there, with pauses that grow to ten minutes; the health has the reason until the engine takes it."""
    scene = Scene(tmp_path, aloud=aloud)
    await scene.look()
    scene.second.refuses = True
    assert await scene.set(engine={"slots": 8}, kv={"recent_window": 99}) == "partly"
    begun, applied = scene.clock.now(), scene.first.applied
    await scene.look(times=720)
    why = "second: the new worker ended with 1" if aloud else "engine.slots is None, not 8"
    assert scene.reasons() == [f"second: not as the policy wants it, tried again: {why}"]
    tries = scene.tries()
    pauses = [later - earlier for earlier, later in pairwise([begun, *tries])]
    assert 10 <= pauses[0] <= 20
    assert all(later >= earlier - 5 or later >= 600 for earlier, later in pairwise(pauses))
    assert 600 <= max(pauses) <= 800
    assert scene.first.applied == applied
    scene.second.refuses = False
    await scene.look(times=160)
    assert (scene.second.policy.engine.slots, scene.second.policy.kv.recent_window) == (8, 99)
    assert (scene.agent.health().status, len(scene.tries())) == ("healthy", len(tries) + 1)
    await scene.agent.close()


async def test_a_change_that_the_engine_takes_ends_it(tmp_path: Path) -> None:
    """Somebody sets what it can do: nothing is tried any more."""
    scene = Scene(tmp_path)
    await scene.look()
    scene.second.refuses = True
    await scene.set(engine={"slots": 8})
    await scene.look(times=20)
    tries = scene.tries()
    assert tries
    assert await scene.set(engine={"slots": None}) == "applied"
    await scene.look(times=300)
    assert (scene.reasons(), scene.tries()) == ([], tries)
    await scene.agent.close()


async def test_what_was_taken_back_is_not_tried_again_and_what_was_owed_before_is(tmp_path: Path) -> None:
    """A change for it alone that it refuses is in force nowhere; the common one before that still is."""
    scene = Scene(tmp_path)
    await scene.look()
    scene.second.refuses = True
    assert await scene.set("second", engine={"slots": 2}) == "failed"
    await scene.look(times=50)
    assert (scene.reasons(), scene.tries()) == ([], [])
    assert await scene.set(engine={"slots": 8}) == "partly"
    assert await scene.set("second", engine={"slots": 2}) == "failed"
    await scene.look(times=50)
    assert len(scene.tries()) >= 3
    scene.second.refuses = False
    await scene.look(times=50)
    assert scene.second.policy.engine.slots == 8
    await scene.agent.close()


async def test_an_engine_that_starts_anew_is_asked_at_once(tmp_path: Path) -> None:
    """Whatever pause the one before had come to."""
    scene = Scene(tmp_path)
    await scene.look()
    scene.second.refuses = True
    await scene.set(engine={"slots": 8})
    await scene.look(times=400)
    ready, scene.second.state_now = scene.second.state_now, EngineState("second", "value", "down", "it died")
    await scene.look()
    scene.second.state_now, scene.second.refuses = ready, False
    await scene.look()
    assert scene.second.policy.engine.slots == 8
    assert len(scene.tries("engine_back")) == 1
    await scene.agent.close()


async def test_a_drift_that_is_refused_is_tried_again_without_waiting_for_the_next_minute(tmp_path: Path) -> None:
    """The slow loop sees it, the middle one goes on; one rule, and the reason while it lasts."""
    scene = Scene(tmp_path)
    await scene.look()
    await scene.set(kv={"recent_window": 99})
    scene.second.policy = Policy()

    async def refuse(policy: Policy) -> tuple[Applied, ...]:
        raise ActuatorFailed("second: busy")

    take = scene.second.apply
    scene.second.apply = refuse  # type: ignore[method-assign]
    await scene.agent._slow()
    await scene.look(times=6)
    assert len(scene.tries("engine_drift")) == 2
    assert scene.reasons() == ["second: not as the policy wants it, tried again: second: busy"]
    scene.second.apply = take  # type: ignore[method-assign]
    await scene.look(times=6)
    await scene.agent._slow()
    assert (scene.second.policy.kv.recent_window, scene.reasons()) == (99, [])
    assert (len(scene.tries("engine_drift")), scene.tries()) == (3, [])
    await scene.agent.close()


def test_what_a_person_must_do_or_nobody_can_is_no_refusal() -> None:
    """A restart by hand, a field that the engine has not got, and what is done already."""
    assert refusal((Applied("m", "a", "restart", False), Applied("m", "b", "unsupported", False))) is None
    assert refusal((Applied("m", "a", "swap", True), Applied("m", "b", "unchanged", True))) is None
    assert refusal((Applied("m", "a", "swap", False, 1, 2), Applied("m", "b", "now", True))) == "a is 1, not 2"
