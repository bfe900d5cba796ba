"""What the book records. Every text in here has had its secrets and personal data removed by the caller."""

from typing import Literal

import msgspec

from sekisho.core.verdict import Category, Decision, Finding, Severity, Verdict


class VerdictRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="verdict"):
    """What was asked and what was decided, before the first byte of the answer. The first ten fields are seed 004's;
    `decision` is upper-case there and here. `timestamp` is set by the book where it is empty."""

    timestamp: str = ""
    request_id: str
    user_id: str
    input: str = ""
    decision: Literal["ALLOW", "ESCALATE", "REFUSE"]
    rationale: str = ""
    human_required: bool = False
    model_version: str = ""
    processing_time_ms: float = 0.0
    confidence_score: float | None = None
    category: Category = "none"
    severity: Severity = "none"
    threshold: float | None = None
    findings: tuple[Finding, ...] = ()
    decided_by: str = ""
    policy_version: str = ""
    language: str = ""
    key_id: str = ""
    protocol: str = ""
    model: str = ""
    stage: Literal["input", "output"] = "input"
    request_hash: str = ""
    input_hash: str = ""


class OutcomeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="outcome"):
    """How a request ended. `thinking_hmac` is keyed (`Book.text_hash`): a plain hash of a thought can be guessed."""

    timestamp: str = ""
    request_id: str
    user_id: str = ""
    key_id: str = ""
    status: str
    output: str = ""
    output_hash: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    first_byte_ms: float | None = None
    total_ms: float | None = None
    thinking_hmac: str = ""
    error_id: str = ""


class EscalationRecord(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="escalation"
):
    """Something happened to a ticket: opened, notified, approved, answered, denied, expired, …"""

    timestamp: str = ""
    ticket_id: str
    request_id: str
    event: str
    user_id: str = ""
    key_id: str = ""
    category: Category = "none"
    channel: str = ""
    text: str = ""
    text_hash: str = ""
    request_hash: str = ""


class AdminRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="admin"):
    """Something that people did to the book or the checkpoint: retention, export, change of mode, keys made, …"""

    timestamp: str = ""
    action: str
    user_id: str = ""
    detail: dict[str, str | int | float | bool | None] = {}


Record = VerdictRecord | OutcomeRecord | EscalationRecord | AdminRecord


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class Receipt(msgspec.Struct, frozen=True):
    """Where a record stands in the book: sequence numbers start at 1 and have no gaps."""

    sequence: int
    segment: int


class Entry(msgspec.Struct, frozen=True):
    """A record as it is read back. `line` is its line in the segment; the header is line 1."""

    sequence: int
    segment: int
    line: int
    record: Record


_SHOWN: dict[Decision, Literal["ALLOW", "ESCALATE", "REFUSE"]] = {
    "allow": "ALLOW",
    "escalate": "ESCALATE",
    "refuse": "REFUSE",
}


def verdict_record(verdict: Verdict, *, request_id: str, user_id: str, input_text: str = "") -> VerdictRecord:
    """The record of a verdict. The gateway adds model, key and times with `msgspec.structs.replace`."""
    return VerdictRecord(
        request_id=request_id,
        user_id=user_id,
        input=input_text,
        decision=_SHOWN[verdict.decision],
        rationale=verdict.rationale,
        human_required=verdict.decision == "escalate",
        confidence_score=verdict.confidence,
        category=verdict.category,
        severity=verdict.severity,
        threshold=verdict.threshold,
        findings=verdict.findings,
        decided_by=verdict.decided_by,
        policy_version=verdict.policy_version,
        language=verdict.language,
    )


def encode(record: Record) -> bytes:
    """The record as JSON. What JSON cannot hold (lone surrogates, numbers beyond 64 bits) is replaced, not refused."""
    try:
        return _encoder.encode(record)
    except (UnicodeEncodeError, OverflowError):
        return _encoder.encode(msgspec.convert(_storable(msgspec.to_builtins(record)), type(record)))


def decode(payload: bytes) -> Record:
    """What `encode` made. A genuine record that this version does not know comes as an admin record `unreadable`."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):  # validation included
        return AdminRecord(action="unreadable", detail={"json": payload.decode("utf-8", "replace")})


def _storable(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case bool() | float() | None:
            return value
        case int():
            return max(-(1 << 63), min(value, (1 << 63) - 1))
        case dict():
            return {_storable(key): _storable(each) for key, each in value.items()}
        case list() | tuple():
            return [_storable(each) for each in value]
        case _:
            raise TypeError(f"not a value of a record: {type(value).__name__}")
