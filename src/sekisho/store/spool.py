"""The durable usage spool: a record survives the death of the process as soon as `append` returns.

Why it is a file and not the database: docs/decisions/0002-usage-spool.md.

    append ──> active segment ──drain──> database          one line a record: CRC-32 of the JSON, the JSON
    recover ─> segments of the dead ──┘

Invariants:
- A segment belongs to the process that holds its lock; the kernel frees the lock when that process dies.
- Bytes [0, size) of a segment are whole lines. What lies beyond was never acknowledged and is never read.
- Bytes [0, imported) are committed in the database, or quarantined. A line leaves the disk only below `imported`.
- The database takes each request_id once, so a line may be imported any number of times.
"""

import asyncio
import logging
import os
import re
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from sekisho.core.errors import StoreUnavailable
from sekisho.core.file_lock import try_lock
from sekisho.store.usage import UsageRecord, storable

log = logging.getLogger("sekisho.store.spool")

SEGMENT_BYTES = 8 << 20
BATCH_BYTES = 48 << 10  # about 200 records: some milliseconds of one core
_SUFFIX = ".usage"
_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
_LINE_START = re.compile(rb'[0-9a-f]{8} \{"')
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRecord)
_sync = getattr(os, "fdatasync", os.fsync)


class UsageSink(Protocol):
    """Where records go: `Store`."""

    async def append_usage(self, records: Sequence[UsageRecord], durable: bool = False) -> int: ...


class _Segment:
    """An open, locked file. `imported` <= `size` <= the file's length; `torn` while that is not known to be equal."""

    __slots__ = ("descriptor", "imported", "path", "size", "torn")

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = size
        self.imported = 0
        self.torn = False

    def read(self, length: int, offset: int) -> bytes:
        os.lseek(self.descriptor, offset, os.SEEK_SET)  # appending does not look at the position
        return os.read(self.descriptor, length)


class UsageSpool:
    """Takes usage records at once and hands them to the database later. Used from one thread.

    After kill -9 nothing that `append` acknowledged is lost. A power failure may take the last moments, unless
    `fsync` is set: then `append` waits for the disk (milliseconds, in which the event loop stands still).
    """

    def __init__(self, folder: Path, fsync: bool = False, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._fsync = fsync
        self._segment_bytes = segment_bytes
        self._sealed: list[_Segment] = []
        self._draining = asyncio.Lock()
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._active = self._new_segment()
        except OSError as error:
            raise StoreUnavailable(f"the usage spool cannot be opened: {error.strerror}") from error

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for the database."""
        return sum(segment.size - segment.imported for segment in [*self._sealed, self._active])

    def append(self, record: UsageRecord) -> None:
        """Writes one line. Raises StoreUnavailable when the disk does not take it; then nothing was recorded."""
        self._check_open()
        line = encode_line(record)
        if self._active.size >= self._segment_bytes or self._active.torn:
            self._rotate()
        reason = self._write(self._active, line)
        if reason is not None:
            unavailable = StoreUnavailable("Usage cannot be recorded just now.", retry_after_s=2.0)
            log.error("%s: usage spool %s: %s", unavailable.id, self._active.path.name, reason)
            raise unavailable

    async def drain(self, store: UsageSink) -> int:
        """Moves what is there into the database; how many records were new to it.

        Raises StoreUnavailable when the database or the disk fails; what was not moved stays. May be cancelled or
        killed anywhere and called again.
        """
        async with self._draining:
            self._check_open()
            new = 0
            for segment in [*self._sealed, self._active]:
                new += await self._import(segment, store)
            self._tidy()
            return new

    def recover(self) -> int:
        """Adopts the segments of dead processes, for the next drain; how many. Cheap; call it at start, or often."""
        adopted = 0
        try:
            for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                segment = _adopt(path)
                if segment is None:
                    continue
                self._sealed.append(segment)
                adopted += segment.size > 0
        except OSError as error:
            raise StoreUnavailable(f"the usage spool cannot be read: {error.strerror}") from error
        return adopted

    def close(self) -> None:
        """Lets go of the files. What was not drained stays for the next process. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._tidy()
        for segment in [*self._sealed, self._active]:
            if segment is self._active and segment.size == 0:
                self._discard(segment)
            else:
                os.close(segment.descriptor)
        self._sealed.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the usage spool is closed")

    def _write(self, segment: _Segment, line: bytes) -> str | None:
        """Appends a whole line, or nothing and says why."""
        if segment.torn and not self._cut(segment):
            return "its torn tail cannot be cut off"
        try:
            written = os.write(segment.descriptor, line)
            if written == len(line):
                if self._fsync:
                    _sync(segment.descriptor)
                segment.size += written
                return None
            reason = "the disk took part of a line"
        except OSError as error:
            reason = error.strerror or str(error)
        self._cut(segment)
        return reason

    async def _import(self, segment: _Segment, store: UsageSink) -> int:
        """Up to where the segment ends now: an active one may grow as fast as we read."""
        new, end = 0, segment.size
        while segment.imported < end:
            try:
                records, imported = self._read_batch(segment)
            except OSError as error:
                raise StoreUnavailable(f"the usage spool cannot be read: {error.strerror}") from error
            if records:
                new += await store.append_usage(records, durable=self._fsync)
                self._check_open()  # closed meanwhile: the descriptor may be another file by now
            segment.imported = imported
        return new

    def _read_batch(self, segment: _Segment) -> tuple[list[UsageRecord], int]:
        """The next records and the offset behind them."""
        wanted = BATCH_BYTES
        while True:
            asked = min(wanted, segment.size - segment.imported)
            block = segment.read(asked, segment.imported)
            whole = block.rfind(b"\n") + 1
            if whole or len(block) < asked or asked < wanted:
                break
            wanted *= 2
        if not whole:  # somebody changed the file: what is left is no line, or is gone
            whole = segment.size - segment.imported
            log.error("usage spool %s: %d bytes at %d are no line", segment.path.name, whole, segment.imported)
        records, offset = [], segment.imported
        for line in block[:whole].split(b"\n"):
            if line:
                good, bad = decode_line(line)
                records += good
                for place, damaged in bad:
                    self._quarantine(segment, offset + place, damaged)
            offset += len(line) + 1
        return records, segment.imported + whole

    def _quarantine(self, segment: _Segment, offset: int, damaged: bytes) -> None:
        """Named by its place, so that the same damage found again is the same file."""
        path = self._folder / f"{segment.path.stem}-{offset}.damaged"
        path.write_bytes(damaged)
        log.error("usage spool %s: damaged record at byte %d kept in %s", segment.path.name, offset, path.name)

    def _tidy(self) -> None:
        """Gives space back. No await here: nothing is appended between the comparison and the cut."""
        for segment in [segment for segment in self._sealed if segment.imported >= segment.size]:
            self._sealed.remove(segment)
            self._discard(segment)
        active = self._active
        if 0 < active.size == active.imported:
            try:
                os.ftruncate(active.descriptor, 0)
            except OSError as error:
                log.warning("usage spool %s cannot be shortened: %s", active.path.name, error)
                return
            active.size = active.imported = 0

    def _discard(self, segment: _Segment) -> None:
        """Removes, then unlocks: whoever gets the lock sees that the file has no name any more."""
        try:
            if os.name == "nt":  # Windows removes no open file
                os.close(segment.descriptor)
                segment.path.unlink(missing_ok=True)
            else:
                segment.path.unlink(missing_ok=True)
                os.close(segment.descriptor)
        except OSError as error:
            # Harmless: whoever finds the file imports it again, and the database knows every record in it.
            log.warning("usage spool %s cannot be removed: %s", segment.path.name, error)

    def _cut(self, segment: _Segment) -> bool:
        """Takes a torn tail off, so that the next line does not continue it."""
        try:
            os.ftruncate(segment.descriptor, segment.size)
            segment.torn = False
        except OSError as error:
            segment.torn = True
            log.error("usage spool %s: torn tail stays: %s", segment.path.name, error)
        return not segment.torn

    def _rotate(self) -> None:
        try:
            fresh = self._new_segment()
        except OSError as error:
            log.warning("usage spool: no new segment, %s goes on: %s", self._active.path.name, error)
            return
        self._sealed.append(self._active)
        self._active = fresh

    def _new_segment(self) -> _Segment:
        while True:
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
            descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            # Between open and lock another process may have taken the empty file for a dead one's and removed it.
            if try_lock(descriptor) and os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)
        if self._fsync and os.name != "nt":
            _sync_folder(self._folder)
        return _Segment(path, descriptor, 0)


def encode_line(record: UsageRecord) -> bytes:
    """`crc32 {"request_id": …}\\n`."""
    try:
        body = _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):  # lone surrogates, counts beyond 64 bits
        body = _encoder.encode(storable(record))
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> tuple[list[UsageRecord], list[tuple[int, bytes]]]:
    """The records in a line (without its newline), and the damaged parts with their offsets.

    A sound line is one record. Where a newline itself was damaged two lines have grown together: each start of a
    line inside is tried, so that damage costs only the records it touched.
    """
    record = _decode(line)
    if record is not None:
        return [record], []
    starts = sorted({0, *(match.start() for match in _LINE_START.finditer(line))})
    good: list[UsageRecord] = []
    bad: list[tuple[int, bytes]] = []
    sound_until = 0
    for start in starts:
        if start < sound_until:
            continue
        for end in [later for later in starts if later > start] + [len(line) + 1]:
            # A start may be text inside a record, so the further ends are tried too.
            record = _decode(line[start : end - 1])
            if record is not None:
                good.append(record)
                if start > sound_until:
                    bad.append((sound_until, line[sound_until : start - 1]))
                sound_until = end
                break
    if sound_until < len(line):
        bad.append((sound_until, line[sound_until:]))
    return good, bad


def _decode(line: bytes) -> UsageRecord | None:
    body = line[9:]
    if line[:9] != b"%08x " % zlib.crc32(body):
        return None
    try:
        return _decoder.decode(body)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
    ):  # sound bytes that are no record: from a version that we do not know
        return None


def _adopt(path: Path) -> _Segment | None:
    """Opens and locks a dead process' segment, up to its last whole line; None where its process lives."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    try:
        if not try_lock(descriptor) or not os.fstat(descriptor).st_nlink:
            os.close(descriptor)
            return None
        length = os.fstat(descriptor).st_size
        segment = _Segment(path, descriptor, length)
        segment.size = _end_of_last_line(segment)
        if segment.size < length:
            log.warning("usage spool %s: %d bytes of a torn last line ignored", path.name, length - segment.size)
        return segment
    except BaseException:
        os.close(descriptor)
        raise


def _end_of_last_line(segment: _Segment) -> int:
    end = segment.size
    while end > 0:
        start = max(0, end - BATCH_BYTES)
        newline = segment.read(end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
