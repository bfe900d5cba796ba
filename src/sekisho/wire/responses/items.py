"""Input items: read strictly, made complete, never cut. What a client sent stays in the item under its own key."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.wire import jsonio


class InputText(msgspec.Struct, frozen=True, tag="input_text"):
    text: str


class PlainText(msgspec.Struct, frozen=True, tag="text"):
    text: str


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal"):
    refusal: str


class InputImage(msgspec.Struct, frozen=True, tag="input_image"):
    image_url: str | None = None
    file_id: str | None = None
    detail: str | None = None


class InputFile(msgspec.Struct, frozen=True, tag="input_file"):
    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None


class AudioData(msgspec.Struct, frozen=True):
    data: str
    format: str


class InputAudio(msgspec.Struct, frozen=True, tag="input_audio"):
    input_audio: AudioData


class SummaryText(msgspec.Struct, frozen=True, tag="summary_text"):
    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    text: str


Content = InputText | PlainText | OutputText | RefusalPart | InputImage | InputFile | InputAudio


class MessageItem(msgspec.Struct, frozen=True, tag="message"):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Content]
    id: str | None = None
    status: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, tag="function_call"):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class FunctionCallOutput(msgspec.Struct, frozen=True, tag="function_call_output"):
    call_id: str
    output: str | list[Content]
    id: str | None = None
    status: str | None = None


class CustomToolCall(msgspec.Struct, frozen=True, tag="custom_tool_call"):
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class CustomToolCallOutput(msgspec.Struct, frozen=True, tag="custom_tool_call_output"):
    call_id: str
    output: str | list[Content]
    id: str | None = None
    status: str | None = None


class ReasoningItem(msgspec.Struct, frozen=True, tag="reasoning"):
    summary: list[SummaryText] = []
    content: list[ReasoningText | PlainText] | None = None
    encrypted_content: str | None = None
    id: str | None = None


class WebSearchCall(msgspec.Struct, frozen=True, tag="web_search_call"):
    action: dict[str, Any] | None = None
    id: str | None = None
    status: str | None = None


class ItemReference(msgspec.Struct, frozen=True, tag="item_reference"):
    id: str


Item = (
    MessageItem
    | FunctionCall
    | FunctionCallOutput
    | CustomToolCall
    | CustomToolCallOutput
    | ReasoningItem
    | WebSearchCall
    | ItemReference
)


class OtherItem(msgspec.Struct, frozen=True):
    """A kind that nobody here runs. It stays in the history as it is; the model is told of it in words."""

    type: str
    id: str | None = None
    call_id: str | None = None


# By kind: converting to one known struct is ten times as fast as to the union, and histories are long.
_SHAPES: dict[str, type[Item]] = {
    "message": MessageItem,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "custom_tool_call": CustomToolCall,
    "custom_tool_call_output": CustomToolCallOutput,
    "reasoning": ReasoningItem,
    "web_search_call": WebSearchCall,
    "item_reference": ItemReference,
}
# Kind -> the prefix of an id we give.
PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "web_search_call": "ws",
}
OTHER_KINDS = frozenset(
    {
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_summary",
        "computer_call",
        "computer_call_output",
        "configuration_update",
        "context_compaction",
        "file_search_call",
        "ghost_snapshot",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
    }
)
_WITH_STATUS = frozenset(PREFIXES) - {"reasoning"}


def read_item(item: dict[str, Any], at: str) -> Item | OtherItem:
    """One item, typed. `at` is its path. Raises `InvalidRequest` for a broken item or an unknown kind."""
    kind = item.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"Invalid type for '{at}.type': expected string.", param=f"{at}.type", code="invalid_type")
    if kind in _SHAPES:
        return jsonio.convert(item, _SHAPES[kind], at)
    if kind in OTHER_KINDS:
        return jsonio.convert(item, OtherItem, at)
    raise InvalidRequest(f"Invalid value for '{at}.type': {kind!r:.80}.", param=f"{at}.type")


def normalise(given: str | Sequence[dict[str, Any]], stem: str) -> tuple[dict[str, Any], ...]:
    """The items of a request's `input`, each with type and id, contents as lists of parts. Nothing given is dropped.

    Ids that we give are made of `stem` and the item's position. Raises `InvalidRequest` naming `input[i]…`, also
    for an id that stands twice.
    """
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}] if given else []
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, item in enumerate(given):
        complete = _complete(item, f"input[{index}]", f"{stem}i{index:04x}")
        if complete["type"] != "item_reference":
            if complete["id"] in seen:
                raise InvalidRequest(
                    f"The item id {complete['id']!r:.80} stands twice in 'input'.", param=f"input[{index}].id"
                )
            seen.add(complete["id"])
        items.append(complete)
    return tuple(items)


def _complete(item: dict[str, Any], at: str, stem: str) -> dict[str, Any]:
    item = dict(item)
    if item.get("type") is None:
        if "role" in item:
            item["type"] = "message"
        elif "id" in item:
            item["type"] = "item_reference"
        else:
            raise InvalidRequest(
                f"Missing parameter: '{at}.type'.", param=f"{at}.type", code="missing_required_parameter"
            )
    typed = read_item(item, at)
    kind = item["type"]
    if not item.get("id"):
        item["id"] = f"{PREFIXES.get(kind, 'item')}_{stem}"
    if kind in _WITH_STATUS and not item.get("status"):
        item["status"] = "completed"
    if isinstance(typed, MessageItem):
        item["content"] = _parts(item["content"], typed.role == "assistant")
        _check_parts(typed.content, f"{at}.content")
        if typed.role != "user":
            _check_words(typed, f"{at}.content")
    elif isinstance(typed, FunctionCallOutput | CustomToolCallOutput):
        if isinstance(item["output"], list):
            item["output"] = _parts(item["output"], False)
        _check_parts(typed.output, f"{at}.output")
    elif isinstance(typed, ReasoningItem):
        item.setdefault("summary", [])
    return item


def _parts(content: str | list[dict[str, Any]], assistant: bool) -> list[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return [_part(part, assistant) for part in content]


def _part(part: dict[str, Any], assistant: bool) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text" or (assistant and kind == "input_text"):
        part = {**part, "type": "output_text" if assistant else "input_text"}
    if part["type"] == "output_text":
        return {**part, "annotations": part.get("annotations") or []}
    if kind == "input_image":
        return {**part, "detail": part.get("detail") or "auto"}
    return part


def _check_words(message: MessageItem, at: str) -> None:
    """Instructions and what an assistant said are words: engines take nothing else there, and would drop it."""
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            if isinstance(part, InputImage | InputFile | InputAudio):
                raise InvalidRequest(
                    f"A message of role '{message.role}' holds text only.", param=f"{at}[{index}].type"
                )


def _check_parts(content: str | list[Content], at: str) -> None:
    """Refuses what would have to be fetched from a file store or another server: there is none, nothing leaves."""
    if isinstance(content, str):
        return
    for index, part in enumerate(content):
        if isinstance(part, InputImage | InputFile) and part.file_id:
            raise UnsupportedParameter("This server stores no files.", param=f"{at}[{index}].file_id")
        if isinstance(part, InputFile) and part.file_url:
            raise UnsupportedParameter(
                "This server fetches no files; send 'file_data'.", param=f"{at}[{index}].file_url"
            )
        if isinstance(part, InputImage) and not part.image_url:
            raise InvalidRequest(
                f"Missing parameter: '{at}[{index}].image_url'.",
                param=f"{at}[{index}].image_url",
                code="missing_required_parameter",
            )
