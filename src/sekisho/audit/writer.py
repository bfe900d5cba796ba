"""Writes the book's segments: one thread, no asyncio, no acknowledgements. `book.py` stands in front of it.

Invariants:
- Bytes [0, size) of the open segment are whole lines. A write that fails is cut off, and the segment is left for ever.
- `durable` <= `written`: what a sync has confirmed, and what the kernel has. Lines between them are kept in memory.
- After a failed sync the segment is left, and the lines between the two are written again into the next segment with
  their old numbers: the kernel may have dropped its pages, and some of them were acknowledged as handed over.
- A segment's header states where the book goes on. Nothing is written to an older segment once it is there.
"""

import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sekisho.audit.config import AuditConfig
from sekisho.audit.files import Files, FolderLock, write_all
from sekisho.audit.keys import WriterKeys, chain
from sekisho.audit.segment import (
    MAX_RECORD_BYTES,
    ORIGIN,
    PACKED_SUFFIX,
    Header,
    Previous,
    Sealer,
    Tail,
    find_tail,
    parse_header,
    read_lines,
    segment_name,
    segments,
)
from sekisho.core.clock import Clock
from sekisho.core.errors import BookUnavailable

log = logging.getLogger("sekisho.audit")

RETRY_S = 1.0  # between tries to begin a segment while the disk takes none


class Place(msgspec.Struct, frozen=True):
    """How far the book goes: sequence number of the last record, running hash, segment."""

    sequence: int
    head: bytes
    segment: int


class _Open(msgspec.Struct):
    """The segment that is being written."""

    path: Path
    descriptor: int
    size: int
    sealer: Sealer
    day: str


class SegmentWriter:
    """Opened on a locked folder; `close` lets go. Every method may raise BookUnavailable; then nothing was taken."""

    def __init__(self, folder: Path, keys: WriterKeys, config: AuditConfig, clock: Clock, files: Files) -> None:
        self.folder = folder
        self.keys = keys
        self._config = config
        self._clock = clock
        self._files = files
        self._open: _Open | None = None
        self._previous: Previous = "none"
        self._next_index = 0
        self._last_segment = -1
        self._retry_at = -float("inf")
        self._unsynced: list[bytes] = []  # payloads of the records (durable, written]
        self.written = self.durable = Place(0, ORIGIN, -1)

    @property
    def unsynced(self) -> int:
        return len(self._unsynced)

    def recover(self) -> None:
        """Finds where the book ends and begins a fresh segment there. The old files are read, never changed."""
        try:
            for draft in self.folder.glob(".*.new"):
                draft.unlink(missing_ok=True)
            found = segments(self.folder)
            if found:
                index, path = max(found.items())
                tail = self._end_of(index, path)
                self.written = self.durable = Place(tail.sequence, tail.head, index)
                self._previous = "recovered"
                self._next_index = index + 1
        except OSError as error:
            raise BookUnavailable(f"the book cannot be read: {error.strerror}") from error
        self._next_index = max(self._next_index, self.keys.index)
        self._begin()

    def write(self, payloads: Sequence[bytes]) -> range:
        """Hands the records to the kernel in one write; their sequence numbers."""
        if any(len(payload) > MAX_RECORD_BYTES for payload in payloads):
            raise BookUnavailable("a record is larger than the book takes")
        self._make_ready()
        segment = self._open
        assert segment is not None
        lines, sequence, head = [], self.written.sequence, self.written.head
        for payload in payloads:
            sequence += 1
            line = segment.sealer.line(sequence, head, payload)
            head = chain(head, line)
            lines.append(line)
        blob = b"".join(lines)
        try:
            write_all(self._files, segment.descriptor, blob)
        except OSError as error:
            self._leave(segment, error, sync=True)
            raise BookUnavailable("The record cannot be written just now.", retry_after_s=RETRY_S) from error
        segment.size += len(blob)
        numbers = range(self.written.sequence + 1, sequence + 1)
        self.written = Place(sequence, head, self._last_segment)
        self._unsynced += payloads
        return numbers

    def sync(self) -> None:
        """Makes everything that was written durable."""
        segment = self._open
        if segment is None:
            if self._unsynced:
                self._make_ready()  # writes and syncs what the segment that failed did not hold for certain
            return
        if not self._unsynced:
            return
        try:
            if self._config.fsync:
                self._files.sync(segment.descriptor)
        except OSError as error:
            self._leave(segment, error, sync=False)
            raise BookUnavailable("The record cannot be made durable just now.", retry_after_s=RETRY_S) from error
        self._mark_durable()

    def close(self) -> None:
        """Syncs what it can and lets go of the file. May be called twice."""
        try:
            self.sync()
        finally:
            if self._open is not None:
                self._close_quietly(self._open.descriptor)
                self._open = None

    def rotate(self) -> None:
        """Begins the next segment now."""
        self.sync()
        self._begin()

    def _make_ready(self) -> None:
        """An open segment that is neither full nor of an earlier day."""
        segment = self._open
        if segment is None:
            self._begin()
            return
        today = self._clock.now()
        if segment.size < self._config.segment_mb * (1 << 20) and not (
            self._config.rotate_daily and _day(today) > segment.day
        ):
            return
        if self._clock.monotonic() < self._retry_at:
            return
        self.sync()
        try:
            self._begin()
        except BookUnavailable:
            if self._open is None:
                raise
            log.warning("book: no new segment can be begun, %s goes on", segment.path.name)

    def _begin(self) -> None:
        """The next segment, with its header durable and its key gone from the disk; then what was carried over."""
        if self._clock.monotonic() < self._retry_at:
            raise BookUnavailable("The book cannot be written just now.", retry_after_s=RETRY_S)
        index, now = self._next_index, self._clock.now()
        path = self.folder / segment_name(index)
        salt = os.urandom(32)
        draft = path.with_name(f".{path.name}.new")
        descriptor = None
        try:
            keys = self.keys.segment(index, salt)
            header = Header(
                book=self.keys.book,
                segment=index,
                first=self.durable.sequence + 1,
                head=self.durable.head,
                previous="closed" if self._open is not None else self._previous,
                started=timestamp(now),
                salt=salt,
            ).authenticated(keys)
            line = header.line()
            self._files.remove(draft)
            descriptor = self._files.create(draft)
            write_all(self._files, descriptor, line)
            self._files.sync(descriptor)
            self._files.replace(draft, path)
        except OSError as error:
            self._retry_at = self._clock.monotonic() + RETRY_S
            if descriptor is not None:
                self._close_quietly(descriptor)
            log.error("book: segment %d cannot be begun: %s", index, error)
            raise BookUnavailable("The book cannot be written just now.", retry_after_s=RETRY_S) from error
        # The file has its name now: it is part of the book, whatever comes.
        if self._open is not None:
            self._close_quietly(self._open.descriptor)
        self._next_index, self._last_segment = index + 1, index
        self.written = self.durable = Place(header.first - 1, chain(header.head, line), index)
        sealer = Sealer(keys, header.book, header.first)
        self._open = _Open(path, descriptor, len(line), sealer, _day(now))
        try:
            self._files.sync_folder(self.folder)
            self.keys.erase_up_to(index)
        except OSError as error:
            self._leave(self._open, error, sync=False)
            self._retry_at = self._clock.monotonic() + RETRY_S
            raise BookUnavailable("The book cannot be written just now.", retry_after_s=RETRY_S) from error
        self._carry_over()

    def _carry_over(self) -> None:
        carried, self._unsynced = self._unsynced, []
        if not carried:
            return
        try:
            self.write(carried)
            self.sync()
        except BookUnavailable:
            if not self._unsynced:  # the write itself failed
                self._unsynced = carried
            raise

    def _leave(self, segment: _Open, error: OSError, sync: bool) -> None:
        """Never writes to this segment again. `sync`: what it holds may still be made durable."""
        log.error("book: segment %s is left after record %d: %s", segment.path.name, self.durable.sequence, error)
        self._open = None
        self._previous = "failed"
        try:
            self._files.truncate(segment.descriptor, segment.size)
        except OSError as cut:
            log.error("book: the torn tail of %s stays: %s", segment.path.name, cut)
        if sync and self._unsynced:
            try:
                self._files.sync(segment.descriptor)
                self._mark_durable()
            except OSError as refused:
                log.error("book: %s cannot be synced: %s", segment.path.name, refused)
        self._close_quietly(segment.descriptor)
        self.written = self.durable

    def _mark_durable(self) -> None:
        self.durable = self.written
        self._unsynced = []

    def _close_quietly(self, descriptor: int) -> None:
        try:
            self._files.close(descriptor)
        except OSError as error:
            log.error("book: closing a segment: %s", error)

    def _end_of(self, index: int, path: Path) -> Tail:
        """Where an older process stopped, made durable before anything is built on it."""
        header = parse_header(next(read_lines(path), b""))
        if header is None or header.segment != index or header.book != self.keys.book:
            raise BookUnavailable(
                f"the header of {path.name} is damaged or of another book: verify the book, then move that file away"
            )
        tail = find_tail(path, header)
        if tail.torn_bytes:
            log.warning("book: %d bytes of %s were never acknowledged, or are damaged", tail.torn_bytes, path.name)
        if self._config.fsync and not path.name.endswith(PACKED_SUFFIX):
            descriptor = os.open(path, os.O_RDWR)
            try:
                self._files.sync(descriptor)
            finally:
                os.close(descriptor)
        return tail


def lock_folder(folder: Path) -> FolderLock:
    """Makes the folder and takes its lock. Raises BookUnavailable when another writer has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FolderLock(folder)
        if lock.acquire():
            return lock
    except OSError as error:
        raise BookUnavailable(f"the book's folder cannot be opened: {error.strerror}") from error
    raise BookUnavailable("another process writes this book")


def timestamp(now_s: float) -> str:
    """ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _day(now_s: float) -> str:
    return timestamp(now_s)[:10]
