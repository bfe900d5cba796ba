"""`/v1/chat/completions`: what a request becomes, and what is refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import completion_create_params

from sekisho.core.errors import InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    ReasoningRequest,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from sekisho.wire import chat
from sekisho.wire.chat_schema import ChatRequest

HELLO = [{"role": "user", "content": "hi"}]
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CUSTOM = {"type": "custom", "custom": {"name": "p", "format": {"type": "text"}}}


def decode(**fields: Any) -> Turn:
    return chat.decode(json.dumps({"model": "m", "messages": HELLO, **fields}).encode(), "chatcmpl-1")


def test_every_kind_of_message_arrives_in_order() -> None:
    """All roles and part types of the protocol, with thinking before words and calls after them."""
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}], "name": "dev"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
            ],
        },
        {
            "role": "assistant",
            "reasoning_content": "think",
            "content": [{"type": "text", "text": "ok"}, {"type": "refusal", "refusal": "no"}],
            "annotations": [],
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "2", "type": "custom", "custom": {"name": "p", "input": "raw"}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "refusal": "never", "reasoning": "why"},
    ]
    assert decode(messages=messages).messages == (
        Message("system", (Text("s"),)),
        Message("developer", (Text("d"),), "dev"),
        Message(
            "user",
            (
                Text("look"),
                Image("data:image/png;base64,AA==", "low"),
                Audio("AA==", "wav"),
                Document("a.pdf", "data:application/pdf;base64,AA=="),
            ),
        ),
        Message(
            "assistant",
            (
                Reasoning("think"),
                Text("ok"),
                Refusal("no"),
                ToolCall("1", "f", '{"a":1}'),
                ToolCall("2", "p", "raw", "custom"),
            ),
        ),
        Message("tool", (ToolResult("1", (Text("one"),)),)),
        Message("tool", (ToolResult("2", (Text("two"),)),)),
        Message("assistant", (Reasoning("why"), Refusal("never"))),
    )


def test_legacy_functions_become_tools() -> None:
    """The old form, with its results told apart by name only, reads as tools, calls and results."""
    turn = decode(
        functions=[FUNCTION["function"]],
        function_call={"name": "f"},
        messages=[
            *HELLO,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "r"},
        ],
    )
    assert turn.tools == (Tool("f", "function", "d", {"type": "object"}),)
    assert turn.tool_choice == ToolChoice("one", "f")
    call, result = turn.messages[1].parts[0], turn.messages[2].parts[0]
    assert isinstance(call, ToolCall)
    assert result == ToolResult(call.id, (Text("r"),))
    assert chat.LEGACY_FUNCTIONS in turn.extra


def test_tools_and_choices() -> None:
    """Function and custom tools, and every form of the choice among them."""
    both = [FUNCTION, CUSTOM]
    assert decode(tools=both).tools[1] == Tool("p", "custom", grammar={"type": "text"})
    assert decode(tools=both, tool_choice="none").tool_choice == ToolChoice("none")
    assert decode(tools=both, tool_choice="required").tool_choice == ToolChoice("required")
    assert decode(tools=both, tool_choice={"type": "function", "function": {"name": "f"}}).tool_choice.name == "f"
    assert decode(tools=both, tool_choice={"type": "custom", "custom": {"name": "p"}}).tool_choice.name == "p"
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}
    choice = decode(tools=both, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).tool_choice
    assert choice == ToolChoice("required", allowed=("f",))
    assert decode(tools=both, parallel_tool_calls=False).parallel_tool_calls is False


def test_no_limit_and_other_vendors_thinking() -> None:
    """-1 means no limit, as LM Studio's own examples write it; thinking is asked for in each vendor's way."""
    assert decode(max_tokens=-1).sampling.max_tokens is None
    assert decode(max_tokens=5, max_completion_tokens=-1).sampling.max_tokens is None
    assert decode(logprobs=False, top_logprobs=0).sampling.top_logprobs is None
    for fields, expected in (
        ({"reasoning": {"effort": "low", "exclude": True}}, ReasoningRequest("low")),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, ReasoningRequest("high")),
        ({"reasoning": {"enabled": False}}, ReasoningRequest(enabled=False)),
        ({"reasoning": {"max_tokens": 9}}, ReasoningRequest(budget_tokens=9)),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, ReasoningRequest(budget_tokens=9, enabled=True)),
        ({"thinking": {"type": "disabled"}}, ReasoningRequest(enabled=False)),
        ({"thinking": {"type": "auto"}, "thinking_budget": 3}, ReasoningRequest(budget_tokens=3)),
    ):
        assert decode(**fields).reasoning == expected, fields


def test_sampling_and_vendor_fields() -> None:
    """OpenAI's, llama.cpp's and vLLM's names end in one place; what only an engine knows travels in `extra`."""
    turn = decode(
        temperature=0, top_p=1, n=2, stop=["a", "b"], seed=-1, max_tokens=9, max_completion_tokens=5, logprobs=True,
        top_logprobs=3, presence_penalty=-2, frequency_penalty=2, logit_bias={"5": -100}, top_k=4, min_p=0.1,
        repetition_penalty=1.1, ignore_eos=True, min_tokens=2, chat_template_kwargs={"a": 1}, verbosity="low",
        guided_regex="a+", user="u", metadata={"k": "v"}, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": True},
        reasoning_effort="none", store=False, service_tier="auto", prompt_cache_key="k", safety_identifier="s",
        prediction={"type": "content", "content": "x"}, modalities=["text"], audio=None,
    )  # fmt: skip
    sampling = turn.sampling
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.stop, sampling.seed) == (0, 1, 2, ("a", "b"), -1)
    assert (sampling.max_tokens, sampling.logprobs, sampling.top_logprobs) == (5, True, 3)
    assert (sampling.top_k, sampling.min_p, sampling.repeat_penalty, sampling.ignore_eos) == (4, 0.1, 1.1, True)
    assert sampling.logit_bias == {"5": -100}
    assert turn.extra == {
        "min_tokens": 2,
        "chat_template_kwargs": {"a": 1},
        "guided_regex": "a+",
        "verbosity": "low",
    }
    assert (turn.user, turn.metadata, turn.stream, turn.include_usage) == ("u", {"k": "v"}, True, True)
    assert (turn.reasoning.effort, turn.reasoning.enabled) == ("none", False)
    assert decode(enable_thinking=True).reasoning.enabled is True
    assert decode(stop="x").sampling.stop == ("x",)


def test_formats() -> None:
    """OpenAI's three formats, and a bare schema as llama.cpp and vLLM clients send it."""
    schema = {"type": "object"}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True, "description": "d"}}
    assert decode(response_format={"type": "text"}).format == OutputFormat()
    assert decode(response_format={"type": "json_object"}).format == OutputFormat("json_object")
    assert decode(response_format=named).format == OutputFormat("json_schema", "n", schema, True, "d")
    bare = OutputFormat("json_schema", "output", schema)
    assert decode(response_format={"type": "json_object", "schema": schema}).format == bare
    assert decode(json_schema=schema).format == bare
    assert decode(guided_json=schema).format == bare
    assert decode(guided_json='{"type":"object"}').format == bare


def test_every_request_field_that_the_sdk_knows_is_known() -> None:
    """No parameter of the official SDK is answered with `unknown_parameter`."""
    sdk = set(completion_create_params.CompletionCreateParamsStreaming.__annotations__)
    sdk |= set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    assert sdk - set(ChatRequest.__struct_fields__) == set()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", None),
        ({"messages": [{"role": "function", "name": "f", "content": ""}]}, "messages[0].name", "invalid_value"),
        ({"model": ""}, "model", "invalid_value"),
        ({"model": 3}, "model", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": 10**100}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"thinking": {"type": "loud"}}, "thinking.type", "invalid_value"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"stream_options": {"colour": 1}}, "stream_options.colour", "unknown_parameter"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [FUNCTION], "functions": [{"name": "g"}]}, "functions", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
    ],
)
def test_bad_values_are_named(fields: dict[str, Any], param: str, code: str | None) -> None:
    """What is wrong is told by the parameter's path and a code."""
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    assert caught.value.param == param
    assert code is None or caught.value.error_code == code
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "x"}}, "moderation"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]}]},
            "messages[0].content[0].file.file_id",
        ),
        ({"messages": [*HELLO, {"role": "assistant", "audio": {"id": "a"}}]}, "messages[1].audio"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """A real parameter that this server lacks is never ignored."""
    with pytest.raises(UnsupportedParameter) as caught:
        decode(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "data:text/html;base64,AA==", "ftp://x/y.png", ""]
)
def test_images_come_by_web_or_data_url_only(url: str) -> None:
    """An image URL cannot make an engine read a local file."""
    with pytest.raises(InvalidRequest) as caught:
        decode(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert caught.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":Infinity}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"temperature":1e999}',
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"n":' + b"9" * 6000 + b"}",
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"documents":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"model":"m","messages":' + b"[" * 10_000,
        b'{"model":"m","messages":[{"role":"user","content":"a","x":'
        + b'{"a":' * 10_000
        + b"1"
        + b"}" * 10_000
        + b"}]}",
        b'{"model":"m","messages":[{"role":"user","content":"a"}]} trailing',
    ],
)
def test_broken_bodies_are_refused(body: bytes) -> None:
    """Broken JSON, bad UTF-8, NaN, endless numbers and endless nesting each are an invalid request, nothing worse."""
    with pytest.raises(InvalidRequest):
        chat.decode(body, "chatcmpl-1")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(ChatRequest.__struct_fields__), JSON, st.sampled_from(["role", "content", "tool_calls", "name"]))
def test_any_value_anywhere_is_a_turn_or_a_request_error(name: str, value: Any, inner: str) -> None:
    """No value of a field or of a message leads to another exception."""
    for fields in ({name: value}, {"messages": [{"role": "assistant", "content": "x", inner: value}]}):
        try:
            turn = decode(**fields)
        except RequestError:
            continue
        assert turn.id == "chatcmpl-1"
