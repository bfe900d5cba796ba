"""`POST /v1/responses`: the body, read strictly. Unknown keys are errors, and so is what nobody here can honour."""

from typing import Annotated, Any, Literal

import msgspec

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.turn import OutputFormat, ReasoningRequest, Sampling, Turn
from sekisho.wire import jsonio
from sekisho.wire.responses.items import normalise
from sekisho.wire.responses.tools import read_choice, read_tools

_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Key = Annotated[str, msgspec.Meta(max_length=64)]
_Value = Annotated[str, msgspec.Meta(max_length=512)]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Summary = Literal["auto", "concise", "detailed", "none"]

INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        "message.output_text.logprobs",
        "reasoning.encrypted_content",
        "web_search_call.action.sources",
        "web_search_call.results",
    }
)
# Real parameters that need a service of OpenAI's which has no counterpart here.
_UNSUPPORTED = {
    "access_programs": "This server has no access programs.",
    "context_management": "This server does not compact a context itself.",
    "conversation": "Conversation objects are not kept here; use 'previous_response_id'.",
    "image": "Context compression of images is not available here.",
    "moderation": "This server has no moderation model.",
    "prompt": "Prompt templates are not stored here; send 'instructions' and 'input'.",
}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_p",
    "user",
)


class _StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None


class _Text(msgspec.Struct, frozen=True, tag="text"):
    pass


class _JsonObject(msgspec.Struct, frozen=True, tag="json_object"):
    pass


class _JsonSchema(msgspec.Struct, frozen=True, tag="json_schema"):
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class _TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: _Text | _JsonObject | _JsonSchema | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _Reasoning(msgspec.Struct, frozen=True):
    effort: _Effort | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class _Create(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The parameters as the official API has them, and `client_metadata`, which the Codex CLI adds."""

    model: _Name
    input: str | list[dict[str, Any]] | None = None
    access_programs: Any = None
    background: bool | None = None
    client_metadata: Any = None
    context_management: Any = None
    conversation: Any = None
    image: Any = None
    include: list[str] | None = None
    instructions: str | None = None
    max_output_tokens: _Positive | None = None
    max_tool_calls: _Positive | None = None
    metadata: Annotated[dict[_Key, _Value], msgspec.Meta(max_length=16)] | None = None
    moderation: Any = None
    parallel_tool_calls: bool | None = None
    previous_response_id: _Name | None = None
    prompt: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None


class ResponsesRequest(msgspec.Struct, frozen=True):
    """`turn` holds this request alone and no messages; `history.with_history` tells them. `echo` is what the response
    object repeats of the request."""

    turn: Turn
    input_items: tuple[dict[str, Any], ...]
    store: bool
    background: bool
    include: frozenset[str]
    instructions: str | None
    truncation: Literal["auto", "disabled"]
    previous_response_id: str | None
    echo: dict[str, Any]


def decode(body: bytes, request_id: str) -> ResponsesRequest:
    """Raises `InvalidRequest` or `UnsupportedParameter`, naming the parameter."""
    given = jsonio.load(body, _Create)
    for name, reason in _UNSUPPORTED.items():
        if getattr(given, name) is not None:
            raise UnsupportedParameter(reason, param=name)
    if given.background and given.store is False:
        raise InvalidRequest("A background response must be stored: it is fetched later.", param="store")
    if given.background and given.stream:
        raise UnsupportedParameter("A background response is fetched, not streamed.", param="stream")
    for index, wanted in enumerate(given.include or ()):
        if wanted not in INCLUDABLE:
            raise InvalidRequest(f"Invalid value for 'include[{index}]': {wanted!r:.80}.", param=f"include[{index}]")
    include = frozenset(given.include or ())
    return ResponsesRequest(
        turn=_turn(given, request_id, include),
        input_items=_input(given, request_id),
        store=given.store is not False,
        background=bool(given.background),
        include=include,
        instructions=given.instructions,
        truncation=given.truncation or "disabled",
        previous_response_id=given.previous_response_id,
        echo=_echo(given),
    )


def _input(given: _Create, request_id: str) -> tuple[dict[str, Any], ...]:
    if given.input is None:
        raise InvalidRequest("Missing parameter: 'input'.", param="input", code="missing_required_parameter")
    if not given.input and not (given.instructions or given.previous_response_id):
        raise InvalidRequest("'input' must not be empty.", param="input")
    return normalise(given.input, stem(request_id))


def _turn(given: _Create, request_id: str, include: frozenset[str]) -> Turn:
    tools = given.tools or []
    offered = read_tools(tools, "tools")
    text = jsonio.convert(given.text or {}, _TextConfig, "text")
    thinking = jsonio.convert(given.reasoning or {}, _Reasoning, "reasoning")
    summary = thinking.summary or thinking.generate_summary
    return Turn(
        id=request_id,
        protocol="responses",
        model=given.model,
        tools=offered,
        tool_choice=read_choice(given.tool_choice, tools),
        parallel_tool_calls=given.parallel_tool_calls,
        sampling=Sampling(
            temperature=given.temperature,
            top_p=given.top_p,
            max_tokens=given.max_output_tokens,
            logprobs=bool(given.top_logprobs) or "message.output_text.logprobs" in include,
            top_logprobs=given.top_logprobs,
        ),
        format=_format(text),
        reasoning=ReasoningRequest(
            effort=thinking.effort,
            summary=None if summary == "none" else summary,
            enabled=False if thinking.effort == "none" else None,
        ),
        stream=bool(given.stream),
        include_usage=True,
        previous_response_id=given.previous_response_id,
        metadata=given.metadata or {},
        user=given.user,
        extra={"verbosity": text.verbosity} if text.verbosity else {},
    )


def _format(text: _TextConfig) -> OutputFormat:
    match text.format:
        case _JsonObject():
            return OutputFormat("json_object")
        case _JsonSchema(name, schema, strict, description):
            return OutputFormat("json_schema", name, schema, strict, description)
    return OutputFormat()


def _echo(given: _Create) -> dict[str, Any]:
    text = dict(given.text or {})
    text["format"] = text.get("format") or {"type": "text"}
    thinking = {"effort": None, "summary": None, **(given.reasoning or {})}
    return {
        **{name: getattr(given, name) for name in _ECHOED},
        "background": bool(given.background),
        "metadata": given.metadata or {},
        "parallel_tool_calls": given.parallel_tool_calls is not False,
        "reasoning": {key: None if value == "none" and key != "effort" else value for key, value in thinking.items()},
        "store": given.store is not False,
        "text": text,
        "tool_choice": given.tool_choice if given.tool_choice is not None else "auto",
        "tools": given.tools or [],
        "top_logprobs": given.top_logprobs or 0,
        "truncation": given.truncation or "disabled",
    }


def stem(identifier: str) -> str:
    """What follows the prefix of an id: ids of items are built on it, so that a codec needs no randomness."""
    return identifier.rpartition("_")[2] or identifier
