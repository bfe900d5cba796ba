"""What the agent keeps on disk, and what it survives."""

import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control import history as module
from sekisho.control.base import Applied, Decision
from sekisho.control.history import DECISIONS, METRICS, Bounds, History, lines_backwards
from sekisho.core.clock import ManualClock

DAY_S = 86_400.0


def numbers(history: History, kind: str = METRICS, **options: Any) -> list[int]:
    return [entry.record["number"] for entry in history.read(kind, **options)]


def decision(number: int) -> Decision:
    applied = (Applied("m", "kv.mode", "swap", True, "f16", "q8_0"),)
    return Decision(
        number, 1.0, "middle", "balance", "memory", 0.9, 0.8, "m", "policy 2", "memory is short", 2, applied
    )


# --- reading what was written ----------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_oldest_first(tmp_path: Path) -> None:
    """A decision with all that was applied; kinds do not mix; a kind that was never written is empty."""
    clock = ManualClock()
    history = History(tmp_path / "control", clock)
    for number in range(1, 4):
        assert history.append(DECISIONS, decision(number))
        assert history.append(METRICS, {"number": number, "what": "人"})
        clock.advance(1.0)
    entries = history.read(DECISIONS)
    assert [msgspec.convert(entry.record, Decision) for entry in entries] == [decision(n) for n in (1, 2, 3)]
    assert [entry.at for entry in entries] == [clock.now() - 3.0, clock.now() - 2.0, clock.now() - 1.0]
    assert history.read(METRICS)[0].record == {"number": 1, "what": "人"}
    assert history.read("quality") == []
    history.close()
    assert numbers(History(tmp_path / "control", clock)) == [1, 2, 3]


def test_since_and_limit_give_the_newest(tmp_path: Path) -> None:
    """`since` cuts by the time of writing, `limit` keeps the newest ones."""
    clock = ManualClock()
    history = History(tmp_path, clock)
    began = clock.now()
    for number in range(100):
        history.append(METRICS, {"number": number})
        clock.advance(1.0)
    assert numbers(history, since=began + 95) == [95, 96, 97, 98, 99]
    assert numbers(history, since=began + 95, limit=2) == [98, 99]
    assert numbers(history, limit=3) == [97, 98, 99]
    assert numbers(history, limit=0) == []
    assert numbers(history, since=began + 1000) == []
    history.close()


def test_the_end_of_a_large_file_costs_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 MB, the newest ten are found by reading one block."""
    clock = ManualClock()
    history = History(tmp_path, clock, Bounds(bytes=1 << 30))
    history.append(METRICS, {"number": 0})
    (path,) = tmp_path.iterdir()
    line = msgspec.json.encode({"at": clock.now(), "record": {"number": 1, "text": "x" * 200}}) + b"\n"
    with path.open("ab") as file:
        file.write(line * (30_000_000 // len(line)))
    read_bytes = 0
    read = os.read

    def counted(descriptor: int, size: int) -> bytes:
        nonlocal read_bytes
        data = read(descriptor, size)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "read", counted)
    assert numbers(history, limit=10) == [1] * 10
    assert read_bytes <= 1 << 16
    history.close()


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 50))
def test_lines_backwards_are_the_lines(lines: list[bytes], block: int) -> None:
    """Whatever the blocks cut: the same lines as read forwards, in the other order."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_BLOCK_BYTES", block)
        path = Path(folder) / "lines"
        path.write_bytes(b"\n".join(lines))
        assert list(lines_backwards(path)) == b"\n".join(lines).split(b"\n")[::-1]


# --- what it survives ------------------------------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
from sekisho.control.history import Bounds, History
from sekisho.core.clock import SystemClock

history = History(Path(sys.argv[1]), SystemClock(), Bounds(bytes=1 << 30))  # however far it comes before it is killed
while True:
    number = history.next_number()
    if history.append("decisions", {"number": number, "why": "x" * (number % 5000)}):
        print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """A writer that is killed in the middle of its work, three times: every acknowledged number is there once, in
    order, and the next life goes on counting where the last one ended."""
    acknowledged = 0
    for life in range(1, 4):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                acknowledged = int(line)
                if acknowledged >= 300 * life:
                    break
            writer.send_signal(signal.SIGKILL)
            acknowledged = int((writer.stdout.read().split() or [acknowledged])[-1])
            writer.wait(30)
        history = History(tmp_path, ManualClock(now=4e9), Bounds(age_s=1e10))
        found = numbers(history, DECISIONS)
        assert found[: acknowledged + 1] == list(range(1, len(found) + 1))
        assert acknowledged <= len(found) <= acknowledged + 1
        assert history.next_number() == len(found) + 1


@given(st.integers(0, 60), st.binary(max_size=30))
def test_a_torn_end_costs_only_itself(cut: int, rubbish: bytes) -> None:
    """A last line of which a part is missing, or that ends in whatever the disk held: the lines before it are read, and
    the next ones do not continue it."""
    with tempfile.TemporaryDirectory() as folder:
        clock = ManualClock()
        history = History(Path(folder), clock)
        for number in range(3):
            history.append(METRICS, {"number": number})
        history.close()
        (path,) = Path(folder).iterdir()
        whole = path.read_bytes()
        last = whole.rindex(b"\n", 0, -1) + 1
        path.write_bytes(whole[: max(last, len(whole) - 1 - cut)] + rubbish.replace(b"\n", b""))
        again = History(Path(folder), clock)
        again.append(METRICS, {"number": 3})
        again.close()
        assert numbers(again) in ([0, 1, 3], [0, 1, 2, 3])  # the cut may have taken the line break alone


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_a_full_disk_is_told_once_and_the_agent_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a file that takes nothing (the kernel's own ENOSPC) `append` says False, raises nothing and logs one line."""
    history = History(tmp_path, ManualClock())
    (tmp_path / "metrics-000001.jsonl").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING, "sekisho.control.history"):
        assert [history.append(METRICS, {"number": number}) for number in range(5)] == [False] * 5
        assert history.lost == 5
        (tmp_path / "metrics-000001.jsonl").unlink()
        assert history.append(METRICS, {"number": 6})
    told = [record for record in caplog.records if record.name == "sekisho.control.history"]
    assert [record.levelname for record in told] == ["ERROR", "WARNING"]
    assert "No space left on device" in told[0].getMessage()
    assert numbers(history) == [6]
    history.close()


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that was written is taken off again: what is read is whole, and the next record is too."""
    history = History(tmp_path, ManualClock())
    history.append(METRICS, {"number": 1})
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        assert not history.append(METRICS, {"number": 2})
    assert history.append(METRICS, {"number": 3})
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().count(b"\n") == 2
    assert numbers(history) == [1, 3]
    history.close()


def test_a_folder_that_cannot_be_made_is_no_end(tmp_path: Path) -> None:
    """A file stands where the folder should be: nothing is written, nothing raised, and numbers are given all the
    same."""
    (tmp_path / "control").write_text("in the way")
    history = History(tmp_path / "control", ManualClock())
    assert not history.append(METRICS, {"number": 1})
    assert history.read(METRICS) == []
    assert [history.next_number(), history.next_number()] == [1, 2]


def test_a_kind_is_a_name(tmp_path: Path) -> None:
    """Nothing is written outside the folder, whatever a kind is called."""
    history = History(tmp_path, ManualClock())
    for kind in ("", "../x", "a/b", "A", "x-1", "x" * 60):
        with pytest.raises(ValueError, match="no kind of history"):
            history.append(kind, {})
        with pytest.raises(ValueError, match="no kind of history"):
            history.read(kind)


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    """Several threads at once, over many changes of file: each record is there once and whole."""
    history = History(tmp_path, ManualClock(), Bounds(bytes=800_000))

    def write(thread: int) -> None:
        for number in range(400):
            assert history.append(METRICS, {"number": 1000 * thread + number, "text": "x" * 300})

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, thread) for thread in range(4)]:
            done.result()
    history.close()
    assert sorted(numbers(history)) == [1000 * thread + number for thread in range(4) for number in range(400)]
    assert len(list(tmp_path.iterdir())) > 1


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_size_is_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    """However much is written, a kind takes no more than its bound; what is left is the newest without a gap, and more
    than half of the bound."""
    bounds = Bounds(bytes=40_000)
    history = History(tmp_path, ManualClock(), bounds)
    for number in range(3000):
        history.append(METRICS, {"number": number, "text": "x" * 100})
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bounds.bytes
    found = numbers(history)
    assert found == list(range(found[0], 3000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > bounds.bytes / 2
    history.close()


def test_age_is_bounded_however_little_is_written(tmp_path: Path) -> None:
    """A record a day for a year: what is older than 90 days is not read, and files that hold nothing younger go."""
    clock = ManualClock()
    history = History(tmp_path, clock)
    for number in range(365):
        history.append(METRICS, {"number": number})
        clock.advance(DAY_S)
    assert numbers(history)[0] >= 365 - 91
    assert numbers(history)[-1] == 364
    assert len(list(tmp_path.iterdir())) <= 4
    history.close()


def test_numbers_go_on_after_years_of_silence(tmp_path: Path) -> None:
    """The newest file stays whatever its age, so that a decision's number is never given twice."""
    clock = ManualClock()
    history = History(tmp_path, clock)
    for _ in range(5):
        history.append(DECISIONS, decision(history.next_number()))
    history.close()
    clock.advance(1000 * DAY_S)
    later = History(tmp_path, clock)
    assert later.read(DECISIONS) == []
    assert later.next_number() == 6
    later.append(DECISIONS, decision(6))
    later.close()
    clock.advance(1000 * DAY_S)
    assert History(tmp_path, clock).next_number() == 7


def test_who_reads_while_files_go_sees_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process removes between the listing and the reading is passed over."""
    clock = ManualClock()
    history = History(tmp_path, clock, Bounds(bytes=4000))
    for number in range(60):
        history.append(METRICS, {"number": number})
    history.close()
    oldest = min(tmp_path.iterdir())
    reader = History(tmp_path, clock)
    entries = reader._backwards(METRICS)
    next(entries)
    oldest.unlink()
    assert len(list(entries)) >= 1


def test_trouble_with_reading_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be read is told to whoever asks, and does not look like an empty history."""
    history = History(tmp_path, ManualClock())
    history.append(METRICS, {"number": 1})

    def broken(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(OSError, match="Input/output"):
        history.read(METRICS)
    history.close()
