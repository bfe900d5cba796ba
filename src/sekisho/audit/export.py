"""Taking records out of the book: signed JSONL, plain or encrypted to an age recipient.

    {"export":1,"book":…,"time":…}
    {"sequence":17,"segment":2,"line":5,"record":{"kind":"verdict",…}}
    {"records":…,"sha256":"<of all bytes before this line>","signature":…}

An encrypted export is the same bytes inside an age file. The recipient's identity opens it, not the book's keys.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sekisho.audit.keys import SIGNING_FILE, load_key, sign, signed_by
from sekisho.audit.records import Entry
from sekisho.core.errors import BookUnavailable


class ExportHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    export: int
    book: str
    time: str


class ExportEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    records: int
    sha256: str
    signature: bytes


def export_lines(entries: Iterable[Entry], book: str, time: str, signing: bytes) -> Iterator[bytes]:
    """The lines of a signed export."""
    digest, count = hashlib.sha256(), 0
    head = msgspec.json.encode(ExportHead(1, book, time)) + b"\n"
    digest.update(head)
    yield head
    for entry in entries:
        line = msgspec.json.encode(entry) + b"\n"
        digest.update(line)
        count += 1
        yield line
    signature = sign(signing, _signed_body(count, digest.hexdigest()))
    yield msgspec.json.encode(ExportEnd(count, digest.hexdigest(), signature)) + b"\n"


def write_export(lines: Iterable[bytes], out: BinaryIO, recipients: tuple[str, ...] = ()) -> None:
    """Writes to `out`; with recipients (`age1…`) as an age file, and then no plain text touches the disk.

    Raises BookUnavailable when `pyrage` is not installed or a recipient is none.
    """
    if not recipients:
        for line in lines:
            out.write(line)
        return
    try:
        import pyrage
    except ImportError as error:
        raise BookUnavailable("an encrypted export needs pyrage: install sekisho[audit]") from error
    try:
        keys = [pyrage.x25519.Recipient.from_str(text) for text in recipients]
    except pyrage.RecipientError as error:
        raise BookUnavailable(f"not an age recipient (age1…): {error}") from error
    pyrage.encrypt_io(_Feed(lines), out, keys)


def check_export(lines: Iterable[bytes], public: bytes) -> int | None:
    """How many records a plain export holds; None unless it is whole and signed with the book's key."""
    digest, count = hashlib.sha256(), -1
    last: bytes | None = None
    for line in lines:
        if last is not None:
            digest.update(last)
            count += 1
        last = line
    try:
        end = msgspec.json.decode(last or b"", type=ExportEnd)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    whole = (end.records, end.sha256) == (count, digest.hexdigest())
    return count if whole and signed_by(public, _signed_body(count, end.sha256), end.signature) else None


def signing_key(secrets: Path) -> bytes:
    """The key that exports, anchors and deletions are signed with. Raises KeyUnavailable."""
    return load_key(secrets / SIGNING_FILE)


def _signed_body(count: int, sha256: str) -> bytes:
    return b"sekisho export\n%d %b" % (count, sha256.encode())


class _Feed(io.RawIOBase):
    """Lines as a file to read from."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            line = next(self._lines, None)
            if line is None:
                return 0
            self._rest = line
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)
