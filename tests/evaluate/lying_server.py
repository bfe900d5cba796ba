"""A real socket server that answers well in many ways, and lies or breaks in many more. The first part of the path says
which: `http://127.0.0.1:PORT/usage_negative_chat/v1/chat/completions`."""

import asyncio
from collections import Counter

from good_answers import GOOD, MODEL, Talk, Way
from hurried_clock import HurriedClock
from lies import LIES

from sekisho.evaluate.client import exchange
from sekisho.evaluate.client.target import Key, Place, Target


class LyingServer:
    """Runs in the test's own loop. `seen` counts requests by the first part of their path; `came`: there was one.

    As long as it runs, the client of this process goes by its clock, which hurries where a lie is told by waiting."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.came = asyncio.Event()
        self.ways: dict[str, Way] = {**GOOD, **{name: told.way for name, told in LIES.items()}}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clock = HurriedClock()

    async def __aenter__(self) -> "LyingServer":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._clock_before, exchange.perf_counter = exchange.perf_counter, self._clock
        return self

    async def __aexit__(self, *_: object) -> None:
        exchange.perf_counter = self._clock_before
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def target(self, way: str, place: Place = "gateway", key: str | None = "sk-lying-0123456789") -> Target:
        return Target(place, f"http://127.0.0.1:{self.port}/{way}", MODEL, Key(key) if key else None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.is_closing() and await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the server ends: some lies are made for that
        finally:
            self._tasks.discard(task)
            if not writer.is_closing():
                writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
        name = head.split(b" ", 2)[1].split(b"/")[1].decode()
        self.seen[name] += 1
        self._clock.calm()
        self.came.set()
        length = next(
            (int(f.split(b":")[1]) for f in head.split(b"\r\n") if f.lower().startswith(b"content-length")), 0
        )
        body = await reader.readexactly(length)
        await self.ways[name](Talk(reader, writer, head, body, self.seen[name], self._clock.hurry))
        return True
