"""What the guard decided about a turn or an answer, as a value: outcome, reason, and who decided."""

from typing import Literal

import msgspec

Decision = Literal["allow", "escalate", "refuse"]
Severity = Literal["none", "low", "medium", "high", "critical"]
Category = Literal[
    "medical",
    "legal",
    "hr",
    "security",
    "self_harm",
    "weapons",
    "fraud",
    "privacy",
    "injection",
    "violence",
    "sexual",
    "other",
    "none",
]
DecidedBy = Literal["rule", "classifier", "band", "guard_model", "configuration", "language", "failure", "human"]

DECISIONS: tuple[Decision, ...] = ("allow", "escalate", "refuse")
SEVERITIES: tuple[Severity, ...] = ("none", "low", "medium", "high", "critical")


class Finding(msgspec.Struct, frozen=True):
    """One reason. `rule` names the rule or the model's label. `where` is the place in the conversation, as in
    `messages[3]` or `output`; `via` says which disguise was taken off, as in `("base64",)`. Never holds the text."""

    source: DecidedBy
    rule: str
    category: Category
    decision: Decision
    severity: Severity = "medium"
    where: str = ""
    via: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """`confidence` (0 … 1) is in the decision; None where nothing measured one. `threshold` is what the classifier's
    score was held against. `rationale` is a sentence for people, in the language of the request, without the text."""

    decision: Decision
    category: Category = "none"
    severity: Severity = "none"
    confidence: float | None = None
    threshold: float | None = None
    rationale: str = ""
    findings: tuple[Finding, ...] = ()
    decided_by: DecidedBy = "classifier"
    policy_version: str = ""
    language: str = "unknown"


def graver(one: Decision, other: Decision) -> Decision:
    """The graver of two decisions: refuse over escalate over allow."""
    return max(one, other, key=DECISIONS.index)
