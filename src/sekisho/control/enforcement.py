"""Engines that are not as the policy in force wants them: those that came back, lost what they had taken, or refused a
part of it. Each is brought to it again, less and less often, until it is."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from sekisho.control.backoff import Backoff
from sekisho.control.base import ActuatorFailed, Applied, EngineState
from sekisho.control.policy_service import Cause, PolicyService
from sekisho.core.clock import Clock

AGAIN_S: Final = (10.0, 600.0)  # between two tries: the first pause, the longest
LOOK_DEADLINE_S: Final = 5.0


class _Owed:
    """What is owed to one engine. `drifts`: its settings say when it is paid, not its answer. `why`: what it answered
    to the last try, or how it still differs; None before the first."""

    def __init__(self, cause: Cause, *, drifts: bool = False, why: str | None = None) -> None:
        self.cause, self.drifts, self.why = cause, drifts, why
        self.backoff = Backoff(*AGAIN_S, 2.0, random.Random())
        self.not_before_s = 0.0


class Enforcement:
    """Belongs to the agent's loops. `turned` is told each engine that has become ready, or is not any more. Nothing is
    done before somebody has set a policy."""

    def __init__(self, policies: PolicyService, clock: Clock, turned: Callable[[EngineState], None]) -> None:
        self._policies, self._clock, self._turned = policies, clock, turned
        self._ready: set[str] = set()
        self._owed: dict[str, _Owed] = {}

    def reasons(self) -> tuple[str, ...]:
        """Of each engine that is still not as the policy wants it, why."""
        return tuple(
            f"{model}: not as the policy wants it, tried again: {owed.why}"
            for model, owed in self._owed.items()
            if owed.why is not None
        )

    async def look(self, state: EngineState) -> None:
        """For the middle loop. An engine that was started anew has its own settings; one that refused a part of the
        last change goes on without it."""
        model, ready = state.model, state.state == "ready"
        if ready != (model in self._ready):
            (self._ready.add if ready else self._ready.discard)(model)
            self._turned(state)
            self._owed.pop(model, None)
            if ready and self._policies.book.version:
                cause = Cause("middle", "engine_back", "engine.state", f"the engine of {model} is ready again")
                self._owed[model] = _Owed(cause)
        refused = self._policies.refused.get(model)
        if ready and refused is not None and model not in self._owed:
            cause = Cause(
                "middle", "engine_again", "engine.settings", f"{model} has not taken the whole policy: {refused}"
            )
            self._owed[model] = _Owed(cause, why=refused)
            self._rest(self._owed[model])  # it has refused just now
        owed = self._owed.get(model)
        if owed is None or (owed.drifts and refused is None):
            return
        if owed.why is not None and refused is None:
            del self._owed[model]  # another change has brought it there
        else:
            await self._try(model, owed)

    async def look_for_drift(self, model: str) -> None:
        """For the slow loop. An engine that was started anew between two looks was ready at both, and has lost what it
        took at run time."""
        owed = self._owed.get(model)
        if model not in self._ready or (owed is not None and not owed.drifts) or not self._policies.book.version:
            return
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                drift = await self._policies.differing(model)
        except (ActuatorFailed, TimeoutError):
            return  # it does not answer: the middle loop tells that
        if drift is None:
            return
        if not drift:
            self._owed.pop(model, None)
            return
        if owed is None:
            fields = ", ".join(each.field for each in drift)
            cause = Cause("slow", "engine_drift", "engine.settings", f"{model} is not as the policy wants it: {fields}")
            owed = self._owed[model] = _Owed(cause, drifts=True)
        else:
            owed.why = self._policies.refused.get(model) or _differs(drift)
        await self._try(model, owed)

    async def _try(self, model: str, owed: _Owed) -> None:
        if self._clock.monotonic() < owed.not_before_s:
            return
        self._rest(owed)
        await self._policies.enforce(model, owed.cause)
        refused = self._policies.refused.get(model)
        if refused is not None:
            owed.why = refused
        elif not owed.drifts and self._owed.get(model) is owed:
            del self._owed[model]

    def _rest(self, owed: _Owed) -> None:
        owed.not_before_s = self._clock.monotonic() + owed.backoff.next_s()


def _differs(drift: tuple[Applied, ...]) -> str:
    return "; ".join(f"{each.field} is {each.was}, not {each.value}" for each in drift)
