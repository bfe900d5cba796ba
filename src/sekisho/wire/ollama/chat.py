"""`/api/chat`."""

from collections import deque
from collections.abc import Callable
from typing import Any

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import Image, Message, Part, Reasoning, Text, Tool, ToolCall, ToolResult, Turn
from sekisho.wire import jsonio
from sekisho.wire.ollama import schema
from sekisho.wire.ollama.encoder import OllamaEncoder, error_body
from sekisho.wire.ollama.settings import extra_of, format_of, images_of, reasoning_of, sampling_of

__all__ = ["decode", "encoder", "error_body"]

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


def decode(body: bytes, request_id: str) -> Turn:
    """Raises `RequestError` naming the parameter. Streams unless told otherwise."""
    request = jsonio.load(body, schema.ChatRequest)
    return Turn(
        id=request_id,
        protocol="ollama_chat",
        model=request.model,
        messages=_messages(request.messages or []),
        tools=_tools(request.tools or []),
        sampling=sampling_of(request),
        format=format_of(request),
        reasoning=reasoning_of(request),
        stream=request.stream is not False,
        include_usage=True,
        extra=extra_of(request),
    )


def encoder(turn: Turn, created: int, clock: Callable[[], float] | None = None) -> OllamaEncoder:
    """`clock` tells seconds that never go back; without it the answer names no durations."""
    return OllamaEncoder(turn, created, clock)


def _messages(params: list[schema.MessageParam]) -> tuple[Message, ...]:
    """Ollama's calls often have no id, and results name the tool instead: ids are made from the position, and each
    result goes to the oldest unanswered call that fits."""
    messages: list[Message] = []
    unanswered: deque[ToolCall] = deque()
    for position, param in enumerate(params):
        if param.role == "tool":
            messages.append(Message("tool", (_result(param, position, unanswered),)))
            continue
        parts: list[Part] = []
        if param.thinking and param.role == "assistant":
            parts.append(Reasoning(param.thinking))
        if param.content or not (param.images or param.tool_calls or parts):
            parts.append(Text(param.content or ""))
        parts += images_of(param.images, f"messages[{position}].images")
        calls = _calls(param, position)
        unanswered += calls
        messages.append(Message(param.role, (*parts, *calls)))
    return tuple(messages)


def _calls(param: schema.MessageParam, position: int) -> list[ToolCall]:
    if param.tool_calls and param.role != "assistant":
        at = f"messages[{position}].tool_calls"
        raise InvalidRequest("Only an assistant's message may call tools.", param=at)
    return [
        ToolCall(
            call.id or f"call_{position}_{number}",
            call.function.name,
            jsonio.dump(call.function.arguments or {}).decode(),
        )
        for number, call in enumerate(param.tool_calls or ())
    ]


def _result(param: schema.MessageParam, position: int, unanswered: deque[ToolCall]) -> ToolResult:
    content: list[Text | Image] = [Text(param.content or "")]
    content += images_of(param.images, f"messages[{position}].images")
    wanted_id, wanted_name = param.tool_call_id, param.tool_name
    for call in unanswered:
        if call.id == wanted_id if wanted_id else call.name == wanted_name or not wanted_name:
            unanswered.remove(call)
            return ToolResult(call.id, tuple(content))
    return ToolResult(wanted_id or f"call_{position}", tuple(content))


def _tools(params: list[schema.ToolParam]) -> tuple[Tool, ...]:
    return tuple(
        Tool(
            param.function.name,
            description=param.function.description,
            parameters=param.function.parameters or _NO_ARGUMENTS,
        )
        for param in params
    )
