"""The body of `/v1/chat/completions`, as OpenAI documents it, plus the fields of `chat_vendor`.

Unknown keys of the request itself are refused; unknown keys inside a message are passed over, because clients hand
back assistant messages with whatever their last server put there.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sekisho.wire.chat_vendor import Limit, SharedFields

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class InputAudio(msgspec.Struct):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class InputFile(msgspec.Struct):
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class FilePart(msgspec.Struct, tag_field="type", tag="file"):
    file: InputFile


class RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class CalledFunction(msgspec.Struct):
    name: Name
    arguments: str | dict[str, Any]


class FunctionCall(msgspec.Struct, tag_field="type", tag="function"):
    id: str
    function: CalledFunction


class CalledCustom(msgspec.Struct):
    name: Name
    input: str


class CustomCall(msgspec.Struct, tag_field="type", tag="custom"):
    id: str
    custom: CalledCustom


class SystemMessage(msgspec.Struct, tag_field="role", tag="system"):
    content: str | list[TextPart]
    name: str | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer"):
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user"):
    content: str | list[TextPart | ImagePart | AudioPart | FilePart]
    name: str | None = None


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    function_call: CalledFunction | None = None
    audio: Any = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool"):
    content: str | list[TextPart | ImagePart]
    tool_call_id: Annotated[str, Meta(min_length=1)]


class FunctionMessage(msgspec.Struct, tag_field="role", tag="function"):
    name: Name
    content: str | None = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class FunctionSpec(msgspec.Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, tag_field="type", tag="function"):
    function: FunctionSpec


class CustomSpec(msgspec.Struct):
    name: Name
    description: str | None = None
    format: dict[str, Any] | None = None


class CustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    custom: CustomSpec


class Named(msgspec.Struct):
    name: Name


class ChooseFunction(msgspec.Struct, tag_field="type", tag="function"):
    function: Named


class ChooseCustom(msgspec.Struct, tag_field="type", tag="custom"):
    custom: Named


class AllowedTools(msgspec.Struct):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChooseFunction | ChooseCustom], Meta(min_length=1)]


class ChooseAllowed(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class ReasoningWish(msgspec.Struct):
    """OpenRouter's way to ask for thinking. `exclude` has no effect: a client need not read the thinking."""

    effort: Annotated[str, Meta(max_length=32)] | None = None
    max_tokens: int | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class ThinkingWish(msgspec.Struct):
    """The way of Anthropic's kin to ask for thinking: DeepSeek, GLM, Kimi."""

    type: Literal["enabled", "disabled", "auto", "adaptive"]
    budget_tokens: int | None = None


ChoiceWord = Literal["none", "auto", "required"]


class ChatRequest(SharedFields, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    tools: list[FunctionTool | CustomTool] | None = None
    tool_choice: ChoiceWord | ChooseFunction | ChooseCustom | ChooseAllowed | None = None
    functions: list[FunctionSpec] | None = None
    function_call: Literal["none", "auto"] | Named | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=32)] | None = None
    enable_thinking: bool | None = None
    reasoning: ReasoningWish | None = None
    thinking: ThinkingWish | None = None
    thinking_budget: int | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    # taken and without effect here: nothing is stored, there is one tier, the engine's prefix cache needs no key
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    # known, and refused by name
    modalities: list[str] | None = None
    audio: Any | UnsetType = UNSET
    web_search_options: Any | UnsetType = UNSET
    moderation: Any | UnsetType = UNSET
