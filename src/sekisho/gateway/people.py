"""The desk on the road of a turn: a held request becomes a ticket, or finds what a person said of it before."""

import asyncio
import logging

from sekisho.audit.records import EscalationRecord
from sekisho.core.errors import SekishoError
from sekisho.gateway.bookkeeper import Bookkeeper
from sekisho.gateway.checkpoint import Held, Ruling
from sekisho.gateway.passing import user_of
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.desk import Desk
from sekisho.guard.desk_config import behaviour_of
from sekisho.guard.desk_records import Case, DeskEvent, OnEvent
from sekisho.guard.personal import redact
from sekisho.store.escalations import Behaviour, Ticket

log = logging.getLogger("sekisho.gateway.people")


class DeskOnTheRoad:
    """`checkpoint.DeskFace` over a desk. A caller who leaves gives the ticket up; with `stopping` set it is the server
    that leaves, and the ticket stays for whoever decides and for the same request, asked of the next server."""

    def __init__(self, desk: Desk, config: GuardConfig) -> None:
        self._desk = desk
        self._config = config
        self.stopping = False

    async def rule(self, held: Held, mode: Mode) -> Ruling:
        key_id = held.turn.caller.key_id if held.turn.caller else ""
        before = await self._desk.approved(held.request_hash, key_id, held.turn.id)
        if before is not None:
            return Ruling("answered" if before.state == "answered" else "approved", before.id, before.answer)
        denied = await self._desk.denied(held.request_hash, key_id)
        if denied is not None:
            return Ruling("denied", denied.id, reason=denied.reason)
        behaviour = behaviour_of(self._config.escalation, held.verdict.category, mode)
        if self._config.test_mode:
            behaviour = "ticket"
        ticket = await self._desk.left_behind(held.request_hash, key_id) if behaviour == "hold" else None
        ticket = ticket or await self._open(self._case(held, key_id, behaviour))
        if behaviour == "ticket":
            return Ruling("waiting", ticket.id)
        try:
            outcome = await self._desk.wait(ticket.id)
        except asyncio.CancelledError:
            if not self.stopping:
                await self._give_up(ticket.id)
            raise
        return Ruling(outcome.state, ticket.id, outcome.ticket.answer, outcome.ticket.reason)

    async def _open(self, case: Case) -> Ticket:
        """A caller who leaves while the ticket is being made leaves none behind that people would be called for."""
        opening = asyncio.ensure_future(self._desk.open(case))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})
            if case.behaviour == "hold" and not self.stopping and opening.exception() is None:
                await self._give_up(opening.result().id)
            raise

    def _case(self, held: Held, key_id: str, behaviour: Behaviour) -> Case:
        turn, caller = held.turn, held.turn.caller
        return Case(
            request_hash=held.request_hash,
            request_id=turn.id,
            key_id=key_id,
            key_name=caller.name if caller else "",
            model=turn.model,
            protocol=turn.protocol,
            verdict=held.verdict,
            question=held.question,
            behaviour=behaviour,
            user=user_of(turn) or None,
        )

    async def _give_up(self, ticket_id: str) -> None:
        try:
            await asyncio.shield(self._desk.abandon(ticket_id))
        except SekishoError as error:  # it expires by itself
            log.warning("%s could not be given up: %s (%s)", ticket_id, error.message, error.id)


def into_book(keeper: Bookkeeper) -> OnEvent:
    """What the desk tells, as records. The text loses its personal data first."""

    async def tell(event: DeskEvent) -> None:
        await keeper.book().append(
            EscalationRecord(
                ticket_id=event.ticket_id,
                request_id=event.request_id,
                event=event.kind,
                user_id=event.actor or event.user or "",
                key_id=event.key_id,
                category=event.category,
                channel=event.channel,
                text=redact(event.text).text if event.text else "",
                request_hash=event.request_hash,
            )
        )

    return tell
