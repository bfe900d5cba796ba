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

from sekisho.core.events import (
    Event,
    Failed,
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
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
BROKEN = Failed("err_1", "engine_failed", "server_error", "The engine broke.")


def make(stream: bool = True, **fields: Any) -> responses.ResponsesEncoder:
    body = {"model": "sekisho-mini", "input": "hello", "stream": stream, **fields}
    request = responses.decode(json.dumps(body).encode(), "req_00ff")
    return responses.encoder(request, responses.with_history(request, []), "resp_00ff", 1_790_000_000, _seal)


def _seal(text: str) -> str:
    return "sealed:" + text[::-1]


def run(encoder: responses.ResponsesEncoder, *batches: list[Event]) -> bytes:
    return encoder.start() + b"".join(encoder.feed(batch) for batch in batches) + encoder.end()


def parse(stream: bytes) -> list[dict[str, Any]]:
    events = []
    for frame in stream.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


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


def check_order(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The rules of every stream, whatever the engine did. Returns the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] for event in events if event["type"] in TERMINAL] == [events[-1]["type"]]
    final: dict[str, Any] = events[-1]["response"]
    never_done = unfinished(final)
    assert not (never_done and events[-1]["type"] == "response.completed")
    opened: list[str] = []
    open_now: list[str] = []
    done: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(opened)
            assert set(open_now) <= never_done  # one item at a time
            opened.append(event["item"]["id"])
            open_now.append(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            assert event["item"]["id"] == open_now.pop() == opened[event["output_index"]] == opened[-1]
            done.append(event["item"])
        elif "item_id" in event:
            assert event["item_id"] == open_now[-1] == opened[event["output_index"]] == opened[-1]
    assert set(open_now) == never_done
    assert [item for item in final["output"] if item["id"] not in never_done] == done
    assert [item["id"] for item in final["output"]] == opened
    check_deltas(events, final)
    return final


def unfinished(final: dict[str, Any]) -> set[str]:
    """Items that no event finishes: half a custom call where the answer was cut off, the last item of a failure."""
    halves = [item for item in final["output"] if item["status"] == "incomplete"]
    if final["status"] == "failed":
        assert halves in ([], final["output"][-1:])
        return {item["id"] for item in halves}
    return {item["id"] for item in halves if item["type"] == "custom_tool_call"}


def check_deltas(events: list[dict[str, Any]], final: dict[str, Any]) -> None:
    """The deltas of each part, joined, are the part in the final response."""
    joined: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["item_id"], event.get("content_index", 0))
            joined[key] = joined.get(key, "") + event["delta"]
    for item in final["output"]:
        if item["type"] in ("message", "reasoning"):
            for index, part in enumerate(item.get("content", ())):
                assert joined.pop((item["id"], index)) == part.get("text", part.get("refusal"))
        elif item["type"] != "web_search_call":
            assert joined.pop((item["id"], 0), "") == item.get("arguments", item.get("input"))
    assert not joined


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


# --- interleaving, by example ---


def kinds(stream: bytes, skip: str = "response.") -> list[str]:
    return [event["type"].removeprefix(skip) for event in parse(stream)]


def test_text_after_a_whole_call_is_written_at_once() -> None:
    """A call whose arguments are whole is finished as soon as something else begins: later text does not wait."""
    encoder = make()
    encoder.start()
    encoder.feed([ToolCallDelta(0, "call_a", "look", '{"a":'), ToolCallDelta(0, arguments="1}")])
    assert kinds(encoder.feed([TextDelta("now")])) == [
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
    ]


def test_what_overtakes_an_open_call_waits_for_it() -> None:
    """Two calls interleaved by index, and text among them: the second call and the text come after the first is
    done, and come before the end of the turn."""
    encoder = make()
    encoder.start()
    first = [ToolCallDelta(0, "call_a", "look", '{"a":'), ToolCallDelta(1, "call_b", "find", '{"b'), TextDelta("t")]
    assert kinds(encoder.feed(first)) == ["output_item.added", "function_call_arguments.delta"]
    assert encoder.feed([ToolCallDelta(1, arguments='":2}')]) == b""
    released = parse(encoder.feed([ToolCallDelta(0, arguments="1}")]))
    assert [event["type"] for event in released].count("response.output_item.done") == 2
    assert released[-1]["delta"] == "t"
    encoder.feed([Finished("tool_calls")])
    assert [item["type"] for item in encoder.output_items()] == ["function_call", "function_call", "message"]
    assert [item.get("arguments") for item in encoder.output_items()] == ['{"a":1}', '{"b":2}', None]


def test_calls_that_share_an_index_are_told_apart_by_id() -> None:
    """Engines exist that give each parallel call the index 0; the ids keep them apart."""
    encoder = make()
    calls = [ToolCallDelta(0, f"call_{n}", "look", f'{{"n":{n}}}') for n in range(3)]
    check_order(parse(run(encoder, calls, [Finished("tool_calls")])))
    assert [item["call_id"] for item in encoder.output_items()] == ["call_0", "call_1", "call_2"]


def test_a_finished_call_that_goes_on_fails_the_turn() -> None:
    """A client may have run the call already: white space after it is nothing, more arguments are a failure."""
    encoder = make()
    encoder.start()
    encoder.feed([ToolCallDelta(0, "call_a", "look", "{}"), TextDelta("t"), ToolCallDelta(0, arguments=" \n")])
    assert encoder.failure is None
    events = parse(encoder.feed([ToolCallDelta(0, arguments='{"a":1}')]))
    assert events[-1]["type"] == "response.failed"
    assert encoder.failure is not None
    assert encoder.failure.id in events[-1]["response"]["error"]["message"]


def test_a_call_without_arguments_is_an_empty_object() -> None:
    """Engines leave the arguments of a parameterless function empty; clients parse them as JSON."""
    encoder = make()
    final = check_order(parse(run(encoder, [ToolCallDelta(0, "call_a", "now"), Finished("tool_calls")])))
    assert final["output"][0]["arguments"] == "{}"


# --- how a turn ends ---


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_answer_is_incomplete_and_says_why(reason: Any, told: str) -> None:
    """Truncation is reported, in the response and in the item that was cut."""
    encoder = make()
    events = parse(run(encoder, [ReasoningDelta("hm"), TextDelta("half"), Finished(reason)]))
    final = check_order(events)
    assert events[-1]["type"] == "response.incomplete"
    assert final["incomplete_details"] == {"reason": told}
    assert [item["status"] for item in final["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize("ending", [Finished("length"), BROKEN])
def test_half_a_custom_call_is_never_done(ending: Event) -> None:
    """Clients run a call when its item is done; half of a script would run, so it is only listed as incomplete."""
    encoder = make()
    events = parse(run(encoder, [ToolCallDelta(0, "call_a", "shell", "rm -rf /tmp/", "custom"), ending]))
    assert not any(event["type"].endswith(("item.done", "input.done")) for event in events)
    assert [item["status"] for item in events[-1]["response"]["output"]] == ["incomplete"]


def test_a_failure_ends_the_stream_at_once() -> None:
    """`response.failed` carries the code, the words and the id that is in the log; nothing follows it."""
    encoder = make()
    encoder.start()
    encoder.feed([TextDelta("half")])
    events = parse(encoder.feed([BROKEN, TextDelta("more"), Finished("stop")]))
    assert events[-1]["type"] == "response.failed"
    assert encoder.end() == encoder.feed([TextDelta("more")]) == b""
    error = events[-1]["response"]["error"]
    assert (error["code"], error["id"]) == ("server_error", "err_1")
    assert error["message"] == "The engine broke. (error id: err_1)"


def test_half_an_answer_is_never_done() -> None:
    """Clients keep what is done: Codex would tell the half to the model at each new try, and run a call. After a
    failure the open item is listed as incomplete, and no event finishes it."""
    half_call = ToolCallDelta(0, "call_a", "look", "{}")
    for said in (TextDelta("half"), ReasoningDelta("half"), half_call):
        encoder = make()
        events = parse(run(encoder, [said, BROKEN]))
        check_order(events)
        assert not any(event["type"].endswith(".done") for event in events)
        assert [item["status"] for item in encoder.output_items()] == ["incomplete"]
    encoder = make()
    events = parse(run(encoder, [TextDelta("whole"), half_call, BROKEN]))
    check_order(events)
    assert [item["status"] for item in encoder.output_items()] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    ("failed", "code"),
    [
        (Failed("e", "context_length_exceeded", "invalid_request_error", "Too long.", 400), "context_length_exceeded"),
        (Failed("e", "insufficient_quota", "insufficient_quota", "Spent.", 429), "insufficient_quota"),
        (Failed("e", "slow_down", "rate_limit_error", "Slow.", 429, 1.5), "rate_limit_exceeded"),
        (Failed("e", "bad_image", "invalid_request_error", "No.", 400), "invalid_prompt"),
        (Failed("e", "engine_timeout", "server_error", "Late.", 504), "server_error"),
    ],
)
def test_failures_have_codes_that_clients_know(failed: Failed, code: str) -> None:
    """What ends a turn for good and what may be tried again is told by the official codes."""
    encoder = make()
    error = check_order(parse(run(encoder, [failed])))["error"]
    assert error["code"] == code
    assert ("try again in 1.5s" in error["message"]) == (failed.retry_after_s is not None)


def test_an_engine_that_just_stops_is_a_failure() -> None:
    """Without `Finished` there is no completed response, streaming or not, and the gateway learns the error's id."""
    encoder = make()
    assert parse(run(encoder, [TextDelta("half")]))[-1]["type"] == "response.failed"
    silent = make(stream=False)
    assert json.loads(silent.whole())["status"] == "failed"
    assert silent.failure is not None
    assert silent.failure.id.startswith("err_")


def test_without_usage_there_is_none() -> None:
    """What the engine did not count is null, never zero."""
    encoder = make()
    assert check_order(parse(run(encoder, [TextDelta("a"), Finished("stop")])))["usage"] is None


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
