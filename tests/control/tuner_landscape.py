"""Invented engines: what a policy gives is a formula, with as much noise, drift and failure as a test wants."""

from dataclasses import dataclass, field
from functools import cache
from math import exp
from random import Random

from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.control.tuner_space import Axis, Space
from sekisho.core.clock import ManualClock

TYPES = ("f16", "q8_0", "q5_0", "q4_0")
AXES = (
    Axis("kv", {kind: {"kv": {"key_type": kind}} for kind in TYPES}),
    Axis("slots", {str(count): {"engine": {"slots": count}} for count in (1, 2, 4, 8)}),
    Axis("threads", {str(count): {"engine": {"threads": count}} for count in (1, 2, 3, 4)}),
)


@cache
def space() -> Space:
    return Space(Policy(), AXES)


@dataclass
class Landscape:
    """`speed`, `prefill`: logarithms that each choice adds, by dotted field and value. `loss`: perplexity by key type;
    a type that is not there was not measured. `noise`: of every speed, as a logarithm. `drift`: what each measurement
    adds to the next one's speed. `broken`: key types under which nothing runs."""

    speed: dict[tuple[str, object], float] = field(default_factory=dict)
    prefill: dict[object, float] = field(default_factory=dict)
    loss: dict[object, float] = field(default_factory=lambda: dict.fromkeys((None, *TYPES), 0.0))
    noise: float = 0.0
    drift: float = 0.0
    broken: frozenset[object] = frozenset()
    clock: ManualClock = field(default_factory=ManualClock)
    seconds: float = 1.0
    chance: Random = field(default_factory=lambda: Random(5))
    efforts: list[float] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)

    def gain(self, policy: Policy) -> float:
        """The true logarithm of a policy's speed; that of the base is 0."""
        at = {"kv": policy.kv.key_type, "slots": policy.engine.slots, "threads": policy.engine.threads}
        return sum(self.speed.get(choice, 0.0) for choice in at.items())

    async def measure(self, policy: Policy, effort: float) -> Measured:
        self.efforts.append(effort)
        self.policies.append(policy)
        self.clock.advance(self.seconds * effort)
        if policy.kv.key_type in self.broken:
            raise MeasurementFailed("the engine did not start")
        shift = self.drift * len(self.efforts)
        scatter = self.noise / effort**0.5
        return Measured(
            decode_tokens_per_s=10 * exp(self.gain(policy) + shift + self.chance.gauss(0, scatter)),
            prefill_tokens_per_s=50
            * exp(self.prefill.get(policy.kv.key_type, 0.0) + shift + self.chance.gauss(0, scatter)),
            contexts=policy.engine.slots or 4,
            memory_bytes=1000 * (policy.engine.slots or 4),
            delta_ppl=self.loss.get(policy.kv.key_type),
        )
