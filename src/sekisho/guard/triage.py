"""What the linear model's word is worth where the settings take it for triage (`GuardConfig.unsure`)."""

from typing import Final

import msgspec

from sekisho.core.verdict import DecidedBy, Decision, Severity, Verdict, graver
from sekisho.guard.rationale import rationale

LINEAR: Final[frozenset[DecidedBy]] = frozenset({"classifier", "band"})


def softened(verdict: Verdict) -> Verdict:
    """A verdict of the linear model alone, taken as triage: what it doubts passes, what it would refuse goes to a
    person. What rules say stands; the findings stay."""
    if verdict.decided_by == "classifier" and verdict.decision != "refuse":
        return verdict
    decision: Decision = "escalate" if verdict.decision == "refuse" else "allow"
    for finding in verdict.findings:
        if finding.source not in LINEAR:
            decision = graver(decision, finding.decision)
    return resolved(verdict, decision, "configuration" if decision == "allow" else "classifier")


def resolved(verdict: Verdict, decision: Decision, by: DecidedBy) -> Verdict:
    """The verdict with another decision; its findings stay."""
    language = "ja" if verdict.language in ("ja", "mixed") else "en"
    why = rationale(decision, verdict.category, by, language)
    severity: Severity = "low" if decision == "allow" else "medium"
    return msgspec.structs.replace(verdict, decision=decision, severity=severity, rationale=why, decided_by=by)
