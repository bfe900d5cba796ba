"""A canned chat engine that tells when it did what: the judge of a load generator.

Every answer is the same stream: `--delay-ms` after the request has arrived its first content chunk is written, then one
every `--pace-ms` until there are `--tokens`, a token each, with a usage that says so. `GET /times` gives, for each
request in order of its first chunk, its number (`"n-<number>"` anywhere in the body, else -1), when its last byte was
read and when its first content chunk was handed to the socket, by `perf_counter`, which on Linux is one clock for all
processes; and forgets them.
"""

import argparse
import asyncio
import json
import re
import socket
import sys
from time import perf_counter
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb'"n-(\d+)"')
_MODELS = b'{"object":"list","data":[{"id":"canned","object":"model","created":1,"owned_by":"bench"}]}'
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _frame(delta: str, finish: str = "null") -> bytes:
    return _event(f'[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]')


def _event(choices: str, usage: str = "") -> bytes:
    text = (
        '{"id":"chatcmpl-canned","object":"chat.completion.chunk","created":1,"model":"canned",'
        f'"choices":{choices}{usage}}}'
    )
    return _chunk(f"data: {text}\n\n".encode())


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


class Script:
    """What every answer is."""

    def __init__(self, delay_s: float, pace_s: float, tokens: int) -> None:
        self.delay_s, self.pace_s, self.tokens = delay_s, pace_s, tokens
        pieces = [_frame(json.dumps({"content": f" w{number % 10}"})) for number in range(tokens)]
        pieces[0] = _HEAD + _frame('{"role":"assistant","content":""}') + pieces[0]
        usage = f',"usage":{{"prompt_tokens":9,"completion_tokens":{tokens},"total_tokens":{9 + tokens}}}'
        end = _frame("{}", '"length"') + _event("[]", usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        pieces[-1] += end
        self.writes = pieces if pace_s else [b"".join(pieces)]


class Connection(asyncio.Protocol):
    """One connection, kept alive; one request at a time."""

    def __init__(self, script: Script, times: list[tuple[int, float, float]]) -> None:
        self._script, self._times = script, times
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._next = 0
        self._number = -1
        self._arrived_s = 0.0
        self._begun_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        now_s = perf_counter()
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head_end)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return
        request, self._buffer = self._buffer[:end], self._buffer[end:]
        if request.startswith(b"GET"):
            self._tell(request)
            return
        number = _NUMBER.search(request)
        self._number, self._arrived_s, self._next = int(number[1]) if number else -1, now_s, 0
        self._loop.call_later(self._script.delay_s, self.write_next)

    def write_next(self) -> None:
        if self._transport is None:
            return
        now_s = perf_counter()
        self._transport.write(self._script.writes[self._next])
        if self._next == 0:
            self._begun_s = now_s
            self._times.append((self._number, self._arrived_s, now_s))
        self._next += 1
        if self._next < len(self._script.writes):
            left_s = self._begun_s + self._next * self._script.pace_s - perf_counter()
            self._loop.call_later(max(0.0, left_s), self.write_next)

    def _tell(self, request: bytes) -> None:
        body = _MODELS
        if request.startswith(b"GET /times "):
            body = json.dumps(self._times).encode()
            self._times.clear()
        assert self._transport is not None
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def serve(script: Script, port: int) -> None:
    """Serves on loopback and says where, until the process is ended."""
    loop = asyncio.get_running_loop()
    times: list[tuple[int, float, float]] = []
    server = await loop.create_server(lambda: Connection(script, times), "127.0.0.1", port, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--pace-ms", type=float, default=10.0, help="0: the whole answer at once")
    parser.add_argument("--tokens", type=int, default=8)
    given = parser.parse_args()
    script = Script(given.delay_ms / 1e3, given.pace_ms / 1e3, given.tokens)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(script, given.port))
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
