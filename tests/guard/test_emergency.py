"""The switch that a running server asks at every turn."""

from pathlib import Path

import msgspec

from sekisho.guard.emergency import Emergency, EmergencySwitch, emergency_file, read_emergency


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def declare(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(Emergency(1.0, "hanako", "a leak")))


def test_the_switch_follows_the_file(tmp_path: Path) -> None:
    """On and off count half a second later at most; in between the file is not looked at."""
    path, clock = emergency_file(tmp_path), Hand()
    switch = EmergencySwitch(path, monotonic=clock)
    assert switch.mode("basic") == "basic"
    declare(path)
    assert switch.mode("basic") == "basic"
    clock.now += 0.5
    assert switch.mode("off") == "emergency"
    assert switch.current() == Emergency(1.0, "hanako", "a leak")
    path.unlink()
    clock.now += 0.5
    assert switch.mode("production") == "production"


def test_a_switch_that_is_made_during_an_emergency_knows_it_at_once(tmp_path: Path) -> None:
    """A restart does not end an emergency, not even for its first turn."""
    path = emergency_file(tmp_path)
    declare(path)
    assert EmergencySwitch(path).mode("basic") == "emergency"


def test_a_file_that_cannot_be_read_is_an_emergency(tmp_path: Path) -> None:
    """Whoever put something there meant it: what is not understood makes the guard strict, never lax."""
    path = emergency_file(tmp_path)
    path.write_text("{")
    found = read_emergency(path)
    assert found is not None
    assert "cannot be read" in found.reason
    assert EmergencySwitch(path).mode("off") == "emergency"
