"""A file of whole lines that gives way to a new one by size and day, with a count of older ones, compressed."""

import contextlib
import gzip
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from sekisho.ops.config import LogsConfig

_BLOCK = 1 << 20
_LEVEL = 6


class RotatingFile:
    """Appends to `path`. When it is full it becomes `path.1`, then `path.1.gz`, and so on up to `keep` of them.

    A disk that cannot take a write costs lines, never the process: what was lost is told in the file once it can be
    written again. Compressing runs in a thread of its own; the next rotation and `close` wait for it.
    """

    def __init__(self, path: Path, config: LogsConfig, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._config = config
        self._now = now
        self._file: BinaryIO | None = None
        self._size = 0
        self._day: tuple[int, int] = (0, 0)
        self._lost_bytes = 0
        self._compressing: threading.Thread | None = None

    def append(self, lines: Iterable[bytes]) -> None:
        """Each line ends with a line break. Raises nothing."""
        ready: list[bytes] = []
        size = 0
        for line in lines:
            if ready and self._size + size + len(line) > self._config.max_bytes:
                self._write(b"".join(ready))
                ready, size = [], 0
            ready.append(line)
            size += len(line)
        if ready:
            self._write(b"".join(ready))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._settle()

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._open()
            if self._size and (self._size + len(data) > self._config.max_bytes or self._of_another_day()):
                self._rotate()
            if self._lost_bytes:
                self._put(b"[%d bytes of log were lost: the disk could not take them]\n" % self._lost_bytes)
                self._lost_bytes = 0
            self._put(data)
        except OSError:
            self._lost_bytes += len(data)

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._file is not None:
            written = self._file.write(rest)
            self._size += written
            rest = rest[written:]

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._day = _day(self.path.stat().st_mtime if self._size else self._now())

    def _of_another_day(self) -> bool:
        return self._config.daily and _day(self._now()) != self._day

    def _rotate(self) -> None:
        self.close()
        keep = self._config.keep
        self._older(keep, "").unlink(missing_ok=True)
        self._older(keep, ".gz").unlink(missing_ok=True)
        for number in range(keep - 1, 0, -1):
            for ending in ("", ".gz"):
                if self._older(number, ending).exists():
                    self._older(number, ending).replace(self._older(number + 1, ending))
        if keep:
            self.path.replace(self._older(1, ""))
            if self._config.compress:
                self._compressing = threading.Thread(target=compress, args=(self._older(1, ""),), name="compress log")
                self._compressing.start()
        else:
            self.path.unlink()
        self._open()

    def _older(self, number: int, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}{ending}")

    def _settle(self) -> None:
        if self._compressing is not None:
            self._compressing.join()
            self._compressing = None


def compress(path: Path) -> None:
    """Puts `path.gz` in the place of `path`; where that fails the file stays as it was."""
    target = path.with_name(f"{path.name}.gz")
    unfinished = path.with_name(f"{path.name}.gz.part")
    try:
        with path.open("rb") as source, gzip.open(unfinished, "wb", _LEVEL) as packed:
            shutil.copyfileobj(source, packed, _BLOCK)
        unfinished.replace(target)
        path.unlink()
    except OSError:  # no room: an older log that is not compressed is better than none
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _day(seconds: float) -> tuple[int, int]:
    moment = time.localtime(seconds)
    return moment.tm_year, moment.tm_yday
