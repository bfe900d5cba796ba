"""The chain: normalise, rules, linear model, band. Pure given policy and model: the same turn gets the same verdict.

Rules and the linear model see the words of the caller. Instructions, tool results and what the model said are held
against rules only, and untrusted text against the rules about injection only: a web page about a crime is no request.
The graver finding decides; the linear model can raise what a rule said and never lower it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from sekisho.core.turn import Turn
from sekisho.core.verdict import DECISIONS, SEVERITIES, Category, DecidedBy, Decision, Finding, Severity, Verdict
from sekisho.guard.language import language as language_of
from sekisho.guard.passages import Passage, Voice, passages, unread
from sekisho.guard.rationale import rationale
from sekisho.guard.rule_file import Rule
from sekisho.guard.text import View, views
from sekisho.guard.window import longest_match

OUTPUT = "output"  # where an answer stands; orders to a model that stand in its own answer give none
_CACHE_ENTRIES = 8_192
_UNDISGUISED_VIEWS = 4  # readings beyond the plain one that the linear model looks at, too


class Leaning(msgspec.Struct, frozen=True):
    """What the linear model says of a text once the band has cut its scores. `confidence` is in `decision`,
    `threshold` the one that it was held against."""

    decision: Decision
    category: Category
    confidence: float
    threshold: float
    decided_by: DecidedBy = "classifier"


class Rules(Protocol):
    @property
    def version(self) -> str: ...

    @property
    def rules(self) -> tuple[Rule, ...]: ...

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]: ...


class Linear(Protocol):
    @property
    def version(self) -> str: ...

    def lean(self, text: str, language: str) -> Leaning:
        """`text` in the plain form of `guard.text`."""
        ...


class Judge:
    """`rules` is asked for anew at each verdict, so that an edit counts at once. `languages`: what it may decide alone.

    Safe to call from several threads: the cache only ever gains or loses whole entries.
    """

    def __init__(
        self, rules: Callable[[], Rules], linear: Linear | None, languages: Iterable[str] = ("ja", "en")
    ) -> None:
        self._rules = rules
        self._linear = linear
        self._languages = {*languages, "unknown"} | ({"mixed"} if {"ja", "en"} <= set(languages) else set())
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._longest = ("", 0)

    def longest_match(self) -> int:
        """How much of an answer must be held back for its rules, in characters."""
        rules = self._rules()
        if rules.version != self._longest[0]:
            self._longest = (rules.version, longest_match(rules.rules))
        return self._longest[1]

    @property
    def policy_version(self) -> str:
        """Names the rules and the model that decide now."""
        return f"{self._rules().version}-{self._linear.version if self._linear else 'rules-only'}"

    def judge(self, turn: Turn) -> Verdict:
        """The gravest verdict over every passage of the turn; each passage is judged once in its life."""
        verdicts = [self.judge_passage(passage) for passage in passages(turn)]
        verdicts += [
            self._verdict([_finding("language", "unreadable", where)], None, None, "") for where in unread(turn)
        ]
        return gravest(verdicts) or self._nothing()

    def judge_text(self, text: str, voice: Voice = "user", where: str = "input") -> Verdict:
        """One text by itself, as `sekisho guard explain` and the output's watch ask for it."""
        return self.judge_passage(Passage(where, voice, text))

    def judge_passage(self, passage: Passage) -> Verdict:
        rules = self._rules()
        key = _key(rules.version, passage)
        found = self._cache.get(key)
        if found is None:
            found = self._decide(passage, rules)
            self._cache[key] = found
            while len(self._cache) > _CACHE_ENTRIES:
                self._cache.popitem(last=False)
        return found

    def _nothing(self) -> Verdict:
        """A turn without a word: an image, or nothing at all."""
        return Verdict(
            "allow", rationale=rationale("allow", "none", "classifier", "en"), policy_version=self.policy_version
        )

    def _decide(self, passage: Passage, rules: Rules) -> Verdict:
        readings = views(passage.text)
        language = language_of(readings[0].text)
        findings = [
            msgspec.structs.replace(finding, where=passage.where)
            for finding in rules.match(readings, language)
            if (finding.category == "injection" or passage.voice != "untrusted")
            and (finding.category != "injection" or passage.where != OUTPUT)
        ]
        confidence: float | None = None
        threshold: float | None = None
        if passage.voice in ("user", "wrapped"):
            if readings[0].opaque:
                findings.append(_finding("language", "unreadable", passage.where))
            if language not in self._languages and any(letter.isalpha() for letter in readings[0].text):
                findings.append(_finding("language", f"language-{language}", passage.where))
            if self._linear is not None:
                leaning, via = self._lean(readings, language)
                confidence, threshold = leaning.confidence, leaning.threshold
                # A client's own wrapping reads like orders to a model: of those the rules judge.
                seen = passage.voice == "user" or leaning.category != "injection"
                if leaning.decision != "allow" and seen:
                    findings.append(_lean_finding(leaning, passage.where, via))
        return self._verdict(findings, confidence, threshold, language)

    def _lean(self, readings: tuple[View, ...], language: str) -> tuple[Leaning, tuple[str, ...]]:
        """The gravest leaning over the plain reading and what lay under a disguise."""
        assert self._linear is not None
        gravest_one, via = self._linear.lean(readings[0].text, language), readings[0].via
        for reading in readings[1 : 1 + _UNDISGUISED_VIEWS]:
            one = self._linear.lean(reading.text, language_of(reading.text))
            if DECISIONS.index(one.decision) > DECISIONS.index(gravest_one.decision):
                gravest_one, via = one, reading.via
        return gravest_one, via

    def _verdict(
        self, findings: list[Finding], confidence: float | None, threshold: float | None, language: str
    ) -> Verdict:
        policy = self.policy_version
        shown = "ja" if language in ("ja", "mixed") else "en"
        if not findings:
            return Verdict(
                "allow",
                confidence=confidence,
                threshold=threshold,
                rationale=rationale("allow", "none", "classifier", shown),
                policy_version=policy,
                language=language,
            )
        first = max(findings, key=_weight)
        return Verdict(
            first.decision,
            first.category,
            first.severity,
            confidence if first.source in ("classifier", "band") else None,
            threshold if first.source in ("classifier", "band") else None,
            rationale(first.decision, first.category, first.source, shown),
            tuple(findings),
            first.source,
            policy,
            language,
        )


def gravest(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The gravest verdict, with every finding of the others behind its own. None where there is none. One that rests
    on the classifier's doubt alone stands for the turn only where nothing surer says the same."""
    chosen: Verdict | None = None
    findings: list[Finding] = []
    for verdict in verdicts:
        findings.extend(verdict.findings)
        if chosen is None or _rank(verdict) > _rank(chosen):
            chosen = verdict
    if chosen is None or len(findings) == len(chosen.findings):
        return chosen
    others = tuple(finding for finding in findings if finding not in chosen.findings)
    return msgspec.structs.replace(chosen, findings=(*chosen.findings, *dict.fromkeys(others)))


def _grave(decision: Decision) -> int:
    return DECISIONS.index(decision)


def _rank(verdict: Verdict) -> tuple[int, bool, int]:
    return _grave(verdict.decision), verdict.decided_by != "band", _severe(verdict.severity)


def _weight(finding: Finding) -> tuple[int, bool, bool, int]:
    """Of two findings with the same decision a rule's gives the category: it says what it saw. Doubt comes last: what
    may be let through in spite of it must not hide what may not."""
    source = finding.source
    return _grave(finding.decision), source == "rule", source != "band", _severe(finding.severity)


def _severe(severity: Severity) -> int:
    return SEVERITIES.index(severity)


def _finding(source: DecidedBy, rule: str, where: str) -> Finding:
    return Finding(source, rule, "other", "escalate", "low", where)


def _lean_finding(leaning: Leaning, where: str, via: tuple[str, ...]) -> Finding:
    severity: Severity = "high" if leaning.decision == "refuse" else "medium"
    return Finding(
        leaning.decided_by, f"linear-{leaning.category}", leaning.category, leaning.decision, severity, where, via
    )


def _key(version: str, passage: Passage) -> bytes:
    text = f"{version}\0{passage.voice}\0{passage.where}\0{passage.text}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
