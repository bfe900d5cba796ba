"""A quality loop before a model whose loss is known."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from agent_harness import PERSON, ValueEngine, make_agent

from sekisho.control.base import EngineState, Signals
from sekisho.control.notification import Alert
from sekisho.control.perplexity import texts
from sekisho.control.perplexity.base import Delta, Measurement, Unmeasured
from sekisho.control.perplexity.measure import Compared, Target
from sekisho.control.quality_schedule import ScheduleSettings
from sekisho.control.quality_watch import QualitySettings, QualityWatch
from sekisho.engines.config import ModelConfig

LOSSES = {"f16": 0.0, "q8_0": 0.2, "q4_0": 0.9}


def compared(model: str, loss: float, at: float) -> Compared:
    """What a measurement finds where the perplexity has grown by `loss`."""
    baseline = Measurement(model, "text", 1000, 2.3, 10.0, "route", 1.0, at, {})
    now = msgspec.structs.replace(baseline, perplexity=10.0 + loss)
    return Compared(now, baseline, Delta(loss, loss / 10, loss - 0.05, loss + 0.05, 1000))


class Scene:
    """A model whose loss follows from the KV type that its engine has."""

    def __init__(self, folder: Path, configured: str = "f16", **given: Any) -> None:
        self.configured = configured
        self.may_act = given.get("acts", True)
        self.engine = ValueEngine()
        self.agent, self.clock = make_agent(folder, self.engine)
        self.losses: dict[str, float | None] = dict(LOSSES)
        self.alerts: list[Alert] = []
        self.measured: list[str] = []
        self.gate: asyncio.Event | None = None
        settings = QualitySettings(folder / "quality", texts.built_in(), ScheduleSettings(), **given)
        self.watch = QualityWatch(
            settings,
            {"mini": self.target},
            self.agent.policies,
            self.agent.history,
            self.agent.bus,
            self.alerts.append,
            self.clock,
            self.compare,
            lambda: self.may_act,
        )

    @property
    def kind(self) -> str:
        kv = self.engine.policy.kv
        return kv.key_type or (self.configured if kv.mode == "configured" else "f16")

    def target(self) -> Target:
        kind: Any = self.kind
        return Target(ModelConfig(name="mini", path="builtin", kv_type_k=kind, kv_type_v=kind))

    async def compare(self, target: Target, job: Any, clock: Any, baselines: Any) -> Compared:
        self.measured.append(job.kind)
        assert self.agent.policies.unsettled
        if self.gate is not None:
            await self.gate.wait()
        loss = self.losses[target.config.kv_type_k]
        if loss is None:
            raise Unmeasured("the worker is gone")
        return compared("mini", loss, clock.now())

    async def set(self, **kv: Any) -> None:
        await self.agent.policies.change({"kv": kv}, PERSON, by="api")

    async def look(self, *, busy: bool = False) -> None:
        """One slow round, and whatever measurement it begins."""
        state = EngineState("mini", "value", "ready", running=int(busy), waiting=0)
        self.clock.advance(60)
        await self.watch.watch(Signals(self.clock.now(), self.clock.monotonic(), (state,)))
        if self.watch._task is not None and self.gate is None:
            await asyncio.gather(self.watch._task)

    async def look_closer(self, *, busy: bool, seconds: float) -> None:
        """Middle rounds, every five seconds; at each so many requests as a busy server has."""
        state = EngineState("mini", "value", "ready", running=2 * busy, waiting=int(busy))
        for _ in range(int(seconds / 5)):
            self.clock.advance(5)
            await self.watch.give_way(Signals(self.clock.now(), self.clock.monotonic(), (state,)))
        broken_off = self.watch._giving_way._deadline is not None and self.watch._giving_way._why is not None
        if broken_off and self.watch._task is not None:
            await self.watch._task

    def records(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("quality")]

    def decisions(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("decisions")]
