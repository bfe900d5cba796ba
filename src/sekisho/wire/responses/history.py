"""From items to the messages of a turn: history first, then the input, told as an engine understands it."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from sekisho.wire import jsonio
from sekisho.wire.responses import items as reading
from sekisho.wire.responses.decode import ResponsesRequest
from sekisho.wire.responses.tools import read_tools

Unseal = Callable[[str], str | None]

# Calls that a client runs: kind -> (name told to the model, key of the arguments).
_CLIENT_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
    "computer_call": ("computer", "action"),
    "tool_search_call": ("tool_search", "arguments"),
    "program": ("program", "code"),
}
_CLIENT_OUTPUTS = {
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "computer_call_output": "output",
    "tool_search_output": "tools",
    "program_output": "result",
}
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
# Told nothing: they steer the client, hold no words, or are sealed by somebody else.
_SILENT = frozenset(
    {"additional_tools", "compaction", "compaction_summary", "configuration_update", "context_compaction"}
    | {"ghost_snapshot"}
)
_BULKY = frozenset({"type", "id", "status", "result", "encrypted_content"})


def with_history(
    request: ResponsesRequest, history_items: Sequence[dict[str, Any]], unseal: Unseal | None = None
) -> Turn:
    """The turn with everything the model is told: this request's instructions (those of earlier responses are not
    inherited), the history's items, this input. Sealed reasoning is opened by `unseal`; what does not open is left
    out of the prompt.

    Raises `NotFound` for an item reference that leads nowhere, `InvalidRequest` for a tool's output without its call.
    """
    told = [*history_items, *resolve(request.input_items, history_items)]
    _check_calls(told, len(history_items))
    messages = to_messages(told, unseal)
    if request.instructions:
        messages = (Message("system", (Text(request.instructions),)), *messages)
    if not messages:
        raise InvalidRequest("'input' holds nothing that the model could be told.", param="input")
    return msgspec.structs.replace(request.turn, messages=messages, tools=_all_tools(request.turn.tools, told))


def resolve(input_items: Sequence[dict[str, Any]], history_items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The input without its item references. A reference to the history or to an earlier item of the same input adds
    nothing, since that item is told already; any other raises `NotFound`."""
    known = {item["id"] for item in history_items if item.get("id")}
    resolved = []
    for index, item in enumerate(input_items):
        if item["type"] != "item_reference":
            known.add(item["id"])
            resolved.append(item)
        elif item["id"] not in known:
            raise NotFound(f"Item with id {item['id']!r:.80} not found.", param=f"input[{index}].id")
    return resolved


def to_messages(told: Sequence[dict[str, Any]], unseal: Unseal | None = None) -> tuple[Message, ...]:
    """Items as messages. What an assistant said, thought and called in one stretch becomes one message, in order;
    each tool's output is a message of role `tool`."""
    builder = _Builder(unseal, {item["call_id"] for item in told if item["type"] in _OUTPUTS})
    for index, item in enumerate(told):
        builder.add(item, reading.read_item(item, f"input[{index}]"))
    return builder.finish()


class _Builder:
    def __init__(self, unseal: Unseal | None, answered: set[str]) -> None:
        self._unseal = unseal
        self._answered = answered
        self._messages: list[Message] = []
        self._said: list[Part] = []
        self._said_id: str | None = None

    def finish(self) -> tuple[Message, ...]:
        if self._said:
            self._messages.append(Message("assistant", tuple(self._said), item_id=self._said_id))
            self._said, self._said_id = [], None
        return tuple(self._messages)

    def add(self, item: dict[str, Any], typed: reading.Item | reading.OtherItem) -> None:
        match typed:
            case reading.MessageItem(role="assistant"):
                self._said_id = self._said_id or typed.id
                self._said.extend(_parts(typed.content))
            case reading.MessageItem():
                self._stand_alone(Message(typed.role, _parts(typed.content), item_id=typed.id))
            case reading.FunctionCall():
                self._call(typed, ToolCall(typed.call_id, typed.name, typed.arguments, namespace=typed.namespace))
            case reading.CustomToolCall():
                self._call(typed, ToolCall(typed.call_id, typed.name, typed.input, "custom", typed.namespace))
            case reading.FunctionCallOutput():
                self._result(ToolResult(typed.call_id, _result_parts(typed.output), item_id=typed.id))
            case reading.CustomToolCallOutput():
                self._result(ToolResult(typed.call_id, _result_parts(typed.output), kind="custom", item_id=typed.id))
            case reading.ReasoningItem():
                self._think(typed)
            case reading.WebSearchCall():
                call_id = typed.id or "web_search"
                words = _written(typed.action or {})
                self._said.append(ToolCall(call_id, "web_search", words, "web_search", item_id=typed.id))
            case reading.OtherItem():
                self._tell(item, typed)

    def _stand_alone(self, message: Message) -> None:
        self.finish()
        if message.parts:
            self._messages.append(message)

    def _call(self, item: reading.FunctionCall | reading.CustomToolCall, call: ToolCall) -> None:
        """A call that was cut off and never ran is told in words: its arguments are no JSON, which engines refuse."""
        if item.status == "incomplete" and item.call_id not in self._answered:
            self._said.append(Text(f"[{item.name}, cut off: {call.arguments}]"))
        else:
            self._said.append(msgspec.structs.replace(call, item_id=item.id))

    def _result(self, result: ToolResult) -> None:
        self._stand_alone(Message("tool", (result,), item_id=result.item_id))

    def _think(self, item: reading.ReasoningItem) -> None:
        text = "".join(part.text for part in item.content or ())
        if not text and item.encrypted_content and self._unseal:
            text = self._unseal(item.encrypted_content) or ""
        summary = tuple(part.text for part in item.summary)
        if text or summary:
            self._said.append(Reasoning(text, summary, item.encrypted_content, item.id))

    def _tell(self, item: dict[str, Any], typed: reading.OtherItem) -> None:
        call_id = typed.call_id or typed.id or typed.type
        if typed.type in _CLIENT_CALLS:
            name, key = _CLIENT_CALLS[typed.type]
            self._said.append(ToolCall(call_id, name, _written(item.get(key, {})), item_id=typed.id))
        elif typed.type in _CLIENT_OUTPUTS:
            value = item.get(_CLIENT_OUTPUTS[typed.type])
            self._result(ToolResult(call_id, (_shown(value),), item_id=typed.id))
        elif typed.type == "mcp_approval_response":
            self._stand_alone(Message("user", (Text(_described(item)),), item_id=typed.id))
        elif typed.type not in _SILENT:
            self._said.append(Text(_described(item)))


def _parts(content: str | list[reading.Content]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    return tuple(_part(part) for part in content)


def _part(part: reading.Content) -> Part:
    match part:
        case reading.RefusalPart():
            return Refusal(part.refusal)
        case reading.InputImage():
            return Image(part.image_url or "", part.detail)
        case reading.InputFile():
            return Document(part.filename, part.file_data)
        case reading.InputAudio():
            return Audio(part.input_audio.data, part.input_audio.format)
    return Text(part.text)


def _result_parts(output: str | list[reading.Content]) -> tuple[Text | Image, ...]:
    """A tool's output holds text and images only; a file in it is told by its name."""
    told: list[Text | Image] = []
    for part in _parts(output):
        match part:
            case Text() | Image():
                told.append(part)
            case Document():
                told.append(Text(f"[file {part.name or 'without a name'}]"))
            case Refusal():
                told.append(Text(part.text))
            case Audio():
                told.append(Text(f"[audio, {part.format}]"))
    return tuple(told)


def _shown(value: Any) -> Text | Image:
    if isinstance(value, dict) and isinstance(value.get("image_url"), str):
        return Image(value["image_url"])
    return Text(_written(value))


def _described(item: dict[str, Any]) -> str:
    """`[mcp_call] {...}`: an item's own fields, without ids and without binary results."""
    fields = {key: value for key, value in item.items() if key not in _BULKY and value is not None}
    return f"[{item['type']}] {_written(fields)}"


def _written(value: Any) -> str:
    return value if isinstance(value, str) else jsonio.dump(value).decode()


def _check_calls(told: Sequence[dict[str, Any]], known: int) -> None:
    """A tool's output must answer a call that stands before it; an engine's template would fail on it otherwise."""
    calls: set[str] = set()
    for index, item in enumerate(told):
        kind = item["type"]
        if kind in ("function_call", "custom_tool_call"):
            calls.add(item["call_id"])
        elif (
            kind in ("function_call_output", "custom_tool_call_output")
            and index >= known
            and (item["call_id"] not in calls)
        ):
            raise InvalidRequest(
                f"No tool call found for the output with call_id {item['call_id']!r:.80}.", param="input"
            )


def _all_tools(declared: tuple[Tool, ...], told: Sequence[dict[str, Any]]) -> tuple[Tool, ...]:
    """The request's tools and those which items of the conversation made available later."""
    tools = {(tool.namespace, tool.name): tool for tool in declared}
    for index, item in enumerate(told):
        later = item.get("tools")
        if item["type"] in ("additional_tools", "tool_search_output") and isinstance(later, list):
            at = f"input[{index}].tools"
            for tool in read_tools(jsonio.convert(later, list[dict[str, Any]], at), at):
                tools.setdefault((tool.namespace, tool.name), tool)
    return tuple(tools.values())
