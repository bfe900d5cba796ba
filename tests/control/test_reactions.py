"""Trouble, what is done about it, and how it is undone: fallbacks, balancer, policy service and engine together."""

import random
from pathlib import Path
from typing import Any

import msgspec
from agent_harness import ValueEngine, make_agent
from faults_harness import ENGINE, GPU, MEMORY, NPU, signals

from sekisho.control.agent import Agent
from sekisho.control.balancer import Balancer
from sekisho.control.fallback import Fallbacks
from sekisho.control.notification import Alert
from sekisho.control.overlay import Overlay
from sekisho.control.policy_service import Cause
from sekisho.control.reactions import Reactions, read_overlay

PERSON = Cause("api", "request", "api", "a person")
FULL = msgspec.structs.replace(MEMORY, used_bytes=97)
NO_NPU = msgspec.structs.replace(NPU, present=False)


class Scene:
    """An agent's reactions, looked at every five seconds."""

    def __init__(self, folder: Path, *, acts: bool = True, overlay: Overlay | None = None) -> None:
        self.engine = ValueEngine("m")
        self.agent: Agent
        self.agent, self.clock = make_agent(folder, self.engine)
        self.alerts: list[Alert] = []
        self.file = folder / "overlay.json"
        overlay = overlay if overlay is not None else Overlay()
        fallbacks = Fallbacks(random.Random(1), overlay=overlay, acts=acts)
        self.reactions = Reactions(
            self.agent.policies, fallbacks, Balancer(overlay=overlay), self.alerts.append, self.clock, self.file
        )

    async def look(self, *devices: Any, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(5)
            await self.reactions.watch(signals(self.clock.monotonic(), *devices, engines=(ENGINE,)))

    def decisions(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("decisions")]


async def test_trouble_changes_the_policy_and_its_end_changes_it_back(tmp_path: Path) -> None:
    """Every step is a decision that names signal, rule and what the engine said; at the end all is as it was."""
    scene = Scene(tmp_path)
    before = scene.agent.policies.current()
    await scene.look(FULL, GPU, times=60)
    assert scene.agent.policies.current() != before
    assert scene.engine.policy == scene.agent.policies.current()
    acted = [each for each in scene.decisions() if each["outcome"] == "applied"]
    assert {each["rule"] for each in acted} >= {"fallback.memory"}
    assert all(each["signal"] and each["applied"] and each["policy_version"] for each in acted)
    await scene.look(MEMORY, GPU, times=900)
    assert scene.agent.policies.current() == before
    assert scene.engine.policy == before
    await scene.agent.close()


async def test_what_a_person_sets_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Recovery undoes what the agent did, and nothing else."""
    scene = Scene(tmp_path)
    await scene.look(FULL, times=40)
    await scene.agent.policies.change({"kv": {"recent_window": 222}}, PERSON, by="api")
    await scene.look(MEMORY, times=900)
    policy = scene.agent.policies.current()
    assert policy.kv.recent_window == 222
    assert (policy.engine.slots, policy.kv.mode) == (None, "configured")
    await scene.agent.close()


async def test_an_agent_that_was_killed_undoes_what_it_left(tmp_path: Path) -> None:
    """The overlay is on disk after each round; the next agent puts back what nothing asks for any more."""
    scene = Scene(tmp_path)
    before = scene.agent.policies.current()
    await scene.look(FULL, times=60)
    changed = scene.agent.policies.current()
    assert changed != before
    await scene.agent.close()  # without a word
    again = Scene(tmp_path, overlay=read_overlay(tmp_path / "overlay.json"))
    assert again.agent.policies.current() == changed
    await again.look(MEMORY, times=10)
    assert again.agent.policies.current() == before
    await again.agent.close()


async def test_advising_touches_nothing(tmp_path: Path) -> None:
    """Without `fallback` in `control.act` every answer is an advice that a person can read."""
    scene = Scene(tmp_path, acts=False)
    await scene.look(NPU, GPU, times=3)
    await scene.look(NO_NPU, GPU, times=10)
    assert scene.engine.applied == 0
    assert {each["outcome"] for each in scene.decisions()} == {"advised"}
    await scene.agent.close()


async def test_an_engine_that_takes_nothing_is_not_asked_at_every_look(tmp_path: Path) -> None:
    """The policy stays as it was, and tries get rarer."""
    scene = Scene(tmp_path)
    await scene.agent.policies.change({"kv": {"recent_window": 100}}, PERSON, by="api")
    before = scene.agent.policies.current()
    scene.engine.broken = "m: cannot"
    await scene.look(NPU, GPU, times=3)
    await scene.look(NO_NPU, GPU, times=400)
    assert scene.agent.policies.current() == before
    failed = [each for each in scene.decisions() if each["outcome"] == "failed"]
    assert 2 <= len(failed) <= 25
    await scene.agent.close()


def test_a_torn_overlay_is_an_empty_one(tmp_path: Path) -> None:
    """It is written whole or not at all; what somebody else put there stops nothing."""
    (tmp_path / "overlay.json").write_bytes(b'{"held": {"kv')
    assert read_overlay(tmp_path / "overlay.json").state().held == {}
    assert read_overlay(tmp_path / "none.json").state().held == {}
