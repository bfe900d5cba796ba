"""The book, as the rest of the program sees it: append a record, and know when it is safe.

    event loop ── append ──> queue ──> writer thread: one write, one sync for the whole group ──> futures resolved

A group is what arrived while the last sync ran, so it grows with the load and nobody waits for a timer.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Literal

import msgspec

from sekisho.audit import retention
from sekisho.audit.anchor import Anchor, Anchorer
from sekisho.audit.config import AuditConfig
from sekisho.audit.files import Files, FolderLock
from sekisho.audit.keys import TextHasher, WriterKeys, public_key
from sekisho.audit.records import AdminRecord, EscalationRecord, OutcomeRecord, Receipt, Record, VerdictRecord, encode
from sekisho.audit.retention import RETENTION_ACTION, Deletion
from sekisho.audit.segment import MAX_RECORD_BYTES, segments
from sekisho.audit.upkeep import Upkeep
from sekisho.audit.vault import Vault
from sekisho.audit.writer import Place, SegmentWriter, lock_folder, timestamp
from sekisho.core.clock import Clock, SystemClock
from sekisho.core.errors import BookUnavailable

log = logging.getLogger("sekisho.audit")

LAZY_SYNC_S = 0.2  # how long records that nobody waits for may stay with the kernel alone
GROUP_BYTES = 4 << 20
CLOCK_DRIFT_S = 3600.0  # how far the wall clock may leave the monotonic one before it is doubted

Wish = Literal["durable", "handed over"]


class _Waiting:
    """A record on its way, and the future of whoever waits for it."""

    __slots__ = ("future", "loop", "payload", "wish")

    def __init__(self, payload: bytes, wish: Wish, loop: asyncio.AbstractEventLoop) -> None:
        self.payload = payload
        self.wish = wish
        self.loop = loop
        self.future: asyncio.Future[Receipt] = loop.create_future()


class Book:
    """Made by `Book.open`, ended by `close`. `append` may be called from any event loop."""

    def __init__(
        self, folder: Path, secrets: Path, config: AuditConfig, clock: Clock, files: Files, lock: FolderLock
    ) -> None:
        keys = WriterKeys.load_or_create(secrets, files, may_create=not segments(folder))
        self.vault = Vault.open(folder, secrets, files) if config.vault else None
        self._anchorer = Anchorer(folder, keys, config.anchor, clock, files)
        self._writer = SegmentWriter(folder, keys, config, clock, files)
        retain = self._retain_by_clock if config.retention_days > 0 else None
        self._upkeep = Upkeep(folder, files, config.compress, retain)
        self._lock = lock
        self._config = config
        self._clock = clock
        self._files = files
        self._hasher = TextHasher(keys.hashing)
        self._clock_gap_s = clock.now() - clock.monotonic()
        self._queue: deque[_Waiting] = deque()
        self._awake = threading.Condition()
        self._closing = False
        self._dirty_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="sekisho-book", daemon=True)
        self._finish_deletions()
        self._writer.recover()

    @staticmethod
    def open(
        folder: Path,
        secrets: Path,
        config: AuditConfig | None = None,
        clock: Clock | None = None,
        files: Files | None = None,
    ) -> "Book":
        """Locks the folder, finds the end of the book and begins a fresh segment. Blocks; call it at start.

        Raises BookUnavailable when another process has the book, when its keys are missing, or when the disk fails.
        """
        config, clock, files = config or AuditConfig(), clock or SystemClock(), files or Files()
        lock = lock_folder(folder)
        try:
            book = Book(folder, secrets, config, clock, files, lock)
        except OSError as error:
            lock.release()
            raise BookUnavailable(f"the book cannot be opened: {error.strerror or error}") from error
        except BaseException:
            lock.release()
            raise
        book._anchorer.start(book._writer.durable)
        book._thread.start()
        book._upkeep.start()
        return book

    @property
    def folder(self) -> Path:
        return self._writer.folder

    @property
    def place(self) -> Place:
        """The last durable record."""
        return self._writer.durable

    async def append(self, record: Record) -> Receipt:
        """Returns when the record is durable. Raises BookUnavailable; then the record counts as not written, though a
        reader may find it: a disk that fails does not always say what it kept. A cancelled wait cancels no record."""
        return await self._enqueue(record, "durable")

    async def hand_over(self, record: Record) -> Receipt:
        """Returns when the kernel has the record: kill -9 cannot lose it, a power failure within 0.2 s can."""
        return await self._enqueue(record, "handed over")

    def anchor_now(self) -> Anchor | None:
        """Anchors the last durable record; None when an anchor stands there or could not be written. Blocks."""
        self._anchorer.tell(self._writer.durable)
        return self._anchorer.anchor_now()

    @property
    def anchors_failing(self) -> bool:
        """True while the place for anchors cannot be written."""
        return self._anchorer.failing

    async def retain(self, days: float | None = None, user_id: str = "") -> Deletion | None:
        """Deletes whole segments that ended more than `days` ago (the configured number by default), in the open, and
        what the vault took in before then. None when there were none. Raises BookUnavailable."""
        days = self._config.retention_days if days is None else days
        before_s = self._clock.now() - days * 86400
        try:
            deletion = await asyncio.to_thread(self._plan, before_s)
            if deletion is not None:
                announcement = AdminRecord(action=RETENTION_ACTION, user_id=user_id, detail=deletion.detail())
                announced = (await self.append(announcement)).sequence
                signed = msgspec.structs.replace(deletion, announced=announced).signed(self._writer.keys.signing)
                deletion = signed
                await asyncio.to_thread(self._delete, signed)
            if self.vault is not None:
                await asyncio.to_thread(self.vault.forget_before, timestamp(before_s))
        except OSError as error:
            raise BookUnavailable(f"old segments cannot be deleted: {error.strerror or error}") from error
        return deletion

    async def _retain_by_clock(self) -> None:
        """Only while the wall clock can be believed: a jump must not delete the book, so neither does a plan that
        would leave nothing but the open segment."""
        drift_s = self._clock.now() - self._clock.monotonic() - self._clock_gap_s
        before_s = self._clock.now() - self._config.retention_days * 86400
        plan = await asyncio.to_thread(self._plan, before_s)
        if plan is None:
            return
        last = max(segments(self.folder))
        if abs(drift_s) > CLOCK_DRIFT_S or plan.last_segment >= last - 1:
            log.warning("book: segments 0 to %d look old, but the clock may be wrong: not deleted", plan.last_segment)
            return
        await self.retain()

    def _plan(self, before_s: float) -> Deletion | None:
        with self._upkeep.files_lock:
            return retention.plan(self.folder, self._writer.keys.book, before_s, timestamp(self._clock.now()))

    def _delete(self, deletion: Deletion) -> None:
        with self._upkeep.files_lock:
            retention.record(self._files, self.folder, deletion)
            retention.remove(self._files, self.folder, deletion)

    def _finish_deletions(self) -> None:
        """Removes what a crash left of segments that the book has already said to be gone."""
        public = public_key(self._writer.keys.signing) if (self.folder / retention.DELETIONS_FILE).exists() else b""
        for deletion in retention.read_deletions(self.folder, self._writer.keys.book, public)[0]:
            retention.remove(self._files, self.folder, deletion)

    def text_hash(self, text: str) -> str:
        """The keyed hash under which a text can be recognised but not guessed, as for thinking."""
        return self._hasher.hash(text)

    def close(self) -> None:
        """Writes what is queued, anchors it, and lets go of the folder. May be called twice. Blocks."""
        self._upkeep.stop()
        with self._awake:
            already, self._closing = self._closing, True
            self._awake.notify()
        if already:
            return
        self._thread.join()
        try:
            self._writer.close()
        except BookUnavailable as error:
            log.error("%s: closing the book: %s", error.id, error.message)
        self._anchorer.close(self._writer.durable)
        self._lock.release()

    def _enqueue(self, record: Record, wish: Wish) -> asyncio.Future[Receipt]:
        payload = encode(self._kept(record))
        if len(payload) > MAX_RECORD_BYTES:
            raise BookUnavailable("the record is larger than the book takes")
        waiting = _Waiting(payload, wish, asyncio.get_running_loop())
        with self._awake:
            if self._closing:
                raise BookUnavailable("the book is closed")
            self._queue.append(waiting)
            if len(self._queue) == 1:
                self._awake.notify()
        return waiting.future

    def _kept(self, record: Record) -> Record:
        """With its time, and without text where only hashes are kept."""
        if not record.timestamp:
            record = msgspec.structs.replace(record, timestamp=timestamp(self._clock.now()))
        if self._config.text == "hash":
            if isinstance(record, VerdictRecord):
                record = msgspec.structs.replace(record, input="", input_hash=self.text_hash(record.input))
            elif isinstance(record, OutcomeRecord):
                record = msgspec.structs.replace(record, output="", output_hash=self.text_hash(record.output))
            elif isinstance(record, EscalationRecord):
                record = msgspec.structs.replace(record, text="", text_hash=self.text_hash(record.text))
        return record

    def _work(self) -> None:
        while True:
            group = self._next_group()
            if group is None:
                return
            try:
                self._commit(group)
            except BookUnavailable as error:
                log.error("%s: book: %s", error.id, error.message)
                _fail(group, error)
            except Exception:
                log.exception("book: the writer failed")
                _fail(group, BookUnavailable("The book failed."))

    def _next_group(self) -> list[_Waiting] | None:
        """Waits for records; empty when only a lazy sync is due; None when the book is closed and the queue empty."""
        with self._awake:
            while not self._queue and not self._closing:
                if self._dirty_since is None:
                    self._awake.wait()
                    continue
                left_s = self._dirty_since + LAZY_SYNC_S - time.monotonic()
                if left_s <= 0:
                    return []
                self._awake.wait(left_s)
        if self._config.group_wait_ms and not self._closing:
            time.sleep(self._config.group_wait_ms / 1000)
        group: list[_Waiting] = []
        size = 0
        with self._awake:
            while self._queue and len(group) < self._config.group_records and size < GROUP_BYTES:
                waiting = self._queue.popleft()
                size += len(waiting.payload)
                group.append(waiting)
            return group if group or not self._closing else None

    def _commit(self, group: list[_Waiting]) -> None:
        """One write, one sync. A record that nobody waits for until it is durable shares the next sync."""
        writer = self._writer
        before = writer.written.segment
        receipts: list[Receipt] = []
        if group:
            numbers = writer.write([waiting.payload for waiting in group])
            segment = writer.written.segment
            receipts = [Receipt(number, segment) for number in numbers]
            early = [(w, r) for w, r in zip(group, receipts, strict=True) if w.wish == "handed over"]
            _resolve(early)
            if self._dirty_since is None:
                self._dirty_since = time.monotonic()
        due = self._dirty_since is not None and time.monotonic() - self._dirty_since >= LAZY_SYNC_S
        if due or any(waiting.wish == "durable" for waiting in group):
            self._dirty_since = time.monotonic()  # a sync that fails leaves work behind, for the next turn
            writer.sync()
            self._dirty_since = None
            _resolve([(w, r) for w, r in zip(group, receipts, strict=True) if w.wish == "durable"])
            self._anchorer.tell(writer.durable)
        if writer.written.segment != before:
            self._upkeep.wake()


def _resolve(pairs: list[tuple[_Waiting, Receipt]]) -> None:
    """One call into each loop for all its futures."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Receipt], Receipt]]] = {}
    for waiting, receipt in pairs:
        by_loop.setdefault(waiting.loop, []).append((waiting.future, receipt))
    for loop, done in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_results, done)
        except RuntimeError:
            log.warning("book: %d records were written for a loop that has ended", len(done))


def _set_results(done: list[tuple[asyncio.Future[Receipt], Receipt]]) -> None:
    for future, receipt in done:
        if not future.done():
            future.set_result(receipt)


def _fail(group: list[_Waiting], error: BookUnavailable) -> None:
    """Each waiter gets an error of its own: its id belongs to one answer."""
    for waiting in group:
        own = BookUnavailable(error.message, retry_after_s=error.retry_after_s)
        try:
            waiting.loop.call_soon_threadsafe(_set_error, waiting.future, own)
        except RuntimeError:
            log.warning("book: a record failed for a loop that has ended")


def _set_error(future: asyncio.Future[Receipt], error: BookUnavailable) -> None:
    if not future.done():
        future.set_exception(error)
