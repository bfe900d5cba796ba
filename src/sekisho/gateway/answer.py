"""Runs a turn and writes its answer: whole, or as a stream with keep-alives.

The order that the promises need: engine events are encoded and sent as they come; when they have ended, the usage is
made durable, then whatever `on_complete` stores, and only then the bytes that complete the answer leave.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from sekisho.core.errors import Draining, EngineFailed, SekishoError
from sekisho.core.events import Batch, Event, EventStream, Failed, Started
from sekisho.gateway.exchange import Exchange
from sekisho.gateway.http import Header, Request
from sekisho.gateway.running import Running, uncancel
from sekisho.gateway.trouble import unexpected
from sekisho.wire.base import Encoder

log = logging.getLogger("sekisho.gateway.answer")

KEEP_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
# A client that takes nothing for so long gives its turn back: others wait for the slot.
STALLED_READER_S = 60.0

Complete = Callable[[], Awaitable[None]]


def failed_event(error: SekishoError) -> Failed:
    """The event form of an error, for a stream that has begun."""
    return Failed(error.id, error.error_code, error.type, error.message, error.status, error.retry_after_s)


class TurnFailed(Exception):
    """A `Failed` event on its way to an answer of which nothing was sent yet."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Answer(Running):
    """One running answer. `on_complete` runs before the last byte. `ended`: the turn is over, what is left is to store
    it and to tell it, so that a cancel comes too late."""

    __slots__ = ("_exchange", "encoder", "ended", "on_complete")

    def __init__(self, exchange: Exchange, encoder: Encoder, on_complete: Complete | None = None) -> None:
        super().__init__(exchange.record)
        self._exchange = exchange
        self.encoder = encoder
        self.on_complete = on_complete
        self.ended = False

    async def send_whole(self, request: Request, events: EventStream, headers: Sequence[Header]) -> None:
        """Raises SekishoError or TurnFailed where the turn broke: nothing has been sent then."""
        self._exchange.whole = True
        async with self.watched(request):
            failed = await self._collect(request, events)
            if failed is not None:
                self._exchange.record("failed", failed.status, failed)
                raise TurnFailed(failed)
            self.ended = True
            self._exchange.record("completed", 200)
            if self.on_complete is not None:
                await self.on_complete()
            body = self.encoder.whole()
        if not request.gone:
            await request.respond(200, body, headers=headers)

    async def run_unattended(self, events: EventStream) -> None:
        """Runs a turn that nobody is connected to (a background response). Never raises but CancelledError."""
        self._task = asyncio.current_task()
        self._exchange.whole = True
        pauses_s: Sequence[float] = KEEP_PAUSES_S
        try:
            failed = await self._collect(None, events)
        except asyncio.CancelledError:
            error = self._aborted or Draining("The server was stopped.")
            if isinstance(error, Draining):
                pauses_s = ()
            failed = failed_event(error)
            self.encoder.feed([failed])
        self.ended = True
        try:
            if failed is not None:
                self._exchange.record("failed", failed.status, failed)
            else:
                self._exchange.record("completed", 200)
        except SekishoError as error:
            log.error("background answer %s cannot be completed: %s (%s)", self._exchange.id, error.message, error.id)
            if failed is None:
                self.encoder.feed([failed_event(error)])
        await self._keep_patiently(pauses_s)

    async def _keep_patiently(self, pauses_s: Sequence[float]) -> None:
        """Nobody waits for the answer, but somebody asks for it later: a store in trouble gets more than one chance,
        the last one when the server goes down."""
        try:
            for pause_s in pauses_s:
                if await self._kept():
                    return
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            uncancel()
        if not await self._kept():
            log.error("background answer %s is lost: the store did not take it", self._exchange.id)

    async def _kept(self) -> bool:
        if self.on_complete is not None:
            try:
                await self.on_complete()
            except SekishoError as error:
                text = "background answer %s is not stored yet: %s (%s)"
                log.warning(text, self._exchange.id, error.message, error.id)
                return False
        return True

    async def send_stream(
        self, request: Request, events: EventStream, headers: Sequence[Header], keepalive_s: float
    ) -> None:
        """Raises SekishoError or TurnFailed only while nothing has been sent; later trouble goes into the stream."""
        writer = StreamWriter(request, self.encoder, headers, keepalive_s)
        async with self.watched(request):
            try:
                await self._pump(writer, events)
                await self._finish(writer)
            finally:
                writer.close()

    async def _pump(self, writer: "StreamWriter", events: EventStream) -> None:
        exchange, encoder = self._exchange, self.encoder
        try:
            async with aclosing(events) as batches:
                async for batch in batches:
                    exchange.observe(batch)
                    if exchange.failed is not None and not writer.begun:
                        self._exchange.record("failed", exchange.failed.status, exchange.failed)
                        raise TurnFailed(exchange.failed)
                    if type(batch[0]) is Started and len(batch) == 1 and not writer.begun:
                        continue  # nothing was said yet: a failure can still have its own status
                    await writer.write(writer.opening() + encoder.feed(batch))
                    if exchange.failed is not None:
                        return
            if not exchange.finished:
                raise EngineFailed("The engine's answer ended without an end.")
        except asyncio.CancelledError:
            if self._aborted is None or not writer.begun:
                raise  # told apart in `watched`
            uncancel()
            await self._fail(writer, self._aborted)
        except TurnFailed:
            raise
        except Exception as error:
            shown = error if isinstance(error, SekishoError) else unexpected("stream", error)
            if not writer.begun:
                self._exchange.record("failed", shown.status, shown)
                raise shown from error
            log.warning("stream %s broke: %s (%s)", exchange.id, shown.message, shown.id)
            await self._fail(writer, shown)

    async def _finish(self, writer: "StreamWriter") -> None:
        exchange = self._exchange
        self.ended = True
        try:
            if exchange.failed is not None:
                exchange.record("failed", exchange.failed.status, exchange.failed)
            else:
                exchange.record("completed", 200)
            if self.on_complete is not None:
                await self.on_complete()
        except asyncio.CancelledError:  # a drain does not wait for the store
            if self._aborted is None or not writer.begun:
                raise
            uncancel()
            if exchange.failed is None:
                await self._fail(writer, self._aborted)
        except SekishoError as error:
            if not writer.begun:
                raise
            log.error("stream %s cannot be completed: %s (%s)", exchange.id, error.message, error.id)
            if exchange.failed is None:
                await self._fail(writer, error)
        await writer.write(writer.opening() + self.encoder.end(), last=True)

    async def _fail(self, writer: "StreamWriter", error: SekishoError) -> None:
        failed = failed_event(error)
        self._exchange.failed = failed
        await writer.write(self.encoder.feed([failed]))

    async def _collect(self, request: Request | None, events: EventStream) -> Failed | None:
        """Feeds everything to the encoder. Errors become the returned Failed."""
        try:
            async with aclosing(events) as batches:
                async for batch in batches:
                    self._exchange.observe(batch)
                    self.encoder.feed(batch)
            if not self._exchange.finished and self._exchange.failed is None:
                raise EngineFailed("The engine's answer ended without an end.")
        except SekishoError as error:
            if request is not None:
                self._exchange.record("failed", error.status, error)
                raise
            self._exchange.failed = failed_event(error)
            self.encoder.feed([self._exchange.failed])
        except Exception as error:
            if request is not None:
                raise
            self._exchange.failed = failed_event(unexpected("background response", error))
            self.encoder.feed([self._exchange.failed])
        return self._exchange.failed


class StreamWriter:
    """Sends a stream's bytes; sends a keep-alive when the engine was silent for `keepalive_s`.

    The head (status 200) leaves with the first bytes, so that an engine that fails at once still gets a proper
    status; a keep-alive that comes first commits to 200.
    """

    __slots__ = (
        "_beat",
        "_encoder",
        "_headers",
        "_keepalive_s",
        "_last_s",
        "_loop",
        "_opened",
        "_request",
        "_sending",
        "_task",
        "_timer",
    )

    def __init__(self, request: Request, encoder: Encoder, headers: Sequence[Header], keepalive_s: float) -> None:
        self._request = request
        self._encoder = encoder
        self._headers = headers
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._sending = False
        self._opened = False
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(keepalive_s, self._tick)

    @property
    def begun(self) -> bool:
        """Whether the client has seen a status."""
        return self._request.begun

    def opening(self) -> bytes:
        """The encoder's first bytes, once. To be called before anything else is encoded."""
        if self._opened:
            return b""
        self._opened = True
        return self._encoder.start()

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Sends `data` if there is any. `last` ends the answer."""
        if not data and not last:
            return
        request = self._request
        self._sending = True
        try:
            if not request.begun:
                request.begun = True
                await request.send(
                    {"type": "http.response.start", "status": 200, "headers": self._head(request.id.encode())}
                )
            if last:
                request.finished = True
            await request.send({"type": "http.response.body", "body": data, "more_body": not last})
        finally:
            self._sending = False
            self._last_s = self._loop.time()

    def close(self) -> None:
        self._timer.cancel()

    def _head(self, request_id: bytes) -> list[Header]:
        return [
            (b"content-type", self._encoder.content_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # nginx in front must not collect the stream
            (b"x-request-id", request_id),
            *self._headers,
        ]

    def _tick(self) -> None:
        wait_s = self._keepalive_s - (self._loop.time() - self._last_s)
        if wait_s <= 0.001:
            wait_s = self._keepalive_s
            if self._sending:
                self._give_up_on_reader()
            else:
                self._beat = self._loop.create_task(self._keep_alive())
        self._timer = self._loop.call_later(wait_s, self._tick)

    def _give_up_on_reader(self) -> None:
        silent_s = self._loop.time() - self._last_s
        if silent_s >= STALLED_READER_S and self._task is not None and not self._request.gone:
            log.warning("a client took nothing of its stream for %.0f s and counts as gone", silent_s)
            self._request.gone = True
            self._task.cancel()

    async def _keep_alive(self) -> None:
        if not (self._sending or self._request.finished or self._request.gone):
            await self.write(self.opening() + self._encoder.keepalive())


def single(batch: Sequence[Event]) -> EventStream:
    """A stream of one batch, for answers that need no engine."""

    async def once() -> AsyncGenerator[Batch, None]:
        yield list(batch)

    return once()
