"""Chat answers: every object in the official SDK's own types, and nothing lost on the way to our own client."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from sekisho.core.errors import ContextTooLong
from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from sekisho.core.turn import Refusal, Sampling, Text, Tool, Turn
from sekisho.wire import chat, chat_client, tools
from sekisho.wire.base import Encoder, ErrorView

FAILURE = Failed("err_1", "engine_failed", "server_error", "The engine broke.")


def turn(**fields: Any) -> Turn:
    return Turn(
        **{"id": "chatcmpl-7", "protocol": "chat", "model": "m", "stream": True, "include_usage": True, **fields}
    )


def check(model: BaseModel, allowed: frozenset[str] = frozenset({"reasoning_content"})) -> None:
    """Fields that the SDK does not know are ours on purpose."""
    assert set(model.model_extra or {}) <= allowed
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                check(one, allowed)


def stream(asked: Turn, batches: Sequence[Batch]) -> bytes:
    encoder = chat.encoder(asked, 1_790_000_000)
    return encoder.start() + b"".join(encoder.feed(batch) for batch in batches) + encoder.end()


def chunks(body: bytes) -> list[ChatCompletionChunk]:
    frames = body.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    return [ChatCompletionChunk.model_validate_json(f.removeprefix(b"data: "), strict=True) for f in frames[:-2]]


def whole(asked: Turn, batches: Sequence[Batch]) -> ChatCompletion:
    encoder = chat.encoder(asked, 1_790_000_000)
    assert b"".join(encoder.feed(batch) for batch in batches) == b""
    answer = ChatCompletion.model_validate_json(encoder.whole(), strict=True)
    check(answer)
    return answer


WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
PROBABILITIES = st.floats(-50, 0, allow_nan=False)
TOKENS = st.builds(
    TokenLogprob,
    WORDS,
    PROBABILITIES,
    st.none() | st.lists(st.integers(0, 255), max_size=4),
    st.lists(st.builds(TopLogprob, WORDS, PROBABILITIES, st.none()), max_size=2),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Turn, list[Batch]]:
    """A turn and events that fit it, in random batches, choices and calls interleaved at random."""
    count = draw(st.integers(1, 3))
    declared = (Tool("f"), Tool("p", "custom"), Tool("b", namespace="n"))
    asked = turn(sampling=Sampling(n=count, logprobs=draw(st.booleans())), tools=declared)
    roads: list[list[Event]] = []
    for choice in range(count):
        texts = st.builds(TextDelta, WORDS.filter(bool), st.just(choice), st.lists(TOKENS, max_size=2).map(tuple))
        thoughts = st.builds(ReasoningDelta, WORDS.filter(bool), st.just(choice))
        refusals = st.builds(RefusalDelta, WORDS.filter(bool), st.just(choice))
        events: list[Event] = draw(st.lists(texts | thoughts | refusals, max_size=5))
        calls = draw(st.lists(st.tuples(st.sampled_from(declared), st.lists(WORDS, max_size=3)), max_size=3))
        for index, (tool, pieces) in enumerate(calls):
            for number, piece in enumerate(["", *pieces]):
                first = number == 0
                events.append(
                    ToolCallDelta(
                        index,
                        f"id{choice}{index}" if first else None,
                        tool.name if first else None,
                        piece,
                        tool.kind,
                        tool.namespace,
                        choice,
                    )
                )
        roads.append(events)
    mixed: list[Event] = [Started("engine")]
    dice = random.Random(draw(st.integers(0, 1000)))
    while waiting := [road for road in roads if road]:
        mixed.append(dice.choice(waiting).pop(0))
    mixed.append(draw(st.builds(Usage, *[st.integers(0, 2**40)] * 2)))
    called = {event.choice for event in mixed if isinstance(event, ToolCallDelta)}
    for choice in range(count):
        reason: FinishReason = draw(st.sampled_from(["stop", "length", "content_filter"]))
        mixed.append(Finished("tool_calls" if choice in called and reason == "stop" else reason, choice))
    cuts = sorted(draw(st.lists(st.integers(0, len(mixed)), max_size=5)))
    return asked, [mixed[a:b] for a, b in zip([0, *cuts], [*cuts, len(mixed)], strict=True)]


def gathered(batches: Sequence[Batch]) -> dict[str, Any]:
    """What each choice said in sum, and the last events."""
    said: dict[str, Any] = {}

    def add(key: tuple[Any, ...], text: str) -> None:
        said[repr(key)] = said.get(repr(key), "") + text

    for event in (event for batch in batches for event in batch):
        match event:
            case TextDelta():
                add(("text", event.choice), event.text)
            case ReasoningDelta():
                add(("reasoning", event.choice), event.text)
            case RefusalDelta():
                add(("refusal", event.choice), event.text)
            case ToolCallDelta():
                key = ("call", event.choice, event.index)
                add((*key, "name", event.kind, event.namespace), event.name or "")
                add((*key, "id"), event.id or "")
                add((*key, "arguments"), event.arguments)
            case Usage() | Finished():
                said[repr(type(event)) + str(getattr(event, "choice", ""))] = event
            case Failed():
                said["failed"] = event
    return said


def as_functions(batches: Sequence[Batch], asked: Turn) -> tuple[Turn, list[Batch]]:
    """The same events as an engine would say them that knows only functions."""
    functions, table = tools.flatten(asked.tools)
    names = tuple(Tool(function["function"]["name"]) for function in functions)
    out: list[Batch] = []
    for batch in batches:
        changed: Batch = []
        for event in batch:
            if isinstance(event, ToolCallDelta):
                text = json.dumps(event.arguments)[1:-1] if event.kind == "custom" else event.arguments
                name = table.offered(event.name, event.namespace) if event.name else None
                if event.kind == "custom" and name:
                    text = '{"input":"' + text
                event = ToolCallDelta(event.index, event.id, name, text, choice=event.choice)
            changed.append(event)
        out.append(changed)
    return turn(sampling=asked.sampling, tools=names), out


@settings(deadline=None, max_examples=100)
@given(answers(), st.lists(st.integers(0, 4000), max_size=8))
def test_what_the_encoder_writes_our_client_reads(answer: tuple[Turn, list[Batch]], cuts: list[int]) -> None:
    """Text, thinking, refusals, calls of every kind, usage and finish reasons arrive whole, wherever the bytes of the
    stream are cut."""
    asked, batches = answer
    engine_turn, said = as_functions(batches, asked)
    body = stream(engine_turn, said)
    decoder = chat_client.ChatStreamDecoder(asked)
    marks = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    read = [decoder.feed(body[a:b]) for a, b in zip(marks, marks[1:], strict=False)]  # noqa: RUF007  (empty ones too)
    read.append(decoder.finish())
    assert gathered(read) == gathered(batches)
    assert sum(isinstance(event, Finished) for batch in read for event in batch) == asked.sampling.n


@settings(deadline=None, max_examples=100)
@given(answers())
def test_every_object_fits_the_sdk_and_whole_says_what_the_stream_says(answer: tuple[Turn, list[Batch]]) -> None:
    """Chunks and completion validate strictly in the SDK's types (its chunk type knows no custom call yet), and hold
    the same words."""
    asked, batches = answer
    plain, said = as_functions(batches, asked)
    told = chunks(stream(plain, said))
    for chunk in told:
        check(chunk)
    full = whole(msgspec.structs.replace(plain, stream=False), said)
    assert full.usage is not None
    assert told[-1].choices == []
    assert told[-1].usage == full.usage
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in told[:-1])
    assert {chunk.id for chunk in told} == {full.id}
    for choice in full.choices:
        deltas = [one for chunk in told for one in chunk.choices if one.index == choice.index]
        assert deltas[0].delta.role == "assistant"
        assert deltas[-1].finish_reason == choice.finish_reason
        assert "".join(one.delta.content or "" for one in deltas) == (choice.message.content or "")
        assert "".join(one.delta.refusal or "" for one in deltas) == (choice.message.refusal or "")
        logprobs = [token for one in deltas if one.logprobs for token in one.logprobs.content or []]
        assert logprobs == ((choice.logprobs.content if choice.logprobs else None) or [])
    custom = whole(msgspec.structs.replace(asked, stream=False), batches)
    kinds = {call.type for choice in custom.choices for call in choice.message.tool_calls or []}
    assert kinds <= {"function", "custom"}


def test_content_is_null_only_beside_calls() -> None:
    """An answer of calls alone has null content; an empty answer has empty content."""
    asked = turn(stream=False)
    called = whole(asked, [[ToolCallDelta(0, "1", "f", "{}"), Finished("tool_calls")]])
    assert called.choices[0].message.content is None
    assert called.choices[0].message.tool_calls is not None
    empty = whole(asked, [[Finished("stop")]])
    assert empty.choices[0].message.content == ""
    assert empty.choices[0].message.tool_calls is None
    assert empty.usage is None


def test_custom_calls_stream_in_their_own_shape() -> None:
    """A custom call's chunks carry `custom` with name, then pieces of `input`."""
    body = stream(
        turn(),
        [
            [ToolCallDelta(0, "1", "p", "a", "custom"), ToolCallDelta(0, None, None, "b", "custom")],
            [Finished("tool_calls")],
        ],
    )
    frames = [json.loads(frame.removeprefix(b"data: ")) for frame in body.split(b"\n\n")[1:3]]
    deltas = [frame["choices"][0]["delta"]["tool_calls"][0] for frame in frames]
    assert deltas == [
        {"index": 0, "id": "1", "type": "custom", "custom": {"name": "p", "input": "a"}},
        {"index": 0, "custom": {"input": "b"}},
    ]


def test_legacy_functions_are_answered_in_the_old_form() -> None:
    """Who asks with `functions` reads `function_call`, streaming or not."""
    request = {"model": "m", "messages": [{"role": "user", "content": "x"}], "functions": [{"name": "f"}]}
    said: list[Batch] = [
        [ToolCallDelta(0, "1", "f", "{"), ToolCallDelta(0, None, None, "}")],
        [Finished("tool_calls")],
    ]
    answer = whole(chat.decode(json.dumps(request).encode(), "chatcmpl-1"), said)
    call = answer.choices[0].message.function_call
    assert call is not None
    assert (call.name, call.arguments, answer.choices[0].finish_reason) == ("f", "{}", "function_call")
    told = chunks(stream(chat.decode(json.dumps({**request, "stream": True}).encode(), "chatcmpl-1"), said))
    calls = [chunk.choices[0].delta.function_call for chunk in told]
    assert "".join(call.arguments or "" for call in calls if call) == "{}"
    assert told[-1].choices[0].finish_reason == "function_call"


def test_usage_is_told_only_where_it_was_asked_for() -> None:
    """Without `include_usage` no chunk has the field at all."""
    body = stream(turn(include_usage=False), [[TextDelta("a"), Usage(1, 2), Finished("stop")]])
    assert b'"usage"' not in body
    assert len(chunks(body)) == 3


@pytest.mark.parametrize("batches", [[], [[TextDelta("a")]], [[TextDelta("a"), Usage(1, 1)]]])
def test_events_without_an_end_are_a_failure(batches: list[Batch]) -> None:
    """An engine that just stops never looks as if it had finished, streaming or not."""
    body = stream(turn(), batches)
    assert b"[DONE]" not in body
    assert b'"error"' in body
    encoder = chat.encoder(turn(stream=False), 1)
    for batch in batches:
        encoder.feed(batch)
    assert json.loads(encoder.whole())["error"]["code"] == "engine_failed"
    assert encoder.failed is not None


def test_nothing_follows_a_failure() -> None:
    """After the error frame come no words, no finish reason and no `[DONE]`."""
    encoder = chat.encoder(turn(), 1)
    body = encoder.feed([TextDelta("a"), FAILURE, TextDelta("b"), Finished("stop")])
    assert body.count(b"data: ") == 2
    assert json.loads(body.split(b"\n\n")[1].removeprefix(b"data: "))["error"]["id"] == "err_1"
    assert encoder.feed([TextDelta("c"), Finished("stop")]) == b""
    assert encoder.end() == b""


def sdk(encode: Any) -> openai.OpenAI:
    """The real SDK, reading what our codec answers to its real request, cut into small pieces."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked = chat.decode(request.content, "chatcmpl-9")
        encoder: Encoder = chat.encoder(asked, 1_790_000_000)
        if asked.stream:
            body = encode(encoder)

            def pieces() -> Iterator[bytes]:
                yield from (body[at : at + 7] for at in range(0, len(body), 7))

            return httpx2.Response(200, content=pieces(), headers={"content-type": encoder.content_type})
        encode(encoder)
        return httpx2.Response(200, content=encoder.whole(), headers={"content-type": "application/json"})

    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    return openai.OpenAI(
        api_key="sk-test",
        base_url="http://test/v1",
        http_client=client,
        _strict_response_validation=True,
        max_retries=0,
    )


def say(*events: Event) -> Any:
    def encode(encoder: Encoder) -> bytes:
        body = encoder.start() + encoder.feed(list(events[:1])) + encoder.keepalive()
        return body + encoder.feed(list(events[1:])) + encoder.end()

    return encode


def test_the_sdk_reads_a_stream_and_a_whole_answer() -> None:
    """The official client, with strict validation, gets the words, the call and the usage; keep-alives vanish."""
    spoken = say(
        TextDelta("Hé"), TextDelta("llo"), ToolCallDelta(0, "1", "f", "{}"), Usage(3, 4), Finished("tool_calls")
    )
    messages: Any = [{"role": "user", "content": "x"}]
    with sdk(spoken) as client:
        read = client.chat.completions.create(
            model="m", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        told = list(read)
        assert "".join(c.choices[0].delta.content or "" for c in told if c.choices) == "Héllo"
        assert told[-1].usage is not None
        assert told[-1].usage.total_tokens == 7
        full = client.chat.completions.create(model="m", messages=messages)
        assert full.choices[0].message.content == "Héllo"
        assert full.choices[0].message.tool_calls is not None
        with client.chat.completions.stream(model="m", messages=messages) as helper:
            final = helper.get_final_completion()
        assert final.choices[0].message.content == "Héllo"
        assert final.choices[0].finish_reason == "tool_calls"


def test_the_sdk_raises_at_a_failure_in_mid_stream() -> None:
    """The client sees the words that came, then an exception with our message; it does not take the answer for
    complete."""
    seen = []
    with sdk(say(TextDelta("a"), FAILURE)) as client:
        read = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        with pytest.raises(openai.APIError, match="The engine broke") as caught:
            seen.extend(chunk.choices[0].delta.content for chunk in read)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["id"] == "err_1"
    assert caught.value.code == "engine_failed"


def test_error_body_has_openais_shape() -> None:
    """All five fields are there, a null `param` included."""
    error = ErrorView.of(ContextTooLong("Too long.", param="messages"))
    assert json.loads(chat.error_body(error)) == {
        "error": {
            "message": "Too long.",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
            "id": error.id,
        }
    }


def test_a_refusal_is_readable_for_clients_that_know_none() -> None:
    """The words stand in `refusal` and in `content`, streamed and whole; handed back or read from another Sekisho they
    are one refusal and not two texts."""
    asked = turn()
    events: Batch = [TextDelta("So: "), RefusalDelta("I must not."), Finished("content_filter")]
    message = whole(msgspec.structs.replace(asked, stream=False), [events]).choices[0].message
    assert (message.content, message.refusal) == ("So: I must not.", "I must not.")
    told = chunks(stream(asked, [events]))
    assert "".join(one.delta.content or "" for chunk in told for one in chunk.choices) == "So: I must not."
    said = {"role": "assistant", **message.model_dump(exclude_none=True)}
    back = chat.decode(json.dumps({"model": "m", "messages": [said]}).encode(), "chatcmpl-1")
    assert back.messages[0].parts == (Text("So: "), Refusal("I must not."))
