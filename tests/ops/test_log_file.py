"""The bounded log of a child process."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.ops.log_file import RotatingLog

lines = st.lists(st.binary(max_size=60).map(lambda text: text.replace(b"\n", b"") + b"\n"), min_size=1, max_size=60)


@given(lines)
@settings(max_examples=50)
def test_the_newest_bytes_are_kept_and_the_sizes_are_bounded(lines: list[bytes]) -> None:
    """The files in order are a suffix of what was written, and none outgrows its bound."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log = RotatingLog(path, max_bytes=200, keep=2)
        for line in lines:
            log.write(line)
        log.close()
        files = [name for name in (path.with_name("log.2"), path.with_name("log.1"), path) if name.exists()]
        assert b"".join(lines).endswith(b"".join(file.read_bytes() for file in files))
        assert path.read_bytes().endswith(lines[-1])
        assert all(file.stat().st_size <= 200 for file in files)
        assert len(list(Path(folder).iterdir())) <= 3


@given(st.text(alphabet="ab\n", max_size=200), st.integers(1, 7))
@settings(max_examples=50)
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
