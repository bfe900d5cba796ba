import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.turn import (
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from sekisho.wire import messages

WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}

# Everything a coding agent sends in one body, in the shapes it sends them.
FULL: dict[str, Any] = {
    "model": "mini",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "You write code.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "Be brief."},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
                {"type": "redacted_thinking", "data": "sealed"},
                {"type": "text", "text": "Let me look.", "citations": None},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "京都"}, "caller": None},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "is_error": True,
                    "content": [
                        {"type": "text", "text": "rain"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {
                            "type": "document",
                            "source": {"type": "base64", "media_type": "application/pdf", "data": "JV"},
                        },
                    ],
                },
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "fine"},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "system", "content": "A late word."},
    ],
    "tools": [
        {**WEATHER, "description": "Tells the weather.", "strict": True, "cache_control": None, "defer_loading": False},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 100},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": "user_7"},
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 40,
    "stop_sequences": ["END"],
    "service_tier": "auto",
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "betas": ["context-1m-2025-08-07"],
    "cache_control": {"type": "ephemeral"},
    "mcp_servers": [],
    "container": None,
}

MINIMAL: dict[str, Any] = {"model": "mini", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}


def decode(request: Any) -> Turn:
    return messages.decode(json.dumps(request).encode(), "req_1")


def refused(change: dict[str, Any], error: type[RequestError] = InvalidRequest) -> RequestError:
    with pytest.raises(error) as caught:
        decode({**MINIMAL, **change})
    return caught.value


def test_a_whole_conversation_keeps_its_order() -> None:
    """Each tool result stands alone in a tool message; everything else keeps its place and its words."""
    turn = decode(FULL)
    assert turn.messages == (
        Message("system", (Text("You write code."), Text("Be brief."))),
        Message("user", (Text("Hi"),)),
        Message(
            "assistant",
            (
                Reasoning("Hm.", sealed="sig"),
                Reasoning(sealed="sealed"),
                Text("Let me look."),
                ToolCall("toolu_1", "weather", '{"city":"京都"}'),
            ),
        ),
        Message("tool", (ToolResult("toolu_1", (Text("rain"), Image("data:image/png;base64,AAAA")), is_error=True),)),
        Message("tool", (ToolResult("toolu_2", (Text("fine"),)),)),
        Message("user", (Document(None, "data:application/pdf;base64,JV"), Text("And?"))),
        Message("system", (Text("A late word."),)),
    )


def test_settings_reach_the_turn() -> None:
    """Sampling, thinking, format, user and tool choice are read from where this protocol puts them."""
    turn = decode(FULL)
    sampling = turn.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.top_k) == (32000, 1, 0.9, 40)
    assert sampling.stop == ("END",)
    assert (turn.reasoning.enabled, turn.reasoning.budget_tokens, turn.reasoning.effort) == (True, 1024, "high")
    assert turn.format == OutputFormat("json_schema", schema={"type": "object"}, strict=True)
    assert (turn.user, turn.stream, turn.parallel_tool_calls, turn.protocol) == ("user_7", True, False, "messages")
    assert turn.tools[0] == Tool(
        "weather", description="Tells the weather.", parameters=WEATHER["input_schema"], strict=True
    )
    assert [(tool.name, tool.kind) for tool in turn.tools[1:]] == [
        ("web_search", "web_search"),
        ("bash", "function"),
        ("str_replace_based_edit_tool", "function"),
    ]


def test_typed_tools_get_a_schema_and_a_description() -> None:
    """A local model does not know the vendor's tools by heart, so each comes with what it needs to be called."""
    kinds = ["bash_20250124", "text_editor_20250124", "text_editor_20250728", "computer_20251124", "memory_20250818"]
    for kind in kinds:
        size = {"display_width_px": 800, "display_height_px": 600} if kind.startswith("computer") else {}
        (tool,) = decode({**MINIMAL, "tools": [{"type": kind, "name": "t", **size}]}).tools
        assert tool.description
        assert tool.parameters
        assert set(tool.parameters["required"]) <= set(tool.parameters["properties"])
        assert tool.kind == "function"


def test_tool_choices() -> None:
    """`any` means required, `tool` means that one; a choice that cannot be met is refused."""
    request = {**MINIMAL, "tools": [WEATHER]}
    assert decode({**request, "tool_choice": {"type": "any"}}).tool_choice == ToolChoice("required")
    assert decode({**request, "tool_choice": {"type": "none"}}).tool_choice == ToolChoice("none")
    named = decode({**request, "tool_choice": {"type": "tool", "name": "weather"}})
    assert named.tool_choice == ToolChoice("one", name="weather")
    assert named.parallel_tool_calls is None
    assert refused({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}).param == "tool_choice.name"
    assert refused({"tools": [WEATHER], "tool_choice": {"type": "tool"}}).param == "tool_choice.name"
    assert refused({"tool_choice": {"type": "any"}}).param == "tool_choice"


def test_documents_and_search_results_become_text() -> None:
    """Texts are shown under their titles; a PDF and an image address stay what they are."""
    blocks = [
        {
            "type": "document",
            "title": "T",
            "context": "C",
            "source": {"type": "text", "data": "D", "media_type": "text/plain"},
        },
        {"type": "document", "title": "T", "source": {"type": "content", "content": [{"type": "text", "text": "P"}]}},
        {"type": "document", "source": {"type": "content", "content": "whole"}},
        {
            "type": "document",
            "title": "a.pdf",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "J"},
        },
        {"type": "search_result", "title": "S", "source": "https://s", "content": [{"type": "text", "text": "found"}]},
        {"type": "image", "source": {"type": "url", "url": "https://i/x.png"}},
    ]
    (message,) = decode({**MINIMAL, "messages": [{"role": "user", "content": blocks}]}).messages
    assert message.parts == (
        Text("T\nC\nD"),
        Text("T"),
        Text("P"),
        Text("whole"),
        Document("a.pdf", "data:application/pdf;base64,J"),
        Text("S\nhttps://s\nfound"),
        Image("https://i/x.png"),
    )


def test_a_search_another_server_ran_stays_in_the_history() -> None:
    """Its call and its titles and addresses come back as a web_search call and result, in order."""
    content = [
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "q"}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s1",
            "content": [{"type": "web_search_result", "title": "T", "url": "https://t", "encrypted_content": "x"}],
        },
        {"type": "text", "text": "So."},
    ]
    turn = decode({**MINIMAL, "messages": [{"role": "assistant", "content": content}]})
    assert turn.messages == (
        Message(
            "assistant",
            (
                ToolCall("s1", "web_search", '{"query":"q"}', kind="web_search"),
                ToolResult("s1", (Text("T\nhttps://t"),), kind="web_search"),
                Text("So."),
            ),
        ),
    )


def test_the_vendors_billing_line_is_no_prompt() -> None:
    """A line that changes with every request would keep an engine from reusing the prompt behind it."""
    lines = [{"type": "text", "text": text} for text in ("x-anthropic-billing-header: cc=1.1c0;", "You write code.")]
    assert decode({**MINIMAL, "system": lines}).messages[0] == Message("system", (Text("You write code."),))


def test_effort_set_in_the_middle_counts_from_there() -> None:
    """A system message may set the effort and say nothing: the last word on it counts, and no empty message stays."""
    said = {"role": "system", "content": [], "output_config": {"effort": "low"}}
    request = {**MINIMAL, "output_config": {"effort": "high"}, "messages": [*MINIMAL["messages"], said]}
    assert decode(request).reasoning.effort == "low"
    assert decode(request).messages == decode(MINIMAL).messages


@pytest.mark.parametrize(
    ("thinking", "enabled"),
    [
        ({"type": "disabled"}, False),
        ({"type": "adaptive", "display": "omitted"}, True),
        ({"type": "adaptive", "budget_tokens": 0, "block_binding": "x"}, True),
        ({"type": "between_tools"}, True),
        (None, None),
    ],
)
def test_thinking_modes(thinking: Any, enabled: bool | None) -> None:
    """Every mode of thinking is known; silence leaves it to the engine."""
    assert decode({**MINIMAL, "thinking": thinking}).reasoning.enabled is enabled


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"max_tokens": None}, "max_tokens", "missing_required_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "sound"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        ({"temperature": 1.5}, "temperature", "invalid_value"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"top_k": 2**31}, "top_k", "invalid_value"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", None),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "missing_required_parameter"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens", "invalid_value"),
        ({"tools": [{"name": "t"}]}, "tools[0].input_schema", "missing_required_parameter"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
        ({"stop_sequences": [""]}, "stop_sequences[0]", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str, code: str | None) -> None:
    """A bad request is a 400 that names the parameter."""
    error = refused(change)
    assert (error.status, error.param) == (400, param)
    assert code in (None, error.error_code)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}, "tools[0].type"),
        ({"tools": [{"type": "computer_toolset_20260801"}]}, "tools[0].type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages[0].content[0].source",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(change: dict[str, Any], param: str) -> None:
    """A real parameter that this server cannot honour is refused by name, never dropped."""
    error = refused(change, UnsupportedParameter)
    assert (error.status, error.param) == (400, param)


def test_counting_needs_no_max_tokens() -> None:
    """`count_tokens` decodes to the same turn as the request itself would, but never streams."""
    body = {key: value for key, value in FULL.items() if key not in ("max_tokens", "stream")}
    counted = messages.decode_count(json.dumps(body).encode(), "req_1")
    assert counted.messages == decode(FULL).messages
    assert counted.tools == decode(FULL).tools
    assert (counted.stream, counted.sampling.max_tokens) == (False, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("text"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name", "x"]), inner),
    max_leaves=6,
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in paths(item, (*at, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(paths(FULL)), json_values)
def test_any_change_to_a_request_is_a_turn_or_a_named_refusal(path: tuple[Any, ...], new: Any) -> None:
    """No JSON value in any place raises anything but a RequestError."""
    body = json.dumps(replaced(FULL, path, new)).encode()
    for read in (messages.decode, messages.decode_count):
        try:
            assert isinstance(read(body, "req_1"), Turn)
        except RequestError as error:
            assert error.status == 400  # noqa: PT017  a refusal is one of two right outcomes here


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40) | st.sampled_from([b"[" * 10_000, b'{"a":' * 10_000, b'{"model":NaN}', b"\xff\xfe"]))
def test_any_bytes_are_refused(body: bytes) -> None:
    """Bytes that are no request are a RequestError."""
    with pytest.raises(RequestError):
        messages.decode(body, "req_1")
