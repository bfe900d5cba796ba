"""Items to messages: what an engine said comes back to it, earlier responses, and kinds nobody here runs."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from responses_items_harness import survives, unseal

from sekisho.core.errors import InvalidRequest, NotFound, UnsupportedParameter
from sekisho.core.events import Event, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from sekisho.core.turn import Audio, Document, Image, Message, Reasoning, Refusal, Text, Tool, ToolCall, ToolResult
from sekisho.wire import responses
from sekisho.wire.responses import items as reading


def decode(request_id: str = "req_0a", **fields: Any) -> responses.ResponsesRequest:
    return responses.decode(json.dumps({"model": "m", **fields}).encode(), request_id)


def messages_of(items: Any, history: list[dict[str, Any]] | None = None, **fields: Any) -> tuple[Message, ...]:
    return responses.with_history(decode(input=items, **fields), history or [], unseal).messages


def test_a_string_is_a_user_message() -> None:
    """The shortest request is one item in the store and one message for the engine."""
    request = decode(input="hello")
    assert request.input_items[0]["content"] == [{"type": "input_text", "text": "hello"}]
    assert responses.with_history(request, []).messages[0].parts == (Text("hello"),)


def test_instructions_come_first_and_are_not_inherited() -> None:
    """Only this request's own instructions are told, before the history."""
    history = list(decode(input="earlier", instructions="old").input_items)
    told = messages_of("now", history, instructions="new")
    assert [(message.role, message.parts) for message in told] == [
        ("system", (Text("new"),)),
        ("user", (Text("earlier"),)),
        ("user", (Text("now"),)),
    ]
    assert [message.role for message in messages_of("now", history)] == ["user", "user"]


words = st.text(min_size=1, max_size=6)
outputs: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        words.map(TextDelta),
        words.map(ReasoningDelta),
        st.builds(
            lambda index, text: ToolCallDelta(index, f"call_{index}", "look", json.dumps({"q": text})),
            st.integers(0, 3),
            words,
        ),
    ),
    max_size=6,
    unique_by=lambda event: event.index if isinstance(event, ToolCallDelta) else object(),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(outputs, min_size=1, max_size=3), st.booleans())
def test_what_an_engine_said_comes_back_to_it(turns: list[list[Event]], by_client: bool) -> None:
    """Round trip: whatever a response held is told to the engine at the next turn, in order, whether it comes from
    our store or is sent back by the client as it was received."""
    history: list[dict[str, Any]] = []
    told: list[tuple[str, str]] = []
    for number, events in enumerate(turns):
        request = decode(f"req_{number}", input="q", include=["reasoning.encrypted_content"])
        turn = responses.with_history(request, history, unseal)
        encoder = responses.encoder(request, turn, f"resp_{number}", 1, lambda text: "sealed:" + text[::-1])
        encoder.feed([*events, Finished("stop")])
        output = encoder.output_items()
        calls = [item["call_id"] for item in output if item["type"] == "function_call"]
        answers = [{"type": "function_call_output", "call_id": call_id, "output": "ok"} for call_id in calls]
        told += [("text", "q"), *_merged(events), *(("result", call_id) for call_id in calls)]
        if by_client:  # Codex keeps only the sealed form of thinking
            output = [{**item, "content": None} if item["type"] == "reasoning" else item for item in output]
        history += [*request.input_items, *output, *reading.normalise(answers, f"answer{number}")]
    if by_client:
        final = responses.with_history(decode(input=[*history, {"role": "user", "content": "end"}]), [], unseal)
    else:
        final = responses.with_history(decode(input="end"), history, unseal)
    seen = [_plain(part) for message in final.messages for part in message.parts]
    assert seen == [*told, ("text", "end")]


def _merged(events: list[Event]) -> list[tuple[str, str]]:
    merged: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, ToolCallDelta):
            merged.append(("call", event.arguments))
        elif isinstance(event, TextDelta | ReasoningDelta):
            kind = "text" if isinstance(event, TextDelta) else "reasoning"
            if merged and merged[-1][0] == kind:
                merged[-1] = (kind, merged[-1][1] + event.text)
            else:
                merged.append((kind, event.text))
    return merged


def _plain(part: object) -> tuple[str, str]:
    match part:
        case Text(text):
            return ("text", text)
        case Reasoning(text):
            return ("reasoning", text)
        case ToolCall():
            return ("call", part.arguments)
        case ToolResult():
            return ("result", part.call_id)
    raise AssertionError(part)


def test_half_a_call_is_told_in_words() -> None:
    """A call that the token limit cut off has arguments that are no JSON; unanswered, it is words to the engine."""
    request = decode(input="q")
    encoder = responses.encoder(request, request.turn, "resp_1", 1)
    encoder.feed([ToolCallDelta(0, "call_1", "look", '{"q":"ha'), Finished("length")])
    half = encoder.output_items()[0]
    assert messages_of("on", [half])[0].parts == (Text('[look, cut off: {"q":"ha]'),)
    answer = {"type": "function_call_output", "call_id": "call_1", "output": "bad JSON"}
    assert isinstance(messages_of([answer], [half])[0].parts[0], ToolCall)


def test_thinking_that_does_not_open_is_left_out_of_the_prompt_only() -> None:
    """A seal of somebody else is no error: the item stays in the input, the engine is not told of it."""
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    request = decode(input=[item, {"role": "user", "content": "hi"}])
    assert survives([item], list(request.input_items[:1]))
    assert [message.role for message in responses.with_history(request, [], unseal).messages] == ["user"]
    assert [message.role for message in responses.with_history(request, []).messages] == ["user"]


def test_content_parts_of_all_kinds() -> None:
    """Images, files, sound and refusals reach the turn as what they are."""
    content = [
        {"type": "text", "text": "a"},
        {"type": "input_image", "image_url": "https://x.test/a.png", "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ]
    said = [{"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "No."}]
    told = messages_of([{"role": "user", "content": content}, {"role": "assistant", "content": said}])
    assert told[0].parts == (
        Text("a"),
        Image("https://x.test/a.png", "low"),
        Document("a.pdf", "data:application/pdf;base64,AA=="),
        Audio("AA==", "wav"),
    )
    assert told[1].parts == (Text("b"), Refusal("No."))


def test_a_reference_is_found_or_named() -> None:
    """An item reference leads to an item of the history, which is told once; to nothing, and it is a 404."""
    history = [{"type": "message", "id": "msg_9", "role": "user", "content": [{"type": "input_text", "text": "old"}]}]
    reference = {"type": "item_reference", "id": "msg_9"}
    told = messages_of([reference, {"role": "user", "content": "new"}], history)
    assert [message.parts for message in told] == [(Text("old"),), (Text("new"),)]
    assert responses.resolve(decode(input=[reference, {"id": "msg_9"}]).input_items, history) == []
    with pytest.raises(NotFound) as caught:
        messages_of([{"role": "user", "content": "new"}, reference])
    assert caught.value.param == "input[1].id"
    assert "msg_9" in caught.value.message


def test_an_output_without_its_call_is_refused() -> None:
    """It would break the engine's template; where the call is in the history, it is fine."""
    output = {"type": "function_call_output", "call_id": "call_7", "output": "ok"}
    with pytest.raises(InvalidRequest, match="call_7"):
        messages_of([output])
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_7", "name": "look", "arguments": "{}"}
    assert [message.role for message in messages_of([output], [call])] == ["assistant", "tool"]


CLIENT_RUN = [
    {"type": "local_shell_call", "call_id": "c1", "status": "completed", "action": {"type": "exec", "command": ["ls"]}},
    {"type": "local_shell_call_output", "id": "c1", "output": '{"stdout":"a"}'},
    {"type": "shell_call", "call_id": "c2", "action": {"commands": ["ls"]}},
    {"type": "shell_call_output", "call_id": "c2", "output": [{"stdout": "a", "stderr": ""}]},
    {"type": "apply_patch_call", "call_id": "c3", "status": "completed", "operation": {"type": "delete_file"}},
    {"type": "apply_patch_call_output", "call_id": "c3", "status": "completed"},
    {"type": "computer_call", "call_id": "c4", "action": {"type": "screenshot"}},
    {"type": "computer_call_output", "call_id": "c4", "output": {"image_url": "data:image/png;base64,AA=="}},
    {"type": "program", "call_id": "c5", "code": "1+1", "fingerprint": "f"},
    {"type": "program_output", "call_id": "c5", "result": "2", "status": "completed"},
]


def test_calls_that_clients_run_are_told_as_calls() -> None:
    """A shell command of an earlier turn and its output are a call and its result for any engine."""
    told = messages_of(CLIENT_RUN)
    assert [message.role for message in told] == ["assistant", "tool"] * 5
    calls = [message.parts[0] for message in told[::2]]
    results = [message.parts[0] for message in told[1::2]]
    assert [call.id for call in calls if isinstance(call, ToolCall)] == ["c1", "c2", "c3", "c4", "c5"]
    assert [result.call_id for result in results if isinstance(result, ToolResult)] == ["c1", "c2", "c3", "c4", "c5"]
    assert results[3] == ToolResult("c4", (Image("data:image/png;base64,AA=="),), item_id=told[7].item_id)


@pytest.mark.parametrize("kind", sorted(reading.OTHER_KINDS))
def test_no_kind_of_item_is_lost_or_breaks(kind: str) -> None:
    """Every kind that the SDK knows is kept as it came, and telling the model of it never fails, however little of
    it is there."""
    for fields in ({}, {"call_id": "c", "output": "o", "result": "r"}, {"tools": []}, {"action": None, "output": [1]}):
        item = {"type": kind, "id": "x_1", **fields}
        request = decode(input=[item, {"role": "user", "content": "hi"}])
        assert request.input_items[0] == item
        messages = responses.with_history(request, []).messages
        assert messages[-1].parts == (Text("hi"),)


def test_server_side_calls_are_told_in_words() -> None:
    """A call that another server ran is text for the model, without ids and without its binary result."""
    items = [
        {"type": "mcp_call", "id": "m", "name": "find", "arguments": "{}", "server_label": "wiki", "output": "found"},
        {"type": "image_generation_call", "id": "i", "status": "completed", "result": "A" * 1000},
        {"type": "mcp_approval_response", "approval_request_id": "m", "approve": True},
    ]
    said, approval = messages_of(items)
    texts = [part.text for part in said.parts if isinstance(part, Text)]
    assert "found" in texts[0]
    assert "AAAA" not in texts[1]
    assert approval.role == "user"


def test_tools_that_come_with_items_can_be_called() -> None:
    """Tools found or added in the conversation join those of the request, each once."""
    found = [
        {"type": "function", "name": "look", "parameters": {}},
        {"type": "namespace", "name": "ns", "description": "d", "tools": [{"type": "function", "name": "look"}]},
    ]
    items = [
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"q": "look"}},
        {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": found},
        {"type": "additional_tools", "role": "developer", "tools": found},
    ]
    request = decode(input=items, tools=[{"type": "function", "name": "look", "description": "mine"}])
    turn = responses.with_history(request, [])
    assert turn.tools == (Tool("look", description="mine"), Tool("look", namespace="ns"))


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "telepathy"}, "input[0].type"),
        ({}, "input[0].type"),
        ({"role": "wizard", "content": "x"}, "input[0].role"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "user", "content": 3}, "input[0].content"),
        ({"role": "user", "content": [{"type": "smell"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0].image_url"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"type": "reasoning", "id": "r", "summary": "text"}, "input[0].summary"),
        ({"type": "mcp_call", "id": 3}, "input[0].id"),
        ({"type": "item_reference"}, "input[0].id"),
        ({"role": "assistant", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"role": "developer", "content": [{"type": "input_file", "file_data": "x"}]}, "input[0].content[0].type"),
    ],
)
def test_a_broken_item_is_named(item: dict[str, Any], param: str) -> None:
    """Whatever is wrong with an item is a 400 that says where."""
    with pytest.raises(InvalidRequest) as caught:
        decode(input=[item])
    assert caught.value.param == param


def test_an_input_that_tells_nothing_is_refused() -> None:
    """An engine cannot run on no message at all."""
    with pytest.raises(InvalidRequest) as caught:
        messages_of([{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "?"}])
    assert caught.value.param == "input"
    assert [message.role for message in messages_of("", instructions="Say hello.")] == ["system"]


def test_what_would_have_to_be_fetched_is_refused() -> None:
    """There is no file store, and this server opens no address for a client."""
    for part, name in (
        ({"type": "input_image", "file_id": "f"}, "file_id"),
        ({"type": "input_file", "file_id": "f"}, "file_id"),
        ({"type": "input_file", "file_url": "http://x.test"}, "file_url"),
    ):
        with pytest.raises(UnsupportedParameter) as caught:
            decode(input=[{"role": "user", "content": [part]}])
        assert caught.value.param == f"input[0].content[0].{name}"


def test_an_id_stands_once() -> None:
    """Two items with one id could not be told apart by a page of the input."""
    item = {"type": "message", "id": "msg_1", "role": "user", "content": "x"}
    with pytest.raises(InvalidRequest) as caught:
        decode(input=[item, item])
    assert caught.value.param == "input[1].id"
