"""Good answers in both APIs, and the many ways in which a server may send them.

Nothing of the codecs of the house is used, so that a mistake there cannot cancel itself out.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

MODEL = "sincere"
PIECES = ("Kyo", "to is", " a city: ", "京都", "。")
TEXT = "".join(PIECES)
USAGE = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
RESPONSES_USAGE = {"input_tokens": 9, "output_tokens": 8, "total_tokens": 17}
ERROR = {"error": {"message": "the model fell over", "type": "server_error", "code": "oom"}}
DONE = "[DONE]"
Json = dict[str, Any]
Event = Json | str | bytes


class Talk:
    """One request and the means to answer it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: bytes,
        body: bytes,
        number: int,
        hurry: Callable[[], None] = lambda: None,
    ) -> None:
        self.reader, self.writer, self.number, self._hurry = reader, writer, number, hurry
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = line.split(" ", 2)
        self.headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        self.body: Json = json.loads(body) if body else {}
        self.api = "responses" if self.path.endswith("/responses") else "chat"
        self.stream = bool(self.body.get("stream"))
        self.is_list = self.path.endswith("/models")

    # --- what a good server says ---

    def content(self) -> bytes:
        """The body of a good answer, as one piece."""
        if self.is_list:
            return dumped({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        return framed(self.events()) if self.stream else dumped(self.whole())

    def whole(self) -> Json:
        return chat_whole() if self.api == "chat" else responses_whole()

    def events(self) -> list[Event]:
        return chat_events() if self.api == "chat" else responses_events()

    # --- and how it is sent ---

    async def send(
        self, body: bytes | None = None, status: str = "200 OK", kind: str | None = None, headers: Iterable[str] = ()
    ) -> None:
        """With a length."""
        body = self.content() if body is None else body
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind or self.kind()}", *headers, f"Content-Length: {len(body)}"]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def chunks(self, parts: Iterable[bytes], *, end: bytes = b"0\r\n\r\n", extension: bytes = b"") -> None:
        await self.raw(self.chunked_head())
        for part in parts:
            await self.raw(b"%x%b\r\n%b\r\n" % (len(part), extension, part))
        await self.raw(end)

    def chunked_head(self) -> bytes:
        return f"HTTP/1.1 200 OK\r\nContent-Type: {self.kind()}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    def kind(self) -> str:
        return "text/event-stream" if self.stream else "application/json"

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hurry(self) -> None:
        """Lets the client's clock run fast, once the client has taken what was sent."""
        for _ in range(4):
            await asyncio.sleep(0)
        self._hurry()

    def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Way = Callable[[Talk], Awaitable[None]]


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def framed(events: Iterable[Event], eol: str = "\n") -> bytes:
    return b"".join(frame(event, eol) for event in events)


def frame(event: Event, eol: str = "\n") -> bytes:
    data = event if isinstance(event, bytes) else event.encode() if isinstance(event, str) else dumped(event)
    end = eol.encode()
    return b"data: " + data + end + end


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> Json:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": MODEL, "choices": choices, **more}


def chat_events() -> list[Event]:
    return [
        chunk({"role": "assistant", "content": None}),
        *(chunk({"content": piece}) for piece in PIECES),
        chunk({}, "stop"),
        chunk(usage=USAGE),
        DONE,
    ]


def chat_whole() -> Json:
    message = {"role": "assistant", "content": TEXT}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": MODEL, "choices": choices, "usage": USAGE}


def responses_whole(status: str = "completed") -> Json:
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    output = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}]
    told = {"output": output, "usage": RESPONSES_USAGE} if status == "completed" else {"output": [], "usage": None}
    return {"id": "resp_1", "object": "response", "model": MODEL, "status": status, "error": None, **told}


def responses_events() -> list[Event]:
    events: list[Json] = [
        {"type": "response.created", "response": responses_whole("in_progress")},
        {"type": "response.in_progress", "response": responses_whole("in_progress")},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "msg_1"}},
        *({"type": "response.output_text.delta", "item_id": "msg_1", "delta": piece} for piece in PIECES),
        {"type": "response.output_text.done", "item_id": "msg_1", "text": TEXT},
        {"type": "response.output_item.done", "output_index": 0, "item": responses_whole()["output"][0]},
        {"type": "response.completed", "response": responses_whole()},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


# --- good ways ---


async def honest(talk: Talk) -> None:
    await talk.send()


async def bytewise(talk: Talk) -> None:
    body = talk.content()
    await talk.chunks(body[place : place + 1] for place in range(len(body)))


async def slow_head(talk: Talk) -> None:
    """A head in single bytes, quickly enough."""
    body = talk.content()
    for byte in f"HTTP/1.1 200 OK\r\nContent-Type: {talk.kind()}\r\nContent-Length: {len(body)}\r\n\r\n".encode():
        await talk.raw(bytes([byte]))
        await asyncio.sleep(0)
    await talk.raw(body)


async def line_ends(talk: Talk, eol: str) -> None:
    body = framed(talk.events(), eol) if talk.stream else talk.content()
    half = body.find(b"\r") + 1
    await talk.chunks([body[:half], body[half:]] if half else [body])


async def with_mark(talk: Talk) -> None:
    mark = b"\xef\xbb\xbf" if talk.stream else b""
    await talk.send(mark + talk.content())


async def with_comments(talk: Talk) -> None:
    if not talk.stream:
        await talk.send()
        return
    frames = [b": still here\n\nevent: message\nid: 7\nretry: 100\n" + frame(event) for event in talk.events()]
    await talk.chunks([b":\n\n", *frames, b": bye\n\n"])


async def in_many_lines(talk: Talk) -> None:
    """Data over several lines, without the space that may follow the colon."""
    if not talk.stream:
        await talk.send(json.dumps(talk.whole() if not talk.is_list else json.loads(talk.content()), indent=2).encode())
        return
    frames = []
    for event in talk.events():
        lines = [event] if isinstance(event, str) else json.dumps(event, indent=1).split("\n")
        frames.append(b"".join(b"data:" + line.encode() + b"\n" for line in lines) + b"\n")
    await talk.chunks(frames)


async def http_1_0(talk: Talk) -> None:
    await talk.raw(f"HTTP/1.0 200 OK\r\nContent-Type: {talk.kind()}\r\n\r\n".encode() + talk.content())
    talk.close()


async def until_closed(talk: Talk) -> None:
    await talk.raw(f"HTTP/1.1 200 OK\r\nContent-Type: {talk.kind()}\r\nConnection: close\r\n\r\n".encode())
    body = talk.content()
    for start in range(0, len(body), 40):
        await talk.raw(body[start : start + 40])
    talk.close()


async def with_trailers(talk: Talk) -> None:
    body = talk.content()
    end = b"0\r\nX-Checksum: 1\r\nX-Content-Length: 3\r\n\r\n"
    await talk.chunks([body[:7], body[7:]], end=end, extension=b";note=1")


async def after_provisional(talk: Talk) -> None:
    await talk.raw(b"HTTP/1.1 100 Continue\r\n\r\n")
    await asyncio.sleep(0.05)
    await talk.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nContent-Type: text/plain\r\n\r\n")
    await talk.send()


async def closed_after_each(talk: Talk) -> None:
    """The connection is kept by its words and closed at once: the next request may meet it still open."""
    await talk.send()
    talk.close()


async def with_strangers(talk: Talk) -> None:
    """Fields and events that came after this client was written, and the name with its folder."""
    if not talk.stream:
        whole = talk.whole() if not talk.is_list else json.loads(talk.content())
        await talk.send(dumped({**whole, "model": f"models/{MODEL.upper()}", "x_timing": [1, None]}))
        return
    odd: Json = {"type": "keepalive"} if talk.api == "responses" else chunk(x_progress=0.5)
    events = [event for known in talk.events() for event in (odd, known) if known != DONE or event == DONE]
    numbered = [{**e, "sequence_number": n} if isinstance(e, dict) and "type" in e else e for n, e in enumerate(events)]
    if talk.api == "responses":
        numbered.append(DONE)  # some servers end these streams so as well
    await talk.chunks([framed(numbered)])


async def big_pieces(talk: Talk) -> None:
    """All events in one piece."""
    await talk.chunks([talk.content()])


async def thinking_first(talk: Talk) -> None:
    """Reasoning that is shown and counted."""
    if talk.is_list:
        await talk.send()
    elif talk.api == "chat" and talk.stream:
        first, *rest = talk.events()
        await talk.chunks([framed([first, chunk({"reasoning_content": "hm"}), *rest])])
    elif talk.api == "chat":
        whole = talk.whole()
        whole["choices"][0]["message"]["reasoning_content"] = "hm"
        await talk.send(dumped(whole))
    elif talk.stream:
        created, *rest = responses_events()
        thought = {"type": "response.reasoning_text.delta", "delta": "hm"}
        events = [e for e in (created, thought, *rest) if isinstance(e, dict)]
        await talk.chunks([framed({**event, "sequence_number": number} for number, event in enumerate(events))])
    else:
        whole = responses_whole()
        whole["output"].insert(0, {"type": "reasoning", "summary": []})
        await talk.send(dumped(whole))


def varied(talk: Talk, chat: Callable[[Json], Json]) -> bytes:
    """A good answer whose events and whole are changed where they are of chat completions."""
    if talk.is_list or talk.api != "chat":
        return talk.content()
    if talk.stream:
        return framed(chat(event) if isinstance(event, dict) else event for event in talk.events())
    return dumped(chat(talk.whole()))


async def dated_model(talk: Talk) -> None:
    """The answer names the version that an alias stands for."""
    await talk.chunks([varied(talk, lambda e: {**e, "model": f"{MODEL}-2024-08-06"})])


async def thinking_in_the_total(talk: Talk) -> None:
    """Thinking that is not shown is in the total alone."""
    usage = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 400}
    await talk.chunks([varied(talk, lambda e: {**e, "usage": usage} if "usage" in e else e)])


async def usage_alone(talk: Talk) -> None:
    """The event with the usage has no choices at all."""
    without = ("id", "object", "model", "usage")
    await talk.chunks(
        [varied(talk, lambda e: e if e["choices"] or not talk.stream else {key: e[key] for key in without})]
    )


async def content_in_parts(talk: Talk) -> None:
    """Content is a list of parts of text."""

    def parted(said: Json) -> Json:
        text = said.get("content")
        return {**said, "content": [{"type": "text", "text": text}]} if text else said

    def change(event: Json) -> Json:
        name = "delta" if talk.stream else "message"
        return {**event, "choices": [{**choice, name: parted(choice[name])} for choice in event["choices"]]}

    await talk.chunks([varied(talk, change)])


async def last_line_end_missing(talk: Talk) -> None:
    """[DONE] is followed by one line end instead of two."""
    body = talk.content()
    await talk.send(body[:-1] if talk.stream and talk.api == "chat" else body)


async def no_kind_but_a_comment(talk: Talk) -> None:
    """A stream that does not say that it is one, and begins with a comment."""
    await talk.send(b": ping\n\n" + talk.content() if talk.stream else None, kind="application/octet-stream")


async def summary_first(talk: Talk) -> None:
    """A summary of the thinking, which is counted apart and not shown."""
    usage = {**RESPONSES_USAGE, "output_tokens_details": {"reasoning_tokens": 1}}
    item: Json = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking of cities. " * 40}]}
    if talk.is_list or talk.api == "chat":
        await talk.send()
        return
    whole = {**responses_whole(), "usage": usage}
    whole["output"] = [item, *whole["output"]]
    if not talk.stream:
        await talk.send(dumped(whole))
        return
    created, *rest, end = (event for event in responses_events() if isinstance(event, dict))
    summary = {"type": "response.reasoning_summary_text.delta", "delta": "Thinking of cities. "}
    events = [created, *[summary] * 40, *rest, {**end, "response": whole}]
    await talk.chunks([framed({**event, "sequence_number": number} for number, event in enumerate(events))])


async def reasoning_item(talk: Talk) -> None:
    """A whole answer shows its reasoning as an item, and counts it with the rest."""
    if talk.is_list or talk.api == "chat" or talk.stream:
        await talk.send()
        return
    whole = responses_whole()
    whole["output"].insert(0, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]})
    await talk.send(dumped(whole))


GOOD: dict[str, Way] = {
    "honest": honest,
    "bytewise": bytewise,
    "slow_head": slow_head,
    "crlf": lambda talk: line_ends(talk, "\r\n"),
    "cr": lambda talk: line_ends(talk, "\r"),
    "byte_order_mark": with_mark,
    "comments": with_comments,
    "many_lines": in_many_lines,
    "http_1_0": http_1_0,
    "until_closed": until_closed,
    "trailers": with_trailers,
    "after_provisional": after_provisional,
    "closed_after_each": closed_after_each,
    "strangers": with_strangers,
    "big_pieces": big_pieces,
    "thinking_first": thinking_first,
    "dated_model": dated_model,
    "thinking_in_the_total": thinking_in_the_total,
    "usage_alone": usage_alone,
    "content_in_parts": content_in_parts,
    "last_line_end_missing": last_line_end_missing,
    "no_kind_but_a_comment": no_kind_but_a_comment,
    "summary_first": summary_first,
    "reasoning_item": reasoning_item,
}
