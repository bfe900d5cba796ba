"""A file of thresholds as YAML, strictly: whatever is not understood is an error with file and line.

The format is told in docs/scorecard.md."""

import datetime
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec
import yaml
from yaml.constructor import SafeConstructor

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.verdict.criterion import PATTERNS, Criterion, Operator, Pattern, Threshold, Words, expand
from sekisho.evaluate.verdict.stability import Calendar, time_zone

VERSION = 1
PER_PROFILE = "per_profile"
_LONGEST_FILE_BYTES = 1_000_000
_MOST_FIGURES = 200
_PROFILE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_ID = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FIGURES = re.compile(r"(?:[a-z0-9_.*]|\{[a-z0-9_]+(?:,[a-z0-9_]+)*\}){1,300}")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?%")
_MORNING = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
_OPERATORS: tuple[Operator, ...] = get_args(Operator)
_TEXTS = ("name", "when_failed", "when_open")
_KEYS = frozenset({"figures", "patterns", "minimal_n", *_TEXTS, *_OPERATORS})
_GENERIC: dict[str, Words] = {
    "when_failed": ("Find out why, mend it, and measure again.", "原因を調べて直し、測り直します。"),
    "when_open": ("Measure it.", "測定します。"),
}


class ThresholdProblem(msgspec.Struct, frozen=True):
    """One thing wrong in the file. `line` counts from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class ThresholdsError(InvalidRequest):
    """Thresholds that cannot be used; `problems` says where and why."""

    def __init__(self, *problems: ThresholdProblem) -> None:
        super().__init__("\n".join(map(str, problems)), param="thresholds")
        self.problems = problems


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says. The criteria of `per_profile` have no value of their own: every profile gives it."""

    profiles: dict[str, dict[str, Threshold]]
    calendar: Calendar
    criteria: tuple[Criterion, ...]
    per_profile: frozenset[str] = frozenset()


def read(body: bytes, source: str, known: Mapping[str, Criterion] | None = None) -> Written:
    """`known`: criteria whose wording is taken where the file gives none. Raises ThresholdsError with all problems."""

    def wrong(line: int, message: str) -> ThresholdsError:
        return ThresholdsError(ThresholdProblem(source, line, message))

    if len(body) > _LONGEST_FILE_BYTES:
        raise wrong(1, f"larger than {_LONGEST_FILE_BYTES} bytes")
    try:
        root = yaml.compose(body.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise wrong(1, f"not UTF-8: {error.reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise wrong(mark.line + 1 if mark else 1, f"not YAML: {said}") from error
    except RecursionError as error:
        raise wrong(1, "nested too deeply") from error
    if root is None:
        raise wrong(1, "the file is empty: `sekisho scorecard init --force` writes one")
    reader = _Reader(source, known or {})
    written = reader.document(root)
    if reader.problems:
        raise ThresholdsError(*sorted(reader.problems, key=lambda problem: problem.line))
    return written


class _Reader:
    """Walks the nodes of a document, so that every complaint knows its line."""

    def __init__(self, source: str, known: Mapping[str, Criterion]) -> None:
        self.problems: list[ThresholdProblem] = []
        self._source = source
        self._known = known

    def document(self, root: yaml.Node) -> Written:
        parts = self._mapping(root, ("version", "profiles", "calendar", "criteria"), "thresholds")
        for wanted in ("version", "profiles", "criteria"):
            if wanted not in parts:
                self._problem(root, f"{wanted} is missing")
        if "version" in parts and self._scalar(parts["version"]) != VERSION:
            self._problem(parts["version"], f"version: this Sekisho reads version {VERSION}")
        nodes = self._mapping(parts["criteria"], None, "criteria") if "criteria" in parts else {}
        if "criteria" in parts and not nodes:
            self._problem(parts["criteria"], "criteria: at least one is needed")
        criteria: list[Criterion] = []
        per_profile: set[str] = set()
        for name, node in nodes.items():
            criterion, varies = self._criterion(name, node)
            criteria.append(criterion)
            if varies:
                per_profile.add(name)
        profiles = self._profiles(parts["profiles"], criteria, per_profile) if "profiles" in parts else {}
        calendar = self._calendar(parts["calendar"]) if "calendar" in parts else Calendar()
        return Written(
            profiles=profiles, calendar=calendar, criteria=tuple(criteria), per_profile=frozenset(per_profile)
        )

    def _profiles(
        self, node: yaml.Node, criteria: Iterable[Criterion], per_profile: set[str]
    ) -> dict[str, dict[str, Threshold]]:
        by_id = {criterion.id: criterion for criterion in criteria}
        profiles: dict[str, dict[str, Threshold]] = {}
        for name, own in self._mapping(node, None, "profiles").items():
            if not _PROFILE.fullmatch(name):
                self._problem(own, f"profile {name!r}: small letters, digits, _, - and . only")
            values: dict[str, Threshold] = {}
            for key, value in self._mapping(own, tuple(by_id), f"profile {name}").items():
                values[key] = self._threshold(value, by_id[key].operator, key)
            missing = sorted(per_profile - values.keys())
            if missing:
                self._problem(own, f"profile {name}: {', '.join(missing)} has no value here, and is {PER_PROFILE}")
            profiles[name] = values
        if not profiles:
            self._problem(node, "profiles: at least one is needed")
        return profiles

    def _criterion(self, name: str, node: yaml.Node) -> tuple[Criterion, bool]:
        parts = self._mapping(node, tuple(sorted(_KEYS)), f"criterion {name}")
        if not _ID.fullmatch(name):
            self._problem(node, f"criterion {name!r}: small letters, digits and _ only")
        given = [operator for operator in _OPERATORS if operator in parts]
        if len(given) != 1:
            self._problem(node, f"criterion {name}: exactly one of {', '.join(_OPERATORS)} is needed")
        operator: Operator = given[0] if given else "at_least"
        varies = bool(given) and self._scalar(parts[operator]) == PER_PROFILE
        value: Threshold = False
        if given and not varies:
            value = self._threshold(parts[operator], operator, name)
        if "figures" not in parts:
            self._problem(node, f"criterion {name}: figures is missing")
        minimal_n = self._scalar(parts["minimal_n"]) if "minimal_n" in parts else 0
        if type(minimal_n) is not int or not 0 <= minimal_n <= 1_000_000_000:
            self._problem(parts["minimal_n"], f"criterion {name}: minimal_n is a whole number from 0 up")
            minimal_n = 0
        words = {text: self._words(name, node, parts, text) for text in _TEXTS}
        return (
            Criterion(
                id=name,
                figures=self._figures(name, parts["figures"]) if "figures" in parts else (),
                operator=operator,
                value=value,
                patterns=self._patterns(name, parts["patterns"]) if "patterns" in parts else PATTERNS,
                minimal_n=minimal_n,
                **words,
            ),
            varies,
        )

    def _figures(self, name: str, node: yaml.Node) -> tuple[str, ...]:
        given = self._strings(node)
        if not given:
            self._problem(node, f"criterion {name}: figures needs at least one id")
        for figure in given:
            if not _FIGURES.fullmatch(figure):
                self._problem(node, f"criterion {name}: {figure!r} is no figure id; {{1,2}} and * may stand in it")
            elif len(expand(figure)) > _MOST_FIGURES:
                self._problem(node, f"criterion {name}: {figure!r} means more than {_MOST_FIGURES} figures")
        return given

    def _patterns(self, name: str, node: yaml.Node) -> tuple[Pattern, ...]:
        given = self._strings(node)
        if not given or set(given) - set(PATTERNS) or len(set(given)) < len(given):
            self._problem(node, f"criterion {name}: patterns is a list of a, b or both")
        return tuple(pattern for pattern in PATTERNS if pattern in given)

    def _words(self, name: str, node: yaml.Node, parts: dict[str, yaml.Node], text: str) -> Words:
        if text not in parts:
            known = self._known.get(name)
            if known is not None:
                words: Words = getattr(known, text)
                return words
            if text == "name":
                self._problem(node, f"criterion {name}: name is missing, as in name: [English, Japanese]")
            return _GENERIC.get(text, (name, name))
        given = self._strings(parts[text])
        if len(given) != 2 or not all(given):
            self._problem(parts[text], f"criterion {name}: {text} is a pair: [English, Japanese]")
            return (name, name)
        return (given[0], given[1])

    def _threshold(self, node: yaml.Node, operator: Operator, name: str) -> Threshold:
        value = self._scalar(node)
        if operator == "is":
            if isinstance(value, bool):
                return value
            self._problem(node, f"{name}: true or false is needed")
            return False
        if value == "n":
            return "n"
        share = _SHARE.fullmatch(value) if isinstance(value, str) else None
        if share is not None:
            return float(share[1]) / 100
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._problem(node, f"{name}: a number, a share as in 95%, or n is needed")
            return 0.0
        return float(value)

    def _calendar(self, node: yaml.Node) -> Calendar:
        parts = self._mapping(node, ("time_zone", "holidays", "morning", "least_hours"), "calendar")
        values: dict[str, Any] = {}
        if "time_zone" in parts:
            values["time_zone"] = zone = str(self._scalar(parts["time_zone"]))
            try:
                time_zone(zone)
            except ValueError as error:
                self._problem(parts["time_zone"], f"{error}, as in Asia/Tokyo")
        if "holidays" in parts:
            values["holidays"] = self._holidays(parts["holidays"])
        if "morning" in parts:
            morning = self._scalar(parts["morning"])
            if morning is not None and not (isinstance(morning, str) and _MORNING.fullmatch(morning)):
                self._problem(parts["morning"], 'morning: a time in quotes is needed, as in "09:30"')
            values["morning"] = morning
        if "least_hours" in parts:
            hours = self._scalar(parts["least_hours"])
            if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours <= 24:
                self._problem(parts["least_hours"], "least_hours: more than 0, at most 24")
                hours = 1
            values["least_hours"] = float(hours)
        return Calendar(**values)

    def _holidays(self, node: yaml.Node) -> tuple[str, ...]:
        days = self._strings(node)
        for day in days:
            try:
                datetime.date.fromisoformat(day)
            except ValueError:
                self._problem(node, f"holidays: {day!r} is no day, as in 2026-12-31")
        return days

    # --- nodes --------------------------------------------------------------------------------------------------

    def _mapping(self, node: yaml.Node, known: tuple[str, ...] | None, what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._problem(node, f"{what}: names with values are needed here")
            return {}
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if known is not None and key not in known:
                self._problem(key_node, f"{what}: {key!r} is not known; known are {', '.join(known)}")
            elif key in found:
                self._problem(key_node, f"{what}: {key!r} is said twice")
            else:
                found[key] = value
        return found

    def _strings(self, node: yaml.Node) -> tuple[str, ...]:
        """A list of texts as they are written; one text is a list of one."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for each in nodes:
            if not isinstance(each, yaml.ScalarNode):
                self._problem(each, "a text is needed here")
        return tuple(each.value for each in nodes if isinstance(each, yaml.ScalarNode))

    def _scalar(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, "one value is needed here")
            return None
        if node.tag.rpartition(":")[2] not in ("int", "float", "bool", "null", "str"):
            return node.value  # a date: as it is written
        try:
            return SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError):
            self._problem(node, f"cannot read {node.value!r}")
            return None

    def _problem(self, node: yaml.Node, message: str) -> None:
        self.problems.append(ThresholdProblem(self._source, node.start_mark.line + 1, message))
