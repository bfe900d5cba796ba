"""Puts events into the content blocks of one message: numbered without a gap, and never two open at once.

Blocks stand in a queue; only its head is open, the others gather. Text and thinking close as soon as something
stands behind them. A tool's block closes when its JSON is whole, since a closed block cannot be opened again and an
engine may mix the parts of several calls:

    text | tool 0 | text | tool 1      head: text, closes at once; tool 0 opens
           tool 0 | text | tool 1      waits for tool 0's last brace; then the text, then tool 1 opens
"""

from collections import deque
from typing import Literal, Protocol

import msgspec

from sekisho.core.events import ToolCallDelta

Kind = Literal["text", "thinking", "tool"]


class Block(msgspec.Struct):
    """One content block. `call` is the first part of a tool call, `pieces` what was said."""

    kind: Kind
    index: int = -1
    call: ToolCallDelta | None = None
    pieces: list[str] = []
    sealed: str | None = None
    closed: bool = False

    def text(self) -> str:
        return "".join(self.pieces)

    def can_close(self) -> bool:
        """False while more may follow. The free text of a custom tool never tells its end."""
        if self.call is None:
            return True
        if self.call.kind == "custom" or not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        return arguments_object(self.text()) is not None


class Sink(Protocol):
    """Hears of blocks as they are told to the client. `opened` comes with what was gathered before."""

    def opened(self, block: Block) -> None: ...

    def said(self, block: Block, piece: str) -> None: ...

    def closed(self, block: Block) -> None: ...


class Blocks:
    """`keep` remembers the text of closed blocks in `done`, for an answer that is sent whole."""

    def __init__(self, sink: Sink, keep: bool) -> None:
        self.done: list[Block] = []
        self.called = False
        self._sink = sink
        self._keep = keep
        self._queue: deque[Block] = deque()
        self._calls: dict[int, Block] = {}
        self._opened = 0

    def say(self, kind: Literal["text", "thinking"], text: str, sealed: str | None = None) -> None:
        block = self._queue[-1] if self._queue else None
        if block is None or block.kind != kind:
            block = Block(kind)
            self._queue.append(block)
        if sealed is not None:
            block.sealed = sealed
        self._add(block, text)

    def call(self, event: ToolCallDelta) -> None:
        block = self._calls.get(event.index)
        if block is None:
            self.called = True
            block = self._calls[event.index] = Block("tool", call=event)
            self._queue.append(block)
        if not block.closed:
            self._add(block, event.arguments)

    def finish(self) -> None:
        """Tells everything that still waits and closes it."""
        if self._queue and self._queue[0].index < 0:
            self._open(self._queue[0])
        while self._queue:
            self._close_head()

    def _add(self, block: Block, piece: str) -> None:
        if piece and (self._keep or block.index < 0 or block.kind == "tool"):
            block.pieces.append(piece)
        if block.index >= 0:
            if piece:
                self._sink.said(block, piece)
        elif block is self._queue[0]:
            self._open(block)
        while len(self._queue) > 1 and self._queue[0].can_close():
            self._close_head()

    def _open(self, block: Block) -> None:
        block.index = self._opened
        self._opened += 1
        self._sink.opened(block)

    def _close_head(self) -> None:
        block = self._queue.popleft()
        block.closed = True
        self._sink.closed(block)
        if self._keep:
            self.done.append(block)
        if self._queue:
            self._open(self._queue[0])


def arguments_object(text: str) -> msgspec.Raw | None:
    """The JSON object that `text` is, on one line and otherwise as the model wrote it, or None if it is none. A call
    without arguments is an empty object."""
    text = text or "{}"
    try:
        return msgspec.Raw(msgspec.json.format(text, indent=-1)) if _is_object(text) else None
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return None


def _is_object(text: str) -> bool:
    return isinstance(msgspec.json.decode(text), dict)
