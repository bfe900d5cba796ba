"""One way for every change of policy, whoever wants it: check it whole, try it, write it down, bring it to the engines,
record what they said."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from sekisho.control.base import Actuator, ActuatorFailed, Applied, Decision, outcome
from sekisho.control.policy import Policy
from sekisho.control.policy_book import AGENT, BookUnwritable, PolicyBook
from sekisho.control.policy_changes import PolicyProblem, difference, merged, plain
from sekisho.core.clock import Clock

log = logging.getLogger("sekisho.control")

LoopName = Literal["fast", "middle", "slow", "api", "tuner"]
FAILED = "engine"  # the field of an `Applied` that stands for an engine that took nothing
UNSETTLED_S: Final = 60.0  # how long after an exchange of engines, or a measurement, memory says nothing


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
        self._turns = {model: asyncio.Lock() for model in actuators}
        self._under_way = 0
        self._unsettled_until_s = clock.monotonic()
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> Mapping[str, str]:
        """By model, why its engine did not take all that it can of the policy in force, when it was brought there
        last."""
        return self._refused

    def current(self, model: str | None = None) -> Policy:
        """The policy in force, of one model or that of all. Raises PolicyProblem for a model that there is not."""
        self._check_model(model)
        return self.book.current(model)

    @property
    def unsettled(self) -> bool:
        """Whether memory is taken for a while only: engines are exchanged, or something is measured, or was just."""
        return self._under_way > 0 or self._clock.monotonic() < self._unsettled_until_s

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Around what takes memory beside the engines."""
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._unsettled_until_s = self._clock.monotonic() + UNSETTLED_S

    async def change(
        self, changes: Mapping[str, Any], cause: Cause, *, by: str, model: str | None = None, dry_run: bool = False
    ) -> PolicyChange:
        """Raises PolicyProblem, BookUnwritable, and with `dry_run` ActuatorFailed. Changes of the same engine come one
        after the other; a dry run waits for none. Where no engine at all took it, the version before is in force again
        and the outcome is `failed`."""
        if dry_run:
            before = self.current(model)
            after = merged(before, changes)
            planned = await self._plan(model, changes, by)
            changed = difference(before, after)
            return PolicyChange(True, self.book.version, plain(after), changed, planned, _would(planned))
        self._check_model(model)
        async with self._turn(model):
            before, was = self.current(model), self.book.version
            version = self.book.change(changes, by=by, why=cause.why, model=model)
            return await self._carry_out(cause, model, f"policy {version.number}", before, was, version.number)

    async def roll_back(self, to: int | None, cause: Cause, *, by: str) -> PolicyChange:
        """Back to an earlier version, as a new one; None: one step back. Where no engine at all took it, as `change`.
        Raises PolicyProblem for a version that there is not, and BookUnwritable."""
        async with self._turn(None):
            before, was = self.current(), self.book.version
            to = self.book.before() if to is None else to
            version = self.book.roll_back(to, by=by)
            action = f"policy {version.number} (as {to})"
            return await self._carry_out(cause, None, action, before, was, version.number)

    async def enforce(self, model: str, cause: Cause) -> tuple[Applied, ...]:
        """Brings one engine to the policy in force, after it came back. A decision only where there was something to
        do."""
        async with self._turn(model):
            applied = await self._apply(model)
            if outcome(applied) != "nothing":
                self._decide(cause, model, f"policy {self.book.version} again", applied, outcome(applied))
            return applied

    async def differing(self, model: str) -> tuple[Applied, ...] | None:
        """Where an engine that takes changes while it runs is not as the policy wants it; None while a change is under
        way. Raises ActuatorFailed."""
        if self._turns[model].locked():
            return None
        planned = await self._plan(model, {}, "")
        return tuple(each for each in planned if each.effect == "now" and each.was != each.value)

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

    @contextlib.asynccontextmanager
    async def _turn(self, model: str | None) -> AsyncIterator[None]:
        """One change at a time for each engine; one of all engines waits for all, always in the same order."""
        async with contextlib.AsyncExitStack() as stack:
            for name, turn in self._turns.items():
                if model is None or name == model:
                    await stack.enter_async_context(turn)
            yield

    async def _plan(self, model: str | None, changes: Mapping[str, Any], by: str) -> tuple[Applied, ...]:
        planned: list[Applied] = []
        for actuator in self._of(model):
            planned += await actuator.plan(self.book.preview(changes, by=by, model=model, of=actuator.model))
        return tuple(planned)

    async def _carry_out(
        self, cause: Cause, model: str | None, action: str, before: Policy, was: int, made: int
    ) -> PolicyChange:
        """Brings the version `made` to its engines, and takes it back where none took it. `was`: the version before."""
        changed, refused = difference(before, self.current(model)), dict(self._refused)
        applied = await self._apply(model)
        word = outcome(applied)
        if word == "failed" and made != was and any(each.field == FAILED for each in applied):
            cause = self._take_back(cause, was, model, refused)
        decision = self._decide(cause, model, action, applied, word)
        after = plain(self.current(model))
        return PolicyChange(False, self.book.version, after, changed, applied, word, decision.number)

    def _take_back(self, cause: Cause, was: int, model: str | None, refused: Mapping[str, str]) -> Cause:
        """The cause, with what a person must know where the disk does not let us. `refused`: by whom, before this
        change; each engine runs as before it."""
        try:
            self.book.roll_back(was, by=AGENT, model=model)
        except BookUnwritable as error:
            log.error("a policy that no engine took stays in force: %s", error)
            why = f"{cause.why}; no engine took it, and what was before could not be put in force again: {error}"
            return msgspec.structs.replace(cause, why=why)
        for actuator in self._of(model):
            self._note_refusal(actuator.model, refused.get(actuator.model))
        return cause

    async def _apply(self, model: str | None) -> tuple[Applied, ...]:
        """What every engine said. One after the other: two swaps at once need twice the memory."""
        said: list[Applied] = []
        self._under_way += 1
        try:
            for actuator in self._of(model):
                told = await self._ask(actuator)
                self._note_refusal(actuator.model, refusal(told))
                said += told
        finally:
            self._under_way -= 1
        if any(each.effect == "swap" or each.field == FAILED for each in said):
            self._unsettled_until_s = self._clock.monotonic() + UNSETTLED_S
        return tuple(said)

    def _note_refusal(self, model: str, why: str | None) -> None:
        self._refused.pop(model, None)
        if why is not None:
            self._refused[model] = why

    async def _ask(self, actuator: Actuator) -> tuple[Applied, ...]:
        try:
            return await actuator.apply(self.book.current(actuator.model))
        except ActuatorFailed as error:
            log.warning("%s: %s", actuator.model, error)
            return (Applied(actuator.model, FAILED, "unsupported", False, reason=str(error)),)

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


def refusal(told: tuple[Applied, ...]) -> str | None:
    """Why an engine did not do what it could have done; None where nothing of that kind is left."""
    left = [each for each in told if not each.done and (each.field == FAILED or each.effect in ("now", "swap"))]
    if not left:
        return None
    return "; ".join(dict.fromkeys(each.reason or f"{each.field} is {each.was}, not {each.value}" for each in left))


def _would(planned: tuple[Applied, ...]) -> str:
    """The short word for what a change would come to."""
    possible = [each for each in planned if each.effect in ("now", "swap")]
    wanted = [each for each in planned if each.effect != "unchanged"]
    return (
        "nothing" if not wanted else "applied" if len(possible) == len(wanted) else "partly" if possible else "failed"
    )
