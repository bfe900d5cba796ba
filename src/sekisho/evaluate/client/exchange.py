"""One HTTP exchange, timed at the socket. Nothing is read out of the answer here: bytes are kept with the moment of
their arrival, so that the measuring does not take time from what is measured.

All times are `time.perf_counter`, which on one machine is the same clock in every process (Linux, macOS).
"""

import asyncio
import select
import ssl
import sys
from time import perf_counter
from typing import Final, Literal, cast

import httptools
import msgspec

from sekisho.evaluate.client.target import Target

Trouble = Literal["not_connected", "no_answer", "silent", "trickled", "cut", "not_http", "too_large"]

STALE_S: Final = 0.05
"""A kept connection that ends later than so after the request was written was not stale: the server took it."""
_LOOK_S: Final = 0.25  # how often limits are looked at: they are not what is measured


class Limits(msgspec.Struct, frozen=True):
    """`silence_s`: the longest pause between bytes, before the first one too. `total_s`: from start to end."""

    connect_s: float = 10.0
    silence_s: float = 60.0
    total_s: float = 180.0
    max_bytes: int = 32 << 20


class Exchange(msgspec.Struct):
    """What came back. `arrivals` are (moment, body bytes). `connected_s` None: an open connection was used again.
    `trouble` None: the answer is whole as HTTP, whatever it says."""

    started_s: float
    connected_s: float | None = None
    status: int | None = None
    headers: dict[str, str] = {}
    first_byte_s: float | None = None
    ended_s: float = 0.0
    arrivals: list[tuple[float, bytes]] = []
    trouble: Trouble | None = None
    detail: str = ""

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.arrivals)

    @property
    def total_ms(self) -> float:
        return (self.ended_s - self.started_s) * 1e3

    @property
    def ttfb_ms(self) -> float | None:
        return None if self.first_byte_s is None else (self.first_byte_s - self.started_s) * 1e3


class Connections:
    """Connections to one target, kept alive and as many as there are exchanges. Belongs to one loop."""

    def __init__(self, target: Target, limits: Limits | None = None, *, context: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.limits = limits or Limits()
        self._context = context
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cuts all connections. May be called twice."""
        for connection in list(self._all):
            connection.abort()
        self._all.clear()
        self._idle.clear()

    async def exchange(
        self, method: str, path: str, body: bytes = b"", *, headers: dict[str, str] | None = None, fresh: bool = False
    ) -> Exchange:
        """Sends a request and collects its answer. Never raises for what the other side does: that is `trouble`.

        `fresh`: on a connection of its own. A kept connection whose end is here already is not used; one that was stale
        all the same (it ends within `STALE_S` of the request and without a byte) is replaced once; one that ends later
        is `cut`, as a server may have died over the request.
        Cancelling closes the connection, as a client does that goes away.
        """
        message = self._message(method, path, body, headers or {})
        started_s = perf_counter()
        connection = None if fresh else self._kept()
        if connection is not None:
            exchange = await self._carry(connection, message, started_s, method)
            in_time = exchange.ended_s - started_s <= STALE_S
            if exchange.trouble != "cut" or exchange.first_byte_s is not None or not in_time:
                return exchange
        try:
            connection = await self._connect()
        except (OSError, UnicodeError, TimeoutError) as error:
            why = str(error) or f"no connection within {self.limits.connect_s:g} s"
            return Exchange(started_s, ended_s=perf_counter(), trouble="not_connected", detail=why)
        connected_s = perf_counter()
        exchange = await self._carry(connection, message, started_s, method)
        exchange.connected_s = connected_s
        return exchange

    async def _carry(self, connection: "_Connection", message: bytes, started_s: float, method: str) -> Exchange:
        try:
            exchange = await connection.ask(message, started_s, self.limits, method)
        except BaseException:
            connection.abort()
            self._all.discard(connection)
            raise
        if connection.is_reusable and exchange.trouble is None:
            self._idle.append(connection)
        else:
            connection.abort()
            self._all.discard(connection)
        return exchange

    def _kept(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and not connection.has_news:
                return connection
            connection.abort()
            self._all.discard(connection)
        return None

    async def _connect(self) -> "_Connection":
        target = self.target
        context = self._context
        if target.tls and context is None:
            context = self._context = ssl.create_default_context()
        async with asyncio.timeout(self.limits.connect_s):
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, target.host, target.port, ssl=context if target.tls else None
            )
        self._all.add(connection)
        return connection

    def _message(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        target = self.target
        host = f"[{target.host}]" if ":" in target.host else target.host
        lines = {"Host": f"{host}:{target.port}", "User-Agent": "sekisho-evaluate", "Accept": "*/*"}
        if target.key is not None:
            lines["Authorization"] = f"Bearer {target.key.reveal()}"
        if body:
            lines["Content-Type"] = "application/json"
        lines |= headers | {"Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {target.path(path)} HTTP/1.1\r\n{head}\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One socket; one exchange at a time. The parser's callbacks run inside `data_received`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._limits = Limits()
        self._now_s = 0.0
        self._last_s = 0.0
        self._size = 0
        self._lost = False
        self._bodiless = False
        self._watch: asyncio.TimerHandle | None = None
        self.is_reusable = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._lost and not self._transport.is_closing()

    @property
    def has_news(self) -> bool:
        """Whether the system holds something that the loop has not read yet. Between two exchanges that is an end, or
        what nobody asked for."""
        assert self._transport is not None
        return _readable(self._transport.get_extra_info("socket").fileno())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, message: bytes, started_s: float, limits: Limits, method: str) -> Exchange:
        loop = asyncio.get_running_loop()
        exchange = self._exchange = Exchange(started_s, headers={}, arrivals=[])
        self._done, self._limits = loop.create_future(), limits
        self._parser = httptools.HttpResponseParser(self)
        self._size, self._last_s, self.is_reusable, self._bodiless = 0, perf_counter(), False, method == "HEAD"
        if self._transport is None or self._lost:
            return self._give_up("cut", "the connection was closed")
        self._transport.write(message)
        self._watch = loop.call_later(_LOOK_S, self._look, loop)
        try:
            await self._done
        finally:
            self._watch.cancel()
        return exchange

    def _waits(self) -> bool:
        return self._done is not None and not self._done.done()

    def data_received(self, data: bytes) -> None:
        now_s = self._now_s = self._last_s = perf_counter()
        exchange = self._exchange
        if exchange is None or not self._waits():
            self.abort()  # bytes that nobody asked for
            return
        if exchange.first_byte_s is None:
            exchange.first_byte_s = now_s
        self._size += len(data)
        if self._size > self._limits.max_bytes:
            self._give_up("too_large", f"more than {self._limits.max_bytes} bytes")
            return
        try:
            cast(httptools.HttpResponseParser, self._parser).feed_data(data)
        except httptools.HttpParserError as error:
            if self._waits():
                self._give_up("not_http", str(error))

    def on_message_begin(self) -> None:
        if not self._waits():
            self.is_reusable = False  # a second answer to one request: nobody asked for it, nobody reads it
        elif self._exchange is not None and self._exchange.first_byte_s is None:
            self._exchange.first_byte_s = self._now_s

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None and self._waits():
            self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None and self._parser is not None and self._waits():
            self._exchange.status = self._parser.get_status_code()
            if self._bodiless:
                self._end()

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None and self._waits():
            self._exchange.arrivals.append((self._now_s, body))

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or not self._waits():
            return
        if exchange.status in (100, 102, 103):  # a provisional answer: the real one follows
            exchange.status, exchange.first_byte_s = None, None
            exchange.headers.clear()
            return
        if self._parser is not None:
            self.is_reusable = self._parser.should_keep_alive()
        self._end()

    def eof_received(self) -> bool:
        self._ended_by_the_other("the other side closed")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._ended_by_the_other(str(exc) if exc else "the other side closed")

    def abort(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    def _ended_by_the_other(self, why: str) -> None:
        """An answer without a length ends with the connection; any other one is cut."""
        exchange = self._exchange
        if exchange is None or not self._waits():
            return
        framed = "content-length" in exchange.headers or "transfer-encoding" in exchange.headers
        if exchange.status is not None and not framed:
            self._end()
        else:
            self._give_up("cut", why)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        exchange, limits, now_s = self._exchange, self._limits, perf_counter()
        if exchange is None or not self._waits():
            return
        if now_s - self._last_s > limits.silence_s:
            kind: Trouble = "no_answer" if exchange.first_byte_s is None else "silent"
            self._give_up(kind, f"no byte for {limits.silence_s:g} s")
        elif now_s - exchange.started_s > limits.total_s:
            kind = "no_answer" if exchange.first_byte_s is None else "trickled"
            self._give_up(kind, f"not ended within {limits.total_s:g} s")
        else:
            self._watch = loop.call_later(_LOOK_S, self._look, loop)

    def _give_up(self, trouble: Trouble, detail: str) -> Exchange:
        exchange = cast(Exchange, self._exchange)
        exchange.trouble, exchange.detail = trouble, detail
        self._end()
        return exchange

    def _end(self) -> None:
        if self._exchange is not None and self._done is not None and not self._done.done():
            self._exchange.ended_s = perf_counter()
            self._done.set_result(None)


def _readable(descriptor: int) -> bool:
    """Does not wait."""
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
