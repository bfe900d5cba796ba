"""A measurement that gives way: it runs beside the traffic of this machine and is broken off when there is some."""

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from sekisho.control.base import EngineState, Signals

TRAFFIC_S: Final = 4.0  # how long requests may be there: with the middle loop's period, at two looks
T = TypeVar("T")


class GaveWay(Exception):
    """The work was broken off. The text says for which traffic."""


class GivingWay:
    """Holds at most one work at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._deadline: asyncio.Timeout | None = None
        self._unseen: str | None = None
        self._busy_since_s: float | None = None
        self._why: str | None = None

    async def run(self, work: Awaitable[T], unseen: str | None = None) -> T:
        """What the work comes to. `unseen`: a model whose engine counts the work's own requests among those that it
        tells, so that nothing can be said about its traffic. Raises GaveWay; the work has then been cancelled."""
        self._unseen, self._busy_since_s, self._why = unseen, None, None
        try:
            async with asyncio.timeout(None) as self._deadline:
                return await work
        except TimeoutError:
            if self._why is None:
                raise  # the work's own
            raise GaveWay(self._why) from None
        finally:
            self._deadline = None

    def look(self, signals: Signals) -> None:
        """Ends the work where requests have run or waited since an earlier look, `TRAFFIC_S` ago or more."""
        if self._deadline is None or self._why is not None:
            return
        busy = [state for state in signals.engines if state.model != self._unseen and requests(state)]
        if not busy:
            self._busy_since_s = None
        elif self._busy_since_s is None:
            self._busy_since_s = signals.monotonic_s
        elif signals.monotonic_s - self._busy_since_s >= TRAFFIC_S:
            told = ", ".join(f"{each.model}: {each.running or 0} run, {each.waiting or 0} wait" for each in busy)
            self._why = f"broken off for the traffic ({told})"
            self._deadline.reschedule(asyncio.get_running_loop().time())


def requests(state: EngineState) -> int:
    """That somebody waits for at an engine: they share the machine."""
    return (state.running or 0) + (state.waiting or 0)
