"""What happens, for whoever watches: server-sent events with a short memory for those who come back."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

_REMEMBERED = 256
_UNREAD = 256


class Event(msgspec.Struct, frozen=True):
    """`number` rises by one; `kind`: `decision`, `policy`, `metrics`, `quality`, `engine`, `alert`."""

    number: int
    kind: str
    at: float
    data: Any

    def encoded(self) -> bytes:
        """One event as the standard of server-sent events writes it."""
        body = msgspec.json.encode({"at": self.at, "data": self.data})
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self.number, self.kind.encode(), body)


class EventBus:
    """`publish` never waits: who reads too slowly loses the oldest and is told how many."""

    def __init__(self) -> None:
        self._number = 0
        self._recent: deque[Event] = deque(maxlen=_REMEMBERED)
        self._readers: set[_Reader] = set()

    @property
    def readers(self) -> int:
        return len(self._readers)

    def publish(self, kind: str, at: float, data: Any) -> None:
        self._number += 1
        event = Event(self._number, kind, at, data)
        self._recent.append(event)
        for reader in self._readers:
            reader.take(event)

    async def stream(self, after: int | None = None, keepalive_s: float = 15.0) -> AsyncGenerator[bytes, None]:
        """Encoded events from now on; with `after` also remembered ones of a higher number. A comment where nothing
        happened for `keepalive_s`."""
        reader = _Reader()
        for event in self._recent if after is not None else ():
            if event.number > (after or 0):
                reader.take(event)
        self._readers.add(reader)
        try:
            while True:
                try:
                    async with asyncio.timeout(keepalive_s):
                        event, lost = await reader.next()
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                if lost:
                    yield b'event: lost\ndata: {"count":%d}\n\n' % lost
                yield event.encoded()
        finally:
            self._readers.discard(reader)


class _Reader:
    def __init__(self) -> None:
        self._unread: deque[Event] = deque(maxlen=_UNREAD)
        self._lost = 0
        self._some = asyncio.Event()

    def take(self, event: Event) -> None:
        if len(self._unread) == _UNREAD:
            self._lost += 1
        self._unread.append(event)
        self._some.set()

    async def next(self) -> tuple[Event, int]:
        while not self._unread:
            self._some.clear()
            await self._some.wait()
        lost, self._lost = self._lost, 0
        return self._unread.popleft(), lost
