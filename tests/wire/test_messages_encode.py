import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import ErrorResponse, Message, MessageTokensCount, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sekisho.core.errors import (
    EngineUnavailable,
    Overloaded,
    RateLimited,
    SekishoError,
    StoreUnavailable,
    Unauthenticated,
)
from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Message as TurnMessage
from sekisho.core.turn import Reasoning, ReasoningRequest, Text, Tool, ToolCall, Turn
from sekisho.wire import messages
from sekisho.wire.base import Encoder, ErrorView

STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
FAILED = Failed("err_1", "engine_failed", "server_error", "The engine broke.", 502)


def turn(stream: bool = True, thinking: bool | None = True, display: str | None = None, tools: Any = ()) -> Turn:
    reasoning = ReasoningRequest(enabled=thinking, summary=display)
    return Turn(id="req_1", protocol="messages", model="mini", stream=stream, reasoning=reasoning, tools=tools)


def stream(asked: Turn, batches: list[Batch]) -> bytes:
    encoder: Encoder = messages.encoder(asked, 0)
    return b"".join([encoder.start(), *(encoder.feed(batch) for batch in batches), encoder.end()])


def whole(asked: Turn, batches: list[Batch]) -> dict[str, Any]:
    encoder: Encoder = messages.encoder(asked, 0)
    for batch in batches:
        assert encoder.feed(batch) == b""
    answer: dict[str, Any] = json.loads(encoder.whole())
    return answer


def frames(sent: bytes) -> list[dict[str, Any]]:
    """The data of every frame; each must name its own type as its event."""
    read = []
    for frame in sent.decode().removesuffix("\n\n").split("\n\n"):
        event, data = frame.split("\n")
        read.append(json.loads(data.removeprefix("data: ")))
        assert event == f"event: {read[-1]['type']}"
    return read


def fold(sent: bytes) -> dict[str, Any]:
    """Reads a finished stream as a strict client would: every rule about blocks is checked on the way."""
    first, *rest = [frame for frame in frames(sent) if frame["type"] != "ping"]
    for frame in (first, *rest):
        STREAM_EVENT.validate_python(frame)
    assert first["type"] == "message_start"
    assert [frame["type"] for frame in rest[-2:]] == ["message_delta", "message_stop"]
    message, open_index = dict(first["message"]), None
    for frame in rest[:-2]:
        if frame["type"] == "content_block_start":
            assert open_index is None
            assert frame["index"] == len(message["content"])
            open_index = frame["index"]
            message["content"].append({**frame["content_block"], "json": ""})
            continue
        assert frame["index"] == open_index
        block = message["content"][-1]
        if frame["type"] == "content_block_stop":
            open_index = None
            gathered = block.pop("json")
            if block["type"] == "tool_use":
                block["input"] = json.loads(gathered or "{}")
            continue
        delta = dict(frame["delta"])
        kind = delta.pop("type")
        assert kind in {"text": ["text_delta"], "thinking": ["thinking_delta", "signature_delta"]}.get(
            block["type"], ["input_json_delta"]
        )
        for field, value in delta.items():
            name = "json" if field == "partial_json" else field
            block[name] += value
    assert open_index is None
    return {**message, **rest[-2]["delta"], "usage": rest[-2]["usage"]}


@st.composite
def answers(draw: st.DrawFn) -> list[Batch]:
    """A finished answer: words, thinking and the parts of several tool calls mixed in any order, in any batches."""
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
    inputs = draw(st.lists(st.dictionaries(st.text(max_size=4), scalars, max_size=3), max_size=3))
    words = st.builds(TextDelta, st.text(max_size=6)) | st.builds(ReasoningDelta, st.text(max_size=6))
    tracks: list[list[Event]] = [list(draw(st.lists(words, max_size=8)))]
    for index, value in enumerate(inputs):
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        first = ToolCallDelta(index, f"call_{index}", f"tool_{index}", pieces[0])
        tracks.append([first, *(ToolCallDelta(index, arguments=piece) for piece in pieces[1:])])
    events: list[Event] = [Started()]
    while any(tracks):
        track = draw(st.sampled_from([track for track in tracks if track]))
        events.append(track.pop(0))
    events += [Usage(9, 5, 4, 2), Finished("tool_calls" if inputs else "stop")]
    cut = draw(st.integers(0, len(events)))
    return [events[:cut], events[cut:]]


def said(batches: list[Batch], kind: type) -> str:
    return "".join(event.text for batch in batches for event in batch if isinstance(event, kind))


def called(batches: list[Batch]) -> dict[str, Any]:
    texts: dict[int, str] = {}
    for event in (event for batch in batches for event in batch):
        if isinstance(event, ToolCallDelta):
            texts[event.index] = texts.get(event.index, "") + event.arguments
    return {f"tool_{index}": json.loads(text) for index, text in texts.items()}


@settings(max_examples=100, deadline=None)
@given(answers(), st.booleans())
def test_any_mixture_keeps_the_block_rules_and_every_word(batches: list[Batch], thinking: bool) -> None:
    """Blocks are numbered without gaps and never overlap; nothing is lost; streamed and whole are one message."""
    streamed = fold(stream(turn(thinking=thinking), batches))
    told = whole(turn(stream=False, thinking=thinking), batches)
    assert streamed == told
    Message.model_validate(told)
    blocks = streamed["content"]
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == said(batches, TextDelta)
    thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    assert thoughts == (said(batches, ReasoningDelta) if thinking else "")
    assert {block["name"]: block["input"] for block in blocks if block["type"] == "tool_use"} == called(batches)
    assert streamed["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
    }


@settings(max_examples=40, deadline=None)
@given(answers(), st.data())
def test_a_broken_answer_ends_in_one_error(batches: list[Batch], data: st.DataObject) -> None:
    """Failed, or silence where the end should be, is told by exactly one error frame, and nothing comes after it."""
    events = [event for batch in batches for event in batch if not isinstance(event, Finished)]
    cut = data.draw(st.integers(0, len(events)))
    fails = data.draw(st.booleans())
    broken = [events[:cut], [FAILED] if fails else [], events[cut:] if fails else []]
    read = frames(stream(turn(), broken))
    assert [frame["type"] for frame in read].count("error") == 1
    assert read[-1]["type"] == "error"
    assert read[-1]["error"]["type"] == "api_error"
    assert read[-1]["request_id"] == "err_1" if fails else read[-1]["request_id"].startswith("err_")
    assert whole(turn(stream=False), broken)["type"] == "error"


@settings(max_examples=40, deadline=None)
@given(answers())
def test_an_answer_handed_back_is_the_same_answer(batches: list[Batch]) -> None:
    """What the encoder says, the decoder reads back as the same parts: a client only has to append it."""
    content = whole(turn(stream=False), batches)["content"]
    handed = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": content}]}
    (message,) = messages.decode(json.dumps(handed).encode(), "req_1").messages or [TurnMessage("assistant", ())]
    texts = [part.text for part in message.parts if isinstance(part, Text)]
    assert "".join(texts) == said(batches, TextDelta)
    thoughts = [part.text for part in message.parts if isinstance(part, Reasoning)]
    assert "".join(thoughts) == said(batches, ReasoningDelta)
    calls = {part.name: json.loads(part.arguments) for part in message.parts if isinstance(part, ToolCall)}
    assert calls == called(batches)


def test_text_streams_on_after_a_whole_tool_call() -> None:
    """Words behind a tool call wait only until the call's JSON is whole, not until the end of the turn."""
    encoder = messages.encoder(turn(), 0)
    first = [ToolCallDelta(0, "a", "f", '{"x":'), TextDelta("later")]
    assert b"later" not in encoder.feed(first)
    told = encoder.feed([ToolCallDelta(0, arguments='{"y":1}}')])
    assert b"later" in told
    assert b"now" in encoder.feed([TextDelta("now")])


def test_free_text_of_a_custom_tool_is_wrapped() -> None:
    """This protocol knows only objects: free text becomes `{"input": text}`, streamed and whole alike."""
    call = [ToolCallDelta(0, "a", "f", 'say "é', kind="custom"), ToolCallDelta(0, arguments='"\n}', kind="custom")]
    batches: list[Batch] = [[*call, Finished("tool_calls")]]
    block = {"type": "tool_use", "id": "a", "name": "f", "input": {"input": 'say "é"\n}'}}
    assert fold(stream(turn(), batches))["content"] == [block]
    assert whole(turn(stream=False), batches)["content"] == [block]


def test_arguments_that_are_no_object_are_kept() -> None:
    """A call whose JSON broke reaches the caller as it is, so that its own check can tell the model."""
    batches: list[Batch] = [[ToolCallDelta(0, "a", "f", '{"x":'), Finished("length")]]
    answer = whole(turn(stream=False), batches)
    assert answer["content"][0]["input"] == {"input": '{"x":'}
    assert answer["stop_reason"] == "max_tokens"


def test_arguments_stay_as_the_model_wrote_them() -> None:
    """Numbers beyond 64 bits and deep nesting are no reason to fail, nor are line breaks between the tokens."""
    deep = '{"a":' * 200 + "1" + "}" * 200
    for text in ('{\n "n": 123456789012345678901234567890,\n "x": 1.0\n}', deep, ""):
        batches: list[Batch] = [[ToolCallDelta(0, "a", "f", text), Finished("tool_calls")]]
        expected = json.loads(text or "{}")
        assert whole(turn(stream=False), batches)["content"][0]["input"] == expected
        assert fold(stream(turn(), batches))["content"][0]["input"] == expected


def test_a_namespace_is_joined_only_where_it_was_declared_joined() -> None:
    """A declared `namespace__name` comes back whole; otherwise the name stands alone."""
    batches: list[Batch] = [[ToolCallDelta(0, "a", "f", "{}", namespace="ns"), Finished("tool_calls")]]
    declared = turn(stream=False, tools=(Tool("ns__f"),))
    assert whole(declared, batches)["content"][0]["name"] == "ns__f"
    assert whole(turn(stream=False), batches)["content"][0]["name"] == "f"


def test_a_sealed_thought_carries_its_signature() -> None:
    """The engine's seal is the block's signature; with display omitted only the signature is told."""
    batches: list[Batch] = [[ReasoningDelta("a"), ReasoningDelta("b", sealed="seal"), TextDelta("t"), Finished("stop")]]
    shown = fold(stream(turn(), batches))["content"]
    assert shown[0] == {"type": "thinking", "thinking": "ab", "signature": "seal"}
    hidden = fold(stream(turn(display="omitted"), batches))["content"]
    assert hidden[0] == {"type": "thinking", "thinking": "", "signature": "seal"}
    unasked = fold(stream(turn(thinking=None), batches))["content"]
    assert [block["type"] for block in unasked] == ["text"]


@pytest.mark.parametrize(
    ("events", "reason", "sequence"),
    [
        ([Finished("stop")], "end_turn", None),
        ([Finished("length")], "max_tokens", None),
        ([Finished("stop", stop_sequence="END")], "stop_sequence", "END"),
        ([Finished("content_filter")], "refusal", None),
        ([RefusalDelta("No."), Finished("stop")], "refusal", None),
        ([ToolCallDelta(0, "a", "f", "{}"), Finished("stop")], "tool_use", None),
        ([Finished("tool_calls")], "end_turn", None),
    ],
)
def test_stop_reasons(events: list[Event], reason: str, sequence: str | None) -> None:
    """Every way to finish has its reason, streamed and whole."""
    for answer in (fold(stream(turn(), [events])), whole(turn(stream=False), [events])):
        assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unauthenticated("x"), "authentication_error"),
        (RateLimited("x"), "rate_limit_error"),
        (Overloaded("x"), "overloaded_error"),
        (EngineUnavailable("x"), "overloaded_error"),
        (StoreUnavailable("x"), "api_error"),
    ],
)
def test_errors_have_this_protocols_shape(error: SekishoError, kind: str) -> None:
    """The type follows the status, and our id stands where clients look for the request's id."""
    body = json.loads(messages.error_body(ErrorView.of(error)))
    assert (body["error"]["type"], body["request_id"]) == (kind, error.id)
    ErrorResponse.model_validate(body)


def client(answer: Callable[[Turn], list[Batch]]) -> anthropic.Anthropic:
    """The real SDK, whose requests go through the decoder and whose answers come from the encoder."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/messages/count_tokens":
            counted = messages.decode_count(request.content, "req_1")
            return httpx2.Response(200, content=messages.encode_count(len(counted.messages)))
        asked = messages.decode(request.content, "req_1")
        encoder = messages.encoder(asked, 0)
        batches = answer(asked)
        if asked.stream:
            parts = [
                encoder.start(),
                encoder.keepalive(),
                *map(encoder.feed, batches),
                encoder.keepalive(),
                encoder.end(),
            ]
            body = b"".join(parts)
        else:
            for batch in batches:
                encoder.feed(batch)
            body = encoder.whole()
        return httpx2.Response(200, content=body, headers={"content-type": encoder.content_type})

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    return anthropic.Anthropic(api_key="sk-x", base_url="http://server", http_client=transport, max_retries=0)


ASKED: Any = [{"role": "user", "content": "Weather in Kyoto?"}]
TOOLS: Any = [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


def weather(asked: Turn) -> list[Batch]:
    if asked.messages[-1].role == "tool":
        return [[TextDelta("It "), TextDelta("rains.")], [Usage(30, 3), Finished("stop")]]
    return [
        [ReasoningDelta("I should look.")],
        [TextDelta("One moment."), ToolCallDelta(0, "toolu_a", "weather", '{"city":')],
        [ToolCallDelta(1, "toolu_b", "weather", "{}"), ToolCallDelta(0, arguments='"京都"}')],
        [Usage(20, 9, 8), Finished("tool_calls")],
    ]


def test_the_sdk_streams_a_tool_round_trip() -> None:
    """The official SDK gathers the same message from the stream as it gets whole, and its reply is understood."""
    sdk = client(weather)
    asked: Any = {"model": "mini", "max_tokens": 4096, "tools": TOOLS, "thinking": {"type": "adaptive"}}
    with sdk.messages.stream(messages=ASKED, **asked) as streamed:
        final = streamed.get_final_message()
    plain = sdk.messages.create(messages=ASKED, **asked)
    assert final.to_dict() == plain.to_dict()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert final.stop_reason == "tool_use"
    assert (final.usage.input_tokens, final.usage.cache_read_input_tokens, final.usage.output_tokens) == (12, 8, 9)
    calls = [block for block in final.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": "京都"}, {}]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"} for call in calls]
    history: Any = [*ASKED, {"role": "assistant", "content": final.content}, {"role": "user", "content": results}]
    with sdk.messages.stream(messages=history, **asked) as streamed:
        assert streamed.get_final_text() == "It rains."


def test_the_sdk_counts_tokens() -> None:
    """The count comes back in the SDK's own type."""
    counted = client(weather).messages.count_tokens(model="mini", messages=ASKED, system="s", tools=TOOLS)
    assert counted == MessageTokensCount(input_tokens=2)


def test_the_sdk_raises_when_the_stream_breaks() -> None:
    """A failure in mid-stream is an exception in the client, with our id in it, never a short answer."""
    sdk = client(lambda _: [[TextDelta("half")], [FAILED]])
    asked: Any = {"model": "mini", "max_tokens": 10, "messages": ASKED}
    with (
        pytest.raises(anthropic.APIError) as caught,
        sdk.messages.stream(**asked) as streamed,
    ):
        streamed.get_final_message()
    assert "err_1" in json.dumps(caught.value.body)


def test_the_sdk_parses_structured_output() -> None:
    """The SDK's own way to ask for a schema reaches the turn."""
    seen: list[Turn] = []

    def answer(asked: Turn) -> list[Batch]:
        seen.append(asked)
        return [[TextDelta('{"a":1}'), Finished("stop")]]

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client(answer).messages.create(
        model="mini",
        max_tokens=10,
        messages=ASKED,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert (seen[0].format.kind, seen[0].format.schema) == ("json_schema", schema)
