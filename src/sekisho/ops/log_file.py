"""A log file with a bound on its size, for bytes that come from child processes."""

from collections import deque
from pathlib import Path
from typing import BinaryIO


class RotatingLog:
    """Appends to `path`; beyond `max_bytes` it becomes `path.1`, and so on up to `keep` old files.

    Remembers the last lines for error messages. A disk that cannot take a write costs lines, never the process: what
    was lost is told in the file once it can be written again. Lines go to the file as they come, unparsed.
    """

    def __init__(self, path: Path, *, max_bytes: int = 5_000_000, keep: int = 3, tail_lines: int = 20) -> None:
        self.path = path
        self.tail: deque[str] = deque(maxlen=tail_lines)
        self._max_bytes = max_bytes
        self._keep = keep
        self._partial = b""
        self._lost_bytes = 0
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        self._remember(data)
        try:
            if self._file is None:
                self._open()
            elif self._size + len(data) > self._max_bytes and self._size:
                self._rotate()
            if self._lost_bytes:
                self._put(b"[%d bytes of log were lost: the disk could not take them]\n" % self._lost_bytes)
                self._lost_bytes = 0
            self._put(data)
        except OSError:
            self._lost_bytes += len(data)

    def close(self) -> None:
        if self._partial:
            self._remember(b"\n")
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
            self._size += len(data)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._size = self._file.tell()

    def _rotate(self) -> None:
        self.close()
        for number in range(self._keep, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1) if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _remember(self, data: bytes) -> None:
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[-4096:]
        self.tail.extend(line.decode(errors="replace").rstrip("\r")[:500] for line in lines if line.strip())
