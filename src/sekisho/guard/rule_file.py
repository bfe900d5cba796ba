"""A file of rules as YAML, strictly: whatever is not understood is an error with file and line.

The format is told in docs/guard-rules.md."""

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from sekisho.core.verdict import DECISIONS, SEVERITIES, Category, Decision, Severity
from sekisho.guard.rule_needs import PatternError, needs

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
_ID = re.compile(r"[a-z0-9_]+(?:[.-][a-z0-9_]+)*")
_LIST = re.compile(r"(?<!\(\?)(?<!\(\?P)(?<!\\)<([a-z][a-z0-9_]*)>")
_LANGUAGES = ("ja", "en")
_DEFAULT_WITHIN_CHARS = 40
_MOST_WITHIN_CHARS = 500
_LISTS = {"gap": "[^.!?。]{0,40}", "near": "[^.!?。]{0,15}"}
_KEYS = frozenset(
    {"id", "enabled", "category", "decision", "severity", "languages", "any", "all", "near", "none", "context", "tests"}
    | {"note"}
)


class RuleProblem(msgspec.Struct, frozen=True):
    """One thing wrong in a file of rules. `line` counts from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class RuleError(Exception):
    """Rules that cannot be used; `problems` says where and why."""

    def __init__(self, *problems: RuleProblem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Near(msgspec.Struct, frozen=True):
    """Every pattern matches, all within so many characters."""

    within_chars: int
    patterns: tuple[str, ...]


class Context(msgspec.Struct, frozen=True):
    """Words beside the hit that lower the decision."""

    within_chars: int
    patterns: tuple[str, ...]
    decision: Decision


class Rule(msgspec.Struct, frozen=True):
    """A rule as written, patterns with their lists filled in. `enabled: false` switches a rule of that id off."""

    id: str
    file: str
    line: int
    enabled: bool = True
    category: Category = "none"
    decision: Decision = "refuse"
    severity: Severity = "high"
    languages: tuple[str, ...] = _LANGUAGES
    any: tuple[str, ...] = ()
    all: tuple[str, ...] = ()
    near: Near | None = None
    none: tuple[str, ...] = ()
    context: Context | None = None
    match_tests: tuple[str, ...] = ()
    pass_tests: tuple[str, ...] = ()


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of one file. Raises RuleError with all problems found."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=_LOADER)
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(RuleProblem(str(path), 1, f"cannot be read: {error}")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error)
        raise RuleError(RuleProblem(str(path), mark.line + 1 if mark else 1, f"not YAML: {said}")) from error
    reader = _Reader(str(path))
    rules = reader.document(root) if root is not None else ()
    if reader.problems:
        raise RuleError(*reader.problems)
    return rules


class _Reader:
    """Walks the nodes of a document, so that every complaint knows its line."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[RuleProblem] = []
        self.lists = dict(_LISTS)

    def document(self, root: yaml.Node) -> tuple[Rule, ...]:
        parts = self._mapping(root, frozenset({"lists", "rules"}), "a file of rules")
        if "lists" in parts:
            for name, node in self._mapping(parts["lists"], None, "lists").items():
                told = self._strings(node) if isinstance(node, yaml.SequenceNode) else (self._string(node),)
                self.lists[name] = self._fill("|".join(told), node)
        if "rules" not in parts:
            return ()
        nodes = self._items(parts["rules"])
        return tuple(rule for node in nodes if (rule := self._rule(node)) is not None)

    def _rule(self, node: yaml.Node) -> Rule | None:
        before = len(self.problems)
        parts = self._mapping(node, _KEYS, "a rule")
        line = node.start_mark.line + 1
        if "id" not in parts:
            self._problem(node, "a rule needs an id")
            return None
        name = self._string(parts["id"])
        if not _ID.fullmatch(name):
            self._problem(parts["id"], f"id {name!r}: small letters, digits, _, - and . only")
        if "enabled" in parts and self._choice(parts["enabled"], ("true", "false")) == "false":
            return Rule(name, self.file, line, enabled=False)
        for wanted in ("category", "decision", "tests"):
            if wanted not in parts:
                self._problem(node, f"rule {name}: {wanted} is missing")
        if not parts.keys() & {"any", "all", "near"}:
            self._problem(node, f"rule {name}: one of any, all, near is missing")
        if len(self.problems) > before:
            return None
        tests = self._mapping(parts["tests"], frozenset({"match", "pass"}), "tests")
        for kind in ("match", "pass"):
            if kind not in tests or not self._items(tests[kind]):
                self._problem(parts["tests"], f"rule {name}: tests need at least one text under {kind}")
        decision: Any = self._choice(parts["decision"], DECISIONS[1:])
        severity: Any = self._choice(parts["severity"], SEVERITIES[1:]) if "severity" in parts else "high"
        category: Any = self._choice(parts["category"], get_args(Category)[:-1])
        rule = Rule(
            name,
            self.file,
            line,
            category=category,
            decision=decision,
            severity=severity,
            languages=tuple(self._choice(item, _LANGUAGES) for item in self._items(parts["languages"]))
            if "languages" in parts
            else _LANGUAGES,
            any=self._patterns(parts.get("any")),
            all=self._patterns(parts.get("all")),
            near=self._near(parts["near"]) if "near" in parts else None,
            none=self._patterns(parts.get("none")),
            context=self._context(parts["context"], decision, severity) if "context" in parts else None,
            match_tests=self._strings(tests["match"]) if "match" in tests else (),
            pass_tests=self._strings(tests["pass"]) if "pass" in tests else (),
        )
        return rule if len(self.problems) == before else None

    def _near(self, node: yaml.Node) -> Near | None:
        parts = self._mapping(node, frozenset({"within", "patterns"}), "near")
        patterns = self._patterns(parts.get("patterns"))
        if len(patterns) < 2:
            self._problem(node, "near needs two or more patterns")
            return None
        return Near(self._within(parts), patterns)

    def _context(self, node: yaml.Node, decision: str, severity: str) -> Context | None:
        parts = self._mapping(node, frozenset({"within", "patterns", "decision"}), "context")
        if "decision" not in parts or "patterns" not in parts:
            self._problem(node, "context needs patterns and a decision")
            return None
        lowered: Any = self._choice(parts["decision"], DECISIONS[:2])
        if severity == "critical":
            self._problem(node, "words beside it do not make a critical rule harmless; leave context out")
        elif decision in DECISIONS and lowered in DECISIONS and DECISIONS.index(lowered) >= DECISIONS.index(decision):
            self._problem(node, f"context lowers a decision; {lowered} is not lower than {decision}")
        return Context(self._within(parts), self._patterns(parts["patterns"]), lowered)

    def _within(self, parts: dict[str, yaml.Node]) -> int:
        if "within" not in parts:
            return _DEFAULT_WITHIN_CHARS
        told = self._string(parts["within"])
        if not told.isascii() or not told.isdigit() or not 1 <= int(told) <= _MOST_WITHIN_CHARS:
            self._problem(parts["within"], f"within: a number of characters from 1 to {_MOST_WITHIN_CHARS}")
            return _DEFAULT_WITHIN_CHARS
        return int(told)

    def _patterns(self, node: yaml.Node | None) -> tuple[str, ...]:
        if node is None:
            return ()
        patterns = []
        for item in self._items(node):
            pattern = self._fill(self._string(item), item)
            try:
                needs(pattern)
            except PatternError as error:
                self._problem(item, str(error))
            patterns.append(pattern)
        if not patterns:
            self._problem(node, "an empty list of patterns")
        return tuple(patterns)

    def _fill(self, pattern: str, node: yaml.Node) -> str:
        def told(match: re.Match[str]) -> str:
            if match[1] not in self.lists:
                self._problem(node, f"there is no list <{match[1]}>; known are {', '.join(sorted(self.lists))}")
            return f"(?:{self.lists.get(match[1], '')})"

        return _LIST.sub(told, pattern)

    def _mapping(self, node: yaml.Node, allowed: frozenset[str] | None, what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"expected `name: value` lines for {what}")
            return {}
        parts: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._string(key)
            if allowed is not None and name not in allowed:
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

    def _strings(self, node: yaml.Node) -> tuple[str, ...]:
        return tuple(self._string(item) for item in self._items(node))

    def _string(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, "expected one text")
            return ""
        return str(node.value)

    def _choice(self, node: yaml.Node, choices: tuple[str, ...]) -> str:
        told = self._string(node)
        if told not in choices:
            self._problem(node, f"{told!r} is none of {', '.join(choices)}")
        return told

    def _problem(self, node: yaml.Node, message: str) -> None:
        self.problems.append(RuleProblem(self.file, node.start_mark.line + 1, message))
