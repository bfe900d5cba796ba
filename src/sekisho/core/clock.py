"""Time as a value that is handed in, so that limits, expiry and back-off are tested without sleeping."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks: `now` for records (can jump), `monotonic` for durations (cannot)."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is told to move; the two clocks can be moved apart (a clock jump)."""

    def __init__(self, now: float = 1_790_000_000.0, monotonic: float = 1_000.0) -> None:
        self._now = now
        self._monotonic = monotonic

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Moves both clocks on, as real time does."""
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Moves only the wall clock, as a time correction does."""
        self._now += seconds
