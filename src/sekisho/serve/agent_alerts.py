"""Tells people that the control agent stays dead, the way the agent would have told them of anything else."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from sekisho.control.config import ControlConfig
from sekisho.core.clock import Clock, SystemClock

if TYPE_CHECKING:
    from sekisho.control.notification import OutboundNotifier
    from sekisho.ops.children_file import ChildStatus

AGENT: Final = "agent"  # the child's name
KIND: Final = "agent.dead"
_DEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "failing": "ends again and again, and is tried again every half minute",
        "misconfigured": "cannot run until a person mends its settings",
    }
)
"""By the child's state."""


class AgentAlerts:
    """For the supervisor's `on_change`; belongs to its loop. Without `control.webhook_url` only the log is told."""

    def __init__(self, config: ControlConfig, clock: Clock | None = None) -> None:
        self._config, self._clock = config, clock or SystemClock()
        self._notifier: OutboundNotifier | None = None
        self._told = False

    def changed(self, status: "ChildStatus") -> None:
        """Once when it is given up or only tried now and then, and once when it has run for a while again."""
        if status.name != AGENT:
            return
        dead = _DEAD.get(status.state)
        if dead is not None and not self._told:
            self._tell("critical", f"the control agent {dead} (exit code {status.exit_code}); sekisho status says more")
            self._told = True
        elif self._told and status.state == "running":
            self._tell("info", "the control agent runs again")
            self._told = False

    async def close(self) -> None:
        """What waits to be sent is lost; the log has it. May be called twice."""
        if self._notifier is not None:
            await self._notifier.close()

    def _tell(self, severity: Literal["info", "critical"], text: str) -> None:
        from sekisho.control.notification import Alert, HttpSender, OutboundNotifier, Target

        if self._notifier is None:
            senders: tuple[HttpSender, ...] = ()
            if self._config.webhook_url is not None:
                target = Target("webhook", self._config.webhook_url, key_env=self._config.webhook_key_env)
                senders = (HttpSender("webhook", target),)
            self._notifier = OutboundNotifier(senders, self._clock, random.Random())
        self._notifier.notify(Alert(KIND, AGENT, severity, text, self._clock.now()))
