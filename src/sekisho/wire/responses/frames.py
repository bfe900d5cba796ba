"""Server-sent events, numbered. Every event carries the next `sequence_number`, keep-alives included."""

from typing import Any

import msgspec

from sekisho.wire import jsonio

_encode = msgspec.json.encode


class FrameWriter:
    """Collects frames until they are taken. Numbers start at 0 and have no gaps."""

    __slots__ = ("_frames", "_number")

    def __init__(self) -> None:
        self._number = 0
        self._frames: list[bytes] = []

    def take(self) -> bytes:
        """The frames since the last call, as one piece."""
        if not self._frames:
            return b""
        taken = b"".join(self._frames)
        self._frames.clear()
        return taken

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """One event; `fields` follow `type` and `sequence_number`."""
        self._write(kind, jsonio.dump({"type": kind, "sequence_number": self._number, **fields}))

    def lifecycle(self, kind: str, response: bytes) -> None:
        """One event about the response as a whole, whose object is written already."""
        head = b'{"type":"%b","sequence_number":%d,"response":' % (kind.encode(), self._number)
        self._write(kind, head + response + b"}")

    def delta(self, head: bytes, text: str, tail: bytes) -> None:
        """One delta. The hot path: everything but the text and the number was written beforehand by `delta_head`."""
        self._frames.append(b"%b%b%b%d}\n\n" % (head, _encode(text), tail, self._number))
        self._number += 1

    def _write(self, kind: str, data: bytes) -> None:
        self._frames.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._number += 1


PLAIN_TAIL = b',"sequence_number":'
TEXT_TAIL = b',"logprobs":[],"sequence_number":'


def delta_head(kind: str, place: dict[str, Any]) -> bytes:
    """The beginning of every delta of one part, up to the text."""
    body = jsonio.dump({"type": kind, **place})
    return b'event: %b\ndata: %b,"delta":' % (kind.encode(), body[:-1])
