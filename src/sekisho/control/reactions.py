"""What the agent does about trouble: the fallbacks' and the balancer's answers, carried out, written down and told."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from sekisho.control.balancer import Balancer, Step
from sekisho.control.base import ActuatorFailed, DeviceState, Signals
from sekisho.control.config import Acting
from sekisho.control.fallback import Action, Fallbacks
from sekisho.control.fallback_rules import Limits
from sekisho.control.notification import Alert, alert_of
from sekisho.control.overlay import Overlay, OverlayState
from sekisho.control.policy_book import PolicyBookError
from sekisho.control.policy_changes import PolicyProblem
from sekisho.control.policy_service import Cause, PolicyService
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.home import write_atomically

log = logging.getLogger("sekisho.control")

BY = "agent"


class Reactions:
    """A watcher of the middle loop. `fallbacks` and `balancer` share one overlay, which is kept in `overlay_file` so
    that an agent that was killed undoes what it left. Without `balancer` nothing is balanced. `tell` tells people; it
    neither waits nor raises. `acts`: what may be done now (None: all that is handed in). As long as no person has set a
    policy, everything is an advice."""

    def __init__(
        self,
        policies: PolicyService,
        fallbacks: Fallbacks,
        balancer: Balancer | None,
        tell: Callable[[Alert], None],
        clock: Clock,
        overlay_file: Path,
        acts: Callable[[], Collection[Acting]] | None = None,
    ) -> None:
        self._policies = policies
        self._fallbacks = fallbacks
        self._balancer = balancer
        self._tell = tell
        self._clock = clock
        self._overlay_file = overlay_file
        given: tuple[Acting, ...] = ("fallback", "balance") if fallbacks.acts else ("balance",)
        self._acts = acts if acts is not None else lambda: given
        self._written: OverlayState | None = None
        self._problem: str | None = None

    async def watch(self, signals: Signals) -> None:
        """One round. A change takes as long as the engine needs for it."""
        may = self._acts() if self._policies.book.set_by_person else ()
        unsettled = self._policies.unsettled
        if unsettled:
            signals = _without_memory(signals)
        self._fallbacks.acts = "fallback" in may
        for action in self._fallbacks.observe(signals, self._policies.current(), signals.monotonic_s):
            await self._answer(action)
        if self._balancer is not None and "balance" not in may:
            await self._stop_balancing(signals)
        elif self._balancer is not None and not unsettled:
            step = self._balancer.step(signals, self._policies.current())
            if step is not None:
                await self._balance(step)
        self._keep()
        self._fallbacks.busy_until(self._clock.monotonic())

    async def _stop_balancing(self, signals: Signals) -> None:
        """What it did before it was told not to is undone."""
        if self._balancer is None:
            return
        changes = self._balancer.let_go(self._policies.current(), signals.monotonic_s)
        if changes:
            cause = Cause("middle", "balance.stopped", "control.act", "balance is not to act any more")
            await self._change(changes, cause)

    async def _answer(self, action: Action) -> None:
        cause = Cause("middle", f"fallback.{action.reason}", action.signal, _told(action), action.value, action.limit)
        if action.notify or (action.recovered and action.severity != "info"):
            self._tell(alert_of(action, self._clock.now()))
        if action.changes is not None:
            await self._change(action.changes, cause)
        elif action.recovered:
            self._policies.note(cause, action.rule)
        else:
            self._policies.advise(cause, action.advice or action.rule)

    async def _balance(self, step: Step) -> None:
        verb = "less" if step.direction == "down" else "back"
        resource = step.resource or "what was scarce"
        cause = Cause(
            "middle",
            f"balance.{step.kind}",
            f"devices.{step.resource}" if step.resource else "devices",
            f"{verb} {step.kind}: {resource}",
            step.value,
            step.limit,
        )
        if step.changes:
            await self._change(step.changes, cause)

    async def _change(self, changes: dict[str, Any], cause: Cause) -> None:
        """What cannot be done is told once and tried again after the back-off of whoever wanted it. What is about to be
        asked for is written down first: an agent that is killed meanwhile undoes it."""
        self._keep()
        try:
            await self._policies.change(changes, cause, by=BY)
            self._problem = None
        except (PolicyProblem, ActuatorFailed, PolicyBookError) as error:
            if str(error) != self._problem:
                log.warning("%s could not be carried out: %s", cause.rule, error)
            self._problem = str(error)

    def _keep(self) -> None:
        state = self._fallbacks.overlay.state()
        if state == self._written:
            return
        try:
            write_atomically(self._overlay_file, msgspec.json.encode(state))
            self._written = state
        except OSError as error:
            log.warning("%s cannot be written: %s", self._overlay_file, error)


def _without_memory(signals: Signals) -> Signals:
    """Memory between its limits: neither new trouble nor the end of any, while part of it is taken for a while only."""
    limits = Limits()
    middle = {
        "gpu": (limits.vram_low + limits.vram_high) / 2,
        "memory": (limits.memory_low + limits.memory_high) / 2,
    }

    def shown(device: DeviceState) -> DeviceState:
        if device.kind not in middle or device.used_bytes is None or not device.total_bytes:
            return device
        return msgspec.structs.replace(device, used_bytes=int(device.total_bytes * middle[device.kind]))

    return msgspec.structs.replace(signals, devices=tuple(shown(device) for device in signals.devices))


def _told(action: Action) -> str:
    subject = f"{action.subject}: " if action.subject else ""
    return f"{subject}{action.rule}; {action.advice}" if action.advice else f"{subject}{action.rule}"


def read_overlay(path: Path) -> Overlay:
    """What an earlier agent left, to be undone; a new overlay where there is nothing, or nothing that can be read."""
    try:
        return Overlay(decoded(path.read_bytes(), OverlayState))
    except (OSError, Undecodable):
        return Overlay()
