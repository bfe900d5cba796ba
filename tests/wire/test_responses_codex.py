"""A request as the Codex CLI sends it: nothing of it is lost, and it becomes a turn."""

import json
from typing import Any

from openai.types.responses import response_item_list
from pydantic import TypeAdapter
from responses_items_harness import survives, unseal

from sekisho.core.turn import Image, Reasoning, Text, ToolCall, ToolResult
from sekisho.wire import responses

PAGE: TypeAdapter[Any] = TypeAdapter(response_item_list.ResponseItemList)

PATCH_GRAMMAR = 'start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?\nhunk: /[^\\n]+/ LF\nLF: "\\n"'
CODEX = {
    "model": "sekisho-mini",
    "stream": True,
    "store": False,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"summary": "auto"},
    "prompt_cache_key": "0199-thread",
    "client_metadata": {"x-codex-installation-id": "5d0c"},
    "text": {
        "format": {
            "type": "json_schema",
            "name": "codex_output_schema",
            "strict": True,
            "schema": {"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]},
        }
    },
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
        },
        {
            "type": "namespace",
            "name": "mcp__notes",
            "description": "Notes of the team.",
            "tools": [
                {"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False},
                {"type": "function", "name": "write", "parameters": {"type": "object"}, "strict": False},
            ],
        },
        {"type": "web_search", "external_web_access": False},
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": PATCH_GRAMMAR},
        },
        {"type": "tool_search", "execution": "client", "description": "d", "parameters": {"type": "object"}},
    ],
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Permissions: all."}]},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix the typo in a.txt"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Look first."}],
            "content": None,
            "encrypted_content": "sealed:kool ot evah I",
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look."}],
            "phase": "commentary",
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "name": "exec_command",
            "arguments": '{"cmd":"cat a.txt"}',
            "call_id": "call_1",
        },
        {
            "type": "function_call",
            "id": "fc_2",
            "name": "read",
            "namespace": "mcp__notes",
            "arguments": "{}",
            "call_id": "call_2",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "helo"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [
                {"type": "input_text", "text": "a note"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
            ],
        },
        {
            "type": "custom_tool_call",
            "id": "ctc_1",
            "status": "completed",
            "call_id": "call_3",
            "name": "apply_patch",
            "input": "*** Begin Patch\n*** End Patch\n",
        },
        {"type": "custom_tool_call_output", "call_id": "call_3", "output": "Success."},
        {
            "type": "web_search_call",
            "id": "ws_1",
            "status": "completed",
            "action": {"type": "search", "query": "typo"},
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Done?"}]},
    ],
}


def test_nothing_of_a_codex_request_is_lost() -> None:
    """Every item and every tool survives: the items with all their fields in the stored input, the tools in the
    response object exactly as they were sent."""
    request = responses.decode(json.dumps(CODEX).encode(), "req_0a")
    assert survives(CODEX["input"], list(request.input_items))
    for field in ("tools", "tool_choice", "text", "parallel_tool_calls", "prompt_cache_key", "store"):
        assert request.echo[field] == CODEX[field]
    assert survives(CODEX["reasoning"], request.echo["reasoning"])
    assert (request.store, request.background, request.previous_response_id) == (False, False, None)
    assert request.include == {"reasoning.encrypted_content"}
    PAGE.validate_python(responses.input_items_page(request.input_items, limit=100), strict=True)


def test_a_codex_request_becomes_a_turn() -> None:
    """Tools of every kind, with namespace and grammar, and the whole conversation in the order in which it went."""
    turn = responses.with_history(responses.decode(json.dumps(CODEX).encode(), "req_0a"), [], unseal)
    assert [(tool.kind, tool.namespace, tool.name) for tool in turn.tools] == [
        ("function", None, "exec_command"),
        ("function", "mcp__notes", "read"),
        ("function", "mcp__notes", "write"),
        ("web_search", None, "web_search"),
        ("custom", None, "apply_patch"),
    ]
    assert turn.tools[4].grammar == CODEX["tools"][3]["format"]  # type: ignore[index]
    assert turn.format.kind == "json_schema"
    assert turn.parallel_tool_calls is True
    assert turn.stream
    assert [message.role for message in turn.messages] == [
        "developer",
        "developer",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert turn.messages[3].parts == (
        Reasoning("I have to look", ("Look first.",), "sealed:kool ot evah I", "rs_1"),
        Text("I look."),
        ToolCall("call_1", "exec_command", '{"cmd":"cat a.txt"}', item_id="fc_1"),
        ToolCall("call_2", "read", "{}", namespace="mcp__notes", item_id="fc_2"),
    )
    output = turn.messages[5].parts[0]
    assert isinstance(output, ToolResult)
    assert output.content == (Text("a note"), Image("data:image/png;base64,AAAA", "auto"))
    assert turn.messages[6].parts[0] == ToolCall(
        "call_3", "apply_patch", "*** Begin Patch\n*** End Patch\n", "custom", item_id="ctc_1"
    )
    search = turn.messages[8].parts[0]
    assert isinstance(search, ToolCall)
    assert (search.kind, json.loads(search.arguments)["query"]) == ("web_search", "typo")
