"""The agent's loops: each does its work once a period and knows what that costs.

A run that takes longer than its period is followed at once by the next one; what was missed is counted and not made up
for. What a run raises is logged once a kind and does not end the loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from sekisho.core.clock import Clock

log = logging.getLogger("sekisho.control")

LoopName = Literal["fast", "middle", "slow"]


class LoopFigures(msgspec.Struct, frozen=True):
    """`cpu_share`: processor time of this loop's runs over the time since it began, as a share of one core; other work
    of the process that falls into a run is counted too, so that it is an upper bound. `last_error`: of the last run,
    None where it went well. `late_s`: by how much the last run began later than a period after the one before it was
    due."""

    name: LoopName
    period_s: float
    runs: int
    missed: int
    failed: int
    cpu_s: float
    cpu_share: float | None
    last_error: str | None
    late_s: float = 0.0

    @property
    def behind(self) -> bool:
        """Late by more than a period: something held the agent up, or its work takes too long."""
        return self.late_s > self.period_s


class Loop:
    """`run` goes on until it is cancelled."""

    def __init__(
        self,
        name: LoopName,
        period_s: float,
        work: Callable[[], Awaitable[None]],
        clock: Clock,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        if period_s <= 0:
            raise ValueError(f"the period of the {name} loop must be above 0, is {period_s:g}")
        self.name: LoopName = name
        self.period_s = period_s
        self._work = work
        self._clock = clock
        self._cpu_s = cpu_s
        self._began_s = clock.monotonic()
        self._runs = self._missed = self._failed = 0
        self._spent_s = 0.0
        self._last_error: str | None = None
        self._logged: str | None = None
        self._late_s = 0.0

    def figures(self) -> LoopFigures:
        lived_s = self._clock.monotonic() - self._began_s
        return LoopFigures(
            self.name,
            self.period_s,
            self._runs,
            self._missed,
            self._failed,
            round(self._spent_s, 6),
            self._spent_s / lived_s if lived_s > 0 else None,
            self._last_error,
            round(self._late_s, 3),
        )

    async def run(self) -> None:
        due_s = planned_s = self._clock.monotonic()
        while True:
            self._late_s = max(0.0, self._clock.monotonic() - planned_s)
            await self.once()
            now_s = self._clock.monotonic()
            planned_s = due_s + self.period_s
            due_s, missed = next_due(due_s, now_s, self.period_s)
            self._missed += missed
            await asyncio.sleep(max(0.0, due_s - now_s))

    async def once(self) -> None:
        """One run. Raises nothing but cancellation."""
        began_s = self._cpu_s()
        try:
            await self._work()
        except Exception as error:
            self._failed += 1
            told = f"{type(error).__name__}: {error}"
            if told != self._logged:
                log.exception("the %s loop failed", self.name)
            self._last_error = self._logged = told
        else:
            self._last_error = None
        finally:
            self._runs += 1
            self._spent_s += self._cpu_s() - began_s


def next_due(due_s: float, now_s: float, period_s: float) -> tuple[float, int]:
    """When the run after the one that was due at `due_s` is due, and how many were missed meanwhile."""
    following_s = due_s + period_s
    if following_s > now_s:
        return following_s, 0
    missed = int((now_s - following_s) // period_s)
    return now_s, missed
