"""Signals made by hand, and a policy that changes as the agent would change it."""

import random
from collections.abc import Mapping
from typing import Any

import msgspec

from sekisho.control.base import DeviceState, EngineState, KvState, Sample, Signals
from sekisho.control.fallback import Action, Fallbacks
from sekisho.control.fallback_rules import QualityReading
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import merged

GPU = DeviceState("gpu-1", "gpu", "Card", utilisation=0.5, used_bytes=50, total_bytes=100, temperature_c=60.0)
NPU = DeviceState("npu", "npu", "NPU", utilisation=0.5, temperature_c=60.0)
MEMORY = DeviceState("memory", "memory", "memory", used_bytes=50, total_bytes=100)
FULL = msgspec.structs.replace(MEMORY, used_bytes=97)
CPU = DeviceState("cpu", "cpu", "2 threads", utilisation=0.2)
ENGINE = EngineState("m", "llama_cpp", "ready", slots=8, kv=KvState(10, 100))


def guessing(rate: float | None, drafted: float | None = 1_000, model: str = "m") -> EngineState:
    """An engine that speculates, and how much of it was kept."""
    return EngineState(
        model,
        "llama_cpp",
        "ready",
        slots=8,
        kv=KvState(10, 100),
        accept_rate=rate,
        settings={"drafted_tokens": drafted},
    )


def signals(
    at_s: float,
    *devices: DeviceState,
    engines: tuple[EngineState, ...] = (ENGINE,),
    samples: tuple[Sample, ...] = (),
) -> Signals:
    return Signals(1_790_000_000.0 + at_s, at_s, engines, devices, samples)


def sample(number: int, status: str = "ok", model: str = "m") -> Sample:
    return Sample(number, model, 0.0, 100.0, 10.0, 5, 5, status)


class Site:
    """The policy in force; `apply` is what the policy service does with an answer."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy if policy is not None else Policy()

    def apply(self, changes: Mapping[str, Any] | None) -> None:
        if changes:
            self.policy = merged(self.policy, changes)


class FallbackRun:
    """A fallback with its site, looked after every `period_s`."""

    def __init__(self, policy: Policy | None = None, *, acts: bool = True, period_s: float = 5.0) -> None:
        self.site = Site(policy)
        self.fallbacks = Fallbacks(random.Random(1), acts=acts)
        self.period_s = period_s
        self.now_s = 1_000.0

    def look(self, *devices: DeviceState, quality: QualityReading | None = None, **more: object) -> tuple[Action, ...]:
        self.now_s += self.period_s
        seen = signals(self.now_s, *devices, **more)  # type: ignore[arg-type]
        actions = self.fallbacks.observe(seen, self.site.policy, self.now_s, quality=quality)
        for action in actions:
            self.site.apply(action.changes)
        return actions

    def look_for(self, seconds: float, *devices: DeviceState, **more: object) -> list[Action]:
        return [a for _ in range(int(seconds / self.period_s)) for a in self.look(*devices, **more)]  # type: ignore[arg-type]
