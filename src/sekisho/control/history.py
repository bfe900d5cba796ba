"""What the agent saw and did, on disk: JSON lines by kind, append-only, bounded by size and age.

    <path>/decisions-000003.jsonl        {"at": 1790000000.0, "record": {...}}

Only the file with the highest number of a kind is written to; when it is full the next one begins, and the oldest go.
A file is never renamed, so that others can read meanwhile. A line is one write: after kill -9 all lines that `append`
acknowledged are there, and at most one torn line, which readers pass over. A power failure may take the last moments.
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded

log = logging.getLogger("sekisho.control.history")

METRICS: Final = "metrics"
DECISIONS: Final = "decisions"
POLICY: Final = "policy"
QUALITY: Final = "quality"
_KIND: Final = re.compile(r"[a-z][a-z_]{0,40}")
_FILE: Final = re.compile(r"([a-z_]+)-(\d{6,})\.jsonl")
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_BLOCK_BYTES: Final = 1 << 16
_FILES: Final = 4  # a kind has at most so many, each a fourth of the bound: the next one displaces the oldest fourth


class Bounds(msgspec.Struct, frozen=True):
    """Of one kind. The newest file is kept whatever its age: its entries are only not read any more."""

    bytes: int = 16 << 20
    age_s: float = 90 * 86_400.0


class Entry(msgspec.Struct, frozen=True):
    """One line: when it was written, by the wall clock, and what."""

    at: float
    record: dict[str, Any]


class History:
    """One process writes, from any of its threads; any process may read. Blocks for the time of a small write; `read`
    for as long as it takes to decode what it gives. `lost`: records that the disk did not take; told once in the log,
    until it takes one again."""

    def __init__(self, path: Path, clock: Clock, bounds: Bounds | None = None) -> None:
        self.path = path
        self.lost = 0
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._open: dict[str, _Open] = {}
        self._failing = False
        self._writing = threading.Lock()
        self._next_number: int | None = None

    @property
    def failing(self) -> bool:
        """Whether the disk did not take the last record."""
        return self._failing

    def append(self, kind: str, record: Any) -> bool:
        """Writes one record, a Struct or a dict. False where the disk did not take it: then it is not there, not even
        in part, and the caller goes on. Raises ValueError for a kind that is no name."""
        _check(kind)
        line = msgspec.json.encode({"at": self._clock.now(), "record": record}) + b"\n"
        with self._writing:
            try:
                self._file(kind, len(line)).write(line)
            except OSError as error:
                self._forget(kind)
                self.lost += 1
                if not self._failing:
                    log.error("the history in %s cannot be written: %s", self.path, error.strerror or error)
                self._failing = True
                return False
            if self._failing:
                log.warning("the history in %s is written again; %d records are lost so far", self.path, self.lost)
            self._failing = False
            return True

    def read(self, kind: str, since: float = 0.0, limit: int | None = None) -> list[Entry]:
        """The newest `limit` entries from `since` (seconds since 1970) on, oldest first. Reads backwards and no further
        than the first older entry, so that it costs what it gives, however large the files are; after a jump of the
        wall clock, entries may be hidden behind that one. Raises OSError."""
        _check(kind)
        since = max(since, self._clock.now() - self._bounds.age_s)
        found: list[Entry] = []
        for entry in self._backwards(kind):
            if entry.at < since or (limit is not None and len(found) >= limit):
                break
            found.append(entry)
        return found[::-1]

    def next_number(self) -> int:
        """The number for the next decision: one more than the last, before a restart or after."""
        if self._next_number is None:
            self._next_number = 1 + self._last_number()
        number = self._next_number
        self._next_number += 1
        return number

    def close(self) -> None:
        """May be called twice; a later `append` opens again."""
        with self._writing:
            for kind in list(self._open):
                self._forget(kind)

    def _last_number(self) -> int:
        try:
            for entry in self._backwards(DECISIONS):
                number = entry.record.get("number")
                if isinstance(number, int):
                    return number
        except OSError as error:
            log.error("the last decision's number cannot be read: %s", error)
        return 0

    def _backwards(self, kind: str) -> Iterator[Entry]:
        for path in reversed(self._paths(kind)):
            yield from entries_backwards(path)

    def _paths(self, kind: str) -> list[Path]:
        """This kind's files, oldest first."""
        if not self.path.is_dir():
            return []
        numbered = [(int(match[2]), path) for path in self.path.iterdir() if (match := _FILE.fullmatch(path.name))
                    and match[1] == kind]  # fmt: skip
        return [path for _, path in sorted(numbered)]

    def _file(self, kind: str, more_bytes: int) -> "_Open":
        """Where to write: the newest file, or a new one where that is full or old."""
        largest = self._bounds.bytes // _FILES
        opened = self._open.get(kind)
        if opened is None:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths = self._paths(kind)
            opened = self._open[kind] = _Open(paths[-1] if paths else self.path / f"{kind}-000001.jsonl", self._clock)
        old = self._clock.now() - opened.began_at > self._bounds.age_s / _FILES
        if opened.size and (opened.size + more_bytes > largest or old):
            number = int(opened.path.stem.rpartition("-")[2]) + 1
            self._forget(kind)
            opened = self._open[kind] = _Open(self.path / f"{kind}-{number:06}.jsonl", self._clock)
            self._drop(kind)
        return opened

    def _drop(self, kind: str) -> None:
        """Removes what is beyond the bounds, but never the two newest files: the newer may be empty still."""
        paths = self._paths(kind)
        oldest_at = self._clock.now() - self._bounds.age_s
        for place, path in enumerate(paths[:-2]):
            newest = next(entries_backwards(path), None)
            if len(paths) - place > _FILES or newest is None or newest.at < oldest_at:
                path.unlink(missing_ok=True)

    def _forget(self, kind: str) -> None:
        opened = self._open.pop(kind, None)
        if opened is not None:
            opened.close()


class _Open:
    """A file that is written to. A torn last line of a process that died is ended first: it swallows no other."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._descriptor = os.open(path, _FLAGS, 0o600)
        try:
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
            self.began_at = _first_at(self._descriptor, clock.now())
            if self.size:
                os.lseek(self._descriptor, -1, os.SEEK_END)
                if os.read(self._descriptor, 1) != b"\n":
                    self.write(b"\n")
        except BaseException:
            os.close(self._descriptor)
            raise

    def write(self, line: bytes) -> None:
        """The whole line or, with OSError, nothing of it."""
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(f"the disk took {written} of {len(line)} bytes")
        except OSError:
            with contextlib.suppress(OSError):  # then a torn line stays, which whoever opens the file next ends
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += written

    def close(self) -> None:
        os.close(self._descriptor)


def _first_at(descriptor: int, otherwise: float) -> float:
    """When a file began, by its first entry."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        return decoded(os.read(descriptor, _BLOCK_BYTES).partition(b"\n")[0], Entry).at
    except Undecodable:
        return otherwise


def entries_backwards(path: Path) -> Iterator[Entry]:
    """A file's entries, last first. Raises OSError."""
    for line in lines_backwards(path):
        try:
            yield decoded(line, Entry)
        except Undecodable:
            continue  # a torn write, or the nothing after the last line break


def lines_backwards(path: Path) -> Iterator[bytes]:
    """A file's lines, last first, read in blocks from its end; none where it is gone. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        pieces: list[bytes] = []  # of the line whose beginning is not read yet, last piece first
        while end > 0:
            begin = max(0, end - _BLOCK_BYTES)
            os.lseek(descriptor, begin, os.SEEK_SET)
            first, *rest = os.read(descriptor, end - begin).split(b"\n")
            if rest:
                pieces.append(rest.pop())
                yield b"".join(reversed(pieces))
                yield from reversed(rest)
                pieces = []
            pieces.append(first)
            end = begin
        yield b"".join(reversed(pieces))
    finally:
        os.close(descriptor)


def _check(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"no kind of history: {kind!r}")
