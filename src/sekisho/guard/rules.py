"""Rules that decide alone: which there are, what they say of a text, and their files read anew when edited."""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import msgspec

from sekisho.core.verdict import DECISIONS, SEVERITIES, Decision, Finding
from sekisho.guard.language import language as language_of
from sekisho.guard.rule_file import Rule, RuleError, RuleProblem, read_rules
from sekisho.guard.rule_gates import Gate, Gates, Tried
from sekisho.guard.rule_needs import Needs, needs, ranked, reach, union
from sekisho.guard.text import View, views

BUILT_IN = Path(__file__).parent / "rules"
INDEX = "index.json"
_MOST_HITS = 64
_NONE_WITHIN_CHARS = 40

_log = logging.getLogger(__name__)

Span = tuple[int, int]


class Ready(msgspec.Struct, frozen=True):
    """A rule and its gates."""

    rule: Rule
    gates: tuple[Gate, ...]


class Index(msgspec.Struct, frozen=True):
    """The built-in rules as read before, so that a start need not read YAML; `content` says of which files."""

    content: str
    rules: tuple[Ready, ...]


def ready(rule: Rule) -> Ready:
    """Reads off the rule's patterns what a text must hold."""
    whole = [choice for pattern in rule.all for choice in needs(pattern)]
    if rule.near is None and rule.any and not whole:
        return Ready(rule, tuple(_gate(pattern, [*needs(pattern)], reach(pattern)) for pattern in rule.any))
    if rule.near is None and rule.any:
        return Ready(rule, tuple(_gate(pattern, [*needs(pattern), *whole]) for pattern in rule.any))
    whole += [choice for pattern in (rule.near.patterns if rule.near else ()) for choice in needs(pattern)]
    return Ready(rule, (_gate(None, [*whole, *union([needs(pattern) for pattern in rule.any])]),))


def _gate(pattern: str | None, sets: list[Needs], within: int = 0) -> Gate:
    return Gate(pattern, tuple(tuple(sorted(one, key=lambda need: need.literal)) for one in ranked(sets)), within)


class _Armed:
    """A rule with its patterns, compiled when first needed."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._compiled: dict[str, re.Pattern[str]] = {}

    def decide(self, text: str, patterns: Iterable[str]) -> Decision | None:
        """What the rule says of a plain text, given those patterns of its `any` that may match; None: nothing."""
        if not all(self._pattern(pattern).search(text) for pattern in self.rule.all):
            return None
        told: Decision | None = None
        for number, hit in enumerate(self._hits(text, patterns)):
            decision = self._weigh(text, hit)
            if decision == self.rule.decision or number >= _MOST_HITS:
                return self.rule.decision  # a text full of hits is not excused by the words beside some
            if decision is not None and (told is None or DECISIONS.index(decision) > DECISIONS.index(told)):
                told = decision
        return told

    def _hits(self, text: str, patterns: Iterable[str]) -> Iterator[Span]:
        if self.rule.near is not None:
            yield from self._close_together(text, self.rule.near.patterns, self.rule.near.within_chars)
        elif self.rule.any:
            for pattern in patterns:
                for match in self._pattern(pattern).finditer(text):
                    yield match.span()
        else:
            yield from (match.span() for match in self._pattern(self.rule.all[0]).finditer(text))

    def _close_together(self, text: str, patterns: tuple[str, ...], within: int) -> Iterator[Span]:
        """Stretches that hold a match of every pattern. With `any`, one of those must be in the stretch, too."""
        wanted = [self._spans(text, [pattern]) for pattern in patterns]
        if self.rule.any:
            wanted.append(self._spans(text, self.rule.any))
        if not all(wanted):
            return
        wanted.sort(key=len)
        for first in wanted[0]:
            stretch = first
            for others in wanted[1:]:
                around = min(others, key=lambda span: _distance(span, first))
                stretch = (min(stretch[0], around[0]), max(stretch[1], around[1]))
            if stretch[1] - stretch[0] <= within + (first[1] - first[0]):
                yield stretch

    def _spans(self, text: str, patterns: Iterable[str]) -> list[Span]:
        spans: list[Span] = []
        for pattern in patterns:
            for match in self._pattern(pattern).finditer(text):
                spans.append(match.span())
                if len(spans) >= _MOST_HITS:
                    return spans
        return spans

    def _weigh(self, text: str, hit: Span) -> Decision | None:
        """The decision for one hit, given the words beside it."""
        if self.rule.none and self._beside(text, hit, self.rule.none, _NONE_WITHIN_CHARS):
            return None
        context = self.rule.context
        if context is not None and self._beside(text, hit, context.patterns, context.within_chars):
            return None if context.decision == "allow" else context.decision
        return self.rule.decision

    def _beside(self, text: str, hit: Span, patterns: tuple[str, ...], within: int) -> bool:
        low, high = max(0, hit[0] - within), hit[1] + within
        return any(self._pattern(pattern).search(text, low, high) for pattern in patterns)

    def _pattern(self, pattern: str) -> re.Pattern[str]:
        found = self._compiled.get(pattern)
        if found is None:
            found = self._compiled[pattern] = re.compile(pattern, re.ASCII)
        return found


def _distance(one: Span, other: Span) -> int:
    return max(one[0] - other[1], other[0] - one[1], 0)


class RuleSet:
    """Rules that hold together: later files override earlier ones by id. Pure, and safe in several threads."""

    def __init__(self, rules: Iterable[Ready], version: str = "") -> None:
        prepared = tuple(rules)
        self.rules = tuple(one.rule for one in prepared)
        self.version = version
        self._armed = [_Armed(rule) for rule in self.rules]
        gates = [(number, gate) for number, one in enumerate(prepared) for gate in one.gates]
        self._owners = [(number, gate.pattern) for number, gate in gates]
        self._gates = Gates([gate for _, gate in gates])

    @classmethod
    def load(cls, *folders: Path, built_in: Path | None = BUILT_IN, check_built_in: bool = False) -> Self:
        """The built-in rules, then those of `folders` in order: a rule of the same id replaces, `enabled: false` takes
        away. Rules from folders are tried on their own tests; the built-in ones only when asked, they have been tried
        before. Raises RuleError with every problem, and file and line of each."""
        problems: list[RuleProblem] = []
        chosen: dict[str, Ready] = {}
        content = hashlib.sha256()
        if built_in is not None:
            content.update(content_of(built_in).encode())
            index = None if check_built_in else read_index(built_in)
            chosen |= _folder(built_in, {}, check_built_in, problems) if index is None else index
        for folder in folders:
            content.update(content_of(folder).encode())
            chosen |= _folder(folder, chosen, True, problems)
        if problems:
            raise RuleError(*problems)
        return cls((one for one in chosen.values() if one.rule.enabled), content.hexdigest()[:16])

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        """One finding a rule, gravest first. `language` is the first view's; what lay under a disguise has its own."""
        found: dict[int, Finding] = {}
        tried: Tried = set()
        for place, view in enumerate(views):
            spoken = language if place == 0 else language_of(view.text)
            for number, patterns in self._open(view.text, tried).items():
                armed = self._armed[number]
                earlier = found.get(number)
                if earlier is not None and earlier.decision == armed.rule.decision:
                    continue
                if spoken in ("ja", "en") and spoken not in armed.rule.languages:
                    continue
                if (decision := armed.decide(view.text, patterns)) is not None and (
                    earlier is None or DECISIONS.index(decision) > DECISIONS.index(earlier.decision)
                ):
                    found[number] = _finding(armed.rule, decision, view.via)
        return tuple(sorted(found.values(), key=_gravity, reverse=True))

    def _open(self, text: str, tried: Tried) -> dict[int, list[str]]:
        """The numbers of rules that may match, each with the patterns that may."""
        told: dict[int, list[str]] = {}
        for place in self._gates.open(text, tried):
            number, pattern = self._owners[place]
            patterns = told.setdefault(number, [])
            if pattern is not None:
                patterns.append(pattern)
        return told


def _folder(folder: Path, below: dict[str, Ready], check: bool, problems: list[RuleProblem]) -> dict[str, Ready]:
    """The rules of one folder by id; what is wrong with them goes to `problems`."""
    own: dict[str, Ready] = {}
    for path in _files(folder):
        try:
            read = read_rules(path)
        except RuleError as error:
            problems += error.problems
            continue
        for rule in read:
            if rule.id in own:
                other = own[rule.id].rule
                said = f"id {rule.id} is taken by {other.file}:{other.line}"
                problems.append(RuleProblem(rule.file, rule.line, said))
            elif not rule.enabled and rule.id not in below:
                problems.append(RuleProblem(rule.file, rule.line, f"there is no rule {rule.id} to switch off"))
            own[rule.id] = ready(rule)
            if check and rule.enabled:
                problems += tried(rule)
    return own


def content_of(folder: Path) -> str:
    """A hash of the names and the text of a folder's files."""
    content = hashlib.sha256()
    for path in _files(folder):
        try:
            text = path.read_bytes().replace(b"\r\n", b"\n")
        except OSError:
            continue  # reading the rules says what is wrong
        content.update(path.name.encode() + b"\0" + text + b"\0")
    return content.hexdigest()


def read_index(folder: Path) -> dict[str, Ready] | None:
    """The rules of a folder from its index; None where there is none, or it is of other files."""
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=Index)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return {one.rule.id: one for one in index.rules} if index.content == content_of(folder) else None


def index_of(folder: Path) -> bytes:
    """The index of a folder of rules, without their tests. Raises RuleError."""
    problems: list[RuleProblem] = []
    found = _folder(folder, {}, False, problems)
    if problems:
        raise RuleError(*problems)
    plain = tuple(
        Ready(
            msgspec.structs.replace(one.rule, file=Path(one.rule.file).name, match_tests=(), pass_tests=()), one.gates
        )
        for one in found.values()
    )
    return msgspec.json.encode(Index(content_of(folder), plain))


def _finding(rule: Rule, decision: Decision, via: tuple[str, ...]) -> Finding:
    severity = rule.severity if decision == rule.decision else SEVERITIES[max(1, SEVERITIES.index(rule.severity) - 1)]
    return Finding("rule", rule.id, rule.category, decision, severity, "", via)


def _gravity(finding: Finding) -> tuple[int, int]:
    return DECISIONS.index(finding.decision), SEVERITIES.index(finding.severity)


def tried(rule: Rule) -> list[RuleProblem]:
    """What a rule gets wrong of its own tests: `match` texts must get its decision, `pass` texts nothing from it."""
    alone = RuleSet([ready(rule)])
    problems = []
    for text in rule.match_tests:
        found = alone.match(read := views(text), language_of(read[0].text))
        if not found or found[0].decision != rule.decision:
            said = f"gets {found[0].decision}" if found else "is not matched"
            problems.append(RuleProblem(rule.file, rule.line, f"rule {rule.id}: its own test {text!r} {said}"))
    for text in rule.pass_tests:
        if alone.match(read := views(text), language_of(read[0].text)):
            problems.append(RuleProblem(rule.file, rule.line, f"rule {rule.id}: {text!r} should pass, and is matched"))
    return problems


def _files(folder: Path) -> list[Path]:
    """The files of rules in a folder, by name; none where there is no folder."""
    return sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))


class RuleFolder:
    """The rules in force. Looks at the files at most every `every_s` seconds; an edit counts from then on. A broken
    edit changes nothing: the rules before it stay, and `problem` says what is wrong until it is mended.

    The first load raises RuleError: without rules nothing may start."""

    def __init__(self, *folders: Path, every_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders = folders
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._look()
        self._rules = RuleSet.load(*folders)
        self._next_look = clock() + every_s
        self.problem: str | None = None

    def current(self) -> RuleSet:
        """The rules in force; costs a comparison of two times, and once in `every_s` a look at each file."""
        if self._clock() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._next_look = self._clock() + self._every_s
                if (seen := self._look()) != self._seen:
                    self._reload(seen)
            finally:
                self._lock.release()
        return self._rules

    def _reload(self, seen: frozenset[tuple[str, int, int]]) -> None:
        self._seen = seen
        try:
            self._rules = RuleSet.load(*self._folders)
        except (RuleError, OSError) as error:
            self.problem = str(error)
            _log.error("guard rules not reloaded, the earlier ones stay in force: %s", error)
        else:
            self.problem = None
            _log.info("guard rules reloaded: %d rules, version %s", len(self._rules.rules), self._rules.version)

    def _look(self) -> frozenset[tuple[str, int, int]]:
        """Name, time and size of every file; a file that vanishes meanwhile counts as gone."""
        seen = set()
        for folder in (BUILT_IN, *self._folders):
            for path in _files(folder):
                try:
                    state = path.stat()
                except OSError:
                    continue
                seen.add((str(path), state.st_mtime_ns, state.st_size))
        return frozenset(seen)
