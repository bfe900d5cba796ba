"""What the actuators share and what needs no engine: from a policy and an engine's present settings to what would
become of every field.

An actuator says for each field that it knows what is set now and what the policy asks for (`Wanted`), and for the rest
why the engine has no such thing. `answers` makes the records of it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from sekisho.control.base import ActuatorFailed, Applied, Effect
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import dotted, plain

MIB: Final = 2**20
_LIMITS: Final = "quality."


class Swapped(Protocol):
    """What a swap came to: `ops.engine_swap.SwapReport`. `outcome`: moved, failed or unchanged."""

    @property
    def outcome(self) -> str: ...
    @property
    def why(self) -> str | None: ...
    @property
    def now(self) -> Mapping[str, Any]: ...


class Swapper(Protocol):
    """Starts a model's worker anew with changed settings, without a dropped request: `ops.control_door.DoorClient`."""

    async def swap(self, model: str, changes: dict[str, Any]) -> Swapped:
        """`changes`: fields of ModelConfig, each whole. Where the new worker does not start, the old one goes on."""
        ...


class Wanted(msgspec.Struct, frozen=True):
    """One field in the engine's terms. `effect`: what it takes where the two differ. `known` is False for an engine
    that does not tell what is set: it is then asked for again."""

    was: Any
    value: Any
    effect: Effect
    reason: str | None = None
    known: bool = True


def fields(policy: Policy) -> dict[str, Any]:
    """Every value of a policy by its dotted name."""
    return dotted(plain(policy))


DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(fields(Policy()))


def answers(
    model: str, label: str, policy: Policy, wanted: Mapping[str, Wanted], missing: Mapping[str, str]
) -> tuple[Applied, ...]:
    """A record for every field that the engine knows, and for every other one that is not at its default. `missing`:
    by a field or the section it stands in, why the engine, which `label` names, has no such thing."""
    said = []
    for field, value in fields(policy).items():
        if field in wanted:
            said.append(_answer(model, field, wanted[field]))
        elif value == DEFAULTS[field]:
            continue
        elif field.startswith(_LIMITS):
            reason = f"the agent keeps this limit; {label} has no part in it"
            said.append(Applied(model, field, "unchanged", True, value=value, reason=reason))
        else:
            reason = f"{label} {missing[_section(field, missing)]}"
            said.append(Applied(model, field, "unsupported", False, value=value, reason=reason))
    return tuple(said)


def _answer(model: str, field: str, wanted: Wanted) -> Applied:
    if wanted.effect == "unsupported" or not wanted.known or wanted.was != wanted.value:
        same = wanted.effect == "unchanged"
        return Applied(model, field, wanted.effect, same, wanted.was, wanted.value, wanted.reason)
    return Applied(model, field, "unchanged", True, wanted.was, wanted.value)


def _section(field: str, missing: Mapping[str, str]) -> str:
    """The field itself, or the nearest section above it that has a reason. Each actuator's test asks for all fields."""
    while field not in missing:
        field, dot, _ = field.rpartition(".")
        if not dot:
            break
    return field


def done(applied: tuple[Applied, ...], *effects: Effect) -> tuple[Applied, ...]:
    """The same records after that which takes one of `effects` was carried out."""
    return tuple(msgspec.structs.replace(each, done=True) if each.effect in effects else each for each in applied)


def asks(applied: tuple[Applied, ...], effect: Effect) -> bool:
    """Whether anything of this kind is left to do."""
    return any(each.effect == effect for each in applied)


def whole_mib(size_bytes: int) -> int:
    """Rounded up: what was asked for fits."""
    return -(-size_bytes // MIB)


def failed(model: str, label: str, what: str, advice: str) -> ActuatorFailed:
    """One sentence that says which engine, what happened and what to do."""
    return ActuatorFailed(f"{model} ({label}): {what.rstrip('.')}; {advice}")


def joined(*reasons: str | None) -> str | None:
    """Several reasons in one line; None for none."""
    return "; ".join(each for each in reasons if each) or None
