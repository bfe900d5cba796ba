"""The nouns of the control agent: what it sees, what it does, and the record of why."""

from typing import Any, Final, Literal, Protocol

import msgspec

from sekisho.control.policy import Policy

Effect = Literal["unchanged", "now", "swap", "restart", "unsupported"]
"""What became, or would become, of one field of a policy: nothing to do; in force at once; in force after the engine
was swapped without a dropped request; in force once somebody restarts the engine; not possible, with the reason."""


class Sample(msgspec.Struct, frozen=True):
    """One finished request, as it was. `number` rises by one with each; times are seconds since 1970 and milliseconds.
    `first_token_ms` is None where nothing was streamed, `mean_nll` (nats per generated token) where the engine does not
    tell it. `status`: `ok`, `cancelled`, or the error's code."""

    number: int
    model: str
    ended_at: float
    duration_ms: float
    first_token_ms: float | None
    input_tokens: int
    output_tokens: int
    status: str
    mean_nll: float | None = None


class KvState(msgspec.Struct, frozen=True):
    """The KV memory of one engine, as the engine tells it. What it does not tell is None. `levels`: bytes by level, L0
    to L3 (L3 holds what was evicted, at 16 bits). `hit_rate`: share of attention mass on tokens kept."""

    used_bytes: int | None = None
    limit_bytes: int | None = None
    full_precision_bytes: int | None = None
    levels: dict[str, int] | None = None
    chunks: int | None = None
    hit_rate: float | None = None


class EngineState(msgspec.Struct, frozen=True):
    """One engine now. `reason` says why something else is None or why it is down. `accept_rate`: of drafted tokens, the
    share that speculation kept."""

    model: str
    engine: str
    state: Literal["starting", "ready", "down"]
    reason: str | None = None
    running: int | None = None
    waiting: int | None = None
    slots: int | None = None
    kv: KvState | None = None
    accept_rate: float | None = None
    settings: dict[str, Any] = {}


class Reading(msgspec.Struct, frozen=True):
    """One device's figures. `value` None means that it cannot be measured here; `reason` says why."""

    name: str
    value: float | None
    unit: str
    reason: str | None = None


class DeviceState(msgspec.Struct, frozen=True):
    """`kind`: cpu, gpu, npu, memory. `present` is False for one that was there and is gone. Shares are 0 to 1."""

    id: str
    kind: Literal["cpu", "gpu", "npu", "memory"]
    name: str
    present: bool = True
    utilisation: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature_c: float | None = None
    hot_c: float | None = None
    reason: str | None = None


class Signals(msgspec.Struct, frozen=True):
    """All that a decision may look at, taken at one moment. `at` is wall-clock seconds, `monotonic_s` for intervals."""

    at: float
    monotonic_s: float
    engines: tuple[EngineState, ...] = ()
    devices: tuple[DeviceState, ...] = ()
    samples: tuple[Sample, ...] = ()


class Applied(msgspec.Struct, frozen=True):
    """What became of one field at one engine. `done`: it is in force now. `was` and `value` are in the engine's own
    terms; `reason` explains everything but `now`, `swap` and `unchanged`."""

    model: str
    field: str
    effect: Effect
    done: bool
    was: Any = None
    value: Any = None
    reason: str | None = None


class Decision(msgspec.Struct, frozen=True):
    """Which signal, which rule, what was applied, what the engine answered. `number` rises by one and survives
    restarts. `loop`: what made it. `outcome`: `applied`, `partly`, `failed`, `nothing` (the rule asked for no change),
    `advised` (a person must act)."""

    number: int
    at: float
    loop: Literal["fast", "middle", "slow", "api", "tuner"]
    rule: str
    signal: str
    value: float | None
    limit: float | None
    model: str | None
    action: str
    why: str
    policy_version: int | None = None
    applied: tuple[Applied, ...] = ()
    outcome: Literal["applied", "partly", "failed", "nothing", "advised"] = "nothing"


class ActuatorFailed(Exception):
    """An engine did not take a change. The text says which and why; nothing is left half done that could be undone."""


class Actuator(Protocol):
    """The hand on one engine. All methods are coroutines, may be called at any time and never block the loop; one
    `apply` at a time per engine is the caller's promise."""

    model: str
    engine: str

    async def state(self) -> EngineState:
        """Never raises: what cannot be asked is None, with the reason."""
        ...

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        """What `apply` would do, field by field of the policy; touches nothing. Every field of the policy that differs
        from its default or from what is in force is named. Raises ActuatorFailed where the engine does not answer."""
        ...

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        """Brings the engine to the policy. Raises ActuatorFailed; the engine then runs as before."""
        ...

    async def close(self) -> None:
        """Frees connections. May be called twice."""
        ...


EFFECTS: Final = ("unchanged", "now", "swap", "restart", "unsupported")


def outcome(applied: tuple[Applied, ...]) -> Literal["applied", "partly", "failed", "nothing"]:
    """The short word for what became of a policy at all engines."""
    wanted = [each for each in applied if each.effect != "unchanged"]
    if not wanted:
        return "nothing"
    done = sum(each.done for each in wanted)
    return "applied" if done == len(wanted) else "partly" if done else "failed"
