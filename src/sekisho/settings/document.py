"""A YAML file as plain values, with the place of each. Strict: no duplicate keys, no keys that are not text."""

from collections.abc import Iterator
from typing import Any

import msgspec
import yaml
from yaml.constructor import SafeConstructor

DEPTH_LIMIT = 24
NODE_LIMIT = 20_000  # aliases can make a small file huge

_SCALAR_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}

Path = tuple[str | int, ...]


class Place(msgspec.Struct, frozen=True):
    """Line and column count from 1."""

    line: int
    column: int


class SettingsProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `path` is the value's way from the top, as in `models[0].context`."""

    message: str
    path: str = ""
    hint: str | None = None
    source: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"
        what = f"{self.path}: {self.message}" if self.path else self.message
        return ": ".join(part for part in (where, what) if part) + (f" — {self.hint}" if self.hint else "")


class SettingsError(Exception):
    """The settings cannot be used. `problems` holds everything that was found, in the order of the file."""

    def __init__(self, *problems: SettingsProblem) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.line or 0, p.column or 0)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Document:
    """Plain values (`value`), the place of every value and key, and the problems found on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.value: Any = None
        self.problems: list[SettingsProblem] = []
        self._places: dict[Path, Place] = {}
        self._keys: dict[Path, Place] = {}

    def problem(self, path: Path, message: str, hint: str | None = None, *, at_key: bool = False) -> None:
        """Notes a problem at a value, or at its key; a path the file does not hold is told at its nearest parent."""
        places = self._keys if at_key else self._places
        place = places.get(path)
        parent = path
        while place is None and parent:
            parent = parent[:-1]
            place = self._places.get(parent)
        line, column = (place.line, place.column) if place else (None, None)
        self.problems.append(SettingsProblem(message, path_text(path), hint, self.source, line, column))

    def has(self, path: Path) -> bool:
        return path in self._places

    def note(self, path: Path, node: yaml.Node) -> None:
        self._places[path] = _place(node)

    def note_key(self, path: Path, node: yaml.Node) -> None:
        self._keys[path] = _place(node)


def path_text(path: Path) -> str:
    """`("models", 0, "context")` -> `models[0].context`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def read_document(text: str, source: str) -> Document:
    """Parses. A file that is no YAML raises SettingsError at once; other problems are collected in the document."""
    document = Document(source)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        message = f"not valid YAML: {error.problem or error.context or 'unreadable'}"
        raise SettingsError(SettingsProblem(message, "", _yaml_hint(text, line), source, line, column)) from error
    except yaml.YAMLError as error:
        raise SettingsError(SettingsProblem(f"not valid YAML: {error}", source=source)) from error
    except RecursionError as error:
        raise SettingsError(SettingsProblem("nested too deeply", source=source)) from error
    if node is None:
        document.value = {}
        return document
    counter = iter(range(NODE_LIMIT))
    document.value = _plain(document, node, (), counter)
    return document


def _yaml_hint(text: str, line: int | None) -> str | None:
    lines = text.splitlines()
    if line is not None and line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1].lstrip()) or None]:
        return "indent with spaces: YAML takes no tabs"
    return None


def _plain(document: Document, node: yaml.Node, path: Path, counter: Iterator[int]) -> Any:
    document.note(path, node)
    if next(counter, None) is None or len(path) > DEPTH_LIMIT:
        message = "nested too deeply" if len(path) > DEPTH_LIMIT else "too many values"
        document.problem(path, message)
        raise SettingsError(*document.problems)
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node, path, counter)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(document, child, (*path, index), counter) for index, child in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)  # YAML has these three kinds
    return _scalar(document, node, path)


def _mapping(document: Document, node: yaml.MappingNode, path: Path, counter: Iterator[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        here = (*path, key)
        if key in result:
            first = document._keys[here].line
            document.note_key(here, key_node)
            document.problem(here, f"said twice (first in line {first})", "keep one of the two", at_key=True)
            continue
        document.note_key(here, key_node)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            document.problem(here, "a key must be plain text", "`? ` and `<<` are not supported here", at_key=True)
            continue
        result[key] = _plain(document, value_node, here, counter)
    return result


def _scalar(document: Document, node: yaml.ScalarNode, path: Path) -> Any:
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value  # no setting is a date: keep what was written
    if node.tag not in _SCALAR_TAGS:
        document.problem(path, f"the tag {node.tag} is not supported")
        return None
    try:
        return SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError):
        document.problem(path, f"cannot read {node.value!r}")
        return None


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
