"""Trouble, what is done about it, and how it is undone: fallbacks, balancer, policy service and engine together."""

import random
from pathlib import Path
from typing import Any

import msgspec
from agent_harness import PERSON, ValueEngine, make_agent
from faults_harness import CPU, ENGINE, FULL, GPU, MEMORY, NPU, signals

from sekisho.control.agent import Agent
from sekisho.control.balancer import Balance, Balancer, Band
from sekisho.control.base import Applied
from sekisho.control.config import Acting
from sekisho.control.fallback import Fallbacks
from sekisho.control.notification import Alert
from sekisho.control.overlay import Overlay
from sekisho.control.policy import Policy
from sekisho.control.reactions import Reactions, read_overlay

NO_NPU = msgspec.structs.replace(NPU, present=False)


class Scene:
    """An agent's reactions, looked at every five seconds. `act`: what it may do, as `control.act` has it."""

    def __init__(
        self,
        folder: Path,
        *,
        acts: bool = True,
        overlay: Overlay | None = None,
        act: tuple[Acting, ...] | None = None,
        balance: Balance | None = None,
    ) -> None:
        self.engine = ValueEngine("m")
        self.agent: Agent
        self.agent, self.clock = make_agent(folder, self.engine)
        self.alerts: list[Alert] = []
        self.file = folder / "overlay.json"
        overlay = overlay if overlay is not None else Overlay()
        fallbacks = Fallbacks(random.Random(1), overlay=overlay, acts=acts)
        self.act = act
        self.reactions = Reactions(
            self.agent.policies,
            fallbacks,
            Balancer(balance, overlay=overlay),
            self.alerts.append,
            self.clock,
            self.file,
            None if act is None else lambda: self.act or (),
        )

    async def set(self, **changes: Any) -> None:
        """A person's change."""
        await self.agent.policies.change(changes or {"quality": {"max_delta_ppl": 0.4}}, PERSON, by="api")

    async def look(self, *devices: Any, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(5)
            await self.reactions.watch(signals(self.clock.monotonic(), *devices, engines=(ENGINE,)))

    def decisions(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("decisions")]


async def test_trouble_changes_the_policy_and_its_end_changes_it_back(tmp_path: Path) -> None:
    """Every step is a decision that names signal, rule and what the engine said; at the end all is as it was."""
    scene = Scene(tmp_path)
    await scene.set()
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
    await scene.set()
    await scene.look(FULL, times=40)
    assert scene.engine.applied > 1
    await scene.set(kv={"recent_window": 222})
    await scene.look(MEMORY, times=900)
    policy = scene.agent.policies.current()
    assert policy.kv.recent_window == 222
    assert (policy.engine.slots, policy.kv.mode) == (None, "configured")
    await scene.agent.close()


async def test_an_agent_that_was_killed_undoes_what_it_left(tmp_path: Path) -> None:
    """The overlay is on disk after each round; the next agent puts back what nothing asks for any more."""
    scene = Scene(tmp_path)
    await scene.set()
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
    await scene.set()
    scene.engine.applied = 0
    await scene.look(NPU, GPU, times=3)
    await scene.look(NO_NPU, GPU, times=10)
    assert scene.engine.applied == 0
    assert {each["outcome"] for each in scene.decisions()[1:]} == {"advised"}
    await scene.agent.close()


async def test_an_engine_that_takes_nothing_is_not_asked_at_every_look(tmp_path: Path) -> None:
    """The policy stays as it was, and tries get rarer."""
    scene = Scene(tmp_path)
    await scene.set(kv={"recent_window": 100})
    before = scene.agent.policies.current()
    scene.engine.broken = "m: cannot"
    await scene.look(NPU, GPU, times=3)
    await scene.look(NO_NPU, GPU, times=400)
    assert scene.agent.policies.current() == before
    failed = [each for each in scene.decisions() if each["outcome"] == "failed"]
    assert 2 <= len(failed) <= 25
    await scene.agent.close()


async def test_until_a_person_sets_a_policy_everything_is_an_advice(tmp_path: Path) -> None:
    """An idle machine whose memory others fill keeps the engines as sekisho.yaml has them, whatever may be done."""
    scene = Scene(tmp_path, act=("quality", "fallback", "balance"))
    await scene.look(FULL, GPU, times=200)
    assert (scene.engine.applied, scene.agent.policies.book.version) == (0, 0)
    assert {each["outcome"] for each in scene.decisions()} == {"advised"}
    assert 1 <= len(scene.decisions()) <= 8
    await scene.set()
    await scene.look(FULL, GPU, times=20)
    assert scene.engine.policy.engine.prompt_cache_bytes == 0
    await scene.agent.close()


async def test_what_may_be_done_is_asked_at_every_look(tmp_path: Path) -> None:
    """`act` of POST /v1/config holds from the next look on: what balancing changed is undone, fallbacks advise."""
    pressed = msgspec.structs.replace(MEMORY, used_bytes=91)
    scene = Scene(tmp_path, act=("balance",))
    await scene.set()
    before = scene.agent.policies.current()
    await scene.look(pressed, times=10)
    assert scene.engine.policy.engine.slots == 4
    scene.act = ()
    await scene.look(pressed)
    assert scene.engine.policy == before
    await scene.look(pressed, times=30)
    assert scene.agent.policies.current() == scene.engine.policy == before
    await scene.look(FULL, times=30)
    assert scene.agent.policies.current() == before
    scene.act = ("fallback",)
    await scene.look(FULL, times=30)
    assert scene.engine.policy.engine.prompt_cache_bytes == 0
    await scene.agent.close()


async def test_memory_that_an_exchange_or_a_measurement_takes_is_no_trouble(tmp_path: Path) -> None:
    """Nothing begins while it lasts and for a minute after it, and nothing ends; another trouble is still answered."""
    scene = Scene(tmp_path, act=("fallback", "balance"))
    await scene.set(engine={"slots": 8})
    before = scene.agent.policies.current()
    await scene.look(FULL, times=11)
    assert scene.agent.policies.current() == before
    with scene.agent.policies.measuring():
        await scene.look(FULL, NPU, times=400)
        assert scene.agent.policies.current() == before
        await scene.look(FULL, NO_NPU, times=10)
        assert {each["rule"] for each in scene.decisions()} == {"request", "fallback.device_missing"}
    await scene.look(FULL, NO_NPU, times=25)
    assert scene.engine.policy.engine.prompt_cache_bytes == 0
    with scene.agent.policies.measuring():
        await scene.look(MEMORY, NO_NPU, times=400)
        assert scene.engine.policy.engine.prompt_cache_bytes == 0
    await scene.agent.close()


async def test_nothing_is_balanced_while_engines_are_exchanged(tmp_path: Path) -> None:
    """Loading a model keeps the processor busy: that is no pressure."""
    scene = Scene(tmp_path, act=("balance",), balance=Balance(cpu=Band(0.9, 0.5)))
    busy = msgspec.structs.replace(CPU, utilisation=1.0)
    await scene.set()
    before = scene.agent.policies.current()
    with scene.agent.policies.measuring():
        await scene.look(busy, times=50)
    assert scene.agent.policies.current() == before
    await scene.look(busy, times=20)
    assert scene.engine.policy.engine.slots == 4
    await scene.agent.close()


async def test_what_is_asked_for_is_on_disk_before_the_engine_has_it(tmp_path: Path) -> None:
    """An agent that is killed while an engine loads leaves nothing behind that the next one does not undo."""
    scene = Scene(tmp_path)
    await scene.set()
    before = scene.agent.policies.current()
    take, kept = scene.engine.apply, list[bytes]()

    async def apply(policy: Policy) -> tuple[Applied, ...]:
        kept.append(scene.file.read_bytes() if scene.file.exists() else b"")
        return await take(policy)

    scene.engine.apply = apply  # type: ignore[method-assign]
    while not kept:
        await scene.look(FULL, GPU)
    changed = scene.agent.policies.current()
    assert changed != before
    await scene.agent.close()
    (tmp_path / "killed.json").write_bytes(kept[0])
    again = Scene(tmp_path, overlay=read_overlay(tmp_path / "killed.json"))
    assert again.agent.policies.current() == changed
    await again.look(MEMORY, times=10)
    assert again.agent.policies.current() == before
    await again.agent.close()


def test_a_torn_overlay_is_an_empty_one(tmp_path: Path) -> None:
    """It is written whole or not at all; what somebody else put there stops nothing."""
    (tmp_path / "overlay.json").write_bytes(b'{"held": {"kv')
    assert read_overlay(tmp_path / "overlay.json").state().held == {}
    assert read_overlay(tmp_path / "none.json").state().held == {}
