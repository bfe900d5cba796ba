"""Server-sent events, both ways (WHATWG HTML, section 9.2). Data stays bytes: what follows is a JSON decoder."""

import re

import msgspec

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")

DEFAULT_LIMIT_BYTES = 16 * 1024 * 1024
KEEPALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class SseEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event. `data` is the data lines joined by a line feed; `id`, `retry_ms`: this frame's own."""

    data: bytes
    event: str | None = None
    id: str | None = None
    retry_ms: int | None = None


class FrameTooLong(ValueError):
    """A frame grew beyond the decoder's limit before it ended."""


class SseDecoder:
    """Bytes in any portions to events. Not for use from two tasks at once.

    Line ends are turned into line feeds as they come, so a frame ends at an empty line whatever the sender writes;
    a carriage return at the end of one portion swallows the line feed that opens the next.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []  # the unfinished frame; joined only when its end has come
        self._size = 0
        self._after_cr = False
        self._after_lf = False
        self._opening: bytes | None = b""  # the first bytes, until it is known whether they are a byte order mark

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Events that this portion completes. Raises `FrameTooLong`; the decoder is of no use after that."""
        if self._opening is not None:
            chunk = self._skip_mark(chunk)
        if not chunk:
            return []
        if self._after_cr or b"\r" in chunk:
            chunk = self._plain_line_ends(chunk)
            if not chunk:
                return []
        if b"\n\n" not in chunk and not (self._after_lf and chunk.startswith(b"\n")):
            self._keep(chunk)
            return []
        if self._pieces:
            self._pieces.append(chunk)
            chunk = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
        frames = chunk.split(b"\n\n")
        tail = frames.pop()
        self._after_lf = False
        if tail:
            self._keep(tail)
        events = []
        for frame in frames:
            if frame.startswith(b"data: ") and b"\n" not in frame:
                events.append(SseEvent(frame[6:]))
            elif event := _parse(frame):
                events.append(event)
        return events

    def finish(self) -> list[SseEvent]:
        """The frame that the end of the stream cut off before its empty line, where it holds data at all."""
        rest = (self._opening or b"") + b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        event = _parse(rest)
        return [event] if event else []

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit_bytes:
            raise FrameTooLong(f"an event of more than {self._limit_bytes} bytes")
        self._pieces.append(piece)
        self._after_lf = piece.endswith(b"\n")

    def _plain_line_ends(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        else:
            self._after_cr = False
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _skip_mark(self, chunk: bytes) -> bytes:
        opening = (self._opening or b"") + chunk
        if len(opening) < len(_BOM) and _BOM.startswith(opening):
            self._opening = opening
            return b""
        self._opening = None
        return opening.removeprefix(_BOM)


def _parse(frame: bytes) -> SseEvent | None:
    """One frame with plain line ends. None where it holds no data line: comments, or an event without data."""
    data: list[bytes] = []
    event = identifier = None
    retry_ms = None
    for line in frame.split(b"\n"):
        field, colon, value = line.partition(b":")
        if colon:
            value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event = value.decode(errors="replace") or None
        elif field == b"id" and b"\x00" not in value:
            identifier = value.decode(errors="replace")
        elif field == b"retry" and value.isdigit() and len(value) < 10:
            retry_ms = int(value)
    if not data:
        return None
    return SseEvent(b"\n".join(data), event, identifier, retry_ms)


def encode(data: bytes, event: str | None = None, id: str | None = None, retry_ms: int | None = None) -> bytes:
    """One frame. Line ends inside `data` become separate data lines, so they arrive as line feeds."""
    lines = []
    if event is not None:
        lines.append(b"event: " + _single(event))
    if id is not None:
        lines.append(b"id: " + _single(id))
    if retry_ms is not None:
        lines.append(b"retry: %d" % retry_ms)
    lines.extend(b"data: " + line for line in _LINE_END.split(data))
    return b"\n".join(lines) + b"\n\n"


def comment(text: str) -> bytes:
    """A frame that a decoder skips."""
    return b": " + _single(text) + b"\n\n"


def _single(value: str) -> bytes:
    if "\n" in value or "\r" in value or "\x00" in value:
        raise ValueError("a field of an event must be one line")
    return value.encode()
