"""The format of a segment: a header line and record lines, each a JSON object, each written in one way only.

    {"book":…,"segment":7,"first":1201,"head":…,"previous":"closed","started":…,"salt":…,"mac":…}
    {"n":1201,"p":"<hash of everything before>","c":"<sealed record>","s":<CRC-32 of the line so far>}

Line k+1 carries in `p` the running hash after line k, so every byte of the book hangs on every later line. `n` and `p`
are also what the record is sealed to (AES-256-GCM, additional data): a line that opens is a line that the writer wrote,
for this place. `s` serves recovery, which has no keys: it tells a torn line from a whole one, and proves nothing.
"""

import base64
import gzip
import hmac
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from sekisho.audit.keys import SegmentKeys, canonical_base64, chain

ORIGIN: Final = bytes(32)  # the running hash before the first segment
MAX_RECORD_BYTES = 32 << 20
MAX_LINE_BYTES = MAX_RECORD_BYTES * 4 // 3 + 1024
SUFFIX = ".jsonl"
PACKED_SUFFIX = ".jsonl.gz"
_LOOKS = 3
_NAME = re.compile(r"(\d{8,12})\.jsonl(\.gz)?")
_LINE = re.compile(
    rb'(\{"n":([1-9][0-9]{0,17}),"p":"([A-Za-z0-9+/]{43}=)","c":"([A-Za-z0-9+/]+={0,2})"),"s":(0|[1-9][0-9]{0,9})\}\n'
)

Previous = Literal["none", "closed", "recovered", "failed"]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`first` is the sequence number of the first record, `head` the running hash at the place where the book goes on.

    `previous` says how the segment before ended: in order, found at a start after a crash, or given up after a fault
    of the disk, in which case lines beyond `first - 1` in it were never acknowledged. `mac` covers all the others.
    """

    book: str
    segment: int
    first: int
    head: bytes
    previous: Previous
    started: str
    salt: bytes
    mac: bytes = b""

    def authenticated(self, keys: SegmentKeys) -> "Header":
        return msgspec.structs.replace(self, mac=self._mac(keys))

    def genuine(self, keys: SegmentKeys) -> bool:
        return hmac.compare_digest(self.mac, self._mac(keys))

    def line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"

    def _mac(self, keys: SegmentKeys) -> bytes:
        return hmac.digest(keys.header, msgspec.structs.replace(self, mac=b"").line(), "sha256")


class Line(msgspec.Struct, frozen=True):
    """A record line taken apart; `before` is the running hash that it claims to continue."""

    sequence: int
    before: bytes
    sealed: bytes


def parse_header(line: bytes) -> Header | None:
    """None for anything but the one way to write a header."""
    try:
        header = msgspec.json.decode(line, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    sound = header.line() == line and header.first >= 1 and len(header.head) == 32 and len(header.salt) == 32
    return header if sound else None


def parse_line(line: bytes) -> Line | None:
    """None for anything but the one way to write a record line."""
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(match[1]) != int(match[5]):
        return None
    try:
        return Line(int(match[2]), canonical_base64(match[3]), canonical_base64(match[4]))
    except ValueError:
        return None


class Sealer:
    """Makes and opens the record lines of one segment. The nonce is the record's place in the segment: it cannot
    repeat, because a key is used by one writer for one segment, and the writer leaves a segment after any fault."""

    def __init__(self, keys: SegmentKeys, book: str, first: int) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms that most starts do not need

        self._cipher = AESGCM(keys.record)
        self._book = book.encode()
        self._first = first

    def line(self, sequence: int, before: bytes, payload: bytes) -> bytes:
        sealed = self._cipher.encrypt(self._nonce(sequence), payload, self._place(sequence, before))
        body = b'{"n":%d,"p":"%b","c":"%b"' % (sequence, base64.b64encode(before), base64.b64encode(sealed))
        return b'%b,"s":%d}\n' % (body, zlib.crc32(body))

    def open(self, line: Line) -> bytes | None:
        """The record's bytes; None unless the writer sealed exactly this line in this segment."""
        from cryptography.exceptions import InvalidTag

        if line.sequence < self._first or len(line.sealed) < 16:
            return None
        try:
            return self._cipher.decrypt(
                self._nonce(line.sequence), line.sealed, self._place(line.sequence, line.before)
            )
        except InvalidTag:
            return None

    def _nonce(self, sequence: int) -> bytes:
        return (sequence - self._first).to_bytes(12, "big")

    def _place(self, sequence: int, before: bytes) -> bytes:
        return self._book + sequence.to_bytes(8, "big") + before


def segment_name(index: int) -> str:
    return f"{index:08d}{SUFFIX}"


def segments(folder: Path) -> dict[int, Path]:
    """The segments of a folder in order. Where both forms lie there, packing was interrupted: the plain one counts. A
    folder that is listed while a segment is packed may show neither form of it: where one seems to be missing, it is
    listed again."""
    for _ in range(_LOOKS - 1):
        found = _listed(folder)
        if not found or len(found) == max(found) - min(found) + 1:
            return found
    return _listed(folder)


def _listed(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):  # the plain name sorts before the packed one
        match = _NAME.fullmatch(path.name)
        if match is not None and path.name.startswith(f"{int(match[1]):08d}.") and path.is_file():
            found.setdefault(int(match[1]), path)
    return dict(sorted(found.items()))


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a plain or packed segment, newlines included; a last one without is torn. A line longer than any
    real one comes in pieces. Raises OSError; a damaged packed file ends where it is damaged, with OSError."""
    if not path.name.endswith(PACKED_SUFFIX):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            path = path.with_name(path.name + ".gz")  # packed since the folder was listed, or in this very moment
        else:
            with file:
                while line := file.readline(MAX_LINE_BYTES):
                    yield line
            return
    try:
        with gzip.open(path, "rb") as packed:
            while line := packed.readline(MAX_LINE_BYTES):
                yield line
    except (EOFError, zlib.error) as error:
        raise gzip.BadGzipFile(str(error)) from None


class Tail(msgspec.Struct, frozen=True):
    """Where a segment ends for somebody without keys. `torn_bytes` lie behind its last line that links."""

    sequence: int
    head: bytes
    torn_bytes: int


def find_tail(path: Path, header: Header) -> Tail:
    """Follows the public chain as far as it goes. Raises OSError."""
    lines = read_lines(path)
    head = chain(header.head, next(lines))
    sequence, torn_bytes = header.first - 1, 0
    for raw in lines:
        line = parse_line(raw) if not torn_bytes else None
        if line is None or line.sequence != sequence + 1 or line.before != head:
            torn_bytes += len(raw)
            continue
        sequence, head = line.sequence, chain(head, raw)
    return Tail(sequence, head, torn_bytes)
