"""The body of `POST /v1/responses`: what is read, what is refused, and which parameter is named."""

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from sekisho.core.errors import InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.turn import OutputFormat, ReasoningRequest, Sampling, Tool, ToolChoice
from sekisho.wire import responses
from sekisho.wire.responses import items as reading

LOOK = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
FILES = {
    "type": "namespace",
    "name": "files",
    "description": "Files.",
    "tools": [{"type": "function", "name": "read"}, {"type": "custom", "name": "edit"}],
}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "text"}}
SEARCH = {"type": "web_search"}


def decode(**fields: Any) -> responses.ResponsesRequest:
    return responses.decode(json.dumps({"model": "m", "input": "hi", **fields}).encode(), "req_0a")


def test_the_smallest_request_has_the_defaults_of_the_protocol() -> None:
    """A model and an input are enough; the response is stored, nothing is streamed, the engine's defaults hold."""
    request = decode()
    assert (request.turn.id, request.turn.protocol, request.turn.model) == ("req_0a", "responses", "m")
    assert request.turn.sampling == Sampling()
    assert (request.store, request.background, request.truncation) == (True, False, "disabled")
    assert not request.turn.stream
    assert request.echo["tool_choice"] == "auto"
    assert request.echo["text"] == {"format": {"type": "text"}}


def test_every_setting_reaches_the_turn() -> None:
    """Sampling, format, reasoning, metadata and state are read into their places."""
    schema = {"type": "object", "properties": {}}
    request = decode(
        stream=True,
        store=False,
        background=False,
        temperature=0.2,
        top_p=0.9,
        max_output_tokens=64,
        top_logprobs=2,
        parallel_tool_calls=False,
        previous_response_id="resp_1",
        metadata={"a": "b"},
        user="taro",
        truncation="auto",
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}, "verbosity": "low"},
        stream_options={"include_obfuscation": False},
        include=["message.output_text.logprobs"],
    )
    turn = request.turn
    assert turn.sampling == Sampling(temperature=0.2, top_p=0.9, max_tokens=64, logprobs=True, top_logprobs=2)
    assert turn.format == OutputFormat("json_schema", "s", schema, True)
    assert turn.reasoning == ReasoningRequest("low", "auto")
    assert (turn.stream, turn.parallel_tool_calls, turn.user) == (True, False, "taro")
    assert (turn.previous_response_id, request.previous_response_id) == ("resp_1", "resp_1")
    assert turn.extra == {"verbosity": "low"}
    assert (turn.metadata, request.truncation) == ({"a": "b"}, "auto")


def test_null_means_absent() -> None:
    """Clients send null for what they leave out."""
    names = "instructions tools tool_choice text reasoning metadata temperature stream store include user prompt"
    assert decode(**dict.fromkeys(names.split())) == decode()


def test_no_effort_is_no_thinking() -> None:
    """`none` turns thinking off where an engine can."""
    assert decode(reasoning={"effort": "none"}).turn.reasoning.enabled is False


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [LOOK, FILES, PATCH, SEARCH], "tool_choice": {"type": "function", "name": "look"}},
        {"tools": [{"type": "apply_patch"}, {"type": "local_shell"}, {"type": "shell"}], "instructions": "x"},
        {"text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "high"}, "instructions": "Be brief."},
        {"metadata": {"k": "v"}, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"max_output_tokens": 5, "max_tool_calls": 2, "top_logprobs": 3, "temperature": 1, "truncation": "auto"},
    ],
)
def test_the_echo_makes_a_response_of_the_sdk(fields: dict[str, Any]) -> None:
    """What the response object repeats is exactly what was sent, and strictly of the SDK's types."""
    request = decode(**fields)
    encoder = responses.encoder(request, request.turn, "resp_1", 1)
    response = encoder.response()
    Response.model_validate(response, strict=True)
    for name, value in fields.items():
        if name == "reasoning":
            assert value.items() <= response[name].items()
        else:
            assert response[name] == value


def test_what_the_sdk_sends_is_read() -> None:
    """A request written by the official client is understood."""
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        return httpx.Response(200, json={})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = openai.OpenAI(api_key="sk-x", base_url="http://server.test/v1", http_client=http)
    client.responses.create(
        model="m",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        tools=[{"type": "function", "name": "look", "parameters": {}, "strict": False}],
        reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
        text={"format": {"type": "text"}},
    )
    request = responses.decode(seen[0], "req_1")
    assert request.turn.tools == (Tool("look", parameters={}, strict=False),)


def test_tools_of_all_kinds() -> None:
    """Functions, custom tools and a namespace's tools are offered; a web search is declared; what a client runs by
    itself is accepted."""
    client_side = [{"type": "apply_patch"}, {"type": "local_shell"}, {"type": "tool_search", "execution": "client"}]
    assert decode(tools=[LOOK, FILES, PATCH, {"type": "web_search_preview"}, *client_side]).turn.tools == (
        Tool("look", parameters={"type": "object"}, strict=True),
        Tool("read", namespace="files"),
        Tool("edit", kind="custom", namespace="files"),
        Tool("patch", kind="custom", grammar={"type": "text"}),
        Tool("web_search", kind="web_search"),
    )


@pytest.mark.parametrize(
    ("choice", "read"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "look"}, ToolChoice("one", "look")),
        ({"type": "function", "name": "read"}, ToolChoice("one", "read", "files")),
        ({"type": "function", "name": "read", "namespace": "files"}, ToolChoice("one", "read", "files")),
        ({"type": "custom", "name": "patch"}, ToolChoice("one", "patch")),
        ({"type": "namespace", "name": "files"}, ToolChoice("required", allowed=("files__read", "files__edit"))),
        ({"type": "web_search_preview"}, ToolChoice("one", "web_search")),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "namespace", "name": "files"}, {"type": "function", "name": "look"}, SEARCH],
            },
            ToolChoice("required", allowed=("files__read", "files__edit", "look", "web_search")),
        ),
    ],
)
def test_tool_choice_in_all_forms(choice: Any, read: ToolChoice) -> None:
    """Each form means one thing in the turn."""
    assert decode(tools=[LOOK, FILES, PATCH, SEARCH], tool_choice=choice).turn.tool_choice == read


@pytest.mark.parametrize("kind", ["file_search", "code_interpreter", "computer", "image_generation", "mcp"])
def test_a_hosted_tool_is_refused_by_name(kind: str) -> None:
    """A tool that needs a service which is not here is never silently dropped."""
    with pytest.raises(UnsupportedParameter) as caught:
        decode(tools=[LOOK, {"type": kind, "server_label": "x"}])
    assert caught.value.param == "tools[1].type"
    assert kind in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
        ("moderation", {"model": "m"}),
        ("context_management", [{"type": "compaction"}]),
    ],
)
def test_what_cannot_be_honoured_is_refused(name: str, value: Any) -> None:
    """A real parameter without a counterpart here is named, not ignored."""
    with pytest.raises(UnsupportedParameter) as caught:
        decode(**{name: value})
    assert caught.value.param == name


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "f", **fields}]}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"modle": "m"}, "modle", "unknown_parameter"),
    ({"text": {"fromat": {}}}, "text.fromat", "unknown_parameter"),
    ({"stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": ""}, "input", "invalid_value"),
    ({"input": 3}, "input", "invalid_type"),
    ({"input": ["x"]}, "input[0]", "invalid_type"),
    ({"input": [{"type": []}]}, "input[0].type", "invalid_type"),
    ({"model": ""}, "model", "invalid_value"),
    ({"model": None}, "model", "invalid_type"),
    ({"temperature": 2.5}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"top_p": -1}, "top_p", "invalid_value"),
    ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"max_output_tokens": 10**30}, "max_output_tokens", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
    ({"truncation": "maybe"}, "truncation", "invalid_value"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"reasoning": {"effort": "heroic"}}, "reasoning.effort", "invalid_value"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "text.format.schema", "missing_required_parameter"),
    ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "wand"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
    (tool(name=""), "tools[0].name", "invalid_value"),
    (tool(parameters=[]), "tools[0].parameters", "invalid_type"),
    ({"tools": [{**FILES, "tools": [{"type": "mcp"}]}]}, "tools[0].tools[0].type", "invalid_value"),
    ({"background": True, "store": False}, "store", "invalid_value"),
    ({"background": True, "stream": True}, "stream", "unsupported_parameter"),
    ({"tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"name": "f"}}, "tool_choice.type", "missing_required_parameter"),
    ({**tool(), "tool_choice": {"type": "function"}}, "tool_choice.name", "missing_required_parameter"),
    ({**tool(), "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name", "invalid_value"),
    ({**tool(), "tool_choice": {"type": "mcp"}}, "tool_choice.type", "unsupported_parameter"),
    ({**tool(), "tool_choice": {"type": "web_search"}}, "tool_choice.type", "invalid_value"),
    ({**tool(), "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools", "invalid_value"),
    (
        {**tool(), "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "g"}]}},
        "tool_choice.tools[0].name",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD, ids=[f"{param}:{code}" for _, param, code in BAD])
def test_a_bad_parameter_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    """Each is a 400 of the caller's, with the parameter and the code."""
    with pytest.raises(RequestError) as caught:
        decode(**fields)
    assert (caught.value.status, caught.value.param, caught.value.error_code) == (400, param, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":NaN}', b'"\xff"', b"[" * 10_000, b'{"a":' * 10_000])
def test_a_broken_body_is_the_callers_fault(body: bytes) -> None:
    """No body whatever is more than an `InvalidRequest`."""
    with pytest.raises(InvalidRequest):
        responses.decode(body, "req_1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    *("input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "stream", "type", "role", "content"),
    *("id", "call_id", "output", "action", "name", "arguments", "summary", "format", "schema", "image_url", "code"),
)
KINDS = (
    *reading.PREFIXES,
    *reading.OTHER_KINDS,
    *("item_reference", "function", "custom", "namespace", "web_search", "shell", "allowed_tools", "json_schema"),
    *("input_text", "output_text", "input_image", "input_file", "refusal", "user", "assistant", "developer"),
)
kinds = st.sampled_from(KINDS)
keys = st.sampled_from(KEYS)
near_misses = st.recursive(
    json_values | kinds,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, kinds | inner, max_size=4),
    max_leaves=12,
)
entries = st.builds(
    lambda kind, given: {**given, "type": kind},
    kinds | st.just(None) | near_misses,
    st.fixed_dictionaries({}, optional={key: st.text(max_size=3) | kinds | near_misses for key in KEYS}),
)


def survives(fields: dict[str, Any]) -> str | None:
    """Runs a request through the whole codec; the parameter at fault where it was refused."""
    try:
        request = decode(**fields)
        turn = responses.with_history(request, [])
        responses.encoder(request, turn, "resp_1", 1).whole()
    except RequestError as error:
        return error.param or f"nothing named, {error.status}"
    return None


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(keys.filter(lambda key: key != "name"), near_misses, max_size=4))
def test_nothing_breaks_the_codec(fields: dict[str, Any]) -> None:
    """Whatever JSON comes, the answer is a turn or an error of the caller's that names a parameter, never a crash."""
    wrong = survives(fields)
    assert wrong is None or not wrong.startswith("nothing")


@settings(max_examples=120, deadline=None)
@example([{"type": "tool_search_output", "tools": [None]}], "input")
@given(st.lists(entries, min_size=1, max_size=3), st.sampled_from(["input", "tools"]))
def test_no_item_and_no_tool_breaks_the_codec(odd: list[dict[str, Any]], where: str) -> None:
    """The same for lists of odd items and odd tools; the parameter named is in that list."""
    wrong = survives({where: odd})
    assert wrong is None or wrong.startswith(where)
