"""Qwen3Guard-Gen (0.6B, 4B, 8B).

Facts from the model card and README (github.com/QwenLM/Qwen3Guard; arXiv 2510.14276): the chat template writes the
task itself, so plain user and assistant messages are sent; when the last message is the user's it rates the request,
when it is the assistant's it rates the answer. Only the last message is rated, the others are context. The answer:

    Safety: Safe | Controversial | Unsafe
    Categories: None | names separated by commas
    Refusal: Yes | No                               (only about an answer)
"""

import re

from sekisho.core.verdict import Category, Decision, Severity
from sekisho.guard.model_formats import framing
from sekisho.guard.model_formats.base import Exchange, GuardModelFailed, Label, Question, Said
from sekisho.guard.model_formats.gravest import gravest

MAX_TOKENS = 96

# Label of the card -> our category, severity when unsafe.
CATEGORIES: dict[str, tuple[Category, Severity]] = {
    "Violent": ("violence", "high"),
    "Non-violent Illegal Acts": ("other", "high"),
    "Sexual Content or Sexual Acts": ("sexual", "high"),
    "PII": ("privacy", "high"),
    "Suicide & Self-Harm": ("self_harm", "critical"),
    "Unethical Acts": ("other", "medium"),
    "Politically Sensitive Topics": ("other", "low"),
    "Copyright Violation": ("legal", "medium"),
    "Jailbreak": ("injection", "high"),
}
_ANSWER = re.compile(
    r"Safety: (?P<safety>Safe|Unsafe|Controversial)[ \t]*\n+Categories: (?P<names>[^\n]+?)[ \t]*"
    r"(?:\n+Refusal: (?P<refusal>Yes|No)[ \t]*)?"
)


class Qwen3Guard:
    def questions(self, exchange: Exchange) -> tuple[Question, ...]:
        return tuple(_ask(turns) for turns in framing.rated_last(exchange.said, exchange.answer))

    def read(self, text: str, *, about_answer: bool) -> Label:
        found = _ANSWER.fullmatch(framing.final_part(text))
        if found is None:
            raise GuardModelFailed("malformed", "not the lines of Qwen3Guard")
        if (found["refusal"] is not None) is not about_answer:
            raise GuardModelFailed("malformed", "the refusal line belongs to answers, and to every answer")
        names = tuple(name.strip() for name in found["names"].split(","))
        if found["safety"] == "Safe":
            if names != ("None",):
                raise GuardModelFailed("malformed", "safe, with categories")
            return Label("allow", "none", "none", ("Safe",))
        if not set(names) <= CATEGORIES.keys():
            raise GuardModelFailed("malformed", "unknown category, or none")
        unsafe = found["safety"] == "Unsafe"
        return gravest(
            [_label(name, unsafe=unsafe, about_answer=about_answer) for name in names], (found["safety"], *names)
        )


def _label(name: str, *, unsafe: bool, about_answer: bool) -> Label:
    category, severity = CATEGORIES[name]
    decision: Decision = "refuse" if unsafe else "escalate"
    if category == "self_harm" and not about_answer:
        decision = "escalate"  # perhaps somebody in need: a human, not a refusal
    return Label(decision, category, severity if unsafe else "medium", (name,))


def _ask(turns: list[Said]) -> Question:
    return Question(framing.chat(turns), MAX_TOKENS)
