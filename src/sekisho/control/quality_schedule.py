"""When quality is measured: in full once a day at a time of day, lightly every few hours; after a restart, a jump of
the clock or a change to summer time, too. A run that was missed is made up for once, not as often as it was missed.

All times are seconds since 1970 on the wall clock, since the schedule outlives this process; where the clock goes back,
what lies in the future of it is brought to now.
"""

import logging
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from sekisho.control.perplexity.base import Kind
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.home import write_atomically

log = logging.getLogger("sekisho.control")

_DAY_S: Final = 86_400.0
_MOST_TRIES: Final = 3
_NOTED_EVERY_S: Final = 900.0


class ScheduleSettings(msgspec.Struct, frozen=True):
    """`zone` None: the machine's. `most_wait_s`: how long traffic may put a run off. `retry_s`: before a failed run is
    tried again, three times in all, and before one that traffic broke off, doubling up to `most_wait_s`. After
    `most_breaks` of these, and once a full run is late by `late_s`, it runs to its end."""

    full_at: time = time(6, 0)
    light_every_s: float = 4 * 3600.0
    zone: ZoneInfo | None = None
    most_wait_s: float = 2 * 3600.0
    retry_s: float = 900.0
    most_breaks: int = 3
    late_s: float = 12 * 3600.0


class _Notes(msgspec.Struct, frozen=True):
    """`slot`: the time of day that the last full run was for. `light_at`: when the last run of either kind ended.
    `begun`: what ran when this was written, and `begun_slot` what for. `tries`: failed since the last that did not.
    `waits_since`: when traffic put off what is due. `breaks`: how often it broke one off since the last that ended, and
    `rest_until`: when the next may begin. `passed_s`: real time since the last run, also of processes before this one:
    what a clock hides that is set back before a restart."""

    slot: float
    light_at: float | None = None
    begun: Kind | None = None
    begun_slot: float | None = None
    tries: int = 0
    retry_at: float | None = None
    waits_since: float | None = None
    breaks: int = 0
    rest_until: float | None = None
    passed_s: float = 0.0


class Schedule:
    """Belongs to one thread. Every change is on disk when the call returns. Where that cannot be, `began` raises and
    nothing has begun; everything else is logged, holds here, and is written with the next change."""

    def __init__(self, path: Path, clock: Clock, settings: ScheduleSettings | None = None) -> None:
        self._path, self._clock, self._settings = path, clock, settings or ScheduleSettings()
        self._wait_since = self._retry_since = self._rest_since = clock.monotonic()
        found = self._read()
        # The first day's time of day is not made up for: a light run comes at once instead.
        self._notes = found or _Notes(slot=last_slot(clock.now(), self._settings))
        self._light_since = clock.monotonic() - self._notes.passed_s
        if self._notes.begun is not None:
            self.failed(self._notes.begun)  # whoever began it is gone

    def due(self, now: float | None = None) -> Kind | None:
        """What should run now, whether there is traffic or not. A full run makes a light one needless."""
        now = self._clock.now() if now is None else now
        self._follow_clock(now)
        monotonic = self._clock.monotonic()
        if monotonic - self._light_since - self._notes.passed_s >= _NOTED_EVERY_S:
            self._note(passed_s=monotonic - self._light_since)
        notes = self._notes
        if notes.begun is not None:
            return None
        waited = now - notes.retry_at if notes.retry_at is not None else 0.0
        if waited < 0 and monotonic - self._retry_since < self._settings.retry_s:
            return None
        if last_slot(now, self._settings) > notes.slot:
            return "full"
        every = self._settings.light_every_s
        if notes.light_at is None or now - notes.light_at >= every or monotonic - self._light_since >= every:
            return "light"
        return None

    def may_run(self, busy: bool) -> bool:
        """Whether what is due may run now: at once without traffic, with traffic after `most_wait_s`; not while it
        rests after it was broken off."""
        now, monotonic, notes = self._clock.now(), self._clock.monotonic(), self._notes
        if notes.rest_until is not None:
            if now < notes.rest_until and monotonic - self._rest_since < self._rest_s(notes.breaks):
                return False
            self._note(rest_until=None)
        if not busy:
            return True
        if self._notes.waits_since is None:
            self._wait_since = monotonic
            self._note(waits_since=now)
        return self._has_waited()

    def insists(self, kind: Kind) -> bool:
        """Whether a run that begins now goes to its end, whatever traffic comes: it was put off or broken off often
        enough."""
        late = self._clock.now() - next_slot(self._notes.slot, self._settings) >= self._settings.late_s
        return self._notes.breaks >= self._settings.most_breaks or self._has_waited() or (kind == "full" and late)

    def _has_waited(self) -> bool:
        since = self._notes.waits_since
        if since is None:
            return False
        waited_s = max(self._clock.now() - since, self._clock.monotonic() - self._wait_since)
        return waited_s >= self._settings.most_wait_s

    def _rest_s(self, breaks: int) -> float:
        return min(self._settings.retry_s * 2.0 ** (breaks - 1), self._settings.most_wait_s)

    def began(self, kind: Kind) -> None:
        """A run that is cut off by a crash counts as a failed one. Raises OSError where that cannot be written down: a
        run could take the agent with it again and again then."""
        slot = last_slot(self._clock.now(), self._settings) if kind == "full" else None
        notes = msgspec.structs.replace(self._notes, begun=kind, begun_slot=slot, waits_since=None)
        write_atomically(self._path, msgspec.json.encode(notes))
        self._notes = notes

    def done(self, kind: Kind) -> None:
        """It ended with a figure."""
        now = self._clock.now()
        slots = [self._notes.slot]
        if kind == "full":  # the clock may have gone back since it began
            slots += [self._notes.begun_slot or 0.0, last_slot(now, self._settings)]
        self._finish(now, max(slots))

    def failed(self, kind: Kind) -> None:
        """It ended without a figure: again after a while, and after the third time not before its next time."""
        tries = self._notes.tries + 1
        if tries >= _MOST_TRIES:
            self.done(kind)
            return
        self._retry_since = self._clock.monotonic()
        retry_at = self._clock.now() + self._settings.retry_s
        self._note(begun=None, tries=tries, retry_at=retry_at, waits_since=None)

    def broken_off(self) -> None:
        """It gave way to traffic: what was due stays so."""
        breaks = self._notes.breaks + 1
        self._rest_since = self._clock.monotonic()
        self._note(begun=None, breaks=breaks, rest_until=self._clock.now() + self._rest_s(breaks), waits_since=None)

    def next_full(self) -> float:
        """When the next full run is due if nothing is missed; for display."""
        return next_slot(max(self._clock.now(), self._notes.slot), self._settings)

    def _finish(self, now: float, slot: float) -> None:
        self._light_since = self._clock.monotonic()
        self._note(**msgspec.structs.asdict(_Notes(slot=slot, light_at=now)))

    def _follow_clock(self, now: float) -> None:
        """What was noted under a clock that ran ahead. A slot of later today is left: it was measured for, shortly
        before the clock went back a little."""
        notes, changes = self._notes, dict[str, float]()
        if notes.slot - now > _DAY_S:
            changes["slot"] = last_slot(now, self._settings)
        if notes.light_at is not None and notes.light_at > now:
            changes["light_at"] = now
        if notes.retry_at is not None and notes.retry_at - now > self._settings.retry_s:
            changes["retry_at"] = now + self._settings.retry_s
        if notes.waits_since is not None and notes.waits_since > now:
            changes["waits_since"] = now
        if notes.rest_until is not None and notes.rest_until - now > self._rest_s(notes.breaks):
            changes["rest_until"] = now + self._rest_s(notes.breaks)
        if changes:
            self._note(**changes)

    def _read(self) -> _Notes | None:
        try:
            return decoded(self._path.read_bytes(), _Notes)
        except FileNotFoundError:
            return None
        except Undecodable:
            return None  # written whole by us or by nobody: what stands there is somebody else's

    def _note(self, **fields: float | int | str | None) -> None:
        self._notes = msgspec.structs.replace(self._notes, **fields)
        try:
            write_atomically(self._path, msgspec.json.encode(self._notes))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)


def last_slot(now: float, settings: ScheduleSettings) -> float:
    """The last time of day at or before `now`. Each date has one, also where the clock skips or repeats that hour."""
    day = datetime.fromtimestamp(now, settings.zone).date()
    return max(at for back in range(3) if (at := _slot(day - timedelta(days=back), settings)) <= now)


def next_slot(after: float, settings: ScheduleSettings) -> float:
    day = datetime.fromtimestamp(after, settings.zone).date()
    return min(at for ahead in range(3) if (at := _slot(day + timedelta(days=ahead), settings)) > after)


def _slot(day: date, settings: ScheduleSettings) -> float:
    return datetime.combine(day, settings.full_at, settings.zone).timestamp()
