"""A relay that notes what crosses the wire: an arbiter between two tools that measure the same server.

    python bench/relay.py --upstream 8080

Bytes go on as they come. For each streamed answer it notes, by `perf_counter`, when the request was read, when the
first event with content came back and when the last one did; `GET /times` gives these and forgets them.
"""

import argparse
import asyncio
import json
import re
import sys
from time import perf_counter
from typing import cast

import uvloop

_CONTENT = re.compile(rb'"content": ?"[^"]')
Times = list[tuple[float, float, float]]


class Upstream(asyncio.Protocol):
    """The server's side of one connection."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._client.answered(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.hang_up()


class Client(asyncio.Protocol):
    """The tool's side of one connection."""

    def __init__(self, port: int, times: Times) -> None:
        self._port, self._times = port, times
        self._transport: asyncio.Transport | None = None
        self._upstream: Upstream | None = None
        self._waiting = b""
        self._asked_s = 0.0
        self._first_s: float | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, upstream = await loop.create_connection(lambda: Upstream(self), "127.0.0.1", self._port)
        except OSError:
            self.hang_up()
            return
        self._upstream = upstream
        if self._waiting and upstream.transport is not None:
            upstream.transport.write(self._waiting)
            self._waiting = b""

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET /times "):
            self._tell()
            return
        if data.startswith(b"POST "):
            self._asked_s, self._first_s = perf_counter(), None
        if self._upstream is None or self._upstream.transport is None:
            self._waiting += data
        else:
            self._upstream.transport.write(data)

    def answered(self, data: bytes) -> None:
        now_s = perf_counter()
        if self._transport is not None:
            self._transport.write(data)
        if self._first_s is None and _CONTENT.search(data):
            self._first_s = now_s
        if self._first_s is not None and b"data: [DONE]" in data:
            self._times.append((self._asked_s, self._first_s, now_s))
            self._first_s = None

    def _tell(self) -> None:
        body = json.dumps(self._times).encode()
        self._times.clear()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        if self._transport is not None:
            self._transport.write(head.encode() + body)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.close()


async def serve(upstream: int) -> None:
    """Serves on loopback and says where, until the process is ended."""
    times: Times = []
    server = await asyncio.get_running_loop().create_server(lambda: Client(upstream, times), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=int, required=True, help="the server's port on this machine")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(given.upstream))
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
