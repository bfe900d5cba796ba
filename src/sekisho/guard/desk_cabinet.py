"""Where the desk keeps its tickets: texts sealed in the store, and each change told to the book."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal
from weakref import WeakValueDictionary

import msgspec

from sekisho.core.clock import Clock
from sekisho.core.errors import NotFound, SekishoError, StoreUnavailable
from sekisho.guard.desk_records import DeskEvent, EventKind, OnEvent, Sealer, event_of
from sekisho.store.escalations import Ticket

if TYPE_CHECKING:
    from sekisho.store import Store

log = logging.getLogger("sekisho.guard.desk")

SealedField = Literal["question", "answer", "reason"]


class Cabinet:
    """Tickets as the store has them, and as people read them. Without `on_event` nothing is told and nothing marked
    as told: the desk that has one does it later."""

    def __init__(
        self, store: "Callable[[], Store]", clock: Clock, on_event: OnEvent | None, sealer: Sealer | None
    ) -> None:
        self._store, self._clock, self._on_event, self._sealer = store, clock, on_event, sealer
        self._telling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, ticket_id: str) -> Ticket:
        """As stored. Raises NotFound."""
        ticket = await self._store().get_ticket(ticket_id)
        if ticket is None:
            raise NotFound(f"There is no ticket '{ticket_id[:64]}'.", param="ticket")
        return ticket

    async def load(self, ticket_id: str) -> Ticket | None:
        """As people read it."""
        ticket = await self._store().get_ticket(ticket_id)
        return None if ticket is None else self.readable(ticket)

    def seal(self, ticket_id: str, field: SealedField, text: str) -> str:
        return text if self._sealer is None else self._sealer.seal(text, f"{ticket_id}.{field}")

    def readable(self, ticket: Ticket) -> Ticket:
        """The ticket with its texts; those that another key sealed are empty."""
        if self._sealer is None:
            return ticket
        return msgspec.structs.replace(
            ticket,
            question=self._unseal(ticket.id, "question", ticket.question) or "",
            answer=self._unseal(ticket.id, "answer", ticket.answer),
            reason=self._unseal(ticket.id, "reason", ticket.reason),
        )

    def with_answer(self, ticket: Ticket) -> Ticket:
        """The same, for whom only the answer counts. Raises StoreUnavailable where it cannot be read."""
        readable = self.readable(ticket)
        if ticket.state == "answered" and not readable.answer:
            raise StoreUnavailable("The answer was sealed by a server with another key.")
        return readable

    async def tell(self, ticket_id: str) -> None:
        """Tells the book what it does not know yet of a ticket: at least once, in order. Raises what `on_event`
        raises."""
        if self._on_event is None:
            return
        lock = self._telling.setdefault(ticket_id, asyncio.Lock())
        async with lock:
            ticket = await self.find(ticket_id)
            if ticket.told_version >= ticket.version:
                return
            readable = self.readable(ticket)
            if ticket.told_version == 0:
                await self._on_event(event_of(readable, "opened", ticket.created_at))
            if ticket.state != "pending":
                text = readable.answer or readable.reason or ""
                moment = ticket.decided_at or self._clock.now()
                await self._on_event(event_of(readable, ticket.state, moment, text=text, actor=ticket.decided_by))
            await self._store().ticket_told(ticket_id, ticket.version)

    async def tell_or_leave(self, ticket_id: str) -> None:
        """For those who wait for nothing: what fails is told later, and before the caller goes on."""
        try:
            await self.tell(ticket_id)
        except SekishoError as error:
            log.warning("%s is not in the book yet: %s (%s)", ticket_id, error.message, error.id)

    async def tell_rest(self) -> None:
        """What other processes left untold."""
        if self._on_event is not None:
            for ticket in await self._store().untold_tickets():
                await self.tell(ticket.id)

    async def emit(self, event: DeskEvent) -> None:
        if self._on_event is not None:
            await self._on_event(event)

    async def report(self, ticket: Ticket, kind: EventKind, text: str, actor: str | None = None) -> None:
        """Tells the book of something that changes no ticket; a book in trouble stops nothing here."""
        try:
            await self.emit(event_of(ticket, kind, self._clock.now(), text=text, actor=actor))
        except SekishoError as error:
            log.warning("%s of %s is not in the book: %s (%s)", kind, ticket.id, error.message, error.id)

    def _unseal(self, ticket_id: str, field: SealedField, text: str | None) -> str | None:
        if text is None or self._sealer is None:
            return text
        return self._sealer.unseal(text, f"{ticket_id}.{field}")
