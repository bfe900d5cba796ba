"""An HTTP/1.1 client for one origin, as lean as the gateway's hot path wants it: httptools parses, an asyncio protocol
does the rest. It costs a quarter of a general client's processor time a request. No redirects, cookies, proxies,
compression or HTTP/2: an engine needs none of them.

HttpTrouble
├── NotConnected      nobody there: refused, unknown host, TLS failed, or no answer to the connection attempt
├── Silent            connected, but no head of an answer in time
└── Broken            the connection ended, or what came is not HTTP, before the answer was whole
"""

import asyncio
import ssl
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

_HIGH_WATER_BYTES: Final = 1 << 18
_MAX_HEAD_BYTES: Final = 1 << 16
_END_WAIT_S: Final = 0.2
# An answer whose pieces come quicker than this is read in turns of `_REST_S`: waking up for each piece costs more than
# everything that is then done with it, and takes that time from an engine on the same cores.
_QUICK_PER_S: Final = 600
_COUNT_S: Final = 0.02
_REST_S: Final = 0.005


class HttpTrouble(Exception):
    """Something went wrong below HTTP's own status."""


class NotConnected(HttpTrouble):
    pass


class Silent(HttpTrouble):
    pass


class Broken(HttpTrouble):
    pass


class HttpClient:
    """Connections to the origin of `base_url`, kept alive and as many as there are requests. Belongs to one loop.

    `headers` go with every request. `keepalive_s`: connections idle for longer are not used again.
    """

    def __init__(
        self, base_url: str, headers: dict[str, str], *, connect_timeout_s: float = 5.0, keepalive_s: float = 4.0
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http address: {base_url!r}")
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = parts.scheme == "https"
        self._context: ssl.SSLContext | None = None
        self._connect_timeout_s, self._keepalive_s = connect_timeout_s, keepalive_s
        lines = {"Host": parts.netloc.rpartition("@")[2]} | headers
        for name, value in lines.items():
            if not value.isascii() or not value.isprintable():
                raise ValueError(f"a value for the header {name} that cannot be sent")
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def send(self, method: str, path: str, body: bytes, timeout_s: float) -> "Response":
        """Sends a request and waits up to `timeout_s` for the head of its answer. The caller must `let_go` of it.

        Where a kept-alive connection turns out to have been closed by the other side before it said anything, the
        request goes out once more on a new connection; otherwise never. Raises `HttpTrouble`.
        """
        head = self._heads.get((method, path))
        if head is None:
            head = self._heads[method, path] = f"{method} {path} HTTP/1.1\r\n{self._lines}Content-Length: ".encode()
        message = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        connection = self._kept()
        if connection is not None:
            try:
                return await connection.ask(message, timeout_s)
            except Broken:
                if connection.has_said_something:
                    raise
        connection = await self._connect()
        return await connection.ask(message, timeout_s)

    def _kept(self) -> "_Connection | None":
        now_s = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s + self._keepalive_s > now_s and connection.is_open:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._tls and self._context is None:
            self._context = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._context
                )
        except TimeoutError as error:
            raise NotConnected(f"no connection within {self._connect_timeout_s:g} s") from error
        except (OSError, UnicodeError) as error:
            raise NotConnected(str(error)) from error
        return connection

    def opened(self, connection: "_Connection") -> None:
        self._all.add(connection)

    def keep(self, connection: "_Connection") -> None:
        self._idle.append(connection)

    def lost(self, connection: "_Connection") -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Cuts all connections. May be called twice; the client can be used again."""
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports close


class Response:
    """The answer to one request. `headers` have lower-case names."""

    def __init__(self, connection: "_Connection", status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.headers = headers
        self._connection: _Connection | None = connection

    @property
    def has_come(self) -> bool:
        """The answer is here to its end: reading it does not wait."""
        return self._connection is None or self._connection.is_complete

    async def read_any(self) -> bytes:
        """What has come since the last read, or the next bytes; empty at the end. Raises `Broken`."""
        if self._connection is None:
            return b""
        data = await self._connection.next_bytes()
        if not data:
            self.let_go()
        return data

    async def read(self) -> bytes:
        """The rest of the answer. Raises `Broken`."""
        first = await self.read_any()
        if self._connection is None or self._connection.is_drained:
            self.let_go()
            return first
        pieces = [first]
        while data := await self.read_any():
            pieces.append(data)
        return b"".join(pieces)

    async def finish(self) -> None:
        """For a reader who has all that he wants: takes the few bytes that may be left, so that the connection can
        serve again, and gives up on it soon. Never raises trouble."""
        if self._connection is not None and not self._connection.is_drained:
            try:
                async with asyncio.timeout(_END_WAIT_S):
                    while await self.read_any():
                        continue
            except (TimeoutError, Broken):
                pass  # the connection is lost; nothing that anybody waits for
        self.let_go()

    def let_go(self) -> None:
        """Gives the connection back where the answer was read to its end, else cuts it at once, unsent bytes and all,
        so that the other side sees that nobody listens any more. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: HttpClient) -> None:
        self.idle_since_s = 0.0
        self.is_complete = False
        self.has_said_something = False
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._trouble: Broken | None = None
        self._head: asyncio.Future[Response] | None = None
        self._reader: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._buffer: list[bytes] = []
        self._buffered_bytes = 0
        self._paused = self.is_complete = self._to_the_end = self._keep = False
        self._pieces = 0
        self._counted_since_s = self._loop.time()
        self._quick = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_drained(self) -> bool:
        return self.is_complete and not self._buffer

    # --- the asker's side -------------------------------------------------------------------------------------------

    async def ask(self, message: bytes, timeout_s: float) -> Response:
        self.has_said_something = False
        if self._transport is None or self._transport.is_closing():
            raise Broken("the connection was closed")
        self._begin()
        self._head = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._be_late, timeout_s)
        self._transport.write(message)
        try:
            return await self._head
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._head = None

    def _be_late(self, timeout_s: float) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_exception(Silent(f"no answer within {timeout_s:g} s"))

    async def next_bytes(self) -> bytes:
        rested = False
        while not self._buffer:
            if self.is_complete:
                return b""
            if self._trouble is not None:
                raise self._trouble
            if not rested and self._is_quick():
                rested = True
                await self._rest()
                continue
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffered_bytes = 0
        self._go_on_reading()
        return data

    def _is_quick(self) -> bool:
        """Whether pieces come so quickly that reading each by itself costs more than it is worth."""
        now_s = self._loop.time()
        passed_s = now_s - self._counted_since_s
        if passed_s >= _COUNT_S:
            self._quick = self._pieces > passed_s * _QUICK_PER_S
            self._counted_since_s, self._pieces = now_s, 0
        return self._quick

    async def _rest(self) -> None:
        """Lets the kernel gather what comes meanwhile: one read then brings several pieces."""
        transport = self._transport
        if transport is not None and not transport.is_closing() and not self._paused:
            transport.pause_reading()
            self._paused = True
        await asyncio.sleep(_REST_S)
        self._go_on_reading()

    def _go_on_reading(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def release(self) -> None:
        if self.is_drained and self._keep and self.is_open:
            self.idle_since_s = self._loop.time()
            self._client.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._to_the_end = False  # what is cut here is not whole
            self._transport.abort()

    # --- the transport's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        self.has_said_something = True
        if self.is_complete:  # nobody asked
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(Broken(f"not HTTP: {error}"))
            self.abort()
        self._wake()

    def eof_received(self) -> None:
        if self._to_the_end:
            self.is_complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(self)
        self._transport = None
        if self._to_the_end and exc is None:
            self.is_complete = True
        self._break(Broken(str(exc) if exc else "the connection was closed"))
        self._wake()

    def _break(self, trouble: Broken) -> None:
        if self._trouble is None:
            self._trouble = trouble
        if self._head is not None and not self._head.done():
            self._head.set_exception(trouble)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- the parser's side ------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:  # in the same read as the end of ours
            raise ValueError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise ValueError("the head of the answer is too long")
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like: the real answer follows
            return
        headers = self._headers
        framed = b"content-length" in headers or b"chunked" in headers.get(b"transfer-encoding", b"").lower()
        self._to_the_end = not framed and status not in (204, 304)
        if self._head is not None and not self._head.done():
            self._head.set_result(Response(self, status, headers))

    def on_body(self, data: bytes) -> None:
        self._buffer.append(data)
        self._pieces += 1
        self._buffered_bytes += len(data)
        if self._buffered_bytes > _HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            self._headers = {}
            return
        self.is_complete = True
        self._keep = self._parser.should_keep_alive()
