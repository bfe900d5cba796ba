"""A canned chat engine, cheap enough not to be what a gateway benchmark measures.

Answers `POST /v1/chat/completions`. The last user message says how: `whole` (one JSON answer with usage), `whole after
N ms`, or `stream N chunks every M ms` (M = 0: one chunk a loop turn, as fast as the reader takes them). The order
travels in the message because that is the one field every proxy hands on unchanged.
"""

import argparse
import asyncio
import re
import sys
from functools import cache
from typing import cast

import uvloop

ANSWER_TEXT = "The gate stands on the old road; who passes is asked for a name, and the name is written down."
PROMPT_TOKENS = 57
ANSWER_TOKENS = 23
FIRST_PIECE = " tok0000"

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_ORDER = re.compile(rb"stream (\d+) chunks every (\d+) ms")
_PREFILL = re.compile(rb"whole after (\d+) ms")
_WHOLE_BODY = (
    '{"id":"chatcmpl-bench","object":"chat.completion","created":1790000000,"model":"bench","choices":[{"index":0,'
    f'"message":{{"role":"assistant","content":"{ANSWER_TEXT}"}},"finish_reason":"stop"}}],'
    f'"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{ANSWER_TOKENS},'
    f'"total_tokens":{PROMPT_TOKENS + ANSWER_TOKENS}}}}}'
).encode()
_MODELS_BODY = b'{"object":"list","data":[{"id":"bench","object":"model","created":1790000000,"owned_by":"bench"}]}'


def piece(index: int) -> str:
    """The text of content chunk `index`: numbered, so that a lost or doubled chunk is seen."""
    return f" tok{index:04d}"


def _answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


WHOLE = _answer("200 OK", _WHOLE_BODY)
MODELS = _answer("200 OK", _MODELS_BODY)
NO_LENGTH = _answer("411 Length Required", b'{"error":{"message":"send a content-length"}}')
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _frame(delta: str, finish: str, usage: str = "", choices: bool = True) -> bytes:
    choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}' if choices else ""
    event = (
        'data: {"id":"chatcmpl-bench0123456789abcdef0123","object":"chat.completion.chunk","created":1790000000,'
        f'"model":"bench","system_fingerprint":"fp_bench","choices":[{choice}]{usage}}}\n\n'
    ).encode()
    return _chunked(event)


def _chunked(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


@cache
def frames(chunks: int) -> tuple[bytes, ...]:
    """The writes of one stream. The role chunk goes out with the first content chunk, as engines do after prefill."""
    contents = [_frame(f'{{"content":"{piece(i)}"}}', "null") for i in range(chunks)]
    usage = (
        f',"usage":{{"prompt_tokens":{PROMPT_TOKENS},"completion_tokens":{chunks},'
        f'"total_tokens":{PROMPT_TOKENS + chunks}}}'
    )
    first = STREAM_HEAD + _frame('{"role":"assistant","content":""}', "null") + contents[0]
    last = _frame("{}", '"stop"') + _frame("{}", "null", usage, choices=False) + _chunked(b"data: [DONE]\n\n")
    return (first, *contents[1:], last + b"0\r\n\r\n")


class Upstream(asyncio.Protocol):
    """One connection, keep-alive. A stream stops when its reader goes away and waits when its reader is slow."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._writes: tuple[bytes, ...] = ()
        self._next = 0
        self._interval_s = 0.0
        self._started = 0.0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape, not by class

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._writes and not self._interval_s:
            self._loop.call_soon(self._step)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while buffer:
            head_end = buffer.find(b"\r\n\r\n")
            if head_end < 0:
                break
            length = _LENGTH.search(buffer, 0, head_end)
            if length is None and buffer.startswith(b"POST"):
                self._write(NO_LENGTH)
                buffer = b""
                break
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(buffer) < end:
                break
            self._serve(buffer[:end])
            buffer = buffer[end:]
        self._buffer = buffer

    def _serve(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            self._write(MODELS)
            return
        order = _ORDER.search(request)
        if order is None:
            prefill = _PREFILL.search(request)
            if prefill is None:
                self._write(WHOLE)
            else:
                self._loop.call_later(int(prefill[1]) / 1000, self._write, WHOLE)
            return
        self._writes = frames(int(order[1]))
        self._interval_s = int(order[2]) / 1000
        self._next = 0
        self._started = self._loop.time()
        self._step()

    def _step(self) -> None:
        if self._transport is None or self._next >= len(self._writes) or (self._paused and not self._interval_s):
            return
        self._write(self._writes[self._next])
        self._next += 1
        if self._next == len(self._writes):
            self._writes = ()
        elif self._interval_s:
            self._loop.call_at(self._started + self._next * self._interval_s, self._step)
        else:
            self._loop.call_soon(self._step)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int) -> None:
    """Serves on loopback until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(loop), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve(arguments.port))
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
