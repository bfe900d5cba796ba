"""kill -9 at any moment: the readable log is an exact prefix of what was written, with all that was acknowledged."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sekisho.audit.records import VerdictRecord
from sekisho.audit.verify import verify

from .conftest import Shelf

CHILD = Path(__file__).with_name("kill_child.py")


def _run_and_kill(shelf: Shelf, seed: int, after_s: float) -> list[tuple[int, str]]:
    """Every (sequence, text) that the child had acknowledged when it died."""
    command = [sys.executable, str(CHILD), str(shelf.folder), str(shelf.secrets), str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    with child.stdout as out:
        assert out.readline() == b"ready\n"
        time.sleep(after_s)
        child.send_signal(signal.SIGKILL)
        lines = out.read().decode().split("\n")[:-1]  # behind the last newline: a line that was cut
    child.wait()
    return [(int(number), text) for number, _, text in (line.partition(" ") for line in lines)]


def _kill_repeatedly(shelf: Shelf, kills: int) -> None:
    chance = random.Random(kills)
    acknowledged: dict[int, str] = {}
    for seed in range(kills):
        for number, text in _run_and_kill(shelf, seed, chance.uniform(0, 0.25)):
            assert number not in acknowledged, "a sequence number was given twice"
            acknowledged[number] = text
        if seed % 10 == 9 or kills < 10:
            _check(shelf, acknowledged)
    _check(shelf, acknowledged)
    report = verify(shelf.folder, shelf.keys(), (shelf.folder / "anchors",))
    print(
        f"\n{kills} kills: {len(acknowledged)} acknowledged, {report.records} readable, none lost, "
        f"{report.segments} segments, anchored up to {report.anchored}"
    )


def _check(shelf: Shelf, acknowledged: dict[int, str]) -> None:
    entries = shelf.entries()
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    read = {entry.sequence: entry.record.input for entry in entries if isinstance(entry.record, VerdictRecord)}
    assert all(read.get(number) == text for number, text in acknowledged.items())
    assert len(set(read.values())) == len(read)
    report = verify(shelf.folder, shelf.keys(), (shelf.folder / "anchors",))
    assert report.ok, report.problems


def test_a_few_kills(shelf: Shelf) -> None:
    """Five kills under load of fifty clients: nothing acknowledged is lost, nothing is doubled, the book verifies."""
    _kill_repeatedly(shelf, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills(shelf: Shelf) -> None:
    """The same a hundred times over one book."""
    _kill_repeatedly(shelf, 100)
