"""Signals made by hand, and a policy that changes as the agent would change it."""

from collections.abc import Mapping
from typing import Any

from sekisho.control.base import DeviceState, EngineState, KvState, Sample, Signals
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import merged

GPU = DeviceState("gpu-1", "gpu", "Card", utilisation=0.5, used_bytes=50, total_bytes=100, temperature_c=60.0)
NPU = DeviceState("npu", "npu", "NPU", utilisation=0.5, temperature_c=60.0)
MEMORY = DeviceState("memory", "memory", "memory", used_bytes=50, total_bytes=100)
CPU = DeviceState("cpu", "cpu", "2 threads", utilisation=0.2)
ENGINE = EngineState("m", "llama_cpp", "ready", slots=8, kv=KvState(10, 100))


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
