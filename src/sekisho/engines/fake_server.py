"""A real HTTP server that speaks as an OpenAI-compatible engine does, and misbehaves when told to.

`python -m sekisho.engines.fake_server --port N [--key K] [--context WORDS]`; port 0 takes a free one; the address is
the first line of its output. The directives of `fake` stand in the prompt or in the query string (`?split=1`).
`GET /fake/stats` counts requests, those running now, and clients that left early. Fast enough to be a benchmark's
upstream.
"""

import argparse
import asyncio
import socket
import struct
import sys
from typing import cast
from urllib.parse import parse_qsl

import msgspec

from sekisho.engines import lifeline
from sekisho.engines.fake_answer import Answer, HttpError, Request, Settings, embeddings

_encode = msgspec.json.encode
_LINGER_NONE = struct.pack("ii", 1, 0)  # close sends a reset


class Stats(msgspec.Struct):
    requests: int = 0
    active: int = 0
    disconnects: int = 0
    connections: int = 0


class Connection(asyncio.Protocol):
    """One client connection; one request at a time."""

    def __init__(self, settings: Settings, stats: Stats) -> None:
        self._settings = settings
        self._stats = stats
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._stats.connections += 1
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stats.connections -= 1
        if self._task is not None and not self._task.done():
            self._stats.disconnects += 1
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._next()

    def _next(self) -> None:
        head, mark, rest = self._received.partition(b"\r\n\r\n")
        if not mark:
            return
        lines = head.split(b"\r\n")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        length = int(fields.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, target, _ = lines[0].decode("latin-1").split(" ", 2)
        path, _, query = target.partition("?")
        authorization = fields.get(b"authorization", b"").decode("latin-1")
        self._answer(Request(method, path, dict(parse_qsl(query)) if query else {}, authorization, rest[:length]))

    def _answer(self, request: Request) -> None:
        self._stats.requests += 1
        try:
            self._route(request)
        except HttpError as error:
            self._send(error.status, _encode(error.body))
        except (TypeError, KeyError, AttributeError, ValueError) as error:  # a request of another shape
            self._send(400, _encode(HttpError(400, f"bad request: {error!r}").body))

    def _route(self, request: Request) -> None:
        settings = self._settings
        path = request.path.removeprefix("/v1")
        if path == "/fake/stats":
            self._send(200, _encode(self._stats))
        elif path == "/health":
            self._send(200, b'{"status":"ok"}')
        elif settings.key is not None and request.authorization != f"Bearer {settings.key}":
            raise HttpError(401, "Invalid API key", "authentication_error")
        elif path == "/models":
            models = [{"id": settings.model, "object": "model", "created": 1, "owned_by": "fake"}]
            self._send(200, _encode({"object": "list", "data": models}))
        elif path == "/embeddings":
            self._send(200, embeddings(msgspec.json.decode(request.body), settings))
        elif path in ("/chat/completions", "/completions"):
            self._begin(Answer(request, settings))
        else:
            raise HttpError(404, f"no such path: {request.path}")

    def _begin(self, answer: Answer) -> None:
        script = answer.script
        if script.status:
            raise HttpError(script.status, f"asked to answer {script.status}", "server_error")
        if script.error == 0:
            raise HttpError(500, "asked to fail", "server_error")
        troubled = (script.stall, script.crash, script.error) != (None, None, None)
        plain = not (script.delay_s or script.pace_s or script.split or troubled)
        if plain and not answer.stream:
            self._send(200, answer.whole())
            return
        self._stats.active += 1
        self._task = asyncio.get_running_loop().create_task(self._perform(answer))

    async def _perform(self, answer: Answer) -> None:
        try:
            await asyncio.sleep(answer.script.delay_s)
            if answer.script.crash == 0:
                self._reset()
            elif answer.stream:
                await self._stream(answer)
            else:
                await self._slowly(answer)
        finally:
            self._stats.active -= 1
        self._task = None
        if self._received:
            self._next()

    async def _slowly(self, answer: Answer) -> None:
        """A whole answer that takes the time its pieces would."""
        script = answer.script
        await asyncio.sleep(script.pace_s * len(script.pieces))
        if script.stall is not None:
            await asyncio.Event().wait()
        if script.crash is not None:
            self._reset()
        elif script.error is not None:
            self._send(500, _encode(HttpError(500, "asked to fail", "server_error").body))
        else:
            self._send(200, answer.whole())

    async def _stream(self, answer: Answer) -> None:
        script = answer.script
        burst = not (script.pace_s or script.split) and (script.stall, script.crash) == (None, None)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        said, waiting = 0, bytearray()
        for is_piece, frame in answer.frames():
            if script.stall == said:
                await asyncio.Event().wait()
            if script.crash == said:
                await asyncio.sleep(0.02)  # what was said should arrive before the reset
                self._reset()
                return
            if script.error == said:
                self._transport.write(bytes(waiting))
                self._chunk(b"data: " + _encode(HttpError(500, "broke while speaking", "server_error").body) + b"\n\n")
                self._transport.write(b"0\r\n\r\n")
                return
            if is_piece and said and script.pace_s:
                await asyncio.sleep(script.pace_s)
            said += is_piece
            if burst:
                waiting += b"%x\r\n%b\r\n" % (len(frame), frame)
            else:
                await self._in_parts(frame, script.split)
        self._transport.write(bytes(waiting) + b"0\r\n\r\n")
        await self._writable.wait()

    async def _in_parts(self, frame: bytes, size: int) -> None:
        for start in range(0, len(frame), size or len(frame)):
            self._chunk(frame[start : start + size] if size else frame)
            await self._writable.wait()
            if size:
                await asyncio.sleep(0)

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _send(self, status: int, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )

    def _reset(self) -> None:
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._transport.abort()


async def start(settings: Settings, port: int = 0) -> tuple[asyncio.Server, int, Stats]:
    """Serves on 127.0.0.1 in the running loop; gives the server, its port and its counters."""
    stats = Stats()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(settings, stats), "127.0.0.1", port, backlog=1024
    )
    return server, server.sockets[0].getsockname()[1], stats


async def _serve(settings: Settings, port: int) -> None:
    server, port, _ = await start(settings, port)
    print(f"http://127.0.0.1:{port}/v1", flush=True)  # noqa: T201 - the address is this program's output
    async with server:
        await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sekisho.engines.fake_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--key")
    parser.add_argument("--context", type=int, default=4096)
    options = parser.parse_args()
    lifeline.die_with_parent()
    settings = Settings(options.model, options.key, options.context)
    try:
        if sys.platform == "win32":
            asyncio.run(_serve(settings, options.port))
        else:
            import uvloop

            uvloop.run(_serve(settings, options.port))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
