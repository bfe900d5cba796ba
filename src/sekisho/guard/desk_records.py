"""What the desk is given and gives back, as values: cases, outcomes, events for the book."""

from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec

from sekisho.core.verdict import Category, Verdict
from sekisho.store.escalations import Behaviour, Channel, Ticket

Action = Literal["approve", "answer", "deny"]
EventKind = Literal[
    "opened", "approved", "answered", "denied", "expired", "abandoned", "used", "notified", "notice_failed", "rejected"
]


class Sealer(Protocol):
    """Makes a text unreadable for whoever has only the database. `owner` binds it to one place."""

    def seal(self, text: str, owner: str) -> str: ...

    def unseal(self, sealed: str, owner: str) -> str | None:
        """None for what was not sealed with this key for this owner."""
        ...


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A request to be shown to a human. `question` has had secrets and personal data removed. `request_hash` stands
    for the whole request: what is approved is this hash, of this key."""

    request_hash: str
    request_id: str
    key_id: str
    key_name: str
    model: str
    protocol: str
    verdict: Verdict
    question: str
    behaviour: Behaviour
    user: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """How a wait ended. `used`: the approval was taken by another request. Only `approved` goes on, `answered` has
    the human's answer; everything else is a refusal."""

    state: Literal["approved", "answered", "denied", "expired", "abandoned", "used"]
    ticket: Ticket

    @property
    def goes_on(self) -> bool:
        return self.state == "approved"


class DeskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a ticket, for the book. `actor`: the approver. `text` (an answer, a reason, what a
    notice failed of) is as people wrote it: take personal data out before keeping it."""

    kind: EventKind
    at: float
    ticket_id: str
    request_id: str
    request_hash: str
    key_id: str
    user: str | None
    category: Category
    channel: Channel
    actor: str | None = None
    text: str = ""


OnEvent = Callable[[DeskEvent], Awaitable[None]]


def event_of(
    ticket: Ticket, kind: EventKind, at: float, *, text: str = "", actor: str | None = None, request_id: str = ""
) -> DeskEvent:
    return DeskEvent(
        kind=kind,
        at=at,
        ticket_id=ticket.id,
        request_id=request_id or ticket.request_id,
        request_hash=ticket.request_hash,
        key_id=ticket.key_id,
        user=ticket.user,
        category=ticket.category,
        channel=ticket.channel,
        actor=actor,
        text=text,
    )


def storable(text: str) -> str:
    """Without lone surrogates and NUL, which a database refuses."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
