"""One way for every change of policy, whoever wants it: check it whole, try it, write it down, bring it to the engines,
record what they said."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from sekisho.control.base import Actuator, ActuatorFailed, Applied, Decision, outcome
from sekisho.control.policy import Policy
from sekisho.control.policy_book import PolicyBook
from sekisho.control.policy_changes import PolicyProblem, difference, merged, plain
from sekisho.core.clock import Clock

log = logging.getLogger("sekisho.control")

LoopName = Literal["fast", "middle", "slow", "api", "tuner"]
FAILED = "engine"  # the field of an `Applied` that stands for an engine that took nothing


class Cause(msgspec.Struct, frozen=True):
    """Why a policy is changed: what stands in the decision."""

    loop: LoopName
    rule: str
    signal: str
    why: str
    value: float | None = None
    limit: float | None = None


class PolicyChange(msgspec.Struct, frozen=True):
    """What became, or with `dry_run` would become, of a change. `changed`: by dotted field, old and new."""

    dry_run: bool
    version: int
    policy: dict[str, Any]
    changed: dict[str, tuple[Any, Any]]
    applied: tuple[Applied, ...]
    outcome: str
    decision: int | None = None


class PolicyService:
    """`actuators` by model. `decided` is told every decision; `next_number` numbers them."""

    def __init__(
        self,
        book: PolicyBook,
        actuators: Mapping[str, Actuator],
        clock: Clock,
        next_number: Callable[[], int],
        decided: Callable[[Decision], None],
    ) -> None:
        self.book = book
        self._actuators = actuators
        self._clock = clock
        self._next_number = next_number
        self._decided = decided
        self._turn = asyncio.Lock()

    def current(self, model: str | None = None) -> Policy:
        """The policy in force, of one model or that of all. Raises PolicyProblem for a model that there is not."""
        self._check_model(model)
        return self.book.current(model)

    async def change(
        self, changes: Mapping[str, Any], cause: Cause, *, by: str, model: str | None = None, dry_run: bool = False
    ) -> PolicyChange:
        """Raises PolicyProblem, and with `dry_run` ActuatorFailed. Changes come one after the other. Where no engine
        at all took it, the version before is in force again and the outcome is `failed`."""
        async with self._turn:
            before = self.current(model)
            after = merged(before, changes)
            changed = difference(before, after)
            if dry_run:
                planned = await self._plan(model, changes)
                return PolicyChange(True, self.book.version, plain(after), changed, planned, _would(planned))
            was = self.book.version
            version = self.book.change(changes, by=by, why=cause.why, model=model)
            applied = await self._apply(model)
            word = outcome(applied)
            if word == "failed" and any(each.field == FAILED for each in applied):
                self.book.roll_back(was, by="agent")
                after = self.current(model)
            decision = self._decide(cause, model, f"policy {version.number}", applied, word)
            return PolicyChange(False, self.book.version, plain(after), changed, applied, word, decision.number)

    async def roll_back(self, to: int, cause: Cause, *, by: str) -> PolicyChange:
        """Back to an earlier version, as a new one. Raises PolicyProblem for one that there is not."""
        async with self._turn:
            before = self.current()
            version = self.book.roll_back(to, by=by)
            after = self.current()
            applied = await self._apply(None)
            decision = self._decide(cause, None, f"policy {version.number} (as {to})", applied, outcome(applied))
            changed = difference(before, after)
            return PolicyChange(
                False, self.book.version, plain(after), changed, applied, decision.outcome, decision.number
            )

    async def enforce(self, model: str, cause: Cause) -> tuple[Applied, ...]:
        """Brings one engine to the policy in force, after it came back. A decision only where there was something to
        do."""
        async with self._turn:
            applied = await self._apply(model)
            if outcome(applied) != "nothing":
                self._decide(cause, model, f"policy {self.book.version} again", applied, outcome(applied))
            return applied

    def advise(self, cause: Cause, action: str, model: str | None = None) -> Decision:
        """A decision that a person must carry out."""
        return self._decide(cause, model, action, (), "advised")

    def note(self, cause: Cause, action: str, model: str | None = None) -> Decision:
        """A decision that changes nothing."""
        return self._decide(cause, model, action, (), "nothing")

    def _check_model(self, model: str | None) -> None:
        if model is not None and model not in self._actuators:
            names = ", ".join(sorted(self._actuators)) or "none"
            raise PolicyProblem("model", f"there is no engine of {model!r}; there are: {names}")

    def _of(self, model: str | None) -> list[Actuator]:
        return [each for name, each in self._actuators.items() if model is None or name == model]

    async def _plan(self, model: str | None, changes: Mapping[str, Any]) -> tuple[Applied, ...]:
        planned: list[Applied] = []
        for actuator in self._of(model):
            planned += await actuator.plan(merged(self.book.current(actuator.model), changes))
        return tuple(planned)

    async def _apply(self, model: str | None) -> tuple[Applied, ...]:
        """What every engine said. One after the other: two swaps at once need twice the memory."""
        said: list[Applied] = []
        for actuator in self._of(model):
            try:
                said += await actuator.apply(self.book.current(actuator.model))
            except ActuatorFailed as error:
                log.warning("%s: %s", actuator.model, error)
                said.append(Applied(actuator.model, FAILED, "unsupported", False, reason=str(error)))
        return tuple(said)

    def _decide(
        self,
        cause: Cause,
        model: str | None,
        action: str,
        applied: tuple[Applied, ...],
        word: Literal["applied", "partly", "failed", "nothing", "advised"],
    ) -> Decision:
        decision = Decision(
            self._next_number(),
            self._clock.now(),
            cause.loop,
            cause.rule,
            cause.signal,
            cause.value,
            cause.limit,
            model,
            action,
            cause.why,
            self.book.version,
            applied,
            word,
        )
        self._decided(decision)
        return decision


def _would(planned: tuple[Applied, ...]) -> str:
    """The short word for what a change would come to."""
    possible = [each for each in planned if each.effect in ("now", "swap")]
    wanted = [each for each in planned if each.effect != "unchanged"]
    return (
        "nothing" if not wanted else "applied" if len(possible) == len(wanted) else "partly" if possible else "failed"
    )
