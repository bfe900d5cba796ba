"""Custom, namespaced and hosted tools on engines that know only functions."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.events import ToolCallDelta
from sekisho.core.turn import Tool, ToolCall, ToolChoice
from sekisho.wire import tools
from sekisho.wire.tools import CallReader, Declared, ToolTable
from sekisho.wire.tools_input import InputReader

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NAMES = st.text(st.sampled_from("ab__-. 関é"), min_size=1, max_size=80)
TOOLS = st.lists(
    st.builds(
        Tool,
        NAMES,
        st.sampled_from(["function", "custom", "web_search"]),
        namespace=st.none() | st.sampled_from(["a", "a_", "ns", "名前", "n" * 60]),
    ),
    max_size=8,
).map(tuple)


def cut(text: str, places: list[int]) -> list[str]:
    marks = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in zip(marks, marks[1:], strict=False)]  # noqa: RUF007  (empty pieces are wanted)


def read(pieces: list[str]) -> str:
    reader = InputReader()
    return "".join([reader.feed(piece) for piece in pieces]) + reader.finish()


@settings(deadline=None, max_examples=200)
@given(TEXT, st.booleans(), st.lists(st.integers(0, 300), max_size=10), st.dictionaries(TEXT, st.integers() | TEXT))
def test_input_is_read_from_pieces_cut_anywhere(
    text: str, ascii_only: bool, places: list[int], others: dict[str, object]
) -> None:
    """Whatever the text, its escapes, the members before and after it and the cuts, the input comes out unchanged."""
    others.pop("input", None)
    members = {**others, "nested": {"input": ["}", {"input": "no"}]}, "input": text, "after": 1}
    written = json.dumps(members, ensure_ascii=ascii_only)
    assert read(cut(written, places)) == text
    assert read(list(written)) == text
    assert tools.unwrap(written) == text


@settings(deadline=None)
@given(TEXT)
def test_input_begins_to_come_before_its_end(text: str) -> None:
    """All of the input is there as soon as its last character is, without the closing quote."""
    reader = InputReader()
    assert reader.feed('{"input": "' + json.dumps(text)[1:-1]) == text


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="{ \t\r\n"), min_size=1), st.lists(st.integers(0, 50)))
def test_input_without_its_wrapping_is_passed_on(text: str, places: list[int]) -> None:
    """A model that writes the input itself, with no JSON around it, is understood."""
    assert read(cut(text, places)) == text


def test_sloppy_arguments_lose_nothing() -> None:
    """An object without `input`, or with one that is no string, comes whole; a torn string comes as far as it went;
    lone surrogates become the replacement character; unknown escapes stay."""
    assert read(['{"patch": "x"', "}"]) == '{"patch": "x"}'
    assert read(['{"input": ', "[1]}"]) == '{"input": [1]}'
    assert read(['{"input": "ab\\', "n"]) == "ab\n"
    assert read(['{"input": "ab\\']) == "ab\\"
    assert read(['{"input": "\\ud83d', 'x"}']) == "\ufffdx"
    assert read(['{"input": "\\ude00"}']) == "\ufffd"
    assert read(['{"input": "\\ud83d"}']) == "\ufffd"
    assert read(['{"input": "\\q\\uZZZZ"}']) == "\\q\\uZZZZ"
    assert read(["{}"]) == ""
    assert read([]) == ""


@settings(deadline=None, max_examples=150)
@given(TOOLS)
def test_offered_names_are_valid_distinct_and_lead_back(declared: tuple[Tool, ...]) -> None:
    """Every offered name fits OpenAI's rule, no two tools share one, and each leads back to its tool; plain names
    stay as they are; hosted tools are not offered."""
    functions, table = tools.flatten(declared)
    names = [function["function"]["name"] for function in functions]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    runnable = list(dict.fromkeys((tool.namespace, tool.name) for tool in declared if tool.kind != "web_search"))
    assert len(set(names)) == len(names) == len(runnable)
    for name, (namespace, tool_name) in zip(names, runnable, strict=True):
        found = table.resolve(name)
        assert (found.namespace, found.name) == (namespace, tool_name)
        assert table.offered(tool_name, namespace) == name
        if namespace is None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tool_name):
            assert name == tool_name


def test_a_namespace_is_joined_and_split_without_taking_a_plain_name() -> None:
    """`a` + `b` becomes `a__b`, unless a tool of that plain name was declared, before or after it."""
    inner, plain = Tool("b", namespace="a"), Tool("a__b")
    for declared in ((inner, plain), (plain, inner)):
        _, table = tools.flatten(declared)
        assert table.resolve("a__b") == Declared("a__b", None, "function")
        assert table.resolve(table.offered("b", "a")) == Declared("b", "a", "function")
    assert tools.flatten((inner,))[1].offered("b", "a") == "a__b"


def test_custom_tool_tells_its_grammar_in_either_shape() -> None:
    """Chat nests the grammar, responses does not; the engine reads it in the description either way."""
    rules = {"syntax": "lark", "definition": "start: /a+/"}
    for grammar in ({"type": "grammar", "grammar": rules}, {"type": "grammar", **rules}):
        [function], _ = tools.flatten((Tool("p", "custom", "Patches.", grammar=grammar),))
        spec = function["function"]
        assert spec["description"].startswith("Patches.")
        assert "lark" in spec["description"]
        assert "start: /a+/" in spec["description"]
        assert spec["parameters"]["required"] == ["input"]


def test_tool_choice_is_told_in_offered_names() -> None:
    """A chosen tool is offered alone and required; allowed tools narrow the list; a choice of a hosted tool, or of
    nothing that is left, is not told."""
    declared = (Tool("f"), Tool("g", namespace="n"), Tool("p", "custom"), Tool("web_search", "web_search"))
    functions, choice, _ = tools.offer(declared, ToolChoice("one", "g", "n"))
    assert ([one["function"]["name"] for one in functions], choice) == (["n__g"], "required")
    functions, choice, _ = tools.offer(declared, ToolChoice("required", allowed=("p", "n")))
    assert ([one["function"]["name"] for one in functions], choice) == (["n__g", "p"], "required")
    assert tools.offer(declared, ToolChoice())[1] is None
    assert tools.offer(declared, ToolChoice("none"))[1] == "none"
    functions, choice, _ = tools.offer(declared, ToolChoice("one", "web_search"))
    assert (len(functions), choice) == (3, None)
    assert tools.offer(declared[3:], ToolChoice("required"))[:2] == ([], None)


def test_earlier_calls_read_as_the_engine_would_have_made_them() -> None:
    """A custom call of the history is wrapped again; a hosted one is told in words."""
    assert json.loads(tools.call_arguments(ToolCall("c", "p", 'a"b', "custom"))) == {"input": 'a"b'}
    assert tools.call_arguments(ToolCall("c", "f", '{"a":1}')) == '{"a":1}'
    assert tools.call_arguments(ToolCall("c", "f", "")) == "{}"
    assert "tea" in tools.told(ToolCall("c", "web_search", '{"query":"tea"}', "web_search"))


def collect(reader: CallReader, parts: list[tuple[int | None, str | None, str | None, str]]) -> dict[int, list[str]]:
    """Index -> [id, name, arguments], from a reader's deltas; asserts that id and name come first and once."""
    calls: dict[int, list[str]] = {}
    deltas = [delta for part in parts if (delta := reader.read(*part))] + reader.finish()
    for delta in deltas:
        if delta.index not in calls:
            assert delta.id
            assert delta.name
            assert delta.index == len(calls)
            calls[delta.index] = [delta.id, delta.name, delta.arguments]
        else:
            assert delta.id is None
            assert delta.name is None
            calls[delta.index][2] += delta.arguments
    return calls


def test_calls_are_told_apart_however_an_engine_marks_them() -> None:
    """Interleaved indexes, no index, one index for all with new ids, repeated ids and names, null ids, late names."""
    table = ToolTable((Tool("f"), Tool("g")))
    f, g = ["1", "f", "ab"], ["2", "g", "cd"]
    ways: list[list[tuple[int | None, str | None, str | None, str]]] = [
        [
            (0, "1", "f", ""),
            (1, "2", "g", ""),
            (0, "", None, "a"),
            (1, "", "", "c"),
            (0, None, "", "b"),
            (1, "", None, "d"),
        ],
        [(3, "1", "f", "a"), (3, "1", "f", "b"), (7, "2", "g", "cd")],
        [(None, "1", "f", "ab"), (None, "2", "g", "cd")],
        [(None, "1", "f", "a"), (None, None, None, "b"), (None, "2", "g", "c"), (None, "2", None, "d")],
        [(0, "1", "f", "ab"), (0, "2", "g", "cd")],
        [(0, "1", None, "a"), (0, None, "f", "b"), (1, "2", "g", "cd")],
    ]
    for way in ways:
        assert collect(CallReader(table, 0, "x"), way) == {0: f, 1: g}
    assert collect(CallReader(table, 0, "x"), [(0, None, "f", "ab"), (1, None, "g", "")]) == {
        0: ["x0", "f", "ab"],
        1: ["x1", "g", ""],
    }
    assert len(collect(CallReader(table, 0, "x"), [(None, None, "f", "a"), (None, None, "f", "b")])) == 2


def test_kinds_and_namespaces_come_back() -> None:
    """A declared web search, a custom and a namespaced tool keep their kind; an undeclared name stays a function."""
    table = ToolTable((Tool("p", "custom"), Tool("b", namespace="a"), Tool("web_search", "web_search")))
    reader = CallReader(table, 2, "x")
    assert reader.read(0, "1", "p", '{"input":"h') == ToolCallDelta(0, "1", "p", "h", "custom", None, 2)
    assert reader.read(0, None, None, 'i"}') == ToolCallDelta(0, None, None, "i", "custom", None, 2)
    assert reader.read(1, "2", "a__b", "{}") == ToolCallDelta(1, "2", "b", "{}", "function", "a", 2)
    assert reader.read(2, "3", "web_search", "{}") == ToolCallDelta(2, "3", "web_search", "{}", "web_search", None, 2)
    assert reader.read(3, "4", "other", "{}") == ToolCallDelta(3, "4", "other", "{}", "function", None, 2)
    assert ToolTable(()).resolve("web_search").kind == "function"


def test_a_call_without_a_name_is_an_error() -> None:
    """Arguments for a tool that is never named are not passed on as if they were complete."""
    reader = CallReader(ToolTable(()), 0, "x")
    assert reader.read(0, "1", None, "{}") is None
    with pytest.raises(ValueError, match="naming"):
        reader.finish()
