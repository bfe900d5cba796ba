"""Answers that lie or break, each with the name that the client must have for it."""

import asyncio
import gzip
from collections.abc import Callable
from typing import Any, NamedTuple

from good_answers import (
    DONE,
    ERROR,
    MODEL,
    RESPONSES_USAGE,
    USAGE,
    Event,
    Json,
    Talk,
    Way,
    chat_whole,
    chunk,
    dumped,
    framed,
    responses_whole,
)

from sekisho.evaluate.client.exchange import Limits

PATIENCE_S = 3600.0  # longer than any client of a test waits
NEVER_S = 1e9
PATIENT = Limits(connect_s=10.0, silence_s=20.0, total_s=40.0, max_bytes=1 << 20)
"""For answers that end by themselves: a busy machine does not make them time out."""


class Lie(NamedTuple):
    """`fault`: what the client must call it. `apis`, `streams`: where it can be told."""

    fault: str
    way: Way
    apis: tuple[str, ...] = ("chat", "responses")
    streams: tuple[bool, ...] = (True, False)


LIES: dict[str, Lie] = {}


def limits_for(way: str) -> Limits:
    """Where a lie is told by waiting, the one that it must meet: 20 s, on a clock that is hurried from then on."""
    fault = LIES[way].fault if way in LIES else ""
    if fault == "trickled":
        return Limits(silence_s=NEVER_S, total_s=20.0)
    return Limits(silence_s=20.0, total_s=NEVER_S) if fault in ("no_answer", "silent") else PATIENT


def lie(fault: str, **where: Any) -> Callable[[Way], Way]:
    def keep(way: Way) -> Way:
        LIES[way.__name__] = Lie(fault, way, **where)
        return way

    return keep


def said(fault: str, name: str, body: bytes, status: str = "200 OK", kind: str = "application/json") -> None:
    async def way(talk: Talk) -> None:
        await talk.send(body, status, kind)

    LIES[name] = Lie(fault, way)


PAGE = b"<!doctype html><html><body><h1>Welcome to the proxy</h1></body></html>"
said("empty_body", "empty_200", b"")
said("empty_body", "blank_200", b" \r\n\r\n")
said("bad_json", "html_page", PAGE, kind="text/html")
said("bad_json", "half_json", b'{"id": "chatcmpl-1", "choices": [')
said("bad_json", "not_an_object", b'["Kyoto"]')
said("bad_json", "no_answer_inside", b'{"ok": true}')
said("bad_utf8", "not_utf8", b'{"model": "caf\xe9"}')
said("error_in_2xx", "error_as_success", dumped(ERROR))
said("error_in_2xx", "error_as_created", dumped({"error": "no such user"}), "201 Created")
said("unauthorized", "status_401", dumped(ERROR), "401 Unauthorized")
said("forbidden", "status_403", PAGE, "403 Forbidden", "text/html")
said("not_found", "status_404", dumped(ERROR), "404 Not Found")
said("not_found", "status_405", b"", "405 Method Not Allowed")
said("rate_limited", "status_429", dumped(ERROR), "429 Too Many Requests")
said("client_error", "status_400", dumped(ERROR), "400 Bad Request")
said("server_error", "status_500", b"oops", "500 Internal Server Error")
said("server_error", "status_501", dumped(ERROR), "501 Not Implemented")
said("server_error", "status_503", b"", "503 Service Unavailable")
said("redirect", "elsewhere", b"", "302 Found")
said("not_a_stream", "one_piece", dumped(chat_whole()))
LIES["one_piece"] = LIES["one_piece"]._replace(apis=("chat",), streams=(True,))
LIES["no_answer_inside"] = LIES["no_answer_inside"]._replace(streams=(False,))


def changed(fault: str, name: str, *, stream: Any = None, whole: Any = None, apis: tuple[str, ...] = ("chat",)) -> None:
    """A good answer, changed by a function from events to events, or from the whole to another."""

    async def way(talk: Talk) -> None:
        if talk.stream:
            await talk.chunks([framed(stream(talk.events()))])
        else:
            await talk.send(dumped(whole(talk.whole())))

    LIES[name] = Lie(fault, way, apis, tuple(s for s, change in ((True, stream), (False, whole)) if change is not None))


def with_usage(usage: Json | None, api: str) -> dict[str, Any]:
    """The changes that put another usage into an answer."""

    def whole(answer: Json) -> Json:
        return {**answer, "usage": usage}

    def stream(events: list[Event]) -> list[Event]:
        if api == "chat":
            return [{**e, "usage": usage} if isinstance(e, dict) and "usage" in e else e for e in events]
        return [*events[:-1], {**events[-1], "response": whole(events[-1]["response"])}]  # type: ignore[dict-item, index]

    return {"stream": stream, "whole": whole, "apis": (api,)}


for api, names in (("chat", tuple(USAGE)), ("responses", tuple(RESPONSES_USAGE))):
    given, made, total = names
    good = {given: 9, made: 8, total: 17}
    changed("usage_missing", f"usage_missing_{api}", **with_usage(None, api))
    for word, usage in {
        # Only the limit tells how many there may be: an honest gateway may count thinking that it hides, so no text is
        # too short for its tokens. Within the limit, too many are not told from hidden thinking, and give no speed.
        "too_many": {given: 9, made: 4000, total: 4009},
        "beyond_limit": {given: 9, made: 33, total: 42},
        "none_made": {given: 9, made: 0, total: 9},
        "negative": {given: 9, made: -8, total: 1},
        "total": {**good, total: 16},
        "total_text": {**good, total: "17"},
        "text": {**good, made: "8"},
        "fraction": {**good, made: 8.5},
        "flag": {**good, made: True},
        "half": {made: 8},
        "empty": {},
    }.items():
        changed("usage_wrong", f"usage_{word}_{api}", **with_usage(usage, api))
    few = with_usage({given: 9, made: 4, total: 13}, api)
    changed("usage_wrong", f"usage_too_few_{api}", stream=few["stream"], apis=(api,))

changed(
    "wrong_model",
    "wrong_model_chat",
    stream=lambda events: [{**e, "model": "tiny"} if isinstance(e, dict) else e for e in events],
    whole=lambda answer: {**answer, "model": "not-" + MODEL},
)
changed("wrong_model", "wrong_model_responses", whole=lambda answer: {**answer, "model": "tiny"}, apis=("responses",))
changed("no_end", "no_finish", stream=lambda events: [*events[:6], DONE])
changed("no_end", "stops_short", stream=lambda events: events[:4], apis=("chat", "responses"))
changed("no_end", "nothing_but_done", stream=lambda events: [DONE], apis=("chat", "responses"))
changed("no_end", "no_completed", stream=lambda events: [*events[:-1], DONE], apis=("responses",))
changed("done_missing", "no_done", stream=lambda events: events[:-1])
changed("after_the_end", "done_twice", stream=lambda events: [*events, DONE])
changed("after_the_end", "more_after_done", stream=lambda events: [*events, chunk({"content": "!"})])
changed("after_the_end", "more_after_finish", stream=lambda e: [*e[:7], chunk({"content": "!"}), *e[7:]])
changed(
    "after_the_end",
    "more_after_completed",
    stream=lambda e: [*e, {"type": "response.output_text.delta", "delta": "!", "sequence_number": 99}],
    apis=("responses",),
)
changed("bad_order", "id_changes", stream=lambda e: [e[0], {**e[1], "id": "chatcmpl-2"}, *e[2:]])
changed("bad_order", "not_created", stream=lambda events: events[2:], apis=("responses",))
changed("bad_order", "sequence_back", stream=lambda e: [*e[:4], e[5], e[4], *e[6:]], apis=("responses",))
changed("bad_order", "sequence_twice", stream=lambda e: [*e[:4], e[3], *e[4:]], apis=("responses",))
changed(
    "bad_order",
    "another_text",
    stream=lambda e: [*e[:5], {**e[5], "delta": "Osaka"}, *e[6:]],
    apis=("responses",),
)
changed(
    "no_id",
    "no_id",
    stream=lambda events: [{**e, "response": {**e["response"], "id": ""}} if "response" in e else e for e in events],
    whole=lambda answer: {**answer, "id": None},
    apis=("responses",),
)
changed("error_in_stream", "error_in_chat", stream=lambda events: [*events[:4], ERROR, DONE])
changed("error_in_stream", "error_at_once", stream=lambda events: [ERROR], apis=("chat",))
changed(
    "error_in_stream",
    "error_event",
    stream=lambda e: [*e[:4], {"type": "error", "message": "fell over", "sequence_number": 50}],
    apis=("responses",),
)
changed(
    "error_in_stream",
    "failed_event",
    stream=lambda e: [
        *e[:4],
        {"type": "response.failed", "sequence_number": 50, "response": {**responses_whole("failed"), **ERROR}},
    ],
    apis=("responses",),
)
changed(
    "error_in_2xx",
    "failed_as_success",
    whole=lambda answer: responses_whole("failed"),
    apis=("responses",),
)
changed("bad_json", "broken_event", stream=lambda e: [*e[:3], b'{"choices": [', *e[3:]], apis=("chat", "responses"))
changed("bad_json", "list_event", stream=lambda e: [*e[:3], b"[1]", *e[3:]], apis=("chat", "responses"))
changed("bad_json", "no_choices", stream=lambda e: [*e[:3], {"id": "chatcmpl-1"}, *e[3:]])
changed("bad_json", "number_as_text", stream=lambda e: [*e[:3], chunk({"content": 7}), *e[3:]])
changed(
    "bad_json",
    "completed_without_response",
    stream=lambda e: [*e[:-1], {"type": "response.completed", "sequence_number": 90}],
    apis=("responses",),
)
changed(
    "bad_utf8",
    "broken_letters",
    stream=lambda e: [*e[:3], dumped(chunk({"content": "京"})).replace("京".encode(), b"\xe4\xba"), *e[3:]],
)
changed(
    "empty_answer",
    "no_text",
    stream=lambda e: [e[0], *e[-3:]],
    whole=lambda answer: {
        **answer,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "length"}],
    },
)
changed(
    "empty_answer",
    "no_output",
    stream=lambda e: [*e[:2], {**e[-1], "response": {**responses_whole(), "output": []}}],
    whole=lambda answer: {**answer, "output": []},
    apis=("responses",),
)
changed(
    "refused",
    "refusal",
    stream=lambda e: [chunk({"content": "No.", "refusal": "No."}), chunk({}, "content_filter"), DONE],
    whole=lambda answer: {
        **answer,
        "choices": [{"index": 0, "message": {"content": "No.", "refusal": "No."}, "finish_reason": "content_filter"}],
    },
)


@lie("no_answer")
async def silent(talk: Talk) -> None:
    await talk.hurry()
    await asyncio.sleep(PATIENCE_S)


@lie("silent")
async def silent_in_the_middle(talk: Talk) -> None:
    await talk.raw(talk.chunked_head() + b"20\r\n" + talk.content()[:10])
    await talk.hurry()
    await asyncio.sleep(PATIENCE_S)


@lie("silent")
async def silent_in_the_head(talk: Talk) -> None:
    await talk.raw(b"HTTP/1.1 200 OK\r\nContent-")
    await talk.hurry()
    await asyncio.sleep(PATIENCE_S)


@lie("trickled")
async def slow_loris(talk: Talk) -> None:
    await talk.raw(talk.chunked_head())
    await talk.hurry()
    for byte in talk.content() * 100:
        await talk.raw(b"1\r\n%c\r\n" % byte)
        await asyncio.sleep(0.02)


@lie("trickled")
async def slow_loris_in_the_head(talk: Talk) -> None:
    await talk.raw(b"HTTP/1.1 200 OK\r\n")
    await talk.hurry()
    for number in range(10_000):
        await talk.raw(b"X-Wait-%d: 1\r\n" % number)
        await asyncio.sleep(0.02)


@lie("trickled", streams=(True,))
async def endless_comments(talk: Talk) -> None:
    await talk.raw(talk.chunked_head())
    await talk.hurry()
    while True:
        await talk.raw(b"4\r\n: \n\n\r\n")
        await asyncio.sleep(0.02)


@lie("cut")
async def cut_at_once(talk: Talk) -> None:
    talk.close()


@lie("cut")
async def reset_at_once(talk: Talk) -> None:
    talk.reset()


@lie("cut")
async def cut_in_the_head(talk: Talk) -> None:
    await talk.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")
    talk.close()


@lie("cut")
async def cut_in_the_middle(talk: Talk) -> None:
    await talk.raw(talk.chunked_head() + b"20\r\n" + talk.content()[:10])
    talk.close()


@lie("cut")
async def reset_in_the_middle(talk: Talk) -> None:
    await talk.raw(talk.chunked_head() + b"20\r\n" + talk.content()[:10])
    await asyncio.sleep(0.05)
    talk.reset()


@lie("cut")
async def last_chunk_missing(talk: Talk) -> None:
    await talk.chunks([talk.content()], end=b"")
    talk.close()


@lie("cut")
async def shorter_than_told(talk: Talk) -> None:
    body = talk.content()
    await talk.raw(
        f"HTTP/1.1 200 OK\r\nContent-Type: {talk.kind()}\r\nContent-Length: {len(body) + 9}\r\n\r\n".encode()
    )
    await talk.raw(body)
    talk.close()


@lie("no_end", streams=(True,))
async def closed_in_the_middle(talk: Talk) -> None:
    """An answer without a length: only the stream's own end tells that it was cut."""
    await talk.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    await talk.raw(talk.content()[:150])
    talk.close()


@lie("not_http")
async def another_protocol(talk: Talk) -> None:
    await talk.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    await asyncio.sleep(PATIENCE_S)


@lie("not_http")
async def broken_chunks(talk: Talk) -> None:
    await talk.raw(talk.chunked_head() + b"zz\r\n")
    await asyncio.sleep(PATIENCE_S)


@lie("too_large")
async def huge(talk: Talk) -> None:
    await talk.raw(talk.chunked_head())
    while True:
        await talk.raw(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


@lie("too_large")
async def huge_head(talk: Talk) -> None:
    await talk.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await talk.raw(b"X-Padding: " + b"x" * 0x10000 + b"\r\n")


@lie("bad_json")
async def compressed(talk: Talk) -> None:
    await talk.send(gzip.compress(talk.content()), headers=["Content-Encoding: gzip"])
