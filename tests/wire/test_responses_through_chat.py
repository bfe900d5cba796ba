"""The Responses protocol in front of an engine that knows only chat completions."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.events import Event
from sekisho.wire import responses
from sekisho.wire.chat_client import ChatStreamDecoder, encode_request

TOOLS = [
    {"type": "function", "name": "look", "parameters": {"type": "object"}},
    {
        "type": "namespace",
        "name": "notes",
        "description": "Notes.",
        "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}}],
    },
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {"type": "web_search"},
]
PATCH = '*** Begin Patch\n+ "関所"\\\n*** End Patch\n'


def call(index: int, name: str, *pieces: str) -> list[dict[str, Any]]:
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in pieces]
    return [{"tool_calls": [part]} for part in [first, *rest]]


def upstream(deltas: list[dict[str, Any]], reason: str = "tool_calls") -> bytes:
    """What an engine streams for these deltas."""
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}})
    shape = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "engine"}
    frames = [f"data: {json.dumps({**shape, **chunk})}\n\n" for chunk in chunks]
    return "".join([*frames, "data: [DONE]\n\n"]).encode()


def answer(request: responses.ResponsesRequest, stream: bytes, cuts: list[int]) -> dict[str, Any]:
    """The final response, by way of the engine's stream cut anywhere and of our own stream."""
    turn = responses.with_history(request, [])
    encoder = responses.encoder(request, turn, "resp_1", 1)
    decoder = ChatStreamDecoder(turn)
    sent = encoder.start()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        sent += encoder.feed(decoder.feed(stream[begin:end]))
    rest: list[Event] = decoder.finish()
    sent += encoder.feed(rest) + encoder.end()
    last: dict[str, Any] = json.loads(sent.decode().rstrip().rpartition("data: ")[2])
    assert last["type"] == "response.completed"
    final: dict[str, Any] = last["response"]
    return final


DELTAS = [
    {"role": "assistant", "content": None},
    {"reasoning_content": "I patch "},
    {"reasoning_content": "it."},
    {"content": "One moment."},
    *call(0, "notes__read", '{"id"', ":1}"),
    *call(1, "apply_patch", json.dumps({"input": PATCH})[:20], json.dumps({"input": PATCH})[20:]),
    *call(2, "look", "{}"),
]
STREAM = upstream(DELTAS)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=6).map(sorted))
def test_special_tools_survive_a_chat_only_engine(cuts: list[int]) -> None:
    """The engine calls plain functions; the client gets its namespace, its custom tool's free text, the thinking as
    an item, and exact usage, wherever the network cut the engine's stream; told again, all of it goes back."""
    request = responses.decode(json.dumps({"model": "m", "input": "go", "tools": TOOLS}).encode(), "req_1")
    final = answer(request, STREAM, cuts)
    output = final["output"]
    assert [item["type"] for item in output] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
        "function_call",
    ]
    assert output[0]["content"][0]["text"] == "I patch it."
    assert (output[2]["namespace"], output[2]["name"], output[2]["arguments"]) == ("notes", "read", '{"id":1}')
    assert (output[3]["name"], output[3]["input"]) == ("apply_patch", PATCH)
    assert (final["usage"]["input_tokens"], final["usage"]["output_tokens"]) == (9, 8)
    assert final["tools"] == TOOLS

    results = [
        {"type": item["type"] + "_output", "call_id": item["call_id"], "output": "ok"}
        for item in output
        if "call" in item["type"]
    ]
    body = {"model": "m", "input": results, "tools": TOOLS, "previous_response_id": "resp_1"}
    again = responses.decode(json.dumps(body).encode(), "req_2")
    turn = responses.with_history(again, [*request.input_items, *output])
    sent = json.loads(encode_request(turn, model="engine", stream=True))
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["look", "notes__read", "apply_patch"]
    said = sent["messages"][1]
    assert said["reasoning_content"] == "I patch it."
    assert [made["function"]["name"] for made in said["tool_calls"]] == ["notes__read", "apply_patch", "look"]
    assert json.loads(said["tool_calls"][1]["function"]["arguments"]) == {"input": PATCH}
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "tool", "tool", "tool"]


def test_a_search_nobody_offered_comes_back_as_a_search() -> None:
    """The search is not offered to the engine; one that it asks for all the same is an item of its kind, and is told
    in words at the next turn."""
    request = responses.decode(json.dumps({"model": "m", "input": "go", "tools": TOOLS}).encode(), "req_1")
    final = answer(request, upstream(call(0, "web_search", '{"query":"関所"}')), [])
    assert final["output"][0]["type"] == "web_search_call"
    assert final["output"][0]["action"] == {"type": "search", "query": "関所"}
    again = responses.decode(b'{"model":"m","input":"and?"}', "req_2")
    sent = json.loads(encode_request(responses.with_history(again, final["output"]), model="engine", stream=False))
    assert "関所" in sent["messages"][0]["content"]
    assert "tool_calls" not in sent["messages"][0]
