"""The tools of a Responses request: what the model may call, and which of them it must or may call now."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.turn import Tool, ToolChoice
from sekisho.wire import jsonio

# Each needs a service behind the model that this server does not have; accepting one would promise its results.
NEEDS_A_SERVICE = frozenset(
    {
        "code_interpreter",
        "computer",
        "computer_use",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "mcp",
        "programmatic_tool_calling",
    }
)
# Run by the client itself. Engines know no such kinds, so they are repeated to the client but not offered.
CLIENT_SIDE = frozenset({"apply_patch", "local_shell", "shell", "tool_search"})
WEB_SEARCH = ("web_search", "web_search_preview")


class _Function(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Custom(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class _Namespace(msgspec.Struct, frozen=True):
    name: str
    tools: list[dict[str, Any]]
    description: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] = []


def read_tools(declared: Sequence[dict[str, Any]], at: str) -> tuple[Tool, ...]:
    """The tools an engine can be told of, in order. `at` is the path of the list, for errors.

    Raises `UnsupportedParameter` for a hosted tool that nobody here could run, `InvalidRequest` for a broken one.
    """
    found: list[Tool] = []
    for index, tool in enumerate(declared):
        found.extend(_read_tool(tool, f"{at}[{index}]", None))
    return tuple(found)


def _read_tool(tool: dict[str, Any], at: str, namespace: str | None) -> tuple[Tool, ...]:
    kind = tool.get("type")
    if kind == "function":
        function = jsonio.convert(tool, _Function, at)
        _named(function.name, at)
        return (
            Tool(
                name=function.name,
                description=function.description,
                parameters=function.parameters,
                strict=function.strict,
                namespace=namespace,
            ),
        )
    if kind == "custom":
        custom = jsonio.convert(tool, _Custom, at)
        _named(custom.name, at)
        return (
            Tool(
                name=custom.name,
                kind="custom",
                description=custom.description,
                grammar=custom.format,
                namespace=namespace,
            ),
        )
    if namespace is None and isinstance(kind, str):
        if kind == "namespace":
            space = jsonio.convert(tool, _Namespace, at)
            _named(space.name, at)
            return tuple(
                offered
                for index, nested in enumerate(space.tools)
                for offered in _read_tool(nested, f"{at}.tools[{index}]", space.name)
            )
        if kind.startswith(WEB_SEARCH):
            return (Tool(name="web_search", kind="web_search"),)
        if kind in CLIENT_SIDE:
            return _client_side(tool, kind, at)
        if kind in NEEDS_A_SERVICE:
            raise UnsupportedParameter(f"Tools of type '{kind}' are not available on this server.", param=f"{at}.type")
    if kind is None:
        raise InvalidRequest(f"Missing parameter: '{at}.type'.", param=f"{at}.type", code="missing_required_parameter")
    raise InvalidRequest(f"Invalid value for '{at}.type': {_shown(kind)}.", param=f"{at}.type")


def _client_side(tool: dict[str, Any], kind: str, at: str) -> tuple[Tool, ...]:
    environment = tool.get("environment")
    place = environment.get("type") if isinstance(environment, dict) else None
    if kind == "shell" and place in ("container_auto", "container_reference"):
        raise UnsupportedParameter("This server has no containers.", param=f"{at}.environment.type")
    if kind == "tool_search" and tool.get("execution") == "server":
        raise UnsupportedParameter("This server does not search tools itself.", param=f"{at}.execution")
    return ()


def read_choice(choice: str | dict[str, Any] | None, declared: Sequence[dict[str, Any]]) -> ToolChoice:
    """`tool_choice` in all its forms. A choice of a tool that was not declared is an `InvalidRequest`."""
    if choice is None:
        return ToolChoice()
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise InvalidRequest(
                f"Invalid value for 'tool_choice': {_shown(choice)} is not 'auto', 'none' or 'required'.",
                param="tool_choice",
            )
        if choice == "required" and not declared:
            raise InvalidRequest("'tool_choice' is 'required', but there are no 'tools'.", param="tool_choice")
        return ToolChoice(mode=choice)  # type: ignore[arg-type]  # narrowed by the test above
    wanted = jsonio.convert(choice, _Choice, "tool_choice")
    tools = read_tools(declared, "tools")
    if wanted.type == "allowed_tools":
        return _allowed(wanted, tools)
    meant = _meant(choice, tools, "tool_choice")
    if wanted.type == "namespace":
        return ToolChoice(mode="required", allowed=tuple(_full_name(tool) for tool in meant))
    return ToolChoice(mode="one", name=meant[0].name, namespace=meant[0].namespace)


def _allowed(wanted: _Choice, tools: tuple[Tool, ...]) -> ToolChoice:
    if not wanted.tools:
        raise InvalidRequest("'tool_choice.tools' must name a tool.", param="tool_choice.tools")
    names: dict[str, None] = {}
    for index, entry in enumerate(wanted.tools):
        meant = _meant(entry, tools, f"tool_choice.tools[{index}]")
        names.update(dict.fromkeys(_full_name(tool) for tool in meant))
    return ToolChoice(mode=wanted.mode, allowed=tuple(names))


def _full_name(tool: Tool) -> str:
    """As `wire.tools` reads the names of allowed tools."""
    return f"{tool.namespace}__{tool.name}" if tool.namespace else tool.name


def _meant(entry: dict[str, Any], tools: tuple[Tool, ...], at: str) -> tuple[Tool, ...]:
    """The declared tools which one entry of a choice means: at least one."""
    wanted = jsonio.convert(entry, _Choice, at)
    if wanted.type in ("function", "custom", "namespace"):
        if not wanted.name:
            raise InvalidRequest(
                f"Missing parameter: '{at}.name'.", param=f"{at}.name", code="missing_required_parameter"
            )
        if wanted.type == "namespace":
            meant = tuple(tool for tool in tools if tool.namespace == wanted.name)
        else:
            meant = tuple(tool for tool in tools if (tool.name, tool.kind) == (wanted.name, wanted.type))
            meant = tuple(tool for tool in meant if wanted.namespace in (None, tool.namespace))[:1]
        if not meant:
            raise InvalidRequest(
                f"'{at}' names the tool {_shown(wanted.name)}, which is not in 'tools'.", param=f"{at}.name"
            )
        return meant
    if wanted.type.startswith(WEB_SEARCH):
        meant = tuple(tool for tool in tools if tool.kind == "web_search")[:1]
        if not meant:
            raise InvalidRequest(f"'{at}' names a tool which is not in 'tools'.", param=f"{at}.type")
        return meant
    if wanted.type in NEEDS_A_SERVICE | CLIENT_SIDE:
        raise UnsupportedParameter(f"A tool of type '{wanted.type}' cannot be chosen here.", param=f"{at}.type")
    raise InvalidRequest(f"Invalid value for '{at}.type': {_shown(wanted.type)}.", param=f"{at}.type")


def _named(name: str, at: str) -> None:
    if not name:
        raise InvalidRequest(f"'{at}.name' must not be empty.", param=f"{at}.name")


def _shown(value: object) -> str:
    return repr(value)[:80]
