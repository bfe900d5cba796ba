"""The desk over HTTP: what waits, and what a person decides about it, by an API key or by a single-use link.

A link shows a page and decides nothing by being opened: mail scanners open links. Its token stands in the fragment,
which no browser sends and no log keeps; the page hands it over in the body of a POST.
"""

from typing import Any, Literal, TypeVar

import msgspec

from sekisho.core.errors import Forbidden, InvalidRequest, NotFound
from sekisho.gateway.app import Gateway
from sekisho.gateway.router import Call
from sekisho.guard.desk_config import approver_of_key, channels_of_approver
from sekisho.store.escalations import Ticket, TicketState

_STATES = ("pending", "approved", "answered", "denied", "expired", "abandoned")
_PAGE = 100

Body = TypeVar("Body")


class Decide(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a decision."""

    action: Literal["approve", "answer", "deny"]
    answer: str | None = None
    reason: str | None = None


class Redeem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a link's page. `look` shows the ticket and uses nothing up."""

    token: str
    action: Literal["look", "approve", "answer", "deny"] = "look"
    answer: str | None = None
    reason: str | None = None


async def list_tickets(gateway: Gateway, call: Call) -> None:
    """`GET /v1/escalations?state=&after=`: newest first, those that this key's owner may answer."""
    query = call.request.query()
    state = query.get("state")
    if state is not None and state not in _STATES:
        raise InvalidRequest(f"'state' is one of {', '.join(_STATES)}.", param="state")
    wanted: TicketState | None = state  # type: ignore[assignment]  # checked above
    channels = None
    if not _is_admin(call):
        channels = channels_of_approver(gateway.config_of_desk, _approver(gateway, call))
    found = await gateway.desk.list(wanted, channels, query.get("after"), _PAGE)
    body = {"object": "list", "data": [told(ticket) for ticket in found], "has_more": len(found) == _PAGE}
    await call.request.respond(200, msgspec.json.encode(body))


async def show_ticket(gateway: Gateway, call: Call) -> None:
    """`GET /v1/escalations/{ticket_id}`: for who may answer it, for an admin, and for the key that asked."""
    ticket = await gateway.desk.get(call.params["ticket_id"])
    own = ticket.key_id == call.caller.key_id
    if not own and not _is_admin(call):
        name = approver_of_key(gateway.config_of_desk, call.caller.name)
        if name is None or ticket.channel not in channels_of_approver(gateway.config_of_desk, name):
            raise NotFound(f"There is no ticket '{call.params['ticket_id'][:100]}'.")
    await call.request.respond(200, msgspec.json.encode(told(ticket)))


async def decide_ticket(gateway: Gateway, call: Call) -> None:
    """`POST /v1/escalations/{ticket_id}/decision`, for the approver whose key this is."""
    asked = _body(await gateway.body(call), Decide)
    approver = _approver(gateway, call)
    ticket = await gateway.desk.decide(call.params["ticket_id"], approver, asked.action, asked.answer, asked.reason)
    await call.request.respond(200, msgspec.json.encode(told(ticket)))


async def redeem_link(gateway: Gateway, call: Call) -> None:
    """`POST /escalation/{ticket_id}`: what a link's page asks and says."""
    asked = _body(await gateway.body(call), Redeem)
    ticket_id = call.params["ticket_id"]
    if asked.action == "look":
        ticket, approver = await gateway.desk.peek(asked.token, ticket_id)
    else:
        ticket = await gateway.desk.redeem(asked.token, asked.action, asked.answer, asked.reason, ticket_id)
        approver = ticket.decided_by or ""
    body = {**told(ticket), "approver": approver}
    await call.request.respond(200, msgspec.json.encode(body), headers=[(b"cache-control", b"no-store")])


def told(ticket: Ticket) -> dict[str, Any]:
    """A ticket as JSON. `question` has had its personal data removed."""
    return {
        "id": ticket.id,
        "object": "escalation",
        "state": ticket.state,
        "behaviour": ticket.behaviour,
        "category": ticket.category,
        "channel": ticket.channel,
        "severity": ticket.severity,
        "language": ticket.language,
        "rationale": ticket.rationale,
        "question": ticket.question,
        "model": ticket.model,
        "request_id": ticket.request_id,
        "created_at": int(ticket.created_at),
        "expires_at": int(ticket.expires_at),
        "decided_at": None if ticket.decided_at is None else int(ticket.decided_at),
        "decided_by": ticket.decided_by,
        "answer": ticket.answer,
        "reason": ticket.reason,
    }


def _is_admin(call: Call) -> bool:
    return "admin" in call.caller.scopes


def _approver(gateway: Gateway, call: Call) -> str:
    name = approver_of_key(gateway.config_of_desk, call.caller.name)
    if name is None:
        raise Forbidden(
            "This key is nobody's who may decide: name it under guard.escalation.approvers.", code="not_an_approver"
        )
    return name


def _body(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body cannot be read: {error}.", code="invalid_json") from None
