"""What the stability log means: business days in service, unplanned stops, and how long each took to mend. Pure.

A stop is a child that ended unplanned after the server had answered, a supervisor that gave up, or a life that ended
without a goodbye; it counts on every day of the span. It is mended when what ended answers again. A crash loop is one
stop. Durations within one boot of the machine come from a clock that cannot jump; between boots never below zero.
"""

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from sekisho.ops.stability_log import SERVER, History, Moment, StabilityEvent, elapsed_s, later

SILENT_S = 60.0  # without a sign of life this long, a life without an end is over
_SATURDAY = 5
How = Literal["ended", "failed", "lost", "silent"]
_WITHOUT_SUMMER_TIME = {"UTC": 0, "Asia/Tokyo": 9}


class Calendar(msgspec.Struct, frozen=True, kw_only=True):
    """Business days are Monday to Friday in `time_zone`, but for `holidays` (`2026-12-31`). A day counts as covered
    with `least_hours` in service. `morning` (`09:30`): from when the server must be ready."""

    time_zone: str = "Asia/Tokyo"
    holidays: tuple[str, ...] = ()
    morning: str | None = None
    least_hours: float = 1.0


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """One unplanned stop. `child` empty: the whole server. `mended_at` None: not yet, `down_s` is how long so far.
    `how`: `ended` (a child, `exit_code` below zero is the signal), `failed` (the supervisor gave up), `lost` (no
    goodbye: power cut, kill -9), `silent` (no sign of life any more). `ends`: how often it ended until it was ready."""

    child: str
    at: float
    down_s: float
    mended_at: float | None
    how: How
    note: str = ""
    exit_code: int | None = None
    ends: int = 1


class Morning(msgspec.Struct, frozen=True):
    """A business day on which the server ran. `late_s` 0: it was ready in time."""

    day: str
    ready_at: float
    late_s: float


class Stability(msgspec.Struct, frozen=True, kw_only=True):
    """Between `since` and `until`. `days`: business days; `covered`: those with enough time in service.
    `before_ready` counts ends before the server had answered at all, `restarts` announced ones, `lost_events` what a
    full disk swallowed. `recorded_since` None: there is no record of this time."""

    since: float
    until: float
    time_zone: str
    days: tuple[str, ...]
    covered: tuple[str, ...]
    stops: tuple[Stop, ...]
    mornings: tuple[Morning, ...]
    before_ready: int
    restarts: int
    planned_stops: int
    lost_events: int
    recorded_since: float | None

    @property
    def longest_recovery_s(self) -> float:
        return max((stop.down_s for stop in self.stops), default=0.0)

    @property
    def longest_morning_s(self) -> float | None:
        return max((morning.late_s for morning in self.mornings), default=None)


class Span(msgspec.Struct, frozen=True):
    """Seconds since 1970."""

    start: float
    end: float


class Life(msgspec.Struct, frozen=True):
    """From a supervisor's begin to its end. `ready`: when the server first answered. `end` None: it lives."""

    id: str
    events: tuple[StabilityEvent, ...]
    ready: Moment | None
    end: Moment | None
    how: Literal["alive", "down"] | How


def time_zone(name: str) -> datetime.tzinfo:
    """Raises ValueError for a zone that this machine does not know."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # a slim machine may have no table of zones
        if name in _WITHOUT_SUMMER_TIME:
            return datetime.timezone(datetime.timedelta(hours=_WITHOUT_SUMMER_TIME[name]), name)
        raise ValueError(f"there is no time zone {name!r} here") from error


def evaluate(
    history: History, *, since: float, now: Moment, calendar: Calendar | None = None, running: bool = False
) -> Stability:
    """`running`: whether the server of this home runs at `now`. Raises ValueError for an unknown time zone."""
    calendar = calendar or Calendar()
    zone = time_zone(calendar.time_zone)
    lives = tuple(_lives(history, now, running))
    service = tuple(_service(lives, now))
    stops = tuple(stop for stop in _stops(lives, now) if stop.at >= since)
    spans = tuple(span for span in (_within(span, since, now.at) for span in service) if span is not None)
    days = tuple(_business_days(since, now.at, zone, calendar))
    hours = _per_day(spans, zone)
    covered = tuple(day for day in days if hours.get(day, 0.0) >= calendar.least_hours * 3600)
    recent = [event for event in history.events if event.at >= since]
    return Stability(
        since=since,
        until=now.at,
        time_zone=calendar.time_zone,
        days=days,
        covered=covered,
        stops=stops,
        mornings=tuple(_mornings(spans, days, zone, calendar, now.at)),
        before_ready=sum(_early_ends(life, since) for life in lives),
        restarts=sum(event.kind == "restarted" for event in recent),
        planned_stops=sum(event.kind == "down" for event in recent),
        lost_events=sum(event.count for event in recent) + history.damaged,
        recorded_since=max(since, history.events[0].at) if recent or spans else None,
    )


# --- lives ----------------------------------------------------------------------------------------------------------


def _lives(history: History, now: Moment, running: bool) -> Iterator[Life]:
    own: dict[str, list[StabilityEvent]] = {}
    lost: dict[str, Moment] = {}
    for event in history.events:
        own.setdefault(event.life, [])
        if event.kind == "lost":
            lost.setdefault(event.life, event.last or event.moment)
        elif event.kind != "gap":
            own[event.life].append(event)
    last = next(reversed(own), None)
    for name, events in own.items():
        ready = next((e.moment for e in events if e.kind == "ready" and e.child == SERVER), None)
        if not events or events[0].kind != "up":  # its beginning was rotated away
            ready = ready or (events[0].moment if events else lost.get(name))
        end = next((event for event in events if event.kind in ("down", "failed")), None)
        if end is not None:
            yield Life(name, tuple(events), ready, end.moment, "failed" if end.kind == "failed" else "down")
        elif name in lost:
            yield Life(name, tuple(events), ready, lost[name], "lost")
        elif events:
            yield _unfinished(history, Life(name, tuple(events), ready, None, "alive"), name == last, now, running)


def _unfinished(history: History, life: Life, last: bool, now: Moment, running: bool) -> Life:
    """A life whose end nobody wrote down: it lives, it fell silent, or another began after it."""
    seen = life.events[-1].moment
    if history.alive is not None and history.alive.life == life.id:
        seen = later(history.alive.seen, seen)
    if last and (running or elapsed_s(seen, now) <= SILENT_S):
        return life
    return msgspec.structs.replace(life, end=seen, how="silent" if last else "lost")


def _service(lives: Iterable[Life], now: Moment) -> Iterator[Span]:
    """When the server was up and had answered. The later moment's wall clock is the better known one."""
    for life in lives:
        if life.ready is not None:
            end = life.end or now
            yield Span(end.at - elapsed_s(life.ready, end), end.at)


def _stops(lives: Sequence[Life], now: Moment) -> Iterator[Stop]:
    for index, life in enumerate(lives):
        if life.ready is None:
            continue
        following = next((each.ready for each in lives[index + 1 :] if each.ready is not None), None)
        for place, event in enumerate(life.events):
            if event.kind == "ended" and _is_after(life.ready, event.moment):
                again = next((e for e in life.events[place:] if e.kind == "ready" and e.child == event.child), None)
                yield Stop(
                    child=event.child,
                    at=event.at,
                    down_s=elapsed_s(event.moment, again.moment if again else following or now),
                    mended_at=again.at if again else following.at if following else None,
                    how="ended",
                    note=event.note,
                    exit_code=event.exit_code,
                    ends=max(1, again.ends if again else 1),
                )
        if life.end is not None and life.how in ("failed", "lost", "silent"):
            note = life.events[-1].note if life.how == "failed" else ""
            yield Stop(
                child=SERVER,
                at=life.end.at,
                down_s=elapsed_s(life.end, following or now),
                mended_at=following.at if following else None,
                how=life.how,
                note=note,
            )


def _is_after(first: Moment, second: Moment) -> bool:
    """Equal ones too: where a life's beginning was rotated away, its first event stands for it."""
    return first == second or later(first, second) is second


def _early_ends(life: Life, since: float) -> int:
    ended = [event for event in life.events if event.kind == "ended" and event.at >= since]
    return sum(life.ready is None or not _is_after(life.ready, event.moment) for event in ended)


# --- days -----------------------------------------------------------------------------------------------------------


def _within(span: Span, since: float, until: float) -> Span | None:
    start, end = max(span.start, since), min(span.end, until)
    return Span(start, end) if start < end else None


def _business_days(since: float, until: float, zone: datetime.tzinfo, calendar: Calendar) -> Iterator[str]:
    day, last = _date(since, zone), _date(until, zone)
    while day <= last:
        if day.weekday() < _SATURDAY and day.isoformat() not in calendar.holidays:
            yield day.isoformat()
        day += datetime.timedelta(days=1)


def _per_day(spans: Iterable[Span], zone: datetime.tzinfo) -> dict[str, float]:
    """Seconds in service by local day."""
    seconds: dict[str, float] = {}
    for span in spans:
        start = span.start
        while start < span.end:
            day = _date(start, zone)
            end = min(span.end, max(_at(day + datetime.timedelta(days=1), datetime.time(), zone), start + 1.0))
            seconds[day.isoformat()] = seconds.get(day.isoformat(), 0.0) + end - start
            start = end
    return seconds


def _mornings(
    spans: Sequence[Span], days: Iterable[str], zone: datetime.tzinfo, calendar: Calendar, until: float
) -> Iterator[Morning]:
    """Days on which the server ran at no time after the morning say nothing: it was not in use."""
    if calendar.morning is None:
        return
    morning = datetime.time.fromisoformat(calendar.morning)
    for day in days:
        date = datetime.date.fromisoformat(day)
        start, end = _at(date, morning, zone), _at(date + datetime.timedelta(days=1), datetime.time(), zone)
        ran = [span for span in (_within(each, start, min(end, until)) for each in spans) if span is not None]
        if ran:
            first = min(span.start for span in ran)
            yield Morning(day, first, first - start)


def _date(seconds: float, zone: datetime.tzinfo) -> datetime.date:
    return datetime.datetime.fromtimestamp(seconds, zone).date()


def _at(day: datetime.date, time: datetime.time, zone: datetime.tzinfo) -> float:
    return datetime.datetime.combine(day, time, zone).timestamp()
