"""Signed statements of how far the book goes, sent to a place that the book's folder cannot take back.

An anchor is a line of JSON in an append-only file. Each proves by itself that the book had `count` records and the
running hash `head`; a book that has fewer, or another hash there, was cut or rolled back.
"""

import logging
import threading
from pathlib import Path

import msgspec

from sekisho.audit.config import AnchorConfig
from sekisho.audit.files import Files, append_line
from sekisho.audit.keys import WriterKeys, sign, signed_by
from sekisho.audit.writer import Place, timestamp
from sekisho.core.clock import Clock

log = logging.getLogger("sekisho.audit")

ANCHOR_FOLDER = "anchors"
MAX_ANCHOR_BYTES = 4096


class Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`count` records up to and including segment `segment`, with the running hash `head` after them."""

    book: str
    segment: int
    count: int
    head: bytes
    time: str
    signature: bytes = b""

    def signed(self, signing: bytes) -> "Anchor":
        return msgspec.structs.replace(self, signature=sign(signing, self._body()))

    def genuine(self, public: bytes) -> bool:
        return signed_by(public, self._body(), self.signature)

    def _body(self) -> bytes:
        return b"sekisho anchor\n" + msgspec.json.encode(msgspec.structs.replace(self, signature=b""))


class BadAnchor(msgspec.Struct, frozen=True):
    """A line of an anchor file that is no anchor of this book. `torn`: a write that was never finished."""

    file: str
    line: int
    reason: str
    torn: bool


def anchor_folder(folder: Path, config: AnchorConfig) -> Path:
    return Path(config.folder).expanduser() if config.folder else folder / ANCHOR_FOLDER


def read_anchors(folder: Path, book: str, public: bytes) -> tuple[list[Anchor], list[BadAnchor]]:
    """All genuine anchors for this book, and the lines that are none. Raises OSError."""
    good: list[Anchor] = []
    bad: list[BadAnchor] = []
    path = folder / f"{book}.anchors.jsonl"
    if not path.exists():
        return good, bad
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ANCHOR_BYTES):
            number += 1
            try:
                anchor = msgspec.json.decode(line, type=Anchor)
            except msgspec.ValidationError:
                bad.append(BadAnchor(path.name, number, "not an anchor", torn=False))
                continue
            except (msgspec.DecodeError, UnicodeDecodeError):
                bad.append(BadAnchor(path.name, number, "not a whole line", torn=True))
                continue
            canonical = msgspec.json.encode(anchor) + b"\n" == line
            if canonical and anchor.book == book and anchor.genuine(public):
                good.append(anchor)
            else:
                bad.append(BadAnchor(path.name, number, "not signed with this book's key", torn=False))
    return good, bad


class Anchorer:
    """Writes anchors from a thread of its own: a slow place for them holds no record up, and one that fails is only
    logged and tried again. `failing` says so to whoever watches."""

    def __init__(self, folder: Path, keys: WriterKeys, config: AnchorConfig, clock: Clock, files: Files) -> None:
        self._files = files
        self._folder = anchor_folder(folder, config)
        self._path = self._folder / f"{keys.book}.anchors.jsonl"
        self._book = keys.book
        self._signing = keys.signing
        self._config = config
        self._clock = clock
        self._told: Place | None = None
        self._anchored = Place(-1, b"", -1)
        self._anchored_at = clock.monotonic()
        self._awake = threading.Condition()
        self._closing = False
        self._writing = threading.Lock()
        self.failing = False
        self._thread = threading.Thread(target=self._work, name="sekisho-anchor", daemon=True)

    def start(self, place: Place) -> None:
        """Anchors the place where the book begins this time, and goes on in the background."""
        self._told = place
        self._thread.start()

    def tell(self, place: Place) -> None:
        """The book is durable up to here. Returns at once."""
        with self._awake:
            self._told = place
            if self._due():
                self._awake.notify()

    def anchor_now(self) -> Anchor | None:
        """Anchors the last place told; None when that stands already or the place for anchors cannot be written."""
        with self._writing:
            place = self._told
            if place is None or place == self._anchored:
                return None
            anchor = Anchor(self._book, place.segment, place.sequence, place.head, timestamp(self._clock.now()))
            anchor = anchor.signed(self._signing)
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                append_line(self._files, self._path, msgspec.json.encode(anchor) + b"\n")
            except OSError as error:
                self.failing = True
                log.error("book: no anchor at record %d: %s", place.sequence, error)
                return None
            self.failing = False
            self._anchored, self._anchored_at = place, self._clock.monotonic()
            return anchor

    def close(self, place: Place) -> None:
        """Anchors the end."""
        with self._awake:
            self._closing = True
            self._told = place
            self._awake.notify()
        self._thread.join()
        self.anchor_now()

    def _due(self) -> bool:
        """Whether `records` were told since the last anchor. A place that fails is tried again after `seconds`."""
        told = self._told
        return told is not None and told.sequence - self._anchored.sequence >= self._config.records and not self.failing

    def _work(self) -> None:
        self.anchor_now()
        while True:
            with self._awake:
                if self._closing:
                    return
                if not self._due():  # it may have become due while the last anchor was written: nobody tells it again
                    self._awake.wait(self._config.seconds)
                if self._closing:
                    return
            self.anchor_now()
