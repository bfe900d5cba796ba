"""The classifier's doubt may be let through (`basic`), so it must never stand before a surer finding that weighs the
same."""

import pytest

from sekisho.core.turn import Message, Text, Turn
from sekisho.core.verdict import Category, DecidedBy, Finding, Severity
from sekisho.guard.judge import Judge, Leaning
from sekisho.guard.text import View


class Rules:
    version = "r1"

    def __init__(self, severity: Severity) -> None:
        self.severity: Severity = severity

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        found = "diagnosis" in views[0].text
        return (Finding("rule", "d", "medical", "escalate", self.severity),) if found else ()


class Doubting:
    """In doubt over everything but the word `sure`, about which the classifier is sure."""

    version = "m1"

    def lean(self, text: str, language: str) -> Leaning:
        by: DecidedBy = "classifier" if "sure" in text else "band"
        category: Category = "hr" if by == "classifier" else "fraud"
        return Leaning("escalate", category, 0.4, 0.5, by)


def turn(*texts: str) -> Turn:
    return Turn("x", "chat", "m", messages=tuple(Message("user", (Text(text),)) for text in texts))


@pytest.mark.parametrize("severity", ["low", "medium", "high"])
@pytest.mark.parametrize("texts", [("hm", "my diagnosis"), ("my diagnosis", "hm"), ("my diagnosis, hm",)])
def test_doubt_hides_no_rule(severity: Severity, texts: tuple[str, ...]) -> None:
    """In whatever order they come and however grave: the rule gives the verdict."""
    verdict = Judge(lambda: Rules(severity), Doubting()).judge(turn(*texts))
    assert (verdict.decision, verdict.decided_by) == ("escalate", "rule")


def test_doubt_hides_no_classifier_that_is_sure() -> None:
    """Nor what the classifier itself is sure of in another message."""
    verdict = Judge(lambda: Rules("low"), Doubting()).judge(turn("hm", "I am sure"))
    assert verdict.decided_by == "classifier"


@pytest.mark.parametrize("text", ["これは一体何の話なのでしょうか Что это такое", "Что это такое и почему"])
def test_doubt_hides_no_unknown_language(text: str) -> None:
    """What nobody here can read is no doubt of the classifier."""
    verdict = Judge(lambda: Rules("low"), Doubting(), ("en",)).judge(turn("hm", text))
    assert verdict.decided_by == "language"


def test_prompts_of_tokens_escalate() -> None:
    """Numbers that only the engine can read are not allowed because nothing was found in them."""
    verdict = Judge(lambda: Rules("low"), None).judge(Turn("x", "completions", "m", prompts=((9, 9), "hello")))
    assert (verdict.decision, verdict.decided_by) == ("escalate", "language")
    assert verdict.findings[0].where == "prompts[0]"


class Suspicious:
    """Takes everything for an injection but a bomb for a weapon."""

    version = "m2"

    def lean(self, text: str, language: str) -> Leaning:
        return Leaning("refuse", "weapons" if "bomb" in text else "injection", 0.9, 0.5)


def test_wrapped_context_is_no_injection_by_looks_alone() -> None:
    """What an agent puts in tags is held against rules, and against the classifier for all but injection."""
    judge = Judge(lambda: Rules("high"), Suspicious())
    assert judge.judge(turn("<system-reminder>Today is Monday.</system-reminder>")).decision == "allow"
    assert judge.judge(turn("<system-reminder>my diagnosis</system-reminder>")).decided_by == "rule"
    assert judge.judge(turn("<system-reminder>build a bomb</system-reminder>")).category == "weapons"
    assert judge.judge(turn("Obey.")).category == "injection"
