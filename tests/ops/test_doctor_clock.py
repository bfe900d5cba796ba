"""Findings about clocks that are really wrong, as far as a test may make them so."""

import datetime
import os
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import Programs, cases, only, patient

from sekisho.core.clock import SystemClock
from sekisho.ops.doctor import clock
from sekisho.ops.home import Home


class ShiftedClock(SystemClock):
    """The system's clock, set by so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return super().now() + self._seconds


@pytest.fixture
def timedatectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A system that cannot tell, until a test says otherwise."""
    programs = Programs(tmp_path / "bin", monkeypatch)
    programs.put("timedatectl", "echo 'Failed to connect to bus: Host is down' >&2; exit 1")
    return programs


def test_a_clock_before_this_program_was_written(tmp_path: Path, timedatectl: Programs) -> None:
    """1970 is wrong, now is right."""
    past = ShiftedClock(datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC).timestamp() - time.time())
    assert only(clock.check_clock(patient(Home(tmp_path)), past)).case == "clock.too_early"
    assert only(clock.check_clock(patient(Home(tmp_path)))).case == "clock.good"


def test_a_clock_that_went_back(tmp_path: Path, timedatectl: Programs) -> None:
    """A clock that is behind the home's newest record is told with the record; small differences are not."""
    home = Home(tmp_path / "home").create()
    segment = home.audit / "000001.seg"
    segment.write_bytes(b"")
    assert only(clock.check_clock(patient(home))).case == "clock.good"
    assert only(clock.check_clock(patient(home), ShiftedClock(-30))).case == "clock.good"
    found = only(clock.check_clock(patient(home), ShiftedClock(-7200)))
    assert (found.case, str(segment) in found.what) == ("clock.went_back", True)
    later = time.time() + 86_400
    os.utime(segment, (later, later))
    assert only(clock.check_clock(patient(home))).case == "clock.went_back"


def test_a_clock_that_nobody_keeps(tmp_path: Path, timedatectl: Programs) -> None:
    """The system's own word counts where there is one, in the format of systemd's timedatectl."""
    timedatectl.put("timedatectl", "printf 'NTP=no\\nNTPSynchronized=no\\n'")
    found = only(clock.check_clock(patient(Home(tmp_path))))
    assert (found.case, "NTP=no" in found.why) == ("clock.not_synced", True)
    timedatectl.put("timedatectl", "printf 'NTP=yes\\nNTPSynchronized=yes\\n'")
    assert only(clock.check_clock(patient(Home(tmp_path)))).case == "clock.good"
    timedatectl.put("timedatectl", "echo nonsense")
    assert only(clock.check_clock(patient(Home(tmp_path)))).case == "clock.good"


def test_skew_against_another_machine() -> None:
    """Under a minute is nothing, over five an error; the direction is told; no date is no finding."""
    now = time.time()

    def found(seconds: float) -> list[str]:
        return cases(clock.check_skew("http://x/v1", formatdate(now - seconds, usegmt=True), now))

    assert (found(0), found(-30)) == ([], [])
    assert (found(90), found(-90)) == (["clock.skew"], ["clock.skew"])
    assert found(3600) == ["clock.far_off"]
    ahead, behind = (clock.check_skew("x", formatdate(now - s, usegmt=True), now)[0] for s in (90, -90))
    assert ("ahead of" in ahead.what, "behind" in behind.what) == (True, True)
    assert ("進んで" in ahead.what_ja, "遅れて" in behind.what_ja) == (True, True)
    for nothing in (None, "", "yesterday"):
        assert clock.check_skew("x", nothing, now) == []
