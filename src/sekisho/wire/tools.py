"""Tools for engines that know only functions.

A custom tool is offered as a function with one string, `input`; a namespaced tool as `namespace__name`; a hosted tool
(`web_search`) not at all, for nobody here could run it. The `ToolTable` remembers what was offered under which name,
and `CallReader` turns an engine's function calls back into calls of the declared tools while they stream.
"""

import hashlib
import re
from typing import Any, NamedTuple

import msgspec

from sekisho.core.events import ToolCallDelta
from sekisho.core.turn import Tool, ToolCall, ToolChoice, ToolKind
from sekisho.wire import jsonio
from sekisho.wire.tools_input import InputReader

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]")
_MAX_NAME = 64


class Declared(NamedTuple):
    """A tool as the client knows it."""

    name: str
    namespace: str | None
    kind: ToolKind


class ToolTable:
    """Which declared tool stands behind which name offered to the engine."""

    def __init__(self, tools: tuple[Tool, ...] = ()) -> None:
        self._offered: dict[tuple[str | None, str], str] = {}
        self._declared: dict[str, Declared] = {}
        self._searches = any(tool.kind == "web_search" for tool in tools)
        runnable = [tool for tool in tools if tool.kind != "web_search"]
        # names that need no change come first, so that no made-up name can take one of them
        runnable.sort(key=lambda tool: tool.namespace is not None or not _PLAIN.fullmatch(tool.name))
        for tool in runnable:
            key = (tool.namespace, tool.name)
            if key in self._offered:
                continue
            name = _join(tool.namespace, tool.name)
            if name in self._declared:
                name = _digest_name(name, tool.namespace, tool.name)
            self._offered[key] = name
            self._declared[name] = Declared(tool.name, tool.namespace, tool.kind)

    def offered(self, name: str, namespace: str | None = None) -> str:
        """The engine's name for a tool; also for one of an earlier turn that is no longer declared."""
        return self._offered.get((namespace, name)) or _join(namespace, name)

    def resolve(self, offered: str) -> Declared:
        """The tool behind an engine's name. What was never declared stays a function of that name."""
        if declared := self._declared.get(offered):
            return declared
        if self._searches and offered.startswith("web_search"):
            return Declared(offered, None, "web_search")
        return Declared(offered, None, "function")


def flatten(tools: tuple[Tool, ...]) -> tuple[list[dict[str, Any]], ToolTable]:
    """Function tools in OpenAI's chat shape, in the order of declaration, and the table that undoes the change.
    Where a tool is declared twice, the first declaration counts."""
    table = ToolTable(tools)
    seen: set[str] = set()
    functions = []
    for tool in tools:
        name = table.offered(tool.name, tool.namespace)
        if tool.kind == "web_search" or name in seen:
            continue
        seen.add(name)
        functions.append({"type": "function", "function": _function(tool, name)})
    return functions, table


def offer(tools: tuple[Tool, ...], choice: ToolChoice) -> tuple[list[dict[str, Any]], str | None, ToolTable]:
    """What an engine is told: the functions, `tool_choice` (None: leave it out) and the table.

    `allowed` narrows the functions, and so does the choice of one: llama.cpp reads a choice that is not a word as
    `auto`, so the one is offered alone and required. A choice that nothing offered can satisfy is left out: the
    engine then answers in words.
    """
    functions, table = flatten(tools)
    if choice.allowed:
        allowed = set(choice.allowed)
        names = {
            table.offered(t.name, t.namespace) for t in tools if t.kind != "web_search" and _is_allowed(t, allowed)
        }
        functions = [function for function in functions if function["function"]["name"] in names]
    if not functions:
        return [], None, table
    if choice.mode == "one":
        name = table.offered(choice.name or "", choice.namespace)
        chosen = [function for function in functions if function["function"]["name"] == name]
        return (chosen, "required", table) if chosen else (functions, None, table)
    return functions, None if choice.mode == "auto" else choice.mode, table


def call_arguments(call: ToolCall) -> str:
    """An earlier call's arguments as the engine would have written them: none are an empty object, not no JSON."""
    if call.kind == "custom":
        return msgspec.json.encode({"input": call.arguments}).decode()
    return call.arguments or "{}"


def told(call: ToolCall) -> str:
    """An earlier call of a hosted tool, in words: the engine cannot be shown it as a call."""
    return f"[{call.name}: {call.arguments}]" if call.arguments else f"[{call.name}]"


class _Call:
    """One call that is being read. `reader` is set for a custom tool."""

    __slots__ = ("arguments", "declared", "id", "index", "reader")

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.declared: Declared | None = None
        self.arguments = ""  # kept back until the name is known
        self.reader: InputReader | None = None


class CallReader:
    """Reads the tool calls of one choice from an engine's deltas and numbers them in the order of their start.

    Engines differ: no index, every call under index 0 with a new id, a null or repeated id, an empty or repeated
    name, all arguments at once. `prefix` makes the ids of calls that came without one.
    """

    def __init__(self, table: ToolTable, choice: int, prefix: str) -> None:
        self._table = table
        self._choice = choice
        self._prefix = prefix
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    @property
    def started(self) -> bool:
        return bool(self._calls)

    def read(self, index: int | None, id: str | None, name: str | None, arguments: str) -> ToolCallDelta | None:
        """One delta as the engine sent it. None while there is nothing to tell."""
        call = self._find(index, id or None, name or None)
        call.id = call.id or id or None
        if call.declared is None:
            if not name:
                call.arguments += arguments
                return None
            return self._open(call, name, call.arguments + arguments)
        piece = call.reader.feed(arguments) if call.reader else arguments
        if not piece:
            return None
        return ToolCallDelta(call.index, None, None, piece, call.declared.kind, call.declared.namespace, self._choice)

    def finish(self) -> list[ToolCallDelta]:
        """What the custom tools' readers still held back. Raises ValueError for a call that was never named."""
        deltas = []
        for call in self._calls:
            if call.declared is None:
                raise ValueError("the engine called a tool without naming it")
            if call.reader and (rest := call.reader.finish()):
                kind, namespace = call.declared.kind, call.declared.namespace
                deltas.append(ToolCallDelta(call.index, None, None, rest, kind, namespace, self._choice))
        return deltas

    def _open(self, call: _Call, name: str, arguments: str) -> ToolCallDelta:
        call.declared = declared = self._table.resolve(name)
        call.arguments = ""
        if declared.kind == "custom":
            call.reader = InputReader()
            arguments = call.reader.feed(arguments)
        call.id = call.id or f"{self._prefix}{call.index}"
        return ToolCallDelta(
            call.index, call.id, declared.name, arguments, declared.kind, declared.namespace, self._choice
        )

    def _find(self, index: int | None, id: str | None, name: str | None) -> _Call:
        if index is None:
            call = next((call for call in self._calls if id and call.id == id), None)
            if call is None and self._calls and not id and not name:
                call = self._calls[-1]
            if call is None and self._calls and not (id and name) and self._calls[-1].declared is None:
                call = self._calls[-1]  # the missing half, name or id, of a call that has begun
            return call or self._begin()
        known = self._by_index.get(index)
        if known is None or (id and name and known.id and known.id != id):
            known = self._by_index[index] = self._begin()
        return known

    def _begin(self) -> _Call:
        call = _Call(len(self._calls))
        self._calls.append(call)
        return call


def argument_text(arguments: str | dict[str, Any] | None) -> str:
    """Arguments as JSON text; some engines send the object itself."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else jsonio.dump(arguments).decode()


def unwrap(arguments: str) -> str:
    """A custom tool's input from the whole arguments of the function that stood for it."""
    reader = InputReader()
    return reader.feed(arguments) + reader.finish()


def _function(tool: Tool, name: str) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name}
    if tool.kind == "custom":
        function["description"] = _custom_description(tool)
        function["parameters"] = {
            "type": "object",
            "properties": {"input": {"type": "string", "description": "The whole input of the tool."}},
            "required": ["input"],
            "additionalProperties": False,
        }
        return function
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters if tool.parameters is not None else {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _custom_description(tool: Tool) -> str:
    described = [tool.description] if tool.description else []
    grammar = tool.grammar or {}
    inner = grammar.get("grammar")
    rules = inner if isinstance(inner, dict) else grammar  # chat nests it, responses does not
    if definition := rules.get("definition"):
        described.append(f"The input must match this {rules.get('syntax') or 'lark'} grammar:\n{definition}")
    return "\n\n".join(described) or "Takes free text."


def _is_allowed(tool: Tool, allowed: set[str]) -> bool:
    names = {tool.name}
    if tool.namespace:
        names |= {tool.namespace, f"{tool.namespace}.{tool.name}", f"{tool.namespace}__{tool.name}"}
    return not names.isdisjoint(allowed)


def _join(namespace: str | None, name: str) -> str:
    joined = f"{namespace}__{name}" if namespace else name
    if _PLAIN.fullmatch(joined):
        return joined
    return _digest_name(joined, namespace, name)


def _digest_name(joined: str, namespace: str | None, name: str) -> str:
    digest = hashlib.sha256(f"{namespace or ''}\x00{name}".encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{_FOREIGN.sub('_', joined)[: _MAX_NAME - 13]}_{digest}"
