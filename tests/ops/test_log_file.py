"""The logs of a child process: bounded, sorted, and without secrets."""

import gzip
import json
import logging
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.gateway.log_lines import RequestLine
from sekisho.ops.config import LogsConfig
from sekisho.ops.log_file import LONGEST_LINE_BYTES, REQUEST_LINE, RedactedFormatter, RotatingLog
from sekisho.ops.rotating_file import RotatingFile, compress

SECRET = "sk-sekisho-" + "FAKE" * 8 + "0000"
EMAIL = "nobody@example.com"

lines = st.lists(st.binary(max_size=60).map(lambda text: text.replace(b"\n", b"") + b"\n"), min_size=1, max_size=60)


def content(folder: Path) -> bytes:
    """The log's files in order, the oldest first."""
    numbers = sorted((int(file.name.split(".")[1]) for file in folder.glob("log.*")), reverse=True)
    older = [next(folder.glob(f"log.{number}*")) for number in numbers]
    parts = [gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in older]
    return b"".join([*parts, (folder / "log").read_bytes()])


@given(lines, st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_newest_bytes_are_kept_and_the_sizes_are_bounded(lines: list[bytes], packed: bool) -> None:
    """The files in order are a suffix of what was written, compressed or not, and none outgrows its bound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = RotatingFile(folder / "log", LogsConfig(max_bytes=200, keep=2, compress=packed))
        for line in lines:
            file.append([line])
        file.close()
        assert b"".join(lines).endswith(content(folder))
        assert (folder / "log").read_bytes().endswith(lines[-1])
        assert all(file.stat().st_size <= 200 for file in folder.iterdir() if file.suffix != ".gz")
        assert len(list(folder.iterdir())) <= 3
        assert all(file.suffix == ".gz" for file in folder.glob("log.*")) or not packed


@given(lines, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_many_lines_at_once_rotate_as_single_ones_do(lines: list[bytes], size: int) -> None:
    """A portion of many lines does not outgrow the bound either."""
    with tempfile.TemporaryDirectory() as name:
        file = RotatingFile(Path(name) / "log", LogsConfig(max_bytes=max(size, 61), keep=1000, compress=False))
        file.append(lines)
        file.close()
        assert content(Path(name)) == b"".join(lines)
        assert all(file.stat().st_size <= max(size, 61) for file in Path(name).iterdir())


def test_nothing_older_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    """`keep: 0` leaves the file that is being written."""
    file = RotatingFile(tmp_path / "log", LogsConfig(max_bytes=10, keep=0))
    for _ in range(5):
        file.append([b"12345678\n"])
    file.close()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def test_a_new_day_begins_a_new_file(tmp_path: Path) -> None:
    """With `daily`, the first line of another day goes to a new file; without, it does not."""
    for daily, count in ((True, 2), (False, 1)):
        now = [1_000_000_000.0]
        folder = tmp_path / str(daily)
        file = RotatingFile(folder / "log", LogsConfig(daily=daily), now=lambda now=now: now[0])  # type: ignore[misc]
        file.append([b"one\n"])
        now[0] += 3600 * 24
        file.append([b"two\n"])
        file.append([b"three\n"])
        file.close()
        assert len(list(folder.iterdir())) == count
        assert content(folder) == b"one\ntwo\nthree\n"


def test_a_log_that_cannot_be_compressed_stays(tmp_path: Path) -> None:
    """Where there is no place for the compressed file, the older log stays as it was."""
    (tmp_path / "log.1").write_bytes(b"kept")
    (tmp_path / "log.1.gz.part").mkdir()
    compress(tmp_path / "log.1")
    assert (tmp_path / "log.1").read_bytes() == b"kept"


@given(st.text(alphabet="ab\n", max_size=200), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_the_tail_does_not_depend_on_the_portions(text: str, size: int) -> None:
    """The last lines are those of the text, however it was cut up on its way here."""
    with tempfile.TemporaryDirectory() as folder:
        log = RotatingLog(Path(folder) / "log", tail_lines=3)
        for start in range(0, len(text), size):
            log.write(text[start : start + size].encode())
        log.close()
        assert list(log.tail) == [line for line in text.split("\n") if line.strip()][-3:]


def test_a_log_that_cannot_be_written_costs_lines_only(tmp_path: Path) -> None:
    """A log path that is no file loses what is written, keeps the tail, and tells the loss once it can write."""
    (tmp_path / "log").mkdir()
    log = RotatingLog(tmp_path / "log")
    log.write(b"lost\n")
    assert list(log.tail) == ["lost"]
    (tmp_path / "log").rmdir()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"[5 bytes of log were lost: the disk could not take them]\nkept\n"


@pytest.mark.parametrize("size", range(1, 90))
def test_no_secret_passes_however_it_is_cut(tmp_path: Path, size: int) -> None:
    """A line that arrives in portions is judged as a whole: neither file nor tail holds a piece of the key."""
    text = f"engine said: bad key {SECRET} of {EMAIL}\nnext line\n".encode()
    log = RotatingLog(tmp_path / "log")
    for start in range(0, len(text), size):
        log.write(text[start : start + size])
    log.close()
    written = (tmp_path / "log").read_text()
    assert written == "engine said: bad key [API_KEY_1] of [EMAIL_1]\nnext line\n"
    assert list(log.tail) == written.splitlines()


def test_a_child_that_dies_in_mid_line_leaves_no_half_secret(tmp_path: Path) -> None:
    """The last words of a child are written redacted, with the line break that they lack; the next life begins anew."""
    log = RotatingLog(tmp_path / "log")
    log.write(b"key " + SECRET[:20].encode())
    assert not (tmp_path / "log").exists()
    log.close()
    log.write(b"again\n")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"key [API_KEY_1]\nagain\n"


@pytest.mark.parametrize("portion", [1000, 65_536, 10_000_000])
@pytest.mark.parametrize("end", range(LONGEST_LINE_BYTES - 60, LONGEST_LINE_BYTES + 10, 7))
def test_a_line_without_end_is_cut_beside_the_secret(tmp_path: Path, portion: int, end: int) -> None:
    """A line beyond the bound is cut where a word ends and its rest is dropped; a key at the cut never shows a part."""
    text = b"x" * (end - 1) + b" " + SECRET.encode() + b"y" * 200_000 + b"\nafter\n"
    log = RotatingLog(tmp_path / "log")
    for start in range(0, len(text), portion):
        log.write(text[start : start + portion])
    log.close()
    written = (tmp_path / "log").read_bytes()
    assert b"FAKE" not in written
    assert written.endswith(b"[this line was cut]\nafter\n")
    assert len(written) < LONGEST_LINE_BYTES + 100


def test_a_private_key_over_many_lines_is_not_written(tmp_path: Path) -> None:
    """The lines of a PEM block go, what follows stays."""
    body = [("FAKE" * 16) for _ in range(5)]
    block = "\n".join(["-----BEGIN PRIVATE KEY-----", *body, "FAKEFAKE=", "-----END PRIVATE KEY-----", "ready"])
    log = RotatingLog(tmp_path / "log")
    log.write(block.encode() + b"\n")
    log.close()
    written = (tmp_path / "log").read_bytes()
    assert b"FAKE" not in written
    assert written.endswith(b"ready\n")


def test_the_gateway_s_lines_go_where_they_belong(tmp_path: Path) -> None:
    """Request lines stand in performance.log alone; warnings, errors and what is no JSON stand in error.log too."""
    request = b'{"kind":"request","time":1.0,"id":"req_1"}'
    info, warning, error = (
        json.dumps({"time": 1.5, "level": level, "message": level}, separators=(",", ":")).encode()
        for level in ("info", "warning", "error")
    )
    log = RotatingLog(tmp_path / "gateway.log", by_kind=True)
    log.write(b"\n".join([info, request, warning, error, b"Fatal Python error", request, info, b""]))
    log.close()
    assert (tmp_path / "performance.log").read_bytes().splitlines() == [request, request]
    assert (tmp_path / "error.log").read_bytes().splitlines() == [warning, error, b"Fatal Python error"]
    everything = [info, warning, error, b"Fatal Python error", info]
    assert (tmp_path / "gateway.log").read_bytes().splitlines() == everything
    assert list(log.tail) == [line.decode() for line in everything]


def test_both_sides_agree_on_what_a_request_line_is() -> None:
    """The gateway's request lines begin as the log expects."""
    line = RequestLine(1.0, "req_1", "m", "chat", "ok", 200, 1.0, 2.0, 3, 4, 0, None)
    assert msgspec.json.encode(line).startswith(REQUEST_LINE)


def test_the_supervisor_s_own_words_are_redacted() -> None:
    """What the formatter gives out holds no secret, not even of a traceback."""
    try:
        raise ValueError(f"bad key {SECRET}")
    except ValueError as error:
        record = logging.LogRecord("a", 40, "f", 1, "%s", (EMAIL,), (ValueError, error, error.__traceback__))
    shown = RedactedFormatter().format(record)
    assert shown.startswith("[EMAIL_1]\n")
    assert shown.endswith("ValueError: bad key [API_KEY_1]")
