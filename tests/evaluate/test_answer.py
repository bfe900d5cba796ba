"""Answers are read without belief: every lie is called by its name, and nothing good is called a lie."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from answer_harness import MAX_TOKENS, question
from good_answers import (
    DONE,
    GOOD,
    MODEL,
    PIECES,
    TEXT,
    chat_events,
    chat_whole,
    chunk,
    framed,
    responses_events,
    responses_whole,
)
from hypothesis import given
from hypothesis import strategies as st
from lies import LIES, PATIENT, limits_for
from lying_server import LyingServer

from sekisho.evaluate.client.answer import Answer, Expected
from sekisho.evaluate.client.answer_apis import Api, read
from sekisho.evaluate.client.asking import ask, send
from sekisho.evaluate.client.exchange import Connections, Exchange
from sekisho.evaluate.client.faults import MEANINGS, first_failing

NAMES = (MODEL,)


async def told(way: str, api: Api, stream: bool) -> Answer:
    """The answer of a server that goes this way."""
    async with LyingServer() as server, Connections(server.target(way), limits_for(way)) as connections:
        return await ask(connections, question(api, stream))


def lies() -> list[Any]:
    return [
        pytest.param(name, api, stream, lie.fault, id=f"{name}-{api}-{'stream' if stream else 'whole'}")
        for name, lie in LIES.items()
        for api in lie.apis
        for stream in lie.streams
    ]


@pytest.mark.parametrize(("way", "api", "stream", "fault"), lies())
async def test_a_lie_is_called_by_its_name(way: str, api: Api, stream: bool, fault: str) -> None:
    """The first fault is the one that was made, and its meaning and next step are told in both languages."""
    answer = await told(way, api, stream)
    assert [found.kind for found in answer.faults[:1]] == [fault], answer
    assert answer.ok is (not answer.faults[0].fails)
    meaning = MEANINGS[answer.faults[0].kind]
    assert all(meaning.what)
    assert all(meaning.next)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("way", GOOD)
async def test_no_good_way_is_called_a_lie(way: str, api: Api, stream: bool) -> None:
    """Whatever the framing, the answer has no fault, the same text and the same tokens."""
    answer = await told(way, api, stream)
    assert answer.faults == ()
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == (TEXT, 9, 8)
    assert answer.id
    if stream:
        assert len(answer.pieces_ms) == len(PIECES) + (way == "thinking_first")
    is_whole_response = (api, stream) == ("responses", False)
    shows_reasoning = way == ("reasoning_item" if is_whole_response else "thinking_first")
    assert answer.reasoning == ("hm" if shows_reasoning else "")


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_wrong_usage_gives_no_tokens(api: Api) -> None:
    """Tokens that cannot be right become none: no figure rests on them, and the answer is still a success."""
    for kind in ("too_many", "negative", "total", "missing"):
        answer = await told(f"usage_{kind}_{api}", api, True)
        assert answer.ok
        assert (answer.completion_tokens, answer.tok_per_s, answer.tpot_ms) == (None, None, None)


async def test_one_in_fifty_is_found() -> None:
    """Of a hundred requests, the two that failed are faults, and no other."""
    async with LyingServer() as server:

        async def now_and_then(talk: Any) -> None:
            await (LIES["status_503"].way if talk.number % 50 == 0 else GOOD["honest"])(talk)

        server.ways["now_and_then"] = now_and_then
        async with Connections(server.target("now_and_then"), PATIENT) as connections:
            answers = [await ask(connections, question("chat", number % 2 == 0)) for number in range(100)]
    assert [number for number, answer in enumerate(answers, 1) if not answer.ok] == [50, 100]
    assert {fault.kind for answer in answers for fault in answer.faults} == {"server_error"}


BODIES = {"chat": framed(chat_events()), "responses": framed(responses_events())}


def streamed(body: bytes, cuts: list[int], kind: str = "text/event-stream") -> Exchange:
    places = [0, *sorted(cuts), len(body)]
    parts = [body[start:end] for start, end in pairwise(places)]
    arrivals = [(100.0 + number, part) for number, part in enumerate(parts) if part]
    return Exchange(
        99.0, status=200, headers={"content-type": kind}, first_byte_s=100.0, ended_s=200.0, arrivals=arrivals
    )


@given(data=st.data(), api=st.sampled_from(["chat", "responses"]), eol=st.sampled_from(["\n", "\r\n", "\r"]))
def test_no_split_changes_an_answer(data: st.DataObject, api: Api, eol: str) -> None:
    """Text, usage, id and end are the same wherever a stream is cut into portions, for every line end."""
    body = framed(chat_events() if api == "chat" else responses_events(), eol)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=60))
    answer = read(api, streamed(body, cuts), Expected(NAMES, True, MAX_TOKENS))
    assert answer.faults == ()
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == (TEXT, 9, 8)
    assert answer.finish == ("stop" if api == "chat" else "completed")


@given(body=st.binary(max_size=300), stream=st.booleans(), api=st.sampled_from(["chat", "responses"]))
def test_no_bytes_are_taken_for_an_answer(body: bytes, stream: bool, api: Api) -> None:
    """Random bytes always have a fault that fails, and never an exception."""
    for kind in ("text/event-stream", "application/json"):
        answer = read(api, streamed(body, [], kind), Expected(NAMES, stream, MAX_TOKENS))
        assert first_failing(answer.faults) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """`value` with something inside it replaced by another JSON value."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    changed = replaced(value[key], path[1:], new)
    if isinstance(value, dict):
        return {**value, key: changed}
    return [changed if index == key else inner for index, inner in enumerate(value)]


@given(path=PATHS, new=JSON, place=st.integers(0, 30), api=st.sampled_from(["chat", "responses"]), stream=st.booleans())
def test_no_json_of_another_shape_breaks_the_reader(
    path: list[int], new: Any, place: int, api: Api, stream: bool
) -> None:
    """Any value anywhere in an answer is read or named as a fault; nothing is raised, and tokens stay numbers."""
    events: list[Any] = chat_events() if api == "chat" else responses_events()
    place %= len(events)
    if stream:
        events[place] = replaced(events[place], path, new)
        body, kind = (
            framed(e if isinstance(e, str | dict) else msgspec.json.encode(e) for e in events),
            "text/event-stream",
        )
    else:
        whole = chat_whole() if api == "chat" else responses_whole()
        body, kind = msgspec.json.encode(replaced(whole, path, new)), "application/json"
    answer = read(api, streamed(body, [], kind), Expected(NAMES, stream, MAX_TOKENS))
    assert isinstance(answer.text, str)
    assert type(answer.completion_tokens) in (int, type(None))
    assert answer.finish is None or isinstance(answer.finish, str)


def test_times_are_those_of_arrival() -> None:
    """TTFT is when the first content came, not the first byte; decode speed is (n − 1) over first to last piece; TPOT
    is (whole − first) over (n − 1)."""
    role, *pieces = (framed([event]) for event in chat_events()[:6])
    rest = framed(chat_events()[6:])
    moments = [100.0, 101.0, 101.5, 102.0, 102.5, 103.0, 104.0]
    arrivals = list(zip(moments, [role, *pieces, rest], strict=True))
    exchange = Exchange(99.0, status=200, headers={"content-type": "text/event-stream"}, arrivals=arrivals)
    exchange.first_byte_s, exchange.ended_s = 99.5, 104.5
    answer = read("chat", exchange, Expected(NAMES, True, MAX_TOKENS))
    assert answer.ttfb_ms == 500.0
    assert answer.first_text_ms == 2000.0
    assert answer.tok_per_s == pytest.approx(7 / 2.0)
    assert answer.tpot_ms == pytest.approx((5500 - 2000) / 7)


def test_one_token_has_no_speed() -> None:
    """A single token, or all in one moment, gives no decode speed instead of an infinite one."""
    one = [chunk({"content": "a"}), chunk({}, "stop"), chunk(usage={"prompt_tokens": 1, "completion_tokens": 1})]
    answer = read("chat", streamed(framed([*one, DONE]), []), Expected(NAMES, True, MAX_TOKENS))
    assert (answer.faults, answer.completion_tokens, answer.tok_per_s, answer.tpot_ms) == ((), 1, None, None)
    burst = read("chat", streamed(BODIES["chat"], []), Expected(NAMES, True, MAX_TOKENS))
    assert burst.tok_per_s is None


def test_hidden_reasoning_is_no_speed() -> None:
    """Tokens that were counted but not shown are left out of the speed: none of them came within its window."""
    usage = {"prompt_tokens": 9, "completion_tokens": 28, "completion_tokens_details": {"reasoning_tokens": 20}}
    events = [chunk(usage=usage) if isinstance(e, dict) and "usage" in e else e for e in chat_events()]
    body = framed(events)
    answer = read("chat", streamed(body, [len(framed(events[:2])), len(framed(events[:6]))]), Expected(NAMES, True))
    assert answer.faults == ()
    assert (answer.completion_tokens, answer.hidden_tokens) == (28, 20)
    assert answer.tok_per_s == pytest.approx(7 / 1.0)


def with_counts(prompt: int, completion: int, total: int | None = None, reasoning: int | None = None) -> Any:
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage["total_tokens"] = prompt + completion if total is None else total
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def chat_answer(*events: Any, limit: int | None = 256, usage: Any = None) -> Answer:
    body = framed([*events, *([] if usage is None else [chunk(usage=usage)]), DONE])
    return read("chat", streamed(body, [20, len(body) // 2]), Expected(NAMES, True, limit))


THOUGHT = chunk({"reasoning_content": "hm "})
CUT = chunk({}, "length")


@pytest.mark.parametrize(
    ("events", "usage", "limit", "kind"),
    [
        ([*[THOUGHT] * 256, CUT], with_counts(5, 256), 256, "only_reasoning"),
        ([*[THOUGHT] * 9, CUT], None, 256, "only_reasoning"),
        ([CUT], with_counts(5, 200, reasoning=200), 256, "only_reasoning"),
        ([CUT], with_counts(5, 256, reasoning=0), 256, "only_reasoning"),
        ([CUT], with_counts(5, 8), 256, "empty_answer"),
        ([*[THOUGHT] * 9, CUT], None, None, "empty_answer"),
        ([*[THOUGHT] * 9, chunk({}, "stop")], with_counts(5, 9), 256, "empty_answer"),
        ([chunk({}, "stop")], with_counts(5, 256), 256, "empty_answer"),
        ([chunk({}, "content_filter")], with_counts(5, 256), 256, "empty_answer"),
    ],
)
def test_thinking_that_our_limit_cut_is_no_failure(events: list[Any], usage: Any, limit: int | None, kind: str) -> None:
    """An answer without text is excused only by our own limit, and only where thinking was seen, counted, or filled
    it; the model that stops by itself, or that another limit ends, has said nothing."""
    answer = chat_answer(*events, usage=usage, limit=limit)
    assert answer.faults[0].kind == kind
    assert answer.ok is (kind == "only_reasoning")


def test_a_whole_response_that_only_thought() -> None:
    """Whole answers of the Responses API are excused by their reasoning item; not what a filter ended."""
    item = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm " * 9}]}
    for reason, kind in (("max_output_tokens", "only_reasoning"), ("content_filter", "empty_answer")):
        ended = {"status": "incomplete", "incomplete_details": {"reason": reason}}
        body = msgspec.json.encode({**responses_whole(), **ended, "output": [item]})
        answer = read("responses", streamed(body, [], "application/json"), Expected(NAMES, False, 8))
        assert [fault.kind for fault in answer.faults] == [kind]
        assert answer.reasoning == "hm " * 9


@pytest.mark.parametrize(
    ("usage", "completion", "hidden"),
    [
        (with_counts(5, 202), 202, 202),
        (with_counts(5, 202, reasoning=0), 202, 202),
        (with_counts(5, 202, reasoning=200), 202, 200),
        (with_counts(5, 2, total=207, reasoning=200), 2, 0),
        (with_counts(0, 2), 2, 0),
        (with_counts(5, 2, total=100), 2, 0),
    ],
)
def test_hidden_thinking_is_no_lie_and_no_speed(usage: Any, completion: int, hidden: int) -> None:
    """A short text after many tokens is an honest gateway that hides thinking; nothing is told of its speed."""
    answer = chat_answer(chunk({"content": "hel"}), chunk({"content": "lo"}), chunk({}, "stop"), usage=usage)
    assert answer.faults == ()
    assert (answer.completion_tokens, answer.hidden_tokens) == (completion, hidden)
    if hidden == completion:
        assert (answer.tok_per_s, answer.tpot_ms) == (None, None)


@pytest.mark.parametrize("stream", [True, False])
def test_of_several_answers_the_first_is_read(stream: bool) -> None:
    """The text is that of choice 0, and the usage, which is of all of them, is not judged."""
    if stream:
        both = [{"index": n, "delta": {"content": "hello"}, "finish_reason": "stop"} for n in (0, 1)]
        answer = chat_answer({**chunk(), "choices": both}, usage=with_counts(5, 300))
    else:
        both = [{"index": n, "message": {"content": "hello" * (n + 1)}, "finish_reason": "stop"} for n in (1, 0)]
        whole = {**chat_whole(), "choices": both, "usage": with_counts(5, 300)}
        answer = read("chat", streamed(msgspec.json.encode(whole), [], "application/json"), Expected(NAMES, False, 256))
    assert (answer.faults, answer.text, answer.completion_tokens) == ((), "hello", None)


def test_a_stream_that_breaks_off_in_its_last_line_has_no_end() -> None:
    """One line end after [DONE] is enough; none at all, or half an event before it, is not."""
    body = BODIES["chat"]
    assert read("chat", streamed(body[:-1], []), Expected(NAMES, True, MAX_TOKENS)).faults == ()
    for cut in (body[:-2], body[: body.index(b"data: [DONE]") - 1]):
        answer = read("chat", streamed(cut, []), Expected(NAMES, True, MAX_TOKENS))
        assert [fault.kind for fault in answer.faults][:1] == ["no_end"]


@pytest.mark.parametrize(
    ("told_name", "names", "right"),
    [
        ("m", ("m",), True),
        ("M", ("m",), True),
        ("org/m", ("m",), True),
        ("m", ("org/m",), False),
        ("mm", ("m",), False),
        ("other", ("m", "other"), True),
        ("m:latest", ("m",), True),
        ("/models/m.gguf", ("m",), True),
        ("C:\\models\\M.gguf", ("m",), True),
        ("m-2024-08-06", ("m",), True),
        ("org/m-20240806", ("m",), True),
        ("m:8b", ("m:70b",), False),
        ("m-mini", ("m",), False),
        ("m-mini-2024-08-06", ("m",), False),
    ],
)
def test_a_model_may_be_told_with_its_folder(told_name: str, names: tuple[str, ...], right: bool) -> None:
    """Letters, a folder, a tag, a date and a file's ending do not matter; any other name is another model."""
    events = [{**e, "model": told_name} if isinstance(e, dict) else e for e in chat_events()]
    answer = read("chat", streamed(framed(events), []), Expected(names, True, MAX_TOKENS))
    assert answer.ok is right


async def test_a_server_s_own_words_are_kept() -> None:
    """The detail of a fault is what the server said, cut to a length that fits on a page."""
    answer = await told("status_400", "chat", True)
    assert answer.faults[0].detail == "the model fell over"
    page = await told("status_403", "chat", True)
    assert page.faults[0].detail.startswith("<!doctype html>")
    async with LyingServer() as server:

        async def verbose(talk: Any) -> None:
            await talk.send(b"x" * 100_000, "500 Internal Server Error")

        server.ways["verbose"] = verbose
        async with Connections(server.target("verbose"), PATIENT) as connections:
            exchange = await send(connections, question("chat", False))
    detail = read("chat", exchange, Expected(NAMES, False)).faults[0].detail
    assert detail == "x" * 300


async def test_a_call_in_many_pieces_is_right() -> None:
    """A call's arguments may come in more pieces than it has tokens; text may not."""
    calls = [chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]})] * 5
    usage = chunk(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    body = framed([*calls, chunk({}, "tool_calls"), usage, DONE])
    assert read("chat", streamed(body, []), Expected(NAMES, True, MAX_TOKENS)).faults == ()
