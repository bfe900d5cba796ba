"""The escalation desk: a request that a human must look at becomes a ticket, and the human's word comes back.

A ticket is in the store before anything else happens. One UPDATE decides it, whoever clicks and wherever. Time that
runs out means no, and what comes later changes nothing. What happens to a ticket is told to the book: at least once,
in order, and before the caller goes on.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, NoReturn

import msgspec

from sekisho.core import ids
from sekisho.core.clock import Clock
from sekisho.core.errors import (
    AlreadyDecided,
    Forbidden,
    InvalidRequest,
    NotFound,
    SekishoError,
    StoreUnavailable,
    TicketExpired,
)
from sekisho.guard.desk_cabinet import Cabinet
from sekisho.guard.desk_config import (
    OPERATOR,
    EscalationConfig,
    channel_of,
    channels_of_approver,
    lifetime_s,
    may_answer,
)
from sekisho.guard.desk_post import Post
from sekisho.guard.desk_records import Action, Case, OnEvent, Outcome, Sealer, event_of, storable
from sekisho.guard.notices import Notifier
from sekisho.store.escalations import Channel, HumanDecision, HumanVerdict, LinkToken, Ticket, TicketState
from sekisho.store.keys import hash_secret

if TYPE_CHECKING:
    from sekisho.store import Store

log = logging.getLogger("sekisho.guard.desk")

_STATE_OF: dict[str, HumanDecision] = {"approve": "approved", "answer": "answered", "deny": "denied"}
_LONGEST_QUESTION = 20_000
_LONGEST_ANSWER = 32_000
_LONGEST_REASON = 2_000
_TIDY_S = 1.0
_FORGET_EVERY_S = 3_600.0


class Desk:
    """The desk of one process; belongs to one event loop.

    `start` runs what goes on beside requests: notices, expiry, telling the book. A command line makes a desk without
    it and without `on_event`; what it decides is told to the book by the running server's desk. `on_event` raising
    means that the book does not know: the ticket's caller is refused.
    """

    def __init__(
        self,
        store: "Callable[[], Store]",
        config: EscalationConfig,
        notifier: Notifier,
        clock: Clock,
        on_event: OnEvent | None = None,
        *,
        sealer: Sealer | None = None,
        poll_s: float = 0.4,
    ) -> None:
        self._store, self._config, self._clock = store, config, clock
        self._notifier, self._poll_s = notifier, poll_s
        self._cabinet = Cabinet(store, clock, on_event, sealer)
        self._post = Post(store, config, notifier, clock, self._cabinet.load, self._cabinet.report)
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._forgotten_at = float("-inf")
        self._began_at = clock.now()
        self._in_trouble = False

    async def start(self) -> None:
        """Begins the work beside requests; the notices and tickets of an earlier process come first."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._tidy_for_ever()), asyncio.create_task(self._listen_for_ever())]

    async def close(self) -> None:
        """Stops; pending tickets and notices stay in the store. May be called twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._post.close()

    # The caller's side

    async def open(self, case: Case) -> Ticket:
        """Makes the ticket durable, tells the book, then lets the notices go. Where the caller does not wait and has
        asked the same before, that pending ticket comes back. Raises RateLimited for a key with `pending_per_key`
        tickets, StoreUnavailable, and what `on_event` raises."""
        now = self._clock.now()
        verdict = case.verdict
        ticket = Ticket(
            id=ids.new("esc"),
            request_hash=case.request_hash,
            request_id=case.request_id,
            key_id=case.key_id,
            key_name=storable(case.key_name),
            user=None if case.user is None else storable(case.user),
            model=storable(case.model),
            protocol=case.protocol,
            category=verdict.category,
            channel=channel_of(self._config, verdict.category),
            severity=verdict.severity,
            language=verdict.language[:32],
            rationale=storable(verdict.rationale),
            question=storable(case.question[:_LONGEST_QUESTION]),
            behaviour=case.behaviour,
            created_at=now,
            expires_at=now + lifetime_s(self._config, case.behaviour),
        )
        sealed = msgspec.structs.replace(ticket, question=self._cabinet.seal(ticket.id, "question", ticket.question))
        plan = self._notifier.plan(ticket, now)
        kept = await self._store().open_ticket(sealed, plan, now, self._config.pending_per_key)
        try:
            await self._cabinet.tell(kept.id)
        except BaseException:
            if kept.id == ticket.id:
                await asyncio.shield(self._store().close_ticket(kept.id, "abandoned", self._clock.now()))
            raise
        self._wake.set()
        return self._cabinet.readable(kept)

    async def left_behind(self, request_hash: str, key_id: str) -> Ticket | None:
        """The pending ticket of this request that an earlier process made and that nobody waits for here: people know
        of it already. Raises StoreUnavailable."""
        found = await self._store().pending_before(request_hash, key_id, self._began_at, self._clock.now())
        return next((self._cabinet.readable(one) for one in found if one.id not in self._bells), None)

    async def wait(self, ticket_id: str) -> Outcome:
        """Waits for the ticket's end, at most its `timeout_s` by either clock: a clock that is set back prolongs
        nothing. A decision of this process is heard at once, another's within `poll_s`. An approval is used up by
        returning it. Raises NotFound, StoreUnavailable, and what `on_event` raises."""
        bell = asyncio.Event()
        self._bells.setdefault(ticket_id, set()).add(bell)
        try:
            ticket = await self._cabinet.find(ticket_id)
            ends_at = self._clock.monotonic() + min(
                ticket.expires_at - self._clock.now(), lifetime_s(self._config, ticket.behaviour)
            )
            while ticket.state == "pending":
                if self._clock.monotonic() >= ends_at or self._clock.now() >= ticket.expires_at:
                    ticket = await self._end(ticket, "expired")
                    break
                await self._hear(bell, ends_at)
                if bell.is_set():
                    bell.clear()
                    ticket = await self._look_again(ticket)
            return await self._outcome(ticket)
        finally:
            bells = self._bells[ticket_id]
            bells.discard(bell)
            if not bells:
                del self._bells[ticket_id]

    async def abandon(self, ticket_id: str) -> Ticket | None:
        """The caller has gone: a pending ticket ends, and nobody needs to answer it. None when it had ended."""
        closed = await self._store().close_ticket(ticket_id, "abandoned", self._clock.now())
        if closed is None:
            return None
        await self._cabinet.tell_or_leave(ticket_id)
        self._ring(ticket_id)
        return self._cabinet.readable(closed)

    async def approved(self, request_hash: str, key_id: str, request_id: str = "") -> Ticket | None:
        """For a request that is asked again: a human's answer to it, or an approval, which is used up by this call.
        A denial after the approval takes it back. Raises StoreUnavailable and what `on_event` raises."""
        store, now = self._store(), self._clock.now()
        since = now - self._config.approved_for_s
        denied = await store.latest_decided(request_hash, key_id, "denied", since)
        if denied is not None and denied.decided_at is not None:
            since = denied.decided_at
        found = await store.latest_decided(request_hash, key_id, "answered", since)
        found = found or await store.use_approval(request_hash, key_id, since, now)
        if found is None:
            return None
        await self._cabinet.tell(found.id)
        ticket = self._cabinet.with_answer(found)
        await self._cabinet.emit(event_of(ticket, "used", now, request_id=request_id or ticket.request_id))
        return ticket

    async def denied(self, request_hash: str, key_id: str) -> Ticket | None:
        """A denial of the same request that still holds: asking again does not call the human again."""
        since = self._clock.now() - self._config.approved_for_s
        found = await self._store().latest_decided(request_hash, key_id, "denied", since)
        return None if found is None else self._cabinet.readable(found)

    # The human's side

    async def decide(
        self, ticket_id: str, approver: str, action: Action, answer: str | None = None, reason: str | None = None
    ) -> Ticket:
        """Decides for the caller's whole request. Raises NotFound, Forbidden for whoever has not this role,
        InvalidRequest, AlreadyDecided (409), TicketExpired (410), StoreUnavailable."""
        return await self._decide(ticket_id, approver, action, answer, reason, None)

    async def redeem(
        self, token: str, action: Action, answer: str | None = None, reason: str | None = None, ticket_id: str = ""
    ) -> Ticket:
        """The same by a link, which is used up by it. With `ticket_id` the link must be that ticket's. A link whose
        approver has lost the role since is Forbidden."""
        link = await self._link(token, ticket_id)
        return await self._decide(link.ticket_id, link.approver, action, answer, reason, link)

    async def peek(self, token: str, ticket_id: str = "") -> tuple[Ticket, str]:
        """What a link shows before it decides: the ticket, and whose link it is. Uses nothing up."""
        link = await self._link(token, ticket_id)
        ticket = await self._cabinet.find(link.ticket_id)
        self._check_role(ticket, link.approver)
        if ticket.state != "pending" or ticket.expires_at <= self._clock.now():
            await self._refuse_late(ticket, link.approver)
        return self._cabinet.readable(ticket), link.approver

    async def get(self, ticket_id: str) -> Ticket:
        """Raises NotFound."""
        ticket = await self._cabinet.find(ticket_id)
        if ticket.state == "pending" and ticket.expires_at <= self._clock.now():
            ticket = await self._end(ticket, "expired")
        return self._cabinet.readable(ticket)

    async def list(
        self,
        state: TicketState | None = None,
        channels: Collection[Channel] | None = None,
        after_id: str | None = None,
        limit: int = 100,
    ) -> list[Ticket]:
        """Newest first, texts readable. `after_id`: the last ticket of the page before; raises NotFound for it."""
        await self._expire_due()
        after = None if after_id is None else await self._cabinet.find(after_id)
        found = await self._store().list_tickets(state, channels, after, limit)
        return [self._cabinet.readable(ticket) for ticket in found]

    async def _decide(
        self, ticket_id: str, approver: str, action: str, answer: str | None, reason: str | None, link: LinkToken | None
    ) -> Ticket:
        ticket = await self._cabinet.find(ticket_id)
        try:
            self._check_role(ticket, approver)
            verdict = self._verdict(ticket_id, approver, action, answer, reason, link)
            decided = await self._store().decide_ticket(verdict, self._clock.now())
            if decided is None:
                await self._refuse_late(await self._cabinet.find(ticket_id), approver)
        except (Forbidden, AlreadyDecided, TicketExpired) as error:
            await self._cabinet.report(ticket, "rejected", error.error_code, approver)
            raise
        await self._cabinet.tell_or_leave(ticket_id)
        self._ring(ticket_id)
        return self._cabinet.readable(decided)

    def _verdict(
        self, ticket_id: str, approver: str, action: str, answer: str | None, reason: str | None, link: LinkToken | None
    ) -> HumanVerdict:
        if action not in _STATE_OF:
            raise InvalidRequest(f"the action must be one of {', '.join(_STATE_OF)}", param="action")
        if (action == "answer") != bool(answer and answer.strip()):
            wanted = "needs an answer" if action == "answer" else "takes no answer; use the action `answer`"
            raise InvalidRequest(f"`{action}` {wanted}", param="answer")
        for name, text, longest in (("answer", answer, _LONGEST_ANSWER), ("reason", reason, _LONGEST_REASON)):
            if text is not None and len(text) > longest:
                raise InvalidRequest(f"{name} has at most {longest} characters", param=name)
        return HumanVerdict(
            ticket_id=ticket_id,
            state=_STATE_OF[action],
            decided_by=approver,
            answer=None if not answer else self._cabinet.seal(ticket_id, "answer", storable(answer)),
            reason=None if not reason else self._cabinet.seal(ticket_id, "reason", storable(reason)),
            token_hash=None if link is None else link.token_hash,
        )

    def _check_role(self, ticket: Ticket, approver: str) -> None:
        if ticket.channel not in channels_of_approver(self._config, approver):
            raise Forbidden(f"'{approver[:64]}' may not answer tickets of the channel {ticket.channel}.")
        if not may_answer(self._config, approver, ticket.channel, ticket.key_name):
            raise Forbidden("Nobody decides about a request of their own key.")

    async def _link(self, token: str, ticket_id: str) -> LinkToken:
        link = await self._store().find_link_token(hash_secret(token))
        if link is None or (ticket_id and link.ticket_id != ticket_id):
            raise NotFound("There is no such link.", param="token")
        ticket = await self._cabinet.find(link.ticket_id)
        if link.request_hash != ticket.request_hash or link.approver == OPERATOR:
            raise NotFound("There is no such link.", param="token")
        if link.used_at is not None:
            await self._cabinet.report(ticket, "rejected", "link_used", link.approver)
            raise AlreadyDecided("This link has been used.", code="link_used")
        if link.expires_at <= self._clock.now():
            await self._refuse_late(ticket, link.approver)
        return link

    async def _refuse_late(self, ticket: Ticket, approver: str) -> NoReturn:
        """Says why a decision came too late."""
        if ticket.state == "pending" and ticket.expires_at <= self._clock.now():
            ticket = await self._end(ticket, "expired")
        if ticket.state == "expired":
            raise TicketExpired(f"The time for {ticket.id} is over; the request was refused.")
        if ticket.state == "abandoned":
            raise AlreadyDecided(f"Whoever asked has gone; {ticket.id} needs no answer.", code="caller_gone")
        if ticket.state == "pending":
            raise AlreadyDecided("This link has been used.", code="link_used")
        who = "you" if ticket.decided_by == approver else f"'{ticket.decided_by}'"
        raise AlreadyDecided(f"{ticket.id} was {ticket.state} by {who} already.")

    # Tickets in the store

    async def _end(self, ticket: Ticket, state: Literal["expired", "abandoned"]) -> Ticket:
        closed = await self._store().close_ticket(ticket.id, state, self._clock.now())
        await self._cabinet.tell_or_leave(ticket.id)
        self._ring(ticket.id)
        return closed or await self._cabinet.find(ticket.id)

    async def _expire_due(self) -> None:
        for ticket in await self._store().expire_tickets(self._clock.now()):
            self._ring(ticket.id)

    async def _outcome(self, ticket: Ticket) -> Outcome:
        await self._cabinet.tell(ticket.id)
        if ticket.state == "approved" and not await self._store().use_ticket(ticket.id, self._clock.now()):
            return Outcome("used", self._cabinet.readable(ticket))
        assert ticket.state != "pending"
        return Outcome(ticket.state, self._cabinet.with_answer(ticket))

    # Bells, the book, and what goes on beside requests

    async def _hear(self, bell: asyncio.Event, ends_at: float) -> None:
        """Until the bell rings, the time may be over, or a moment has passed: the clocks may be moved meanwhile."""
        rest_s = max(0.0, min(self._poll_s, ends_at - self._clock.monotonic()))
        try:
            async with asyncio.timeout(rest_s):
                await bell.wait()
        except TimeoutError:
            pass
        if not self._tasks and not bell.is_set():
            bell.set()  # nobody listens for this process: look for itself

    async def _look_again(self, ticket: Ticket) -> Ticket:
        """A database that is away for a moment ends no wait."""
        try:
            return await self._cabinet.find(ticket.id)
        except StoreUnavailable as error:
            log.warning("%s: %s (%s)", ticket.id, error.message, error.id)
            return ticket

    def _ring(self, ticket_id: str) -> None:
        for bell in self._bells.get(ticket_id, ()):
            bell.set()

    async def _tidy_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._tidy()
                self._in_trouble = False
            except SekishoError as error:
                self._say_trouble(error)
            except Exception:
                log.exception("the escalation desk stumbled")
            try:
                async with asyncio.timeout(_TIDY_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _tidy(self) -> None:
        await self._post.send_due()
        await self._expire_due()
        await self._cabinet.tell_rest()
        if self._clock.monotonic() - self._forgotten_at >= _FORGET_EVERY_S:
            await self._store().forget_tickets(self._clock.now() - self._config.keep_days * 86_400)
            self._forgotten_at = self._clock.monotonic()

    async def _listen_for_ever(self) -> None:
        """Hears what other processes decide, by one question for all who wait, and only while somebody does."""
        while True:
            await asyncio.sleep(self._poll_s)
            if not self._bells:
                continue
            try:
                for ticket_id in await self._store().no_longer_pending(tuple(self._bells)):
                    self._ring(ticket_id)
            except SekishoError as error:
                self._say_trouble(error)

    def _say_trouble(self, error: SekishoError) -> None:
        """Once for each time that the store or the book is away, not each second of it."""
        if not self._in_trouble:
            log.warning("the escalation desk: %s (%s)", error.message, error.id)
        self._in_trouble = True
