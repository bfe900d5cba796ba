"""The chat protocol as a client: a `Turn` to the request that an engine understands, its answer to events."""

from typing import Any

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    Turn,
)
from sekisho.wire import jsonio, tools
from sekisho.wire.chat_errors import MisplacedInstructions, failed, upstream_error
from sekisho.wire.chat_sampling import sampling_fields
from sekisho.wire.chat_stream import ChatStreamDecoder, decode_whole
from sekisho.wire.completions_client import CompletionStreamDecoder, decode_completion_whole, encode_completion
from sekisho.wire.tools import ToolTable

__all__ = [
    "ChatStreamDecoder",
    "CompletionStreamDecoder",
    "MisplacedInstructions",
    "decode_completion_whole",
    "decode_whole",
    "encode_completion",
    "encode_request",
    "failed",
    "upstream_error",
]


def encode_request(turn: Turn, *, model: str, stream: bool, developer_role: bool = False) -> bytes:
    """The body for an engine's `/chat/completions`. `developer_role`: the engine knows that role.

    Usage is always asked for. Fields that the turn leaves open are left out, so the engine's defaults hold. Raises
    `InvalidRequest` for what chat cannot carry.
    """
    functions, choice, table = tools.offer(turn.tools, turn.tool_choice)
    request = {key: value for key, value in turn.extra.items() if not key.startswith("sekisho.")}
    request.update(sampling_fields(turn.sampling))
    request["model"] = model
    request["messages"] = _messages(turn, table, developer_role)
    if functions:
        request["tools"] = functions
        if choice is not None:
            request["tool_choice"] = choice
        if turn.parallel_tool_calls is not None:
            request["parallel_tool_calls"] = turn.parallel_tool_calls
    if turn.sampling.logprobs:
        request["logprobs"] = True
        if turn.sampling.top_logprobs is not None:
            request["top_logprobs"] = turn.sampling.top_logprobs
    if (asked := _format(turn.format)) is not None:
        request["response_format"] = asked
    _ask_reasoning(turn, request)
    request["stream"] = stream
    if stream:
        request["stream_options"] = {"include_usage": True}
    return jsonio.dump(request)


def _format(asked: OutputFormat) -> dict[str, Any] | None:
    if asked.kind == "text":
        return None
    if asked.kind == "json_object" or asked.schema is None:
        return {"type": "json_object"}
    named: dict[str, Any] = {"name": asked.name or "output", "schema": asked.schema}
    if asked.strict is not None:
        named["strict"] = asked.strict
    if asked.description is not None:
        named["description"] = asked.description
    return {"type": "json_schema", "json_schema": named}


def _ask_reasoning(turn: Turn, request: dict[str, Any]) -> None:
    """Effort goes out as OpenAI's field and as a template variable, where llama.cpp looks for it."""
    asked = turn.reasoning
    variables: dict[str, Any] = {}
    if asked.enabled is not None:
        variables["enable_thinking"] = asked.enabled
    if asked.effort is not None and asked.effort != "none":
        request["reasoning_effort"] = asked.effort
        variables["reasoning_effort"] = asked.effort
    if variables:
        request["chat_template_kwargs"] = {**variables, **(request.get("chat_template_kwargs") or {})}


def _messages(turn: Turn, table: ToolTable, developer_role: bool) -> list[dict[str, Any]]:
    """Leading instructions become one message: many templates take a system message only there, and only one."""
    out: list[dict[str, Any]] = []
    for message in turn.messages:
        if message.role in ("system", "developer"):
            role = "developer" if developer_role and message.role == "developer" else "system"
            text = _text(message.parts)
            if len(out) == 1 and out[0]["role"] == role:
                out[0]["content"] = "\n\n".join(filter(None, (out[0]["content"], text)))
            else:
                out.append(_named({"role": role, "content": text}, message))
        elif message.role == "assistant":
            out.append(_assistant(message, table))
        else:
            out.extend(_from_outside(message))
    return out


def _named(message: dict[str, Any], source: Message) -> dict[str, Any]:
    if source.name is not None:
        message["name"] = source.name
    return message


def _assistant(message: Message, table: ToolTable) -> dict[str, Any]:
    thinking = [_thinking(part) for part in message.parts if isinstance(part, Reasoning)]
    calls = []
    words = []
    for part in message.parts:
        if isinstance(part, ToolCall) and part.kind != "web_search":
            function = {"name": table.offered(part.name, part.namespace), "arguments": tools.call_arguments(part)}
            calls.append({"id": part.id, "type": "function", "function": function})
        elif isinstance(part, ToolCall):
            words.append(tools.told(part))
        elif isinstance(part, Text | Refusal):
            words.append(part.text)
        elif isinstance(part, ToolResult):
            words.append(_text(part.content))  # of a hosted tool: it ran inside this message
        elif not isinstance(part, Reasoning):
            raise InvalidRequest("An assistant message can hold no image, audio or file.", param="messages")
    out = _named({"role": "assistant", "content": "\n".join(filter(None, words))}, message)
    if any(thinking):
        out["reasoning_content"] = "\n".join(filter(None, thinking))
    if calls:
        out["tool_calls"] = calls
    return out


def _thinking(part: Reasoning) -> str:
    return part.text or "\n".join(part.summary)


def _from_outside(message: Message) -> list[dict[str, Any]]:
    """A user's message, and the results of tools: each is a message of its own, and its images follow in a user
    message, for a tool message holds text only."""
    results: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    rest: list[Part] = []
    for part in message.parts:
        if not isinstance(part, ToolResult):
            rest.append(part)
        elif part.kind == "web_search":
            rest.append(Text(_text(part.content)))
        else:
            text = _text(part.content)
            content = f"Error: {text}" if part.is_error else text
            results.append({"role": "tool", "tool_call_id": part.call_id, "content": content})
            images = [_part(image) for image in part.content if isinstance(image, Image)]
            if images:
                shown += [{"type": "text", "text": f"Images from the result of {part.call_id}:"}, *images]
    if shown:
        results.append({"role": "user", "content": shown})
    if rest or not results:
        results.append(_named({"role": "user", "content": _content(tuple(rest))}, message))
    return results


def _content(parts: tuple[Part, ...]) -> str | list[dict[str, Any]]:
    parts = tuple(part for part in parts if not (isinstance(part, Document) and part.data is None))
    if all(isinstance(part, Text | Refusal | Reasoning) for part in parts):
        return _text(parts)
    return [_part(part) for part in parts]


def _text(parts: tuple[Part, ...] | tuple[Text | Image, ...]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, Text | Refusal))


def _part(part: Part) -> dict[str, Any]:
    match part:
        case Text() | Refusal():
            return {"type": "text", "text": part.text}
        case Image():
            url = {"url": part.url} if part.detail is None else {"url": part.url, "detail": part.detail}
            return {"type": "image_url", "image_url": url}
        case Audio():
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}
        case Document():
            return {"type": "file", "file": {"filename": part.name or "file", "file_data": part.data}}
    raise InvalidRequest("A message holds a part that its role cannot have.", param="messages")
