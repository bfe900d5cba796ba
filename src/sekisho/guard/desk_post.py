"""The desk's post: sends the notices that lie in the store, again and again with growing pauses, beside everything
else. What is pending when a process dies is sent by the next one."""

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from sekisho.core.clock import Clock
from sekisho.core.errors import StoreUnavailable
from sekisho.guard.desk_config import EscalationConfig
from sekisho.guard.desk_records import EventKind
from sekisho.guard.notices import NoticeFailed, Notifier
from sekisho.store.escalations import LinkToken, Notice, NoticeState, Ticket
from sekisho.store.keys import hash_secret

if TYPE_CHECKING:
    from sekisho.store import Store

log = logging.getLogger("sekisho.guard.desk")

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
_AT_ONCE = 32
_LEASE_EXTRA_S = 15.0
_TOKEN_BYTES = 32

LoadTicket = Callable[[str], Awaitable[Ticket | None]]
Report = Callable[[Ticket, EventKind, str], Awaitable[None]]


class Post:
    """Sends due notices. `load` gives a ticket with its texts readable; `report(ticket, kind, text)` tells what came
    of a notice (`notified`, `notice_failed`). A target that hangs holds up nobody else's notice."""

    def __init__(
        self,
        store: "Callable[[], Store]",
        config: EscalationConfig,
        notifier: Notifier,
        clock: Clock,
        load: LoadTicket,
        report: Report,
    ) -> None:
        self._store, self._config, self._notifier, self._clock = store, config, notifier, clock
        self._load, self._report = load, report
        self._under_way: set[asyncio.Task[None]] = set()

    async def send_due(self) -> int:
        """Begins to send what is due; how many."""
        free = _AT_ONCE - len(self._under_way)
        if free <= 0:
            return 0
        lease_s = self._config.notice_timeout_s + _LEASE_EXTRA_S
        claimed = await self._store().claim_notices(self._clock.now(), lease_s, free)
        for notice in claimed:
            task = asyncio.create_task(self._deliver(notice))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return len(claimed)

    async def close(self) -> None:
        """Breaks off what is under way: it is due again when its lease is over."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._notifier.close()

    async def _deliver(self, notice: Notice) -> None:
        try:
            await self._attempt(notice)
        except StoreUnavailable as error:
            log.warning("notice %s: %s (%s); it is tried again", notice.id, error.message, error.id)
        except Exception:
            log.exception("notice %s: attempt %d broke; it is tried again", notice.id, notice.attempts)

    async def _attempt(self, notice: Notice) -> None:
        store = self._store()
        ticket = await self._load(notice.ticket_id)
        if ticket is None or ticket.state != "pending" or ticket.expires_at <= self._clock.now():
            await store.settle_notice(notice, "dropped", self._clock.now())
            return
        try:
            await self._notifier.send(notice, ticket, await self._link(notice, ticket), self._clock.now())
        except NoticeFailed as failure:
            await self._after_failure(notice, ticket, failure)
            return
        await store.settle_notice(notice, "sent", self._clock.now())
        await self._report(ticket, "notified", f"{notice.kind} {notice.id}")

    async def _after_failure(self, notice: Notice, ticket: Ticket, failure: NoticeFailed) -> None:
        due_at = self._clock.now() + max(pause_s(notice.attempts), failure.after_s or 0.0)
        final = not failure.again or due_at >= ticket.expires_at
        state: NoticeState = "failed" if final else "pending"
        log.warning("notice %s (%s) of %s: %s; %s", notice.id, notice.kind, ticket.id, failure, state)
        await self._store().settle_notice(notice, state, due_at, str(failure))
        if final:
            await self._report(ticket, "notice_failed", f"{notice.kind} {notice.id}: {failure}")

    async def _link(self, notice: Notice, ticket: Ticket) -> str | None:
        """A new token for each attempt: only its hash is kept, so that an earlier one cannot be sent again."""
        if notice.approver is None or self._config.link_base_url is None:
            return None
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        kept = LinkToken(
            token_hash=hash_secret(token),
            ticket_id=ticket.id,
            request_hash=ticket.request_hash,
            approver=notice.approver,
            created_at=self._clock.now(),
            expires_at=ticket.expires_at,
        )
        await self._store().add_link_token(kept)
        return f"{self._config.link_base_url.rstrip('/')}/escalation/{ticket.id}#{token}"


def pause_s(attempts: int) -> float:
    """Doubling from two seconds to a minute, with half of it up or down by chance, so that many do not come as one."""
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 10))
    return pause * random.uniform(0.5, 1.5)
