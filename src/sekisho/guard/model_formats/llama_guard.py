"""Llama Guard 3 (1B, 8B) and 4 (12B).

Facts from the model cards (llama.com/docs/model-cards-and-prompt-formats, llama-guard-3 and llama-guard-4): the chat
template writes the task and the hazard list; it wants user and assistant in turns and rates only the last one, so a
request is rated without an answer behind it and an answer with the request before it. The first line of the answer is
`safe` or `unsafe`; under `unsafe` stands one line with the violated categories, `S1` to `S14`, separated by commas.
There is no middle label. The hazards are those of the MLCommons taxonomy.
"""

import re

from sekisho.core.verdict import Category, Decision, Severity
from sekisho.guard.model_formats import framing
from sekisho.guard.model_formats.base import Exchange, GuardModelFailed, Label, Question, Said
from sekisho.guard.model_formats.gravest import gravest

MAX_TOKENS = 64

# Hazard -> our category, severity, decision. Specialised advice is escalated: a person with a duty must look.
HAZARDS: dict[str, tuple[Category, Severity, Decision]] = {
    "S1": ("violence", "critical", "refuse"),  # violent crimes
    "S2": ("other", "high", "refuse"),  # non-violent crimes: fraud, theft, drugs, break-ins, all in one
    "S3": ("sexual", "critical", "refuse"),  # sex crimes
    "S4": ("sexual", "critical", "refuse"),  # child exploitation
    "S5": ("legal", "medium", "refuse"),  # defamation
    "S6": ("other", "medium", "escalate"),  # specialised advice: medical, legal, financial, in one
    "S7": ("privacy", "high", "refuse"),
    "S8": ("legal", "medium", "refuse"),  # intellectual property
    "S9": ("weapons", "critical", "refuse"),
    "S10": ("other", "high", "refuse"),  # hate
    "S11": ("self_harm", "critical", "refuse"),
    "S12": ("sexual", "high", "refuse"),
    "S13": ("other", "medium", "refuse"),  # elections
    "S14": ("security", "high", "refuse"),  # abuse of a code interpreter
}
_ANSWER = re.compile(r"safe|unsafe[ \t]*\n(?P<codes>S\d{1,2}(?:,[ \t]*S\d{1,2})*)")


class LlamaGuard:
    def questions(self, exchange: Exchange) -> tuple[Question, ...]:
        return tuple(_ask(turns) for turns in framing.rated_last(exchange.said, exchange.answer))

    def read(self, text: str, *, about_answer: bool) -> Label:
        found = _ANSWER.fullmatch(framing.final_part(text))
        if found is None:
            raise GuardModelFailed("malformed", "not the lines of Llama Guard")
        if found["codes"] is None:
            return Label("allow", "none", "none", ("safe",))
        codes = tuple(code.strip() for code in found["codes"].split(","))
        if not set(codes) <= HAZARDS.keys():
            raise GuardModelFailed("malformed", "unknown hazard")
        return gravest([_label(code, about_answer=about_answer) for code in codes], ("unsafe", *codes))


def _label(code: str, *, about_answer: bool) -> Label:
    category, severity, decision = HAZARDS[code]
    if category == "self_harm" and not about_answer:
        decision = "escalate"  # perhaps somebody in need: a human, not a refusal
    return Label(decision, category, severity, (code,))


def _ask(turns: list[Said]) -> Question:
    return Question(framing.chat(turns), MAX_TOKENS)
