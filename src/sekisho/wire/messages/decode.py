"""A Messages body becomes a `Turn`."""

from collections.abc import Iterable, Sequence
from typing import cast

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.turn import (
    Document,
    Image,
    Message,
    OutputFormat,
    Part,
    Reasoning,
    ReasoningRequest,
    Role,
    Sampling,
    Text,
    ToolCall,
    ToolResult,
    Turn,
)
from sekisho.wire import jsonio
from sekisho.wire.messages import schema
from sekisho.wire.messages.tools import choice_of, tools_of

_REFUSED = ("mcp_servers", "container", "thread", "compaction")
# A line for the vendor's accounts that some agents put first. It changes from request to request, so an engine that
# read it could reuse nothing of the long prompt behind it.
_BILLING = "x-anthropic-billing-header:"


def decode(body: bytes, request_id: str) -> Turn:
    """The body of `/v1/messages`. Raises `RequestError` naming the parameter."""
    request = jsonio.load(body, schema.Request)
    if request.max_tokens is None:
        raise InvalidRequest("Missing parameter: 'max_tokens'.", param="max_tokens", code="missing_required_parameter")
    return _turn(request, request_id)


def decode_count(body: bytes, request_id: str) -> Turn:
    """The body of `/v1/messages/count_tokens`: the same without `max_tokens`, never streamed."""
    request = jsonio.load(body, schema.Request)
    request.stream = None
    return _turn(request, request_id)


def _turn(request: schema.Request, request_id: str) -> Turn:
    for name in _REFUSED:
        if getattr(request, name):
            raise UnsupportedParameter(f"This server does not support '{name}'.", param=name)
    if not request.messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages")
    tools = tools_of(request.tools)
    choice = request.tool_choice
    one_call = choice.disable_parallel_tool_use if choice else None
    return Turn(
        id=request_id,
        protocol="messages",
        model=request.model,
        messages=tuple(_messages(request)),
        tools=tools,
        tool_choice=choice_of(choice, tools),
        parallel_tool_calls=None if one_call is None else not one_call,
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=request.max_tokens,
            stop=tuple(request.stop_sequences or ()),
        ),
        format=_format(request),
        reasoning=_reasoning(request),
        stream=bool(request.stream),
        include_usage=True,
        user=request.metadata.user_id if request.metadata else None,
    )


def _format(request: schema.Request) -> OutputFormat:
    wanted = (request.output_config.format if request.output_config else None) or request.output_format
    if wanted is None:
        return OutputFormat()
    return OutputFormat("json_schema", name=wanted.name, schema=wanted.schema, strict=True)


def _reasoning(request: schema.Request) -> ReasoningRequest:
    """`summary` keeps how thinking is to be shown; `enabled` stays None where the request does not say."""
    thinking = request.thinking
    configs = [request.output_config, *(message.output_config for message in request.messages)]
    effort = next((config.effort for config in reversed(configs) if config and config.effort), None)
    if thinking is None:
        return ReasoningRequest(effort=effort)
    budget = thinking.budget_tokens if thinking.type == "enabled" else None
    if thinking.type == "enabled":
        if not budget:
            raise InvalidRequest(
                "Missing parameter: 'thinking.budget_tokens'.",
                param="thinking.budget_tokens",
                code="missing_required_parameter",
            )
        if request.max_tokens is not None and budget >= request.max_tokens:
            raise InvalidRequest(
                "'thinking.budget_tokens' must be less than 'max_tokens'.", param="thinking.budget_tokens"
            )
    return ReasoningRequest(effort, thinking.display, budget, enabled=thinking.type != "disabled")


def _messages(request: schema.Request) -> Iterable[Message]:
    if request.system:
        texts = [request.system] if isinstance(request.system, str) else [block.text for block in request.system]
        if parts := tuple(Text(text) for text in texts if not text.startswith(_BILLING)):
            yield Message("system", parts)
    for position, message in enumerate(request.messages):
        if isinstance(message.content, str):
            yield Message(message.role, (Text(message.content),))
        else:
            yield from _split(message.role, message.content, f"messages[{position}].content")


def _split(role: Role, blocks: Sequence[schema.Block], at: str) -> Iterable[Message]:
    """One wire message as turns know it: each of the caller's tool results alone in a message of role `tool`, the
    rest around it in the order in which it was said. A document inside a result follows with the caller's next
    words. A search that ran inside the assistant's own message stays there."""
    said: list[Part] = []
    attached: list[Part] = []
    for position, block in enumerate(blocks):
        here = f"{at}[{position}]"
        if isinstance(block, schema.ToolResultBlock):
            if said:
                yield Message(role, tuple(said))
                said = []
            result, documents = _result(block, here)
            yield Message("tool", (result,))
            attached += documents
        else:
            said += _parts(role, block, here)
    if attached and role == "user":
        said = [*attached, *said]
    if said or (not blocks and role != "system"):  # a system message without words only sets the effort
        yield Message(role, tuple(said))


def _parts(role: Role, block: schema.Block, at: str) -> list[Part]:
    if isinstance(block, schema.TextBlock):
        return [Text(block.text)]
    if isinstance(block, schema.ImageBlock):
        return [_image(block, at)]
    if isinstance(block, schema.DocumentBlock):
        return _document(block, at)
    if isinstance(block, schema.SearchResultBlock):
        return [_search_result(block)]
    if role != "assistant":
        tag = block.__struct_config__.tag
        raise InvalidRequest(f"A '{tag}' block belongs to the assistant.", param=f"{at}.type")
    if isinstance(block, schema.ThinkingBlock):
        return [Reasoning(block.thinking, sealed=block.signature or None)]
    if isinstance(block, schema.RedactedThinkingBlock):
        return [Reasoning(sealed=block.data)]
    if isinstance(block, schema.ServerToolUseBlock):
        if block.name != "web_search":
            raise UnsupportedParameter(f"This server has no tool '{block.name}'.", param=f"{at}.name")
        return [ToolCall(block.id, block.name, _arguments(block.input), kind="web_search")]
    if isinstance(block, schema.WebSearchResultBlock):
        return [_found(block)]
    call = cast(schema.ToolUseBlock, block)
    return [ToolCall(call.id, call.name, _arguments(call.input))]


def _arguments(value: dict[str, object]) -> str:
    return jsonio.dump(value).decode()


def _result(block: schema.ToolResultBlock, at: str) -> tuple[ToolResult, list[Document]]:
    content: list[Text | Image] = []
    documents: list[Document] = []
    if isinstance(block.content, str):
        content.append(Text(block.content))
    for position, part in enumerate(block.content if isinstance(block.content, list) else ()):
        if isinstance(part, schema.ToolReferenceBlock):
            content.append(Text(part.tool_name))
            continue
        for made in _parts("tool", part, f"{at}.content[{position}]"):
            if isinstance(made, Document):
                documents.append(made)
            else:
                content.append(cast(Text | Image, made))
    return ToolResult(block.tool_use_id, tuple(content), is_error=bool(block.is_error)), documents


def _found(block: schema.WebSearchResultBlock) -> ToolResult:
    """A search that another server ran earlier. Its pages are sealed for that server; titles and addresses are not."""
    if isinstance(block.content, schema.WebSearchError):
        return ToolResult(block.tool_use_id, (Text(block.content.error_code),), is_error=True, kind="web_search")
    lines = [f"{result.title}\n{result.url}" for result in block.content]
    return ToolResult(block.tool_use_id, (Text("\n\n".join(lines)),), kind="web_search")


def _image(block: schema.ImageBlock, at: str) -> Image:
    source = block.source
    if isinstance(source, schema.UrlSource):
        return Image(source.url)
    if isinstance(source, schema.Base64Source):
        return Image(f"data:{source.media_type};base64,{source.data}")
    raise UnsupportedParameter("This server keeps no uploaded files; send the image itself.", param=f"{at}.source")


def _document(block: schema.DocumentBlock, at: str) -> list[Part]:
    """A text document becomes text under its title and context; a PDF stays a document for the engine to judge."""
    source = block.source
    if isinstance(source, schema.Base64Source):
        heading = [block.context] if block.context else []
        document: list[Part] = [Document(block.title, f"data:{source.media_type};base64,{source.data}")]
        return [*(Text(text) for text in heading), *document]
    heading = [line for line in (block.title, block.context) if line]
    if isinstance(source, schema.TextSource):
        return [Text("\n".join([*heading, source.data]))]
    if isinstance(source, schema.ContentSource):
        if isinstance(source.content, str):
            return [Text("\n".join([*heading, source.content]))]
        parts: list[Part] = [Text("\n".join(heading))] if heading else []
        for position, part in enumerate(source.content):
            parts += _parts("user", part, f"{at}.source.content[{position}]")
        return parts
    what = "fetches no documents" if isinstance(source, schema.UrlSource) else "keeps no uploaded files"
    raise UnsupportedParameter(f"This server {what}; send the document itself.", param=f"{at}.source")


def _search_result(block: schema.SearchResultBlock) -> Text:
    return Text("\n".join([block.title, block.source, *(text.text for text in block.content)]))
