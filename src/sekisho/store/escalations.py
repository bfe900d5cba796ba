"""Escalations as values: tickets, notices that tell people of them, links that answer them. Rows: `escalation_rows`."""

from typing import Literal

import msgspec

from sekisho.core.verdict import Category, Severity

Channel = Literal["medical", "legal", "hr", "security", "other"]
Behaviour = Literal["hold", "ticket"]
TicketState = Literal["pending", "approved", "answered", "denied", "expired", "abandoned"]
HumanDecision = Literal["approved", "answered", "denied"]
NoticeKind = Literal["slack", "email", "webhook"]
NoticeState = Literal["pending", "sent", "failed", "dropped"]

CHANNELS: tuple[Channel, ...] = ("medical", "legal", "hr", "security", "other")
TICKET_STATES: tuple[TicketState, ...] = ("pending", "approved", "answered", "denied", "expired", "abandoned")


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request that waits for a human, or waited. Times are seconds since 1970.

    `question` has had secrets and personal data removed; `question`, `answer` and `reason` are stored as the caller
    of the store hands them in (the desk seals them). `version` grows with every change; `told_version` is the last
    one that the book knows. `used_at`: when an approval let its one request through.
    """

    id: str
    request_hash: str
    request_id: str
    key_id: str
    key_name: str
    model: str
    protocol: str
    category: Category
    channel: Channel
    severity: Severity
    language: str
    rationale: str
    question: str
    behaviour: Behaviour
    created_at: float
    expires_at: float
    user: str | None = None
    state: TicketState = "pending"
    answer: str | None = None
    reason: str | None = None
    decided_by: str | None = None
    decided_at: float | None = None
    used_at: float | None = None
    version: int = 1
    told_version: int = 0


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one target about one ticket. `target` names the approver or the address it goes to, empty
    for a channel's one Slack or webhook address. `approver`: whose link goes with it, None for none."""

    id: str
    ticket_id: str
    channel: Channel
    kind: NoticeKind
    created_at: float
    next_attempt_at: float
    target: str = ""
    approver: str | None = None
    state: NoticeState = "pending"
    attempts: int = 0
    last_error: str | None = None


class LinkToken(msgspec.Struct, frozen=True, kw_only=True):
    """A link that one approver may use once for one ticket. The token itself is never stored."""

    token_hash: str
    ticket_id: str
    request_hash: str
    approver: str
    created_at: float
    expires_at: float
    used_at: float | None = None


class HumanVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a human decided about a ticket. With `token_hash` that link is used up in the same transaction."""

    ticket_id: str
    state: HumanDecision
    decided_by: str
    answer: str | None = None
    reason: str | None = None
    token_hash: str | None = None
