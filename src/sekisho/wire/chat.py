"""OpenAI's `/v1/chat/completions`, server side: request bytes to a `Turn`, events to chunks."""

import re
from collections.abc import Iterator
from typing import Any

from msgspec import UNSET

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    Part,
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
from sekisho.wire import chat_schema as schema
from sekisho.wire import chat_vendor, jsonio
from sekisho.wire.chat_encoder import LEGACY_FUNCTIONS, ChatEncoder
from sekisho.wire.openai_error import error_body

__all__ = ["LEGACY_FUNCTIONS", "ChatEncoder", "decode", "encoder", "error_body"]

_IMAGE_URL = re.compile(r"data:image/[\w.+-]+;base64,|https?://", re.IGNORECASE)


def decode(body: bytes, request_id: str) -> Turn:
    """Raises `InvalidRequest` or `UnsupportedParameter`, naming the parameter."""
    request = jsonio.load(body, schema.ChatRequest)
    _refuse_unsupported(request)
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    tools = tuple(_tools(request))
    extra = chat_vendor.extra(request)
    if request.verbosity is not None:
        extra["verbosity"] = request.verbosity
    if request.functions is not None:
        extra[LEGACY_FUNCTIONS] = True
    max_tokens = chat_vendor.limit(request.max_tokens, "max_tokens")
    if request.max_completion_tokens is not None:
        max_tokens = chat_vendor.limit(request.max_completion_tokens, "max_completion_tokens")
    options = request.stream_options
    return Turn(
        id=request_id,
        protocol="chat",
        model=request.model,
        messages=tuple(_messages(request.messages)),
        tools=tools,
        tool_choice=_choice(request, tools),
        parallel_tool_calls=False if request.functions is not None else request.parallel_tool_calls,
        sampling=chat_vendor.sampling(
            request,
            max_tokens=max_tokens,
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs if request.logprobs else None,
        ),
        format=chat_vendor.output_format(request),
        reasoning=_reasoning(request),
        stream=bool(request.stream),
        include_usage=options is not None and bool(options.include_usage),
        metadata=request.metadata or {},
        user=request.user if request.user is not None else request.safety_identifier,
        extra=extra,
    )


def encoder(turn: Turn, created: int) -> ChatEncoder:
    return ChatEncoder(turn, created)


def _refuse_unsupported(request: schema.ChatRequest) -> None:
    if request.modalities is not None and request.modalities != ["text"]:
        raise UnsupportedParameter("Only the modality 'text' can be produced here.", param="modalities")
    for name in ("audio", "web_search_options", "moderation"):
        value = getattr(request, name)
        if value is not UNSET and value is not None:
            raise UnsupportedParameter(f"This server does not support '{name}'.", param=name)


def _reasoning(request: schema.ChatRequest) -> ReasoningRequest:
    """OpenAI's field first, then those of other vendors."""
    asked = request.reasoning or schema.ReasoningWish()
    effort = asked.effort if request.reasoning_effort is None else request.reasoning_effort
    enabled, budget = request.enable_thinking, request.thinking_budget
    if enabled is None:
        enabled = asked.enabled
    if budget is None:
        budget = asked.max_tokens
    if (wish := request.thinking) is not None:
        if enabled is None and wish.type in ("enabled", "disabled"):
            enabled = wish.type == "enabled"
        budget = wish.budget_tokens if budget is None else budget
    return ReasoningRequest(effort, budget_tokens=budget, enabled=False if effort == "none" else enabled)


def _messages(messages: list[schema.ChatMessage]) -> Iterator[Message]:
    legacy_calls: dict[str, str] = {}  # function name -> id of its call that waits for a result
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        match message:
            case schema.SystemMessage():
                yield Message("system", tuple(_parts(message.content, at)), message.name)
            case schema.DeveloperMessage():
                yield Message("developer", tuple(_parts(message.content, at)), message.name)
            case schema.UserMessage():
                yield Message("user", tuple(_parts(message.content, at)), message.name)
            case schema.AssistantMessage():
                if message.function_call is not None:
                    legacy_calls[message.function_call.name] = f"call_{number}"
                yield Message("assistant", tuple(_assistant_parts(message, at, number)), message.name)
            case schema.ToolMessage():
                yield Message("tool", (ToolResult(message.tool_call_id, _result(message.content, at)),))
            case schema.FunctionMessage():
                call_id = legacy_calls.pop(message.name, None)
                if call_id is None:
                    words = f"'{at}.name' gives the result of a function that was not called before it."
                    raise InvalidRequest(words, param=f"{at}.name")
                yield Message("tool", (ToolResult(call_id, (Text(message.content or ""),)),))


_ContentPart = schema.TextPart | schema.ImagePart | schema.AudioPart | schema.FilePart | schema.RefusalPart


def _parts(content: str | list[Any], at: str) -> Iterator[Part]:
    if isinstance(content, str):
        yield Text(content)
        return
    for number, part in enumerate(content):
        yield _part(part, f"{at}.content[{number}]")


def _part(part: _ContentPart, at: str) -> Part:
    match part:
        case schema.TextPart():
            return Text(part.text)
        case schema.RefusalPart():
            return Refusal(part.refusal)
        case schema.ImagePart():
            if not _IMAGE_URL.match(part.image_url.url):
                words = f"'{at}.image_url.url' must be an http(s) URL or a base64 data URL of an image."
                raise InvalidRequest(words, param=f"{at}.image_url.url")
            return Image(part.image_url.url, part.image_url.detail)
        case schema.AudioPart():
            return Audio(part.input_audio.data, part.input_audio.format)
        case schema.FilePart():
            if part.file.file_id is not None:
                words = "Uploaded files are not kept here; send the file itself as 'file_data'."
                raise UnsupportedParameter(words, param=f"{at}.file.file_id")
            if part.file.file_data is None:
                raise InvalidRequest(
                    f"Missing parameter: '{at}.file.file_data'.",
                    param=f"{at}.file.file_data",
                    code="missing_required_parameter",
                )
            return Document(part.file.filename, part.file.file_data)


def _assistant_parts(message: schema.AssistantMessage, at: str, number: int) -> Iterator[Part]:
    if message.audio is not None:
        raise UnsupportedParameter("Audio of earlier answers is not kept here.", param=f"{at}.audio")
    if thinking := message.reasoning_content or message.reasoning:
        yield Reasoning(thinking)
    content = message.content
    if message.refusal and isinstance(content, str):
        content = content.removesuffix(message.refusal)  # we said it in both places
    if content or (content is not None and not message.refusal):
        yield from _parts(content, at)
    if message.refusal:
        yield Refusal(message.refusal)
    for call in message.tool_calls or ():
        if isinstance(call, schema.CustomCall):
            yield ToolCall(call.id, call.custom.name, call.custom.input, "custom")
        else:
            yield ToolCall(call.id, call.function.name, _arguments(call.function))
    if message.function_call is not None:
        yield ToolCall(f"call_{number}", message.function_call.name, _arguments(message.function_call))


def _arguments(called: schema.CalledFunction) -> str:
    if isinstance(called.arguments, str):
        return called.arguments
    return jsonio.dump(called.arguments).decode()


def _result(content: str | list[schema.TextPart | schema.ImagePart], at: str) -> tuple[Text | Image, ...]:
    return tuple(part for part in _parts(content, at) if isinstance(part, Text | Image))


def _tools(request: schema.ChatRequest) -> Iterator[Tool]:
    seen: set[str] = set()
    if request.tools is not None and request.functions is not None:
        raise InvalidRequest("'functions' and 'tools' cannot both be given.", param="functions")
    for number, tool in enumerate(request.tools or ()):
        if isinstance(tool, schema.CustomTool):
            spec = tool.custom
            declared = Tool(spec.name, "custom", spec.description, grammar=spec.format)
        else:
            declared = _function(tool.function)
        if declared.name in seen:
            at = f"tools[{number}].{declared.kind}.name"
            raise InvalidRequest(f"'{at}' is '{declared.name}' for a second time.", param=at)
        seen.add(declared.name)
        yield declared
    yield from map(_function, request.functions or ())


def _function(spec: schema.FunctionSpec) -> Tool:
    return Tool(spec.name, "function", spec.description, spec.parameters, spec.strict)


def _choice(request: schema.ChatRequest, tools: tuple[Tool, ...]) -> ToolChoice:
    names = {tool.name for tool in tools}
    choice: Any = request.tool_choice
    param = "tool_choice"
    if choice is None and request.function_call is not None:
        choice, param = request.function_call, "function_call"
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        if choice == "required" and not tools:
            raise InvalidRequest("'tool_choice' is 'required' but there are no 'tools'.", param=param)
        return ToolChoice("required" if choice == "required" else "none" if choice == "none" else "auto")
    if isinstance(choice, schema.ChooseAllowed):
        allowed = tuple(_chosen(one) for one in choice.allowed_tools.tools)
        for name in allowed:
            if name not in names:
                raise InvalidRequest(f"'{param}' allows '{name}', which is not among the tools.", param=param)
        return ToolChoice(choice.allowed_tools.mode, allowed=allowed)
    name = choice.name if isinstance(choice, schema.Named) else _chosen(choice)
    if name not in names:
        raise InvalidRequest(f"'{param}' names '{name}', which is not among the tools.", param=param)
    return ToolChoice("one", name)


def _chosen(choice: schema.ChooseFunction | schema.ChooseCustom) -> str:
    return choice.function.name if isinstance(choice, schema.ChooseFunction) else choice.custom.name
