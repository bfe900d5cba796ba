"""The request as it stands on the wire. Strict at the top, tolerant inside, where clients' versions differ monthly."""

from typing import Annotated, Any, Literal

import msgspec

_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Base64Source(msgspec.Struct, tag="base64"):
    media_type: _Name
    data: _Name


class UrlSource(msgspec.Struct, tag="url"):
    url: _Name


class TextSource(msgspec.Struct, tag="text"):
    data: str


class FileSource(msgspec.Struct, tag="file"):
    file_id: str


class TextBlock(msgspec.Struct, tag="text"):
    text: str


class ImageBlock(msgspec.Struct, tag="image"):
    source: Base64Source | UrlSource | FileSource


class ContentSource(msgspec.Struct, tag="content"):
    content: str | list[TextBlock | ImageBlock]


class DocumentBlock(msgspec.Struct, tag="document"):
    source: Base64Source | UrlSource | TextSource | FileSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, tag="search_result"):
    source: str
    title: str
    content: list[TextBlock]


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(msgspec.Struct, tag="redacted_thinking"):
    data: str


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    id: _Name
    name: _Name
    input: dict[str, Any]


class ServerToolUseBlock(msgspec.Struct, tag="server_tool_use"):
    id: _Name
    name: _Name
    input: dict[str, Any]


class ToolReferenceBlock(msgspec.Struct, tag="tool_reference"):
    tool_name: str


ResultPart = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolResultBlock(msgspec.Struct, tag="tool_result"):
    tool_use_id: _Name
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None


class WebSearchResult(msgspec.Struct, tag="web_search_result"):
    title: str
    url: str


class WebSearchError(msgspec.Struct, tag="web_search_tool_result_error"):
    error_code: str


class WebSearchResultBlock(msgspec.Struct, tag="web_search_tool_result"):
    tool_use_id: _Name
    content: list[WebSearchResult] | WebSearchError


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ServerToolUseBlock
    | ToolResultBlock
    | WebSearchResultBlock
)


class ToolParam(msgspec.Struct):
    name: _Name | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    display_width_px: int | None = None
    display_height_px: int | None = None


class ToolChoiceParam(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: _Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None  # some clients send 0 with "adaptive"
    display: Literal["summarized", "omitted"] | None = None


class FormatParam(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]
    name: str | None = None


class OutputConfigParam(msgspec.Struct):
    effort: str | None = None
    format: FormatParam | None = None


class MessageParam(msgspec.Struct):
    """`output_config` stands on a system message that sets the effort from there on."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]
    output_config: OutputConfigParam | None = None


class MetadataParam(msgspec.Struct):
    user_id: str | None = None


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """`max_tokens` may be missing here: counting tokens needs none. `decode` asks for it."""

    model: _Name
    messages: list[MessageParam]
    max_tokens: _Positive | None = None
    system: str | list[TextBlock] | None = None
    stream: bool | None = None
    temperature: _Fraction | None = None
    top_p: _Fraction | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: list[_Name] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    metadata: MetadataParam | None = None
    output_config: OutputConfigParam | None = None
    output_format: FormatParam | None = None
    # Refused by name where they hold anything.
    mcp_servers: Any = None
    container: Any = None
    thread: Any = None
    compaction: Any = None
    # Read and left unused; the package's docstring says why.
    cache_control: Any = None
    context_management: Any = None
    betas: Any = None
    service_tier: str | None = None
    inference_geo: Any = None
    speed: Any = None
    diagnostics: Any = None
    billing_policy: Any = None
    fallbacks: Any = None
    fallback_credit_token: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None
