"""Reading the book back: needs the recovery key, changes nothing, and may run beside the writer."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sekisho.audit.keys import ReaderKeys, SegmentKeys
from sekisho.audit.records import AdminRecord, Entry, EscalationRecord, OutcomeRecord, Record, VerdictRecord, decode
from sekisho.audit.segment import Header, Line, Sealer, parse_header, parse_line, read_lines, segments
from sekisho.core.errors import BookUnavailable

MAX_LINES = 20_000_000  # a small packed file may hold very many empty ones


class Opened(msgspec.Struct, frozen=True):
    """A line of a segment with what is known of it. `payload` is None where the line is not genuine."""

    number: int
    raw: bytes
    line: Line | None
    payload: bytes | None


class SegmentReader:
    """One segment, opened with its keys. Raises OSError, and BookUnavailable for a key that cannot be derived."""

    def __init__(self, path: Path, index: int, keys: ReaderKeys) -> None:
        self._path = path
        self.index = index
        self.header = read_header(path)
        self._keys: SegmentKeys | None = None
        self.genuine = False
        if self.header is not None and self.header.segment == index and self.header.book == keys.book:
            self._keys = keys.segment(index, self.header.salt)
            self.genuine = self.header.genuine(self._keys)

    def lines(self) -> Iterator[Opened]:
        """The record lines, numbered from 2. Only for a segment whose header is genuine."""
        if self._keys is None or self.header is None or not self.genuine:
            return
        sealer = Sealer(self._keys, self.header.book, self.header.first)
        for number, raw in enumerate(read_lines(self._path), 1):
            if number > MAX_LINES:
                raise OSError(f"{self._path.name} has more lines than any segment")
            if number > 1:
                line = parse_line(raw)
                yield Opened(number, raw, line, None if line is None else sealer.open(line))


class Query(msgspec.Struct, frozen=True):
    """Every field that is set must match. `text` is looked for in inputs, outputs and rationales, in any case;
    `since` and `until` are ISO 8601 times in UTC and include and exclude their moment."""

    request_id: str | None = None
    key_id: str | None = None
    user_id: str | None = None
    decision: str | None = None
    category: str | None = None
    kind: str | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None

    def matches(self, record: Record) -> bool:
        wanted = {
            "request_id": self.request_id,
            "key_id": self.key_id,
            "user_id": self.user_id,
            "category": self.category,
            "decision": None if self.decision is None else self.decision.upper(),
        }
        if any(value is not None and getattr(record, name, None) != value for name, value in wanted.items()):
            return False
        if self.kind is not None and kind_of(record) != self.kind:
            return False
        if self.since is not None and record.timestamp < self.since:
            return False
        if self.until is not None and record.timestamp >= self.until:
            return False
        return self.text is None or any(self.text.casefold() in each.casefold() for each in _texts(record))


class Reader:
    """The records that the book counts, in order. Damaged lines are passed over: `verify` is who names them."""

    def __init__(self, folder: Path, keys: ReaderKeys) -> None:
        self._folder = folder
        self._keys = keys

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Every record with a sequence number above `after`. Raises BookUnavailable."""
        try:
            found = list(segments(self._folder).items())
            headers = [read_header(path) for _, path in found]
            for place, (index, path) in enumerate(found):
                following = headers[place + 1] if place + 1 < len(found) else None
                last = None if following is None else following.first - 1
                if last is None or last > after:
                    yield from self._of_segment(index, path, after, last)
        except OSError as error:
            raise _unavailable(error) from error

    def tail(self, count: int, query: Query | None = None) -> list[Entry]:
        """The last `count` records that match, oldest first."""
        try:
            return self._tail(count, query or Query())
        except OSError as error:
            raise _unavailable(error) from error

    def _tail(self, count: int, query: Query) -> list[Entry]:
        found: deque[Entry] = deque(maxlen=count)
        ordered = list(segments(self._folder).items())
        following: Header | None = None
        for index, path in reversed(ordered):
            last = None if following is None else following.first - 1
            part = [each for each in self._of_segment(index, path, 0, last) if query.matches(each.record)]
            found.extendleft(reversed(part[-(count - len(found)) :] if count > len(found) else []))
            if len(found) >= count:
                break
            following = read_header(path)
        return list(found)

    def search(self, query: Query) -> Iterator[Entry]:
        """Every record that matches, oldest first. Raises BookUnavailable."""
        return (entry for entry in self.entries() if query.matches(entry.record))

    def show(self, sequence: int) -> Entry | None:
        """One record by its number."""
        return next((entry for entry in self.entries(sequence - 1) if entry.sequence == sequence), None)

    def _of_segment(self, index: int, path: Path, after: int, last: int | None) -> Iterator[Entry]:
        segment = SegmentReader(path, index, self._keys)
        seen = after
        for opened in segment.lines():
            if opened.payload is None or opened.line is None or opened.line.sequence <= seen:
                continue
            if last is not None and opened.line.sequence > last:
                return
            seen = opened.line.sequence
            yield Entry(seen, index, opened.number, decode(opened.payload))


def read_header(path: Path) -> Header | None:
    """None where the first line is no header. Raises OSError."""
    return parse_header(next(read_lines(path), b""))


def _unavailable(error: OSError) -> BookUnavailable:
    if isinstance(error, FileNotFoundError):
        return BookUnavailable("the book's folder or a segment of it is gone")
    return BookUnavailable(f"the book cannot be read: {error.strerror or error}")


def kind_of(record: Record) -> str:
    return str(type(record).__struct_config__.tag)


def _texts(record: Record) -> tuple[str, ...]:
    match record:
        case VerdictRecord():
            return record.input, record.rationale
        case OutcomeRecord():
            return (record.output,)
        case EscalationRecord():
            return record.text, record.event
        case AdminRecord():
            return record.action, *(str(value) for value in record.detail.values())
