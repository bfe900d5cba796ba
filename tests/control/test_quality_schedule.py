"""When quality is measured, on a clock that is moved by hand: days, restarts, jumps, summer time, traffic."""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, time
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from schedule_harness import BERLIN, HOUR, SETTINGS, TOKYO, Disk, at, run_through

from sekisho.control.quality_schedule import Schedule, ScheduleSettings, last_slot, next_slot
from sekisho.core.clock import ManualClock


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    """Thousands of notes are written here, and none has to outlive a loss of power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quality_schedule.json"


def test_a_day_has_one_full_run_at_six_and_light_runs_every_four_hours(path: Path) -> None:
    """From noon on: a light run at once, others every four hours, the full one at 06:00 in its zone."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    ran = run_through(Schedule(path, clock, SETTINGS), clock, 48)
    told = [(datetime.fromtimestamp(when, TOKYO).strftime("%d %H:%M"), kind) for when, kind in ran]
    assert told == [
        *[(f"28 {hour}:00", "light") for hour in (12, 16, 20)],
        *[(f"29 0{hour}:00", "light") for hour in (0, 4)],
        ("29 06:00", "full"),
        *[(f"29 {hour}:00", "light") for hour in (10, 14, 18, 22)],
        ("30 02:00", "light"),
        ("30 06:00", "full"),
        ("30 10:00", "light"),
    ]


def test_what_was_missed_is_made_up_for_once(path: Path) -> None:
    """A week without the agent: one full run, which is the light one as well."""
    clock = ManualClock(at(TOKYO, 2026, 11, 20, 12, 0))
    run_through(Schedule(path, clock, SETTINGS), clock, 1)
    clock.advance(7 * 24 * HOUR)
    ran = run_through(Schedule(path, clock, SETTINGS), clock, 2)
    assert [kind for _, kind in ran] == ["full"]


def test_a_restart_repeats_nothing(path: Path) -> None:
    """A new process every ten minutes: the runs of one that never ended."""
    clock, ran = ManualClock(at(TOKYO, 2026, 11, 28, 5, 0)), []
    for _ in range(12 * 6):
        ran += [kind for _, kind in run_through(Schedule(path, clock, SETTINGS), clock, 1 / 6)]
    assert ran == ["light", "full", "light", "light"]


def test_a_clock_that_jumps_ahead_brings_one_run(path: Path) -> None:
    """Ten days ahead: one full run; back again: no flood, and the next day's run is not lost."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    run_through(schedule, clock, 1)
    clock.jump(10 * 24 * HOUR)
    assert [kind for _, kind in run_through(schedule, clock, 1)] == ["full"]
    clock.jump(-10 * 24 * HOUR)
    ran = run_through(schedule, clock, 24)
    assert [kind for _, kind in ran].count("full") == 1
    assert len(ran) <= 7


def test_a_clock_that_goes_back_a_little_does_not_repeat_the_run(path: Path) -> None:
    """06:05 becomes 05:55: six o'clock comes twice, the full run does not; the next one is tomorrow's."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 5, 50))
    schedule = Schedule(path, clock, SETTINGS)
    assert [kind for _, kind in run_through(schedule, clock, 0.5)] == ["light", "full"]
    clock.jump(-0.5 * HOUR)
    ran = run_through(schedule, clock, 26)
    assert [datetime.fromtimestamp(when, TOKYO).day for when, kind in ran if kind == "full"] == [29]


def test_a_clock_that_goes_back_during_a_run_does_not_repeat_it(path: Path) -> None:
    """Begun at 06:01, ended at 05:56: it was today's. So is one that somebody asks for at 05:58 after that."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 6, 1))
    schedule = Schedule(path, clock, SETTINGS)
    schedule.began("full")
    clock.jump(-300)
    schedule.done("full")
    assert schedule.due() is None
    clock.advance(120)
    schedule.began("full")
    schedule.done("full")
    assert [kind for _, kind in run_through(schedule, clock, 20)] == ["light"] * 4


def test_after_a_restart_under_a_corrected_clock_light_runs_go_on(path: Path) -> None:
    """The last one lies in the future of the clock: the next one comes after four hours, not after a month."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    run_through(Schedule(path, clock, SETTINGS), clock, 1)
    clock.jump(-30 * 24 * HOUR)
    ran = []
    for _ in range(9):
        ran += run_through(Schedule(path, clock, SETTINGS), clock, 1)
    assert [kind for _, kind in ran] == ["light"] * 2


def test_light_runs_go_on_while_the_clock_is_set_back_again_and_again(path: Path) -> None:
    """Set back by an hour every hour, the wall clock stands still: real time brings the run."""
    clock, ran = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0)), []
    schedule = Schedule(path, clock, SETTINGS)
    for _ in range(12):
        ran += run_through(schedule, clock, 1)
        clock.jump(-HOUR)
    assert [kind for _, kind in ran] == ["light"] * 3


@pytest.mark.parametrize("full_at", [time(2, 30), time(6, 0)])
@pytest.mark.parametrize("start", [(2026, 3, 27, 12, 0), (2026, 10, 23, 12, 0)])
def test_summer_time_gives_each_date_one_full_run(path: Path, full_at: time, start: tuple[int, ...]) -> None:
    """Also where 02:30 is skipped or comes twice."""
    clock = ManualClock(at(BERLIN, *start))
    schedule = Schedule(path, clock, ScheduleSettings(full_at=full_at, zone=BERLIN))
    ran = run_through(schedule, clock, 4 * 24)
    dates = [datetime.fromtimestamp(when, BERLIN).date() for when, kind in ran if kind == "full"]
    assert len(dates) == len(set(dates)) == 4


def test_traffic_puts_a_run_off_but_not_for_ever(path: Path) -> None:
    """Busy: not now; quiet for a moment: now. Busy all the time: after two hours anyway, restarts or not."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    assert schedule.due() == "light"
    assert not schedule.may_run(busy=True)
    assert schedule.may_run(busy=False)
    waited = 0
    while not schedule.may_run(busy=True):
        clock.advance(600)
        waited += 600
        schedule = Schedule(path, clock, SETTINGS)
    assert waited == 2 * HOUR
    schedule.began("light")
    schedule.done("light")
    clock.advance(4 * HOUR)
    assert schedule.due() == "light"
    assert not schedule.may_run(busy=True)


def test_a_clock_set_back_does_not_lengthen_the_wait(path: Path) -> None:
    """Two hours of real time are enough, whatever the wall clock says."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    assert not schedule.may_run(busy=True)
    clock.advance(1.9 * HOUR)
    clock.jump(-30 * 24 * HOUR)
    schedule.due()
    assert not schedule.may_run(busy=True)
    clock.advance(0.1 * HOUR)
    assert schedule.may_run(busy=True)


def test_a_run_that_traffic_breaks_off_stays_due_and_rests(path: Path) -> None:
    """A quarter, a half and a whole hour, across restarts; the fourth goes to its end, and a run that ended lets the
    next one give way again."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 7, 0))
    schedule = Schedule(path, clock, SETTINGS)
    rests = []
    for _ in range(3):
        assert schedule.due() == "light"
        assert not schedule.insists("light")
        schedule.began("light")
        schedule.broken_off()
        schedule = Schedule(path, clock, SETTINGS)
        begun = clock.now()
        while not schedule.may_run(busy=False):
            assert schedule.due() == "light"
            clock.advance(60)
        rests.append((clock.now() - begun) / 60)
    assert rests == [15, 30, 60]
    assert schedule.insists("light")
    schedule.began("light")
    schedule.done("light")
    clock.advance(4 * HOUR)
    assert schedule.due() == "light"
    assert not schedule.insists("light")


def test_a_full_run_that_is_late_by_half_a_day_goes_to_its_end(path: Path) -> None:
    """However seldom it was broken off; a light one does not for that."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 5, 0))
    schedule = Schedule(path, clock, SETTINGS)
    clock.advance(HOUR)
    assert schedule.due() == "full"
    schedule.began("full")
    schedule.broken_off()
    clock.advance(11.9 * HOUR)
    assert not schedule.insists("full")
    clock.advance(0.1 * HOUR)
    assert schedule.due() == "full"
    assert (schedule.insists("full"), schedule.insists("light")) == (True, False)


def test_what_traffic_has_put_off_for_two_hours_is_not_broken_off_by_it(path: Path) -> None:
    """It begins in the midst of it."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    while not schedule.may_run(busy=True):
        assert not schedule.insists("light")
        clock.advance(600)
    assert schedule.insists("light")


@pytest.mark.parametrize("jump", [-30 * 24 * HOUR, 30 * 24 * HOUR])
def test_a_clock_that_jumps_does_not_lengthen_the_rest(path: Path, jump: float) -> None:
    """A quarter of an hour of real time is enough."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    schedule.began("light")
    schedule.broken_off()
    clock.jump(jump)
    clock.advance(900)
    assert schedule.due() is not None
    assert schedule.may_run(busy=False)
    schedule.began("light")
    schedule.broken_off()
    clock.jump(-jump)
    again = Schedule(path, clock, SETTINGS)
    again.due()
    clock.advance(1800)
    assert again.may_run(busy=False)


@pytest.mark.parametrize("quiet_s", [60.0, 600.0])
def test_a_busy_server_still_has_one_full_run_a_day(path: Path, quiet_s: float) -> None:
    """A run takes half an hour, and nobody is quiet for longer than a moment or ten minutes in every hour."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 5, 0))
    schedule, ended, until = Schedule(path, clock, SETTINGS), [], 0.0
    running: tuple[str, bool] | None = None
    for _ in range(5 * 24 * 60):
        busy = clock.now() % HOUR >= quiet_s
        kind = schedule.due()
        if running is None and kind is not None and schedule.may_run(busy):
            running, until = (kind, schedule.insists(kind)), clock.now() + 1800
            schedule.began(kind)
        elif running is not None and busy and not running[1]:
            schedule.broken_off()
            running = None
        elif running is not None and clock.now() >= until:
            schedule.done("full" if running[0] == "full" else "light")
            ended.append((datetime.fromtimestamp(clock.now(), TOKYO).date(), running[0]))
            running = None
        clock.advance(60)
    full = [day for day, kind in ended if kind == "full"]
    assert len(full) == len(set(full)) == 5


def test_a_failed_run_comes_again_twice_and_then_waits_for_its_time(path: Path) -> None:
    """After a quarter of an hour each; after the third failure nothing until the next day or the next four hours."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    schedule = Schedule(path, clock, SETTINGS)
    tries = []
    for minute in range(5 * 60):
        kind = schedule.due()
        if kind is not None:
            tries.append(minute)
            schedule.began(kind)
            schedule.failed(kind)
        clock.advance(60)
    assert tries == [0, 15, 30, 270, 285]


def test_a_run_that_takes_the_agent_with_it_does_not_loop(path: Path) -> None:
    """Begun, killed, started again: three times, then not before its next time."""
    clock, begun = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0)), 0
    for _ in range(180):
        schedule = Schedule(path, clock, SETTINGS)
        if (kind := schedule.due()) is not None:
            schedule.began(kind)
            begun += 1
        clock.advance(60)
    assert begun == 3


def test_while_one_runs_nothing_is_due(path: Path) -> None:
    """Over six o'clock, too."""
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 5, 50))
    schedule = Schedule(path, clock, SETTINGS)
    schedule.began("light")
    clock.advance(HOUR)
    assert schedule.due() is None
    schedule.done("light")
    assert schedule.due() == "full"


def test_a_run_that_cannot_be_noted_has_not_begun(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk refuses it; it is due as before, and begins once there is room."""
    clock, disk = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0)), Disk(monkeypatch)
    schedule = Schedule(path, clock, SETTINGS)
    disk.full = True
    with pytest.raises(OSError, match="No space"):
        schedule.began("light")
    assert schedule.due() == "light"
    disk.full = False
    assert [kind for _, kind in run_through(schedule, clock, 5)] == ["light", "light"]


@pytest.mark.parametrize("end", ["done", "failed"])
def test_a_run_whose_end_cannot_be_noted_has_ended(path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The disk fills while it runs: the next one comes in its time, and is noted where there is room."""
    clock, disk = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0)), Disk(monkeypatch)
    schedule = Schedule(path, clock, SETTINGS)
    schedule.began("light")
    disk.full = True
    getattr(schedule, end)("light")
    assert schedule.due() is None
    clock.advance(4 * HOUR)
    assert schedule.due() == "light"
    assert not schedule.may_run(busy=True)
    disk.full = False
    assert [kind for _, kind in run_through(schedule, clock, 1)] == ["light"]
    assert Schedule(path, clock, SETTINGS).due() is None


def test_an_agent_starts_on_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that was cut off counts as a failed one, also where that cannot be written down."""
    clock, disk = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0)), Disk(monkeypatch)
    Schedule(path, clock, SETTINGS).began("light")
    disk.full = True
    schedule = Schedule(path, clock, SETTINGS)
    assert schedule.due() is None
    clock.advance(SETTINGS.retry_s)
    assert schedule.due() == "light"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"slot": "x"}', b"[]"])
def test_a_file_that_cannot_be_read_begins_anew(path: Path, body: bytes) -> None:
    """As on the first day."""
    path.write_bytes(body)
    clock = ManualClock(at(TOKYO, 2026, 11, 28, 12, 0))
    assert Schedule(path, clock, SETTINGS).due() == "light"


@settings(max_examples=60)
@given(
    st.integers(1_700_000_000, 1_900_000_000),
    st.sampled_from([TOKYO, BERLIN, ZoneInfo("America/St_Johns"), ZoneInfo("Pacific/Apia"), None]),
    st.times(),
)
def test_slots_surround_every_moment(now: int, zone: ZoneInfo | None, full_at: time) -> None:
    """The last one is not after it, the next one is, a day or so lies between, and nothing is between them."""
    chosen = ScheduleSettings(full_at=full_at, zone=zone)
    before, after = last_slot(now, chosen), next_slot(now, chosen)
    assert before <= now < after
    assert 22 * HOUR <= after - before <= 26 * HOUR
    assert last_slot(after - 1e-3, chosen) == pytest.approx(before)
    assert datetime.fromtimestamp(before, UTC) <= datetime.fromtimestamp(now, UTC)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["wait", "jump", "restart"]), st.floats(-40, 40)), max_size=25))
@example([("wait", 2.0), ("jump", -2.0), ("restart", 0.0)] * 6)
def test_whatever_the_clock_does_there_is_no_flood_and_no_silence(moves: list[tuple[str, float]]) -> None:
    """Jumps of up to forty hours to and fro, restarts: at most one run for each move, four hours and day of real time,
    and never more than eight hours of real time without one, also where a clock that is set back hides them from the
    next start."""
    with tempfile.TemporaryDirectory() as folder:
        path, clock, ran = Path(folder) / "s.json", ManualClock(at(BERLIN, 2026, 10, 24, 12, 0)), 0
        schedule = Schedule(path, clock, ScheduleSettings(zone=BERLIN))
        begun = last = clock.monotonic()
        for move, hours in moves:
            if move == "jump":
                clock.jump(hours * HOUR)
            elif move == "restart":
                schedule = Schedule(path, clock, ScheduleSettings(zone=BERLIN))
            for _ in range(round(abs(hours) * 2) if move == "wait" else 1):
                if (kind := schedule.due()) is not None:
                    schedule.began(kind)
                    schedule.done(kind)
                    ran, last = ran + 1, clock.monotonic()
                if move == "wait":
                    clock.advance(HOUR / 2)
                    assert clock.monotonic() - last <= 8 * HOUR
        assert ran <= 2 + len(moves) + (clock.monotonic() - begun) / HOUR * (1 / 4 + 1 / 24)
