"""A load generator on raw sockets that costs little and believes nothing: each answer is checked to be whole and right.

One connection has one request in flight and asks again the moment it is answered, without a task or a future a
request. Times are read with `perf_counter`. A stream's text is checked piece by piece after its time is taken.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

import msgspec

from upstream import ANSWER_TEXT, ANSWER_TOKENS, FIRST_PIECE, piece

_NUMBER = "00000000"
_QUESTION = "Summarise the minutes of the meeting in three lines."  # what a guard lets pass
_SYSTEM = (
    "You are the assistant of a small team. Answer briefly and in the language of the question. "
    "When you are not sure, say so, and name what would settle it. Never invent a figure. "
    "日本語の質問には日本語で答えてください。"
)
_CONTENT = re.compile(rb'"content":\s*"([^"]*)"')
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


_ANSWER = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True)
class Target:
    """Where to ask, and with which key. `model` is the name the target knows."""

    port: int
    key: str
    model: str = "bench"

    def request(self, order: str, **fields: object) -> bytes:
        """One HTTP request; `order` is what the canned upstream shall do (see `upstream`)."""
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": order}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": 512, **fields}, ensure_ascii=False)
        return self._post(body.encode())

    def _post(self, body: bytes) -> bytes:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\naccept: */*\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Cell:
    """What is asked: `in_flight` connections, until `requests` are answered or `duration_s` is over.

    `chunks` > 0 asks for streams of so many content chunks, one every `interval_ms`. The connections' first requests
    are spread over `spread_s`, so that paced streams are in every phase of their life.
    """

    name: str
    in_flight: int
    requests: int | None = None
    duration_s: float | None = None
    chunks: int = 0
    interval_ms: int = 0
    prefill_ms: int = 0
    spread_s: float = 0.0
    timeout_s: float = 120.0


@dataclass
class Result:
    """What came back. The window ends with the last wanted answer or at `duration_s`; later answers only count as
    checked. `cpu_s` is what the `cpu_s` callback gained in the window."""

    latencies_ms: list[float] = field(default_factory=list)
    first_chunks_ms: list[float] = field(default_factory=list)
    answers: int = 0
    chunks: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)


async def run(target: Target, cell: Cell, cpu_s: Callable[[], float]) -> Result:
    """Runs one cell. Never raises for a wrong answer: that is a line in `failures`."""
    crowd = _Crowd(target, cell, cpu_s)
    await crowd.run()
    return crowd.result


class _Crowd:
    """All connections of one cell and their common account."""

    def __init__(self, target: Target, cell: Cell, cpu_s: Callable[[], float]) -> None:
        self.target = target
        self.cell = cell
        self.result = Result()
        self.expected = b"".join(piece(i).encode() for i in range(cell.chunks))
        order = f"stream {cell.chunks} chunks every {cell.interval_ms} ms" if cell.chunks else "whole"
        if cell.prefill_ms:
            order = f"whole after {cell.prefill_ms} ms"
        options = {"stream": True, "stream_options": {"include_usage": True}} if cell.chunks else {}
        # Each request is another one: a guard that remembers what it judged must not save its work.
        self._before, _, self._behind = target.request(f"{_QUESTION} {order} ({_NUMBER})", **options).partition(
            _NUMBER.encode()
        )
        self._asked = 0
        self.loop = asyncio.get_running_loop()
        self._cpu_s = cpu_s
        self._cpu_start_s = 0.0
        self._started = 0.0
        self._wanted = cell.requests
        self._open = True
        self._alive = 0
        self._callers: set[_Caller] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()

    def request(self) -> bytes:
        """The next request's bytes."""
        self._asked += 1
        return b"%b%08d%b" % (self._before, self._asked, self._behind)

    async def run(self) -> None:
        count = self.cell.in_flight
        callers = [(_StreamCaller if self.cell.chunks else _WholeCaller)(self) for _ in range(count)]
        for caller in callers:
            await self._connect(caller)
        self._cpu_start_s = self._cpu_s()
        self._started = perf_counter()
        for index, caller in enumerate(callers):
            self.loop.call_later(self.cell.spread_s * index / count, caller.ask)
        if self.cell.duration_s is not None:
            self.loop.call_later(self.cell.duration_s, self._close_window)
        try:
            await asyncio.wait_for(self._done.wait(), self.cell.timeout_s)
        except TimeoutError:
            self.fail(f"{self._alive} requests without an answer after {self.cell.timeout_s} s")
            self._close_window()
        for caller in list(self._callers):
            caller.hang_up()

    async def _connect(self, caller: "_Caller") -> None:
        await self.loop.create_connection(lambda: caller, "127.0.0.1", self.target.port)

    def join(self, caller: "_Caller") -> None:
        self._callers.add(caller)

    def leave(self, caller: "_Caller") -> None:
        """A server may close between two requests; the caller dials again, as real clients do."""
        self._callers.discard(caller)
        if self._open:
            task = self.loop.create_task(self._redial(caller))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _redial(self, caller: "_Caller") -> None:
        try:
            await self._connect(caller)
        except OSError as error:
            self.fail(f"cannot connect again: {error}")
            self._check_done()
        else:
            caller.ask()

    def allow(self) -> bool:
        """May one more request be sent?"""
        if not self._open or (self._wanted is not None and self._wanted <= 0):
            return False
        if self._wanted is not None:
            self._wanted -= 1
        self._alive += 1
        return True

    def answered(self, seconds: float, chunks: int, failure: str | None) -> None:
        self._alive -= 1
        if failure is not None:
            self.fail(failure)
        elif self._open:
            self.result.latencies_ms.append(seconds * 1000)
            self.result.answers += 1
            self.result.chunks += chunks
        if self._wanted == 0 and self._alive == 0:
            self._close_window()
        self._check_done()

    def _check_done(self) -> None:
        if not self._open and self._alive == 0:
            self._done.set()

    def fail(self, reason: str) -> None:
        self.result.failures.append(reason)
        if len(self.result.failures) >= 200:
            self._close_window()  # nothing works: do not hammer on
            self._alive = 0

    def _close_window(self) -> None:
        if not self._open:
            return
        self._open = False
        self.result.elapsed_s = perf_counter() - self._started
        self.result.cpu_s = self._cpu_s() - self._cpu_start_s
        self.result.chunks += sum(caller.chunks_so_far() for caller in self._callers)
        self._check_done()


class _Caller(asyncio.Protocol):
    """One connection: asks, waits for the whole answer, checks it, asks again."""

    def __init__(self, crowd: _Crowd) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._asked = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape, not by class
        self._crowd.join(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._waiting:
            self._finish(f"connection lost in mid-answer: {error or 'closed'}; {bytes(self._buffer[-200:])!r}")
        self._crowd.leave(self)

    def hang_up(self) -> None:
        self._waiting = False
        if self._transport is not None:
            self._transport.close()

    def ask(self) -> None:
        if self._transport is None or self._waiting or not self._crowd.allow():
            return
        self._buffer.clear()
        self._waiting = True
        self._asked = perf_counter()
        self._transport.write(self._crowd.request())

    def chunks_so_far(self) -> int:
        return 0

    def _finish(self, failure: str | None, ended: float = 0.0, chunks: int = 0) -> None:
        self._waiting = False
        self._crowd.answered(ended - self._asked, chunks, failure)
        self.ask()


class _WholeCaller(_Caller):
    """Answers with a content length or in one chunked body."""

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(buffer, 0, head_end)
        if length is not None:
            if len(buffer) < head_end + 4 + int(length[1]):
                return
            body = bytes(buffer[head_end + 4 :])
        elif buffer.endswith(b"\r\n0\r\n\r\n"):
            body = dechunk(bytes(buffer[head_end + 4 :]))
        else:
            return
        ended = perf_counter()
        self._finish(self._check(body), ended)

    def _check(self, body: bytes) -> str | None:
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            return f"not a 200: {bytes(self._buffer[:400])!r}"
        try:
            answer = _ANSWER.decode(body)
        except msgspec.DecodeError as error:
            return f"not an answer ({error}): {body[:400]!r}"
        if answer.choices[0].message.content != ANSWER_TEXT or answer.usage.completion_tokens != ANSWER_TOKENS:
            return f"a wrong answer: {body[:400]!r}"
        return None


class _StreamCaller(_Caller):
    """Server-sent events in chunked transfer coding."""

    _seen_first = False

    def ask(self) -> None:
        self._seen_first = False
        super().ask()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._seen_first and FIRST_PIECE.encode() in buffer:
            self._seen_first = True
            self._crowd.result.first_chunks_ms.append((perf_counter() - self._asked) * 1000)
        if buffer.endswith(b"\r\n0\r\n\r\n") or not buffer.startswith(b"HTTP/1.1 200"):
            ended = perf_counter()
            self._finish(self._check(), ended, self._crowd.cell.chunks)

    def chunks_so_far(self) -> int:
        """Content chunks of an unfinished stream; those of finished ones are in the account."""
        return self._buffer.count(b" tok") if self._waiting else 0

    def _check(self) -> str | None:
        buffer = bytes(self._buffer)
        if not buffer.startswith(b"HTTP/1.1 200"):
            return f"not a 200: {buffer[:400]!r}"
        body = dechunk(buffer[buffer.find(b"\r\n\r\n") + 4 :])
        if b"".join(_CONTENT.findall(body)) != self._crowd.expected:
            return f"a wrong or incomplete text: …{body[-400:]!r}"
        if b"data: [DONE]" not in body[-40:]:
            return f"no [DONE]: …{body[-400:]!r}"
        if not re.search(rb'"completion_tokens":\s*%d\b' % self._crowd.cell.chunks, body[-2000:]):
            return f"no usage: …{body[-800:]!r}"
        return None


def dechunk(body: bytes) -> bytes:
    """Undoes HTTP/1.1 chunked transfer coding of a complete body."""
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2
