"""A real HTTP server that speaks as an OpenAI-compatible engine does, and misbehaves when told to.

`python -m sekisho.engines.fake_server --port N [--key K] [--context WORDS]`; port 0 takes a free one; the address is
the first line of its output. The directives of `fake` stand in the prompt or in the query string (`?split=1`).
`GET /fake/stats` counts requests, those running now, and clients that left early. It knows nothing of our codecs, so
that a mistake there cannot cancel itself out; and it is fast enough to be a benchmark's upstream.
"""

import argparse
import asyncio
import socket
import struct
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import parse_qsl

import msgspec

from sekisho.engines import lifeline
from sekisho.engines.fake import Script, embedding, read_script

_encode = msgspec.json.encode
_LINGER_NONE = struct.pack("ii", 1, 0)  # close sends a reset
Json = dict[str, Any]


class HttpError(Exception):
    """Answered in OpenAI's shape."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": status, **more}}


class Stats(msgspec.Struct):
    requests: int = 0
    active: int = 0
    disconnects: int = 0
    connections: int = 0


class Settings(msgspec.Struct, frozen=True):
    model: str = "fake"
    key: str | None = None
    context: int = 4096


class Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    query: dict[str, str]
    authorization: str
    body: bytes


class Answer:
    """One generation: what is said and how it is written."""

    def __init__(self, request: Request, settings: Settings) -> None:
        try:
            body = msgspec.json.decode(request.body)
        except msgspec.DecodeError as error:
            raise HttpError(400, str(error)) from None
        if not isinstance(body, dict):
            raise HttpError(400, "the body is not an object")
        self.chat = request.path.endswith("/chat/completions")
        self.body: Json = body
        self.stream = bool(body.get("stream"))
        self.model = str(body.get("model") or settings.model)
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + "fake"
        added = "".join(f" {name}:{value}" for name, value in request.query.items())
        self.scripts = [self._script(text + added) for text in self._prompts() for _ in range(int(body.get("n") or 1))]
        self.input_tokens = self._count()
        if self.input_tokens > settings.context:
            raise HttpError(
                400,
                f"request ({self.input_tokens} tokens) exceeds the available context size ({settings.context} tokens)",
                "exceed_context_size_error",
                n_prompt_tokens=self.input_tokens,
                n_ctx=settings.context,
            )

    @property
    def script(self) -> Script:
        """The one that says how to behave."""
        return self.scripts[0]

    def _prompts(self) -> list[str]:
        if self.chat:
            messages = self.body.get("messages")
            if not isinstance(messages, list) or not messages:
                raise HttpError(400, "'messages' is required")
            return [_text(messages[-1])]
        prompt = self.body.get("prompt", "")
        many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return [_prompt_text(one) for one in (prompt if many else [prompt])]

    def _script(self, text: str) -> Script:
        body = self.body
        stop = body.get("stop") or []
        names = [tool["function"]["name"] for tool in body.get("tools") or [] if tool.get("type") == "function"]
        return read_script(
            text,
            tool_names=[] if body.get("tool_choice") == "none" else names,
            from_user=not self.chat or body["messages"][-1].get("role") != "tool",
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=[stop] if isinstance(stop, str) else stop,
        )

    def _count(self) -> int:
        if not self.chat:
            return sum(len(text.split()) for text in self._prompts())
        total = 0
        for message in self.body["messages"]:
            total += len(_text(message).split()) + len((message.get("reasoning_content") or "").split())
            total += sum(len(call["function"]["arguments"].split()) for call in message.get("tool_calls") or ())
        return total

    def usage(self) -> Json:
        said = sum(script.output_tokens for script in self.scripts)
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": said,
            "total_tokens": self.input_tokens + said,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": sum(bool(script.reason) for script in self.scripts)},
        }

    def _head(self, kind: str) -> Json:
        name = f"chat.completion{kind}" if self.chat else "text_completion"
        return {"id": self.id, "object": name, "created": int(time.time()), "model": self.model}

    def whole(self) -> bytes:
        choices = []
        for index, script in enumerate(self.scripts):
            choice: Json = {"index": index, "finish_reason": script.finish, "logprobs": None}
            if self.chat:
                choice["message"] = self._message(script)
            else:
                choice["text"] = "".join(script.pieces)
            choices.append(choice)
        return _encode({**self._head(""), "choices": choices, "usage": self.usage()})

    def _message(self, script: Script) -> Json:
        message: Json = {"role": "assistant", "content": "".join(script.pieces) or None}
        if script.reason:
            message["reasoning_content"] = script.reason
        if script.calls:
            message["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for i, c in enumerate(script.calls)
            ]
        return message

    def frames(self) -> Iterator[tuple[bool, bytes]]:
        """SSE frames; True marks one that counts as a piece."""
        eol = b"\r\n" if self.script.crlf else b"\n"
        comment = b": still here" + eol + eol if self.script.comments else b""
        head = self._head(".chunk")

        def frame(choices: list[Json], **more: Any) -> bytes:
            return comment + b"data: " + _encode({**head, "choices": choices, **more}) + eol + eol

        def part(index: int, delta: Json | str, finish: str | None = None) -> bytes:
            said = {"delta": delta} if self.chat else {"text": delta}
            return frame([{"index": index, **said, "finish_reason": finish}])

        for index, script in enumerate(self.scripts):
            if self.chat:
                yield False, part(index, {"role": "assistant", "content": None})
                if script.reason:
                    yield True, part(index, {"reasoning_content": script.reason})
                for piece in script.pieces:
                    yield True, part(index, {"content": piece})
                for number, call in enumerate(script.calls):
                    first, rest = call.arguments[: len(call.arguments) // 2], call.arguments[len(call.arguments) // 2 :]
                    named = {"id": f"call_{number}", "type": "function"}
                    begun = {"index": number, **named, "function": {"name": call.name, "arguments": first}}
                    yield True, part(index, {"tool_calls": [begun]})
                    yield False, part(index, {"tool_calls": [{"index": number, "function": {"arguments": rest}}]})
            else:
                for piece in script.pieces:
                    yield True, part(index, piece)
            yield False, part(index, {} if self.chat else "", script.finish)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield False, frame([], usage=self.usage())
        if self.script.done:
            yield False, b"data: [DONE]" + eol + eol


def _text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def embeddings(body: Json, model: str) -> bytes:
    given = body.get("input", "")
    many = isinstance(given, list) and given and not isinstance(given[0], int)
    texts = [_prompt_text(one) for one in (given if many else [given])]
    data = []
    for index, text in enumerate(texts):
        vector: Any = embedding(text, int(body.get("dimensions") or 16))
        if body.get("encoding_format") == "base64":
            vector = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return _encode({"object": "list", "data": data, "model": body.get("model") or model, "usage": usage})


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
            self._send(200, embeddings(msgspec.json.decode(request.body), settings.model))
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
