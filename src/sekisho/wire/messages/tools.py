"""Tools of the Messages protocol.

A tool with its own `input_schema` is a function. The typed tools that the caller runs itself (`bash_…`,
`text_editor_…`, `computer_…`, `memory_…`) come without a schema, because hosted models know them by heart; a local
model does not, so they become functions with the schema that their documentation describes. A web search becomes
a tool of kind `web_search`. A tool that only the vendor's machines can run is refused by name.
"""

import re
from collections.abc import Callable
from typing import Any

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.turn import Tool, ToolChoice
from sekisho.wire.messages.schema import ToolChoiceParam, ToolParam

_TYPED = re.compile(r"(?P<family>[a-z_]+?)_(?P<version>\d{8})$")
_FILE_COMMANDS = ["view", "create", "str_replace", "insert"]


def tools_of(params: list[ToolParam] | None) -> tuple[Tool, ...]:
    """Raises `InvalidRequest` for a missing schema or a name used twice, `UnsupportedParameter` for a hosted tool."""
    tools: list[Tool] = []
    names: set[str] = set()
    for position, param in enumerate(params or ()):
        tool = _tool_of(param, f"tools[{position}]")
        if tool.name in names:
            raise InvalidRequest(f"Two tools are named '{tool.name}'.", param=f"tools[{position}].name")
        names.add(tool.name)
        tools.append(tool)
    return tuple(tools)


def choice_of(param: ToolChoiceParam | None, tools: tuple[Tool, ...]) -> ToolChoice:
    if param is None or param.type == "auto":
        return ToolChoice()
    if param.type == "none":
        return ToolChoice("none")
    if not tools:
        raise InvalidRequest(f"Tool choice '{param.type}' needs tools.", param="tool_choice")
    if param.type == "any":
        return ToolChoice("required")
    if param.name is None:
        raise InvalidRequest(
            "Missing parameter: 'tool_choice.name'.", param="tool_choice.name", code="missing_required_parameter"
        )
    if param.name not in {tool.name for tool in tools}:
        raise InvalidRequest(f"No tool is named '{param.name}'.", param="tool_choice.name")
    return ToolChoice("one", name=param.name)


def _tool_of(param: ToolParam, at: str) -> Tool:
    kind = param.type or "custom"
    if kind != "custom":
        return _typed(param, kind, at)
    if param.name is None or param.input_schema is None:
        missing = f"{at}.name" if param.name is None else f"{at}.input_schema"
        raise InvalidRequest(f"Missing parameter: '{missing}'.", param=missing, code="missing_required_parameter")
    return Tool(param.name, description=param.description, parameters=param.input_schema, strict=param.strict)


def _typed(param: ToolParam, kind: str, at: str) -> Tool:
    matched = _TYPED.match(kind)
    family = matched["family"] if matched else kind
    if family == "web_search":
        return Tool(param.name or "web_search", kind="web_search", description=param.description)
    if family not in _FAMILIES:
        raise UnsupportedParameter(f"This server cannot run tools of type '{kind}'.", param=f"{at}.type")
    name, describe = _FAMILIES[family]
    description, schema = describe(param, kind)
    return Tool(
        param.name or name,
        description=param.description or description,
        parameters=param.input_schema or schema,
        strict=param.strict,
    )


def _bash(_param: ToolParam, _kind: str) -> tuple[str, dict[str, Any]]:
    return "Runs a command in a bash shell that stays open between calls.", _schema(
        {
            "command": _text("The command to run."),
            "restart": {"type": "boolean", "description": "True starts the shell anew; no command is needed then."},
        },
        [],
    )


def _text_editor(_param: ToolParam, kind: str) -> tuple[str, dict[str, Any]]:
    undo = kind in ("text_editor_20241022", "text_editor_20250124")
    inserted = "insert_text" if kind == "text_editor_20250728" else "new_str"
    properties = _file_properties([*_FILE_COMMANDS, *(["undo_edit"] if undo else [])])
    properties.setdefault(inserted, _text("For insert: the text to put in."))
    return "Views, creates and edits text files.", _schema(properties, ["command", "path"])


def _memory(_param: ToolParam, _kind: str) -> tuple[str, dict[str, Any]]:
    properties = _file_properties([*_FILE_COMMANDS, "delete", "rename"])
    properties |= {
        "insert_text": _text("For insert: the text to put in."),
        "old_path": _text("For rename: the present path."),
        "new_path": _text("For rename: the path to be."),
    }
    return "Reads and writes notes in files under /memories that outlive this conversation.", _schema(
        properties, ["command"]
    )


def _computer(param: ToolParam, kind: str) -> tuple[str, dict[str, Any]]:
    actions = ["key", "type", "mouse_move", "left_click", "left_click_drag", "right_click", "middle_click"]
    actions += ["double_click", "screenshot", "cursor_position"]
    if kind != "computer_20241022":
        actions += ["left_mouse_down", "left_mouse_up", "scroll", "hold_key", "wait", "triple_click"]
    if kind == "computer_20251124":
        actions.append("zoom")
    point = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    size = ""
    if param.display_width_px and param.display_height_px:
        size = f" The screen is {param.display_width_px} by {param.display_height_px} pixels."
    return f"Uses the mouse, the keyboard and the screen of a computer.{size}", _schema(
        {
            "action": {"type": "string", "enum": actions},
            "coordinate": {**point, "description": "x and y in pixels from the top left corner."},
            "start_coordinate": {**point, "description": "For left_click_drag: where the drag begins."},
            "text": _text("The text to type, or the keys to press, as in ctrl+s."),
            "scroll_direction": {"type": "string", "enum": ["up", "down", "left", "right"]},
            "scroll_amount": {"type": "integer", "minimum": 0},
            "duration": {"type": "number", "description": "For hold_key and wait: seconds."},
            "region": {**point, "minItems": 4, "maxItems": 4, "description": "For zoom: left, top, right, bottom."},
        },
        ["action"],
    )


def _file_properties(commands: list[str]) -> dict[str, Any]:
    return {
        "command": {"type": "string", "enum": commands},
        "path": _text("The file or the folder."),
        "file_text": _text("For create: the whole text of the file."),
        "old_str": _text("For str_replace: the text to replace; it must stand there exactly once."),
        "new_str": _text("For str_replace: the text that takes its place."),
        "insert_line": {
            "type": "integer",
            "description": "For insert: the line to put the text after; 0 is the top.",
        },
        "view_range": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "For view: first and last line; -1 is the end.",
        },
    }


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_FAMILIES: dict[str, tuple[str, Callable[[ToolParam, str], tuple[str, dict[str, Any]]]]] = {
    "bash": ("bash", _bash),
    "text_editor": ("str_replace_based_edit_tool", _text_editor),
    "memory": ("memory", _memory),
    "computer": ("computer", _computer),
}
