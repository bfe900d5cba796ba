"""A schedule of measurements on a clock that is moved by hand, and a disk that may be full."""

import errno
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from sekisho.control import quality_schedule
from sekisho.control.quality_schedule import Schedule, ScheduleSettings
from sekisho.core.clock import ManualClock

HOUR = 3600.0
TOKYO = ZoneInfo("Asia/Tokyo")
BERLIN = ZoneInfo("Europe/Berlin")
SETTINGS = ScheduleSettings(zone=TOKYO)


def at(zone: ZoneInfo, *when: int) -> float:
    return datetime(*when, tzinfo=zone).timestamp()  # type: ignore[misc]


def run_through(schedule: Schedule, clock: ManualClock, hours: float, step_s: float = 600.0) -> list[tuple[float, str]]:
    """What runs, and when, where each run is done at once and nobody is busy."""
    ran = []
    for _ in range(round(hours * HOUR / step_s)):
        kind = schedule.due()
        if kind is not None:
            ran.append((clock.now(), kind))
            schedule.began(kind)
            schedule.done(kind)
        clock.advance(step_s)
    return ran


class Disk:
    """Where the schedule writes; `full`: there is no room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._write = quality_schedule.write_atomically
        monkeypatch.setattr(quality_schedule, "write_atomically", self.write)

    def write(self, path: Path, body: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._write(path, body)
