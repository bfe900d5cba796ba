"""What the stability log says: stops, recovery, mornings, days."""

import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.evaluate.verdict.stability import Calendar, Stability, evaluate, time_zone
from sekisho.ops.stability_log import SERVER, Alive, History, Moment, StabilityEvent

TOKYO = ZoneInfo("Asia/Tokyo")
MONDAY = datetime.datetime(2026, 11, 16, tzinfo=TOKYO)


def at(day: int, clock: str) -> float:
    """Seconds since 1970 of a time on a day of the week of Monday, 16 November 2026 (0 is that Monday)."""
    hours, minutes = map(int, clock.split(":"))
    return (MONDAY + datetime.timedelta(days=day, hours=hours, minutes=minutes)).timestamp()


class Story:
    """Events as the log would hold them; the boot's clock runs with the wall clock unless it is told otherwise."""

    def __init__(self) -> None:
        self.events: list[StabilityEvent] = []
        self.boot, self.life, self.offset_s = "boot1", "life1", at(-30, "00:00")
        self.alive: Alive | None = None

    def moment(self, seconds: float) -> Moment:
        return Moment(seconds, seconds - self.offset_s, self.boot)

    def add(self, kind: Any, seconds: float, child: str = SERVER, **fields: Any) -> "Story":
        moment = self.moment(seconds)
        life = fields.pop("life", self.life)
        event = StabilityEvent(
            kind=kind, at=moment.at, mono=moment.mono, boot=moment.boot, life=life, child=child, **fields
        )
        self.events.append(event)
        return self

    def day(self, day: int, start: str = "09:00", end: str = "18:00") -> "Story":
        """A day in order: up, ready a minute later, down."""
        self.life = f"life of day {day}"
        return self.add("up", at(day, start)).add("ready", at(day, start) + 60).add("down", at(day, end))

    def history(self) -> History:
        return History(tuple(self.events), self.alive)

    def evaluated(
        self, until: float, since: float = at(0, "00:00"), running: bool = False, **calendar: Any
    ) -> Stability:
        return evaluate(
            self.history(),
            since=since,
            now=self.moment(until),
            calendar=Calendar(**calendar) if calendar else None,
            running=running,
        )


def week() -> Story:
    story = Story()
    for day in range(5):
        story.day(day)
    return story


# --- stability ------------------------------------------------------------------------------------------------------


def test_a_week_in_order() -> None:
    """Five business days, planned stops every evening: nothing unplanned, nothing to recover from."""
    found = week().evaluated(at(6, "12:00"))
    assert found.covered == ("2026-11-16", "2026-11-17", "2026-11-18", "2026-11-19", "2026-11-20")
    assert found.days == found.covered, "the weekend is none"
    assert (found.stops, found.planned_stops, found.longest_recovery_s) == ((), 5, 0.0)


def test_holidays_and_short_days_do_not_count() -> None:
    """A holiday is no business day; half an hour in service covers none."""
    story = Story().day(0).day(1, "09:00", "09:30").day(2)
    found = story.evaluated(at(3, "12:00"), holidays=("2026-11-16",))
    assert found.days == ("2026-11-17", "2026-11-18", "2026-11-19")
    assert found.covered == ("2026-11-18",)


def test_days_are_those_of_the_time_zone() -> None:
    """Friday evening in New York is Saturday in Tokyo."""
    story = Story()
    story.add("up", at(5, "08:00")).add("ready", at(5, "08:00")).add("down", at(5, "11:00"))
    assert story.evaluated(at(5, "12:00"), since=at(4, "20:00")).covered == ()
    new_york = story.evaluated(at(5, "12:00"), since=at(4, "20:00"), time_zone="America/New_York")
    assert new_york.covered == ("2026-11-20",)


def test_a_child_that_ended_is_a_stop_until_it_is_ready_again() -> None:
    """A crash loop of seven ends is one stop of four minutes; an announced restart is none."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    story.add("restarted", at(0, "10:00"), "engine", exit_code=-15)
    story.add("ended", at(0, "11:00"), "engine", exit_code=-9, note="out of memory").add(
        "ready", at(0, "11:04"), "engine", ends=7
    )
    story.add("down", at(0, "18:00"))
    found = story.evaluated(at(0, "20:00"))
    stop = found.stops[0]
    assert len(found.stops) == found.restarts == 1
    assert (stop.child, stop.how, stop.exit_code, stop.note, stop.ends) == ("engine", "ended", -9, "out of memory", 7)
    assert (stop.down_s, stop.mended_at) == (240.0, at(0, "11:04"))


def test_what_ends_before_the_server_ever_answered_is_no_stop() -> None:
    """Nobody was served yet; it is counted apart, and the morning shows the delay."""
    story = Story().add("up", at(0, "09:20")).add("ended", at(0, "09:21"), "engine", exit_code=1)
    story.add("ready", at(0, "09:45")).add("ready", at(0, "09:45"), "engine", ends=3)
    found = story.evaluated(at(0, "12:00"), running=True, morning="09:30")
    assert (found.stops, found.before_ready) == ((), 1)
    assert found.longest_morning_s == 900.0


def test_a_life_without_goodbye_is_a_stop_from_its_last_sign() -> None:
    """The supervisor was killed at 11; ten minutes pass, and two more until it answers: twelve, to the last sign."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    lost = story.moment(at(0, "11:00"))
    story.life = "life2"
    story.add("lost", at(0, "11:10"), life="life1", last=lost).add("up", at(0, "11:10")).add("ready", at(0, "11:12"))
    found = story.evaluated(at(0, "15:00"), running=True)
    assert [(stop.how, stop.child, stop.at, stop.down_s) for stop in found.stops] == [
        ("lost", SERVER, at(0, "11:00"), 720.0)
    ]
    assert found.covered == ("2026-11-16",)


def test_the_power_was_cut() -> None:
    """Another boot: its clock began anew, and the wall clock tells how long it took."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    lost = story.moment(at(0, "11:00"))
    story.boot, story.life, story.offset_s = "boot2", "life2", at(0, "11:05")
    story.add("lost", at(0, "11:06"), life="life1", last=lost).add("up", at(0, "11:06")).add("ready", at(0, "11:08"))
    assert [stop.down_s for stop in story.evaluated(at(0, "15:00"), running=True).stops] == [480.0]


def test_a_server_that_fell_silent_and_was_never_started_again() -> None:
    """No later life tells of it: silence does, for as long as it lasts; while it runs, it is no stop."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    story.alive = Alive("life1", story.moment(at(0, "11:00")))
    found = story.evaluated(at(0, "12:00"))
    assert [(stop.how, stop.down_s, stop.mended_at) for stop in found.stops] == [("silent", 3600.0, None)]
    assert story.evaluated(at(0, "12:00"), running=True).stops == ()


def test_a_supervisor_that_gave_up_after_it_had_answered_is_a_stop() -> None:
    """But one that never came up was never in service."""
    story = Story().add("up", at(0, "09:00")).add("failed", at(0, "09:05"))
    story.life = "life2"
    story.add("up", at(0, "09:30")).add("ready", at(0, "09:31")).add("failed", at(0, "12:00"))
    found = story.evaluated(at(0, "13:00"))
    assert [(stop.how, stop.at) for stop in found.stops] == [("failed", at(0, "12:00"))]


def test_a_stop_is_not_mended_by_stopping_in_order() -> None:
    """Down for repair after a crash: the clock runs until the server answers again."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    story.add("ended", at(0, "10:00"), "engine", exit_code=1).add("down", at(0, "10:05"))
    assert story.evaluated(at(0, "11:00")).stops[0].mended_at is None
    story.life = "life2"
    story.add("up", at(0, "11:30")).add("ready", at(0, "11:31"))
    assert [stop.down_s for stop in story.evaluated(at(0, "12:00"), running=True).stops] == [5460.0]


def test_mornings_are_late_or_in_time() -> None:
    """Ready before half past nine is in time; a day on which the server did not run says nothing."""
    story = Story().day(0, "09:00").day(1, "09:40").day(3, "09:28")
    found = story.evaluated(at(4, "12:00"), morning="09:30")
    assert [(morning.day, morning.late_s) for morning in found.mornings] == [
        ("2026-11-16", 0.0),
        ("2026-11-17", 660.0),
        ("2026-11-19", 0.0),
    ]


@pytest.mark.parametrize("jump_s", [-86_400.0, -30.0, 3600.0, 86_400.0 * 400])
def test_a_corrected_wall_clock_changes_no_duration(jump_s: float) -> None:
    """The wall clock jumps between an end and its recovery: four minutes stay four minutes, and no year of service
    comes out of it."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    story.add("ended", at(0, "11:00"), "engine", exit_code=1)
    story.offset_s += jump_s
    story.add("ready", at(0, "11:04") + jump_s, "engine", ends=1).add("down", at(0, "18:00") + jump_s)
    found = story.evaluated(at(0, "20:00") + max(0.0, jump_s), since=at(-3, "00:00"))
    assert [stop.down_s for stop in found.stops] == [240.0]
    assert len(found.covered) <= 1


def test_a_beginning_that_was_rotated_away_is_taken_as_in_service() -> None:
    """Events of a life whose `up` is gone count as of one that had answered: never in favour of the server."""
    story = Story().add("ended", at(0, "10:00"), "engine", exit_code=1).add("down", at(0, "18:00"))
    assert len(story.evaluated(at(0, "20:00")).stops) == 1
    gone = Story().add("lost", at(0, "10:00"), life="life0", last=Story().moment(at(0, "09:50")))
    gone.add("up", at(0, "10:00")).add("ready", at(0, "10:01"))
    assert [stop.down_s for stop in gone.evaluated(at(0, "20:00"), running=True).stops] == [660.0]


def test_a_life_whose_loss_could_not_be_written_is_lost_all_the_same() -> None:
    """Another life follows one that has no end."""
    story = Story().add("up", at(0, "09:00")).add("ready", at(0, "09:01"))
    story.life = "life2"
    story.add("gap", at(0, "10:00"), count=2).add("up", at(0, "10:00")).add("ready", at(0, "10:01"))
    found = story.evaluated(at(0, "12:00"), running=True)
    assert [stop.how for stop in found.stops] == ["lost"]
    assert found.lost_events == 2


_KINDS: list[Literal["up", "ready", "ended", "restarted", "down", "failed", "lost", "gap"]] = [
    "up", "ready", "ended", "restarted", "down", "failed", "lost", "gap",
]  # fmt: skip
_moments = st.builds(Moment, st.floats(0, 4e9), st.floats(0, 1e8), st.sampled_from(["b1", "b2"]))


@st.composite
def any_event(draw: st.DrawFn) -> StabilityEvent:
    moment = draw(_moments)
    return StabilityEvent(
        kind=draw(st.sampled_from(_KINDS)),
        at=moment.at,
        mono=moment.mono,
        boot=moment.boot,
        life=draw(st.sampled_from(["l1", "l2", "l3"])),
        child=draw(st.sampled_from([SERVER, "engine"])),
        ends=draw(st.integers(0, 5)),
        last=draw(st.none() | _moments),
    )


@given(
    st.lists(any_event(), max_size=12), _moments, st.booleans(), st.none() | st.builds(Alive, st.just("l2"), _moments)
)
def test_no_record_however_strange_gives_a_negative_time(
    events: list[StabilityEvent], now: Moment, running: bool, alive: Alive | None
) -> None:
    """Clocks that go anywhere, lives in any order: durations are never below zero, and covered days are business
    days."""
    history = History(tuple(events), alive)
    since = max(0.0, now.at - 30 * 86_400)
    found = evaluate(history, since=since, now=now, calendar=Calendar(morning="09:30"), running=running)
    assert all(stop.down_s >= 0 for stop in found.stops)
    assert all(0 <= morning.late_s <= 86_400 for morning in found.mornings)
    assert set(found.covered) <= set(found.days)
    assert found.longest_recovery_s >= 0


def test_a_time_zone_that_this_machine_does_not_know_is_named() -> None:
    """Not guessed."""
    with pytest.raises(ValueError, match="Mars/North"):
        time_zone("Mars/North")
    assert time_zone("Asia/Tokyo").utcoffset(datetime.datetime(2026, 1, 1)) == datetime.timedelta(hours=9)
