"""The tasks, read from YAML strictly: whatever is not understood is told with file and line. The form is in
docs/rubric.md; what comes with the package is `tasks.yaml`."""

import hashlib
import re
from pathlib import Path
from typing import Final, Literal

import msgspec
import yaml

from sekisho.core.errors import InvalidRequest

BUILT_IN: Final = Path(__file__).with_name("tasks.yaml")
LANGUAGES: Final = ("ja", "en")
DEFAULT_MAX_TOKENS: Final = 1024
MOST_TOKENS: Final = 32_768
MOST_PROMPT_CHARS: Final = 20_000
MOST_TASKS: Final = 200
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_KIND = re.compile(r"[a-z]+(?:_[a-z]+)*")
_KEYS = frozenset({"id", "language", "kind", "title", "prompt", "needs", "defects", "max_tokens"})


class Task(msgspec.Struct, frozen=True):
    """`prompt` is all that a model is asked. `needs` (what a good answer has) and `defects` (typical severe ones) are
    for the raters, by language."""

    id: str
    language: Literal["ja", "en"]
    kind: str
    title: str
    prompt: str
    needs: dict[str, tuple[str, ...]]
    defects: dict[str, tuple[str, ...]]
    max_tokens: int = DEFAULT_MAX_TOKENS


class TaskSet(msgspec.Struct, frozen=True):
    """`calibration` is rated first and talked about; `tasks` are what counts."""

    calibration: tuple[Task, ...]
    tasks: tuple[Task, ...]

    @property
    def all(self) -> tuple[Task, ...]:
        return (*self.calibration, *self.tasks)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def load_tasks(file: Path | None = None) -> TaskSet:
    """The team's own file, else the built-in tasks. Raises InvalidRequest with file and line of every problem."""
    path = file or BUILT_IN
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InvalidRequest(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"{path}: nested too deeply") from error
    reader = _Reader(str(path))
    tasks = reader.document(root)
    if reader.problems:
        raise InvalidRequest("\n".join(text for _, text in sorted(reader.problems)))
    return tasks


class _Reader:
    """Walks the nodes of a file, so that every complaint knows its line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[tuple[int, str]] = []
        self._ids: dict[str, int] = {}

    def document(self, root: yaml.Node | None) -> TaskSet:
        if root is None:
            self.problems.append((1, f"{self.file}:1: the file is empty"))
            return TaskSet((), ())
        parts = self._mapping(root, frozenset({"version", "calibration", "tasks"}), "a file of tasks")
        if "version" not in parts:
            self._problem(root, "`version: 1` is missing")
        elif self._text(parts["version"]) != "1":
            self._problem(parts["version"], "this program reads version 1")
        calibration = self._tasks(parts["calibration"]) if "calibration" in parts else ()
        if "tasks" not in parts:
            self._problem(root, "`tasks` is missing")
            return TaskSet((), ())
        return TaskSet(calibration, self._tasks(parts["tasks"]))

    def _tasks(self, node: yaml.Node) -> tuple[Task, ...]:
        nodes = self._items(node)
        if not nodes or len(nodes) > MOST_TASKS:
            self._problem(node, f"expected 1 to {MOST_TASKS} tasks")
        return tuple(task for item in nodes[:MOST_TASKS] if (task := self._task(item)) is not None)

    def _task(self, node: yaml.Node) -> Task | None:
        before = len(self.problems)
        parts = self._mapping(node, _KEYS, "a task")
        if not isinstance(node, yaml.MappingNode):
            return None
        for wanted in sorted(_KEYS - {"max_tokens"} - parts.keys()):
            self._problem(node, f"`{wanted}` is missing")
        if len(self.problems) > before:
            return None
        task = Task(
            id=self._id(parts["id"]),
            language=self._language(parts["language"]),
            kind=self._matching(parts["kind"], _KIND, "small letters and _"),
            title=self._filled(parts["title"], 200),
            prompt=self._filled(parts["prompt"], MOST_PROMPT_CHARS),
            needs=self._notes(parts["needs"]),
            defects=self._notes(parts["defects"]),
            max_tokens=self._tokens(parts["max_tokens"]) if "max_tokens" in parts else DEFAULT_MAX_TOKENS,
        )
        return task if len(self.problems) == before else None

    def _id(self, node: yaml.Node) -> str:
        name = self._matching(node, _ID, "small letters, digits and -")
        line = node.start_mark.line + 1
        if name in self._ids:
            self._problem(node, f"the id {name} stands twice (first in line {self._ids[name]})")
        self._ids.setdefault(name, line)
        return name

    def _language(self, node: yaml.Node) -> Literal["ja", "en"]:
        told = self._text(node)
        if told not in LANGUAGES:
            self._problem(node, f"{told!r} is none of {', '.join(LANGUAGES)}")
        return "ja" if told == "ja" else "en"

    def _notes(self, node: yaml.Node) -> dict[str, tuple[str, ...]]:
        parts = self._mapping(node, frozenset(LANGUAGES), "notes for the raters")
        if not parts:
            self._problem(node, "expected a list under `ja` or `en`")
        found = {language: tuple(self._filled(item, 1000) for item in self._items(n)) for language, n in parts.items()}
        for language, lines in found.items():
            if not lines:
                self._problem(parts[language], "an empty list")
        return found

    def _tokens(self, node: yaml.Node) -> int:
        told = self._text(node)
        if not told.isascii() or not told.isdigit() or not 1 <= int(told) <= MOST_TOKENS:
            self._problem(node, f"a whole number from 1 to {MOST_TOKENS}")
            return DEFAULT_MAX_TOKENS
        return int(told)

    def _matching(self, node: yaml.Node, pattern: re.Pattern[str], words: str) -> str:
        told = self._text(node)
        if not pattern.fullmatch(told) or len(told) > 64:
            self._problem(node, f"{told[:80]!r}: {words} only, at most 64")
        return told

    def _filled(self, node: yaml.Node, most: int) -> str:
        told = self._text(node)
        if not told.strip() or len(told) > most:
            self._problem(node, f"expected 1 to {most} characters")
        return told

    def _mapping(self, node: yaml.Node, allowed: frozenset[str], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"expected `name: value` lines for {what}")
            return {}
        parts: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._text(key)
            if name not in allowed:
                self._problem(key, f"unknown key {name!r} in {what}; known are {', '.join(sorted(allowed))}")
            elif name in parts:
                self._problem(key, f"{name!r} stands twice in {what}")
            else:
                parts[name] = value
        return parts

    def _items(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self._problem(node, "expected a list")
            return []
        return list(node.value)

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, "expected one text; one that holds `: ` or begins with { needs quotes")
            return ""
        return str(node.value)

    def _problem(self, node: yaml.Node, message: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append((line, f"{self.file}:{line}: {message}"))
