"""Events to a stream of the Responses protocol: order, numbers, types, and what the official SDK makes of it."""

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from responses_harness import BROKEN, _seal, check_order, make, parse, run

from sekisho.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from sekisho.core.turn import Reasoning
from sekisho.wire import responses
from sekisho.wire.base import Encoder

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def check_types(event: dict[str, Any]) -> None:
    """Strictly: no coercion, and no field that the SDK does not know, but for those we add on purpose."""
    if event["type"] != "keepalive":
        _no_extras(EVENT.validate_python(event, strict=True), "")


def _no_extras(value: object, path: str) -> None:
    if isinstance(value, BaseModel):
        extra = set(value.__pydantic_extra__ or {})
        # Our error id; `store` as the service itself repeats it; the state of a custom call (as in the SDK's own
        # `ResponseCustomToolCallItem`).
        allowed = {"ResponseError": {"id"}, "Response": {"store"}, "ResponseCustomToolCall": {"status"}}
        assert extra <= allowed.get(type(value).__name__, set()), (path, extra)
        for name in type(value).model_fields:
            _no_extras(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _no_extras(entry, f"{path}[{index}]")


# --- any engine, any order ---


words = st.text(min_size=1, max_size=8)


@st.composite
def scripts(draw: st.DrawFn) -> list[Event]:
    """What an engine might say: calls in parts, parts of different calls, text and thoughts in any mixture."""
    streams: list[list[Event]] = []
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["function", "function", "custom", "web_search"]))
        text = draw(st.text(max_size=12)) if kind == "custom" else json.dumps({"query": draw(st.text(max_size=12))})
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        call_id = draw(st.sampled_from([None, f"call_{index}", "call_same"]))
        namespace = draw(st.sampled_from([None, "files"]))
        streams.append(
            [
                ToolCallDelta(index, call_id, f"tool{index}", pieces[0], kind, namespace),
                *(ToolCallDelta(index, arguments=piece, kind=kind, namespace=namespace) for piece in pieces[1:]),
            ]
        )
    for shape in (TextDelta, RefusalDelta, ReasoningDelta):
        streams.append([shape(text) for text in draw(st.lists(words, max_size=4))])
    events: list[Event] = [Started("engine")]
    while streams := [stream for stream in streams if stream]:
        events.append(draw(st.sampled_from(streams)).pop(0))
    return events


endings = st.one_of(
    st.sampled_from(["stop", "tool_calls", "length", "content_filter"]).map(lambda reason: [Finished(reason)]),
    st.just([Usage(5, 7, 2, 1), Finished("stop")]),
    st.just([BROKEN]),
    st.just([]),
)


@settings(max_examples=100, deadline=None)
@given(scripts(), endings, st.data())
def test_any_mixture_of_events_keeps_the_order_of_items(
    script: list[Event], ending: list[Event], data: st.DataObject
) -> None:
    """However an engine interleaves text, thoughts and calls, items are added, finished and listed in one order,
    numbers have no gap, nothing said is lost, and there is one terminal event."""
    encoder = make()
    stream, rest = encoder.start(), [*script, *ending]
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        stream += encoder.feed(rest[:size])
        rest = rest[size:]
        if data.draw(st.booleans()):
            stream += encoder.keepalive()
    stream += encoder.end()
    assert encoder.end() == encoder.keepalive() == b""
    events = parse(stream)
    final = check_order(events)
    for event in events:
        check_types(event)
    assert final == encoder.response() == json.loads(encoder.whole())
    reason = next((event.reason for event in ending if isinstance(event, Finished)), None)
    status = {"length": "incomplete", "content_filter": "incomplete", None: "failed"}.get(reason, "completed")
    assert final["status"] == status
    assert (final["usage"] is not None) == (len(ending) == 2)
    if status != "failed":
        check_said(script, final)
    if status == "completed":
        assert all(item["status"] == "completed" for item in final["output"])


def check_said(script: list[Event], final: dict[str, Any]) -> None:
    """Everything the engine said stands in the output, under the right call."""
    parts = [part for item in final["output"] for part in item.get("content", ())]
    for kind, key, shape in (
        ("output_text", "text", TextDelta),
        ("refusal", "refusal", RefusalDelta),
        ("reasoning_text", "text", ReasoningDelta),
    ):
        said = "".join(event.text for event in script if isinstance(event, shape))
        assert "".join(part[key] for part in parts if part["type"] == kind) == said
    calls = [item for item in final["output"] if item["type"] in ("function_call", "custom_tool_call")]
    searches = [item for item in final["output"] if item["type"] == "web_search_call"]
    first = [event for event in script if isinstance(event, ToolCallDelta) and event.name]
    assert [call["name"] for call in calls] == [event.name for event in first if event.kind != "web_search"]
    assert len(searches) == sum(event.kind == "web_search" for event in first)
    assert len({call["call_id"] for call in calls}) == len(calls)
    for call in calls:
        mine = [event for event in script if isinstance(event, ToolCallDelta) and f"tool{event.index}" == call["name"]]
        assert call.get("arguments", call.get("input")) == "".join(event.arguments for event in mine)
        assert call.get("namespace") == mine[0].namespace


# --- what a client reads ---


def client(stream: bytes, content_type: str = "text/event-stream") -> openai.OpenAI:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": content_type}, content=stream)

    transport = httpx.Client(transport=httpx.MockTransport(answer))
    return openai.OpenAI(api_key="sk-x", base_url="http://server.test/v1", http_client=transport, max_retries=0)


@settings(max_examples=30, deadline=None)
@given(scripts())
def test_the_sdk_accumulates_any_stream(script: list[Event]) -> None:
    """The official client's own accumulator reads every stream, keep-alives included, to the same final response."""
    encoder = make()
    stream = encoder.start() + encoder.keepalive() + encoder.feed(script) + encoder.keepalive()
    stream += encoder.feed([Finished("stop")]) + encoder.end()
    with client(stream).responses.stream(model="sekisho-mini", input="hello") as events:
        final = events.get_final_response()
    assert final.id == "resp_00ff"
    assert final.output_text == "".join(event.text for event in script if isinstance(event, TextDelta))
    assert [item.type for item in final.output] == [item["type"] for item in encoder.output_items()]


def test_keepalives_pass_the_sdk_in_order() -> None:
    """A raw iteration over a stream with keep-alives raises nothing and sees each as an event with its number."""
    encoder = make()
    stream = encoder.keepalive()  # before the start: the start itself
    assert parse(stream)[0]["type"] == "response.created"
    assert encoder.start() == b""
    stream += encoder.keepalive() + encoder.feed([TextDelta("a")]) + encoder.keepalive()
    stream += encoder.feed([Finished("stop")]) + encoder.end()
    seen = list(client(stream).responses.create(model="sekisho-mini", input="hello", stream=True))
    assert [event.type for event in seen].count("keepalive") == 2  # type: ignore[comparison-overlap]
    assert [event.sequence_number for event in seen] == list(range(len(seen)))


def test_a_whole_answer_is_a_response_of_the_sdk() -> None:
    """Without streaming the body is one response object, strictly of the SDK's type, with exact usage."""
    encoder = make(stream=False, temperature=0.5, metadata={"team": "kanto"}, user="taro", top_p=1)
    encoder.feed([ReasoningDelta("hm"), TextDelta("関所"), Usage(10, 6, 4, 2), Finished("stop")])
    body = encoder.whole()
    _no_extras(Response.model_validate(json.loads(body), strict=True), "response")
    response = client(body, "application/json").responses.create(model="sekisho-mini", input="hello")
    assert response.output_text == "関所"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == 16
    assert response.usage.input_tokens_details.cached_tokens == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert (response.temperature, response.metadata, response.user) == (0.5, {"team": "kanto"}, "taro")


def test_the_encoder_keeps_the_promise_of_codecs() -> None:
    """It has every method of `wire.base.Encoder`."""
    encoder: Encoder = make()
    assert encoder.content_type == "text/event-stream"


# --- what was asked for ---


def test_thinking_is_sealed_only_when_asked_for() -> None:
    """`encrypted_content` comes with the finished item, if the request includes it and the gateway has a seal."""
    asked = make(include=["reasoning.encrypted_content"])
    item = check_order(parse(run(asked, [ReasoningDelta("a"), ReasoningDelta("b"), Finished("stop")])))["output"][0]
    assert item["encrypted_content"] == "sealed:ba"
    assert item["content"] == [{"type": "reasoning_text", "text": "ab"}]
    plain = make()
    run(plain, [ReasoningDelta("a"), Finished("stop")])
    assert "encrypted_content" not in plain.output_items()[0]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("included", [True, False])
def test_sealed_thinking_has_nothing_to_read(stream: bool, included: bool) -> None:
    """Thinking that comes sealed is an item each, without content, summary or deltas; its sealed form is shown where
    the request includes it, and stored in any case."""
    asked = {"include": ["reasoning.encrypted_content"]} if included else {}
    encoder = make(stream, **asked)
    call = ToolCallDelta(0, "call_1", "look", "{}")
    said: list[Event] = [ReasoningDelta("", 0, "s1"), call, ReasoningDelta("", 0, "s2"), ReasoningDelta("", 0, "s3")]
    written = run(encoder, [*said, TextDelta("ok"), Finished("stop")])
    final = json.loads(encoder.whole())
    if stream:
        events = parse(written)
        for event in events:
            check_types(event)
        assert check_order(events) == final
        assert not [event for event in events if "reasoning" in event["type"]]
    Response.model_validate(final, strict=True)
    kinds = ["reasoning", "function_call", "reasoning", "reasoning", "message"]
    assert [item["type"] for item in final["output"]] == kinds
    thoughts = [item for item in final["output"] if item["type"] == "reasoning"]
    assert [item.get("encrypted_content") for item in thoughts] == (["s1", "s2", "s3"] if included else [None] * 3)
    assert all(item["summary"] == [] and "content" not in item for item in thoughts)
    kept = [item["encrypted_content"] for item in encoder.stored()["output"] if item["type"] == "reasoning"]
    assert kept == ["s1", "s2", "s3"]


def test_the_store_gets_no_thinking_that_could_be_read() -> None:
    """Shown or not, thinking is stored sealed, and the engine is told it from there at the next turn."""
    encoder = make()
    run(encoder, [ReasoningDelta("secret"), TextDelta("ok"), Finished("stop")])
    assert encoder.response()["output"][0]["content"][0]["text"] == "secret"
    stored = encoder.stored()
    assert "secret" not in json.dumps(stored)
    assert {**stored, "output": None} == {**encoder.response(), "output": None}
    (message,) = responses.to_messages(stored["output"], lambda sealed: sealed.removeprefix("sealed:")[::-1])
    assert isinstance(message.parts[0], Reasoning)
    assert message.parts[0].text == "secret"


def test_stored_input_has_no_thinking_that_could_be_read() -> None:
    """What a client hands back in clear is sealed too; what is sealed already stays as it is."""
    clear = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}]}
    long = {**clear, "content": [{"type": "reasoning_text", "text": "secret"}]}
    sealed = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "theirs"}
    user = {"type": "message", "role": "user", "content": "secret"}
    kept = responses.sealed_items([clear, long, sealed, user], _seal)
    assert [item.get("encrypted_content") for item in kept[:3]] == ["sealed:trohs", "sealed:terces", "theirs"]
    assert all(item["summary"] == [] and "content" not in item for item in kept[:3])
    assert kept[3] is user
    assert responses.sealed_items([long], None)[0]["encrypted_content"] is None


@pytest.mark.parametrize("asked", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}, {}])
def test_logprobs_stand_in_deltas_and_parts(asked: dict[str, Any]) -> None:
    """They are told where they were asked for, in the SDK's shapes, and nowhere else."""
    encoder = make(**asked)
    score = TokenLogprob("é", -0.5, None, [TopLogprob("e", -1.0)])
    events = parse(run(encoder, [TextDelta("é", logprobs=(score,)), TextDelta("!"), Finished("stop")]))
    for event in events:
        check_types(event)
    final = check_order(events)["output"][0]["content"][0]["logprobs"]
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    if asked:
        assert final[0]["bytes"] == [195, 169]
        assert [len(logprobs) for logprobs in deltas] == [1, 0]
    else:
        assert final == []
        assert deltas == [[], []]


def test_a_namespace_call_keeps_name_and_namespace_apart() -> None:
    """They come back as two fields, never joined."""
    tools = [
        {"type": "namespace", "name": "files", "description": "d", "tools": [{"type": "function", "name": "read"}]}
    ]
    encoder = make(tools=tools)
    call = ToolCallDelta(0, "call_a", "read", "{}", namespace="files")
    final = check_order(parse(run(encoder, [call, Finished("tool_calls")])))
    assert (final["output"][0]["name"], final["output"][0]["namespace"]) == ("read", "files")
    assert final["tools"] == tools


def test_other_choices_are_left_out() -> None:
    """The protocol has one answer; an engine's second choice does not leak into it."""
    encoder = make()
    events: list[Event] = [TextDelta("a"), TextDelta("x", choice=1), Finished("stop", choice=1), TextDelta("b")]
    final = check_order(parse(run(encoder, events, [Finished("stop")])))
    assert final["output"][0]["content"][0]["text"] == "ab"
