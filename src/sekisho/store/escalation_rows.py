"""Escalations in the database. Every function runs inside the caller's transaction.

What is decided once is decided by one UPDATE whose WHERE names the state it leaves: of any number of callers, in any
number of processes, one gets the row back.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Update, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core.errors import RateLimited
from sekisho.store.backends import insert_into
from sekisho.store.escalations import Channel, HumanVerdict, LinkToken, Notice, NoticeState, Ticket, TicketState
from sekisho.store.schema import escalation_notices, escalation_tokens, escalations

_TICKET_FIELDS = tuple(field.name for field in msgspec.structs.fields(Ticket))
_NOTICE_FIELDS = tuple(field.name for field in msgspec.structs.fields(Notice))
_TOKEN_FIELDS = tuple(field.name for field in msgspec.structs.fields(LinkToken))
_PENDING = escalations.c.state == "pending"
_LONGEST_ID = 128
_FARTHEST_ATTEMPT_S = 2 * 3_600.0


async def open_ticket(
    connection: AsyncConnection, ticket: Ticket, notices: Sequence[Notice], now: float, limit: int | None = None
) -> Ticket:
    """Inserts the ticket with its notices. Where `behaviour` is `ticket` and the same key has the same request
    pending, that older ticket comes back and nothing is inserted. Raises RateLimited, to be rolled back, where the key
    has `limit` others pending."""
    if limit is not None and connection.dialect.name == "postgresql":  # SQLite lets one writer in at a time
        await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(ticket.key_id))))
    if ticket.behaviour == "ticket":
        kept = await _open_or_find(connection, ticket, now)
        if kept.id != ticket.id:
            return kept
    else:
        await connection.execute(insert(escalations), msgspec.structs.asdict(ticket))
    if limit is not None and await _pending(connection, ticket.key_id, now) > limit:
        raise RateLimited(f"{limit} requests of this key wait for a person already.", retry_after_s=30.0)
    if notices:
        await connection.execute(insert(escalation_notices), [msgspec.structs.asdict(notice) for notice in notices])
    return ticket


async def _pending(connection: AsyncConnection, key_id: str, now: float) -> int:
    """How many tickets of the key wait for a person."""
    mine = and_(escalations.c.key_id == key_id, _PENDING, escalations.c.expires_at > now)
    return (await connection.execute(select(func.count()).where(mine))).scalar_one()


async def _open_or_find(connection: AsyncConnection, ticket: Ticket, now: float) -> Ticket:
    same = and_(escalations.c.request_hash == ticket.request_hash, escalations.c.key_id == ticket.key_id)
    await connection.execute(_closing("expired", now).where(same, escalations.c.expires_at <= now))
    statement = insert_into(connection.dialect.name, escalations).on_conflict_do_nothing().returning(escalations.c.id)
    waiting = select(escalations).where(same, _PENDING, escalations.c.behaviour == "ticket")
    while True:
        if (await connection.execute(statement, msgspec.structs.asdict(ticket))).first() is not None:
            return ticket
        row = (await connection.execute(waiting)).first()
        if row is not None:
            return _ticket(row)
        # It was decided between the two statements: now there is room.


async def get(connection: AsyncConnection, ticket_id: str) -> Ticket | None:
    if not _possible(ticket_id):
        return None
    row = (await connection.execute(select(escalations).where(escalations.c.id == ticket_id))).first()
    return None if row is None else _ticket(row)


async def page(
    connection: AsyncConnection,
    state: TicketState | None,
    channels: Collection[Channel] | None,
    after: Ticket | None,
    limit: int,
) -> list[Ticket]:
    """Newest first."""
    query = select(escalations).order_by(escalations.c.created_at.desc(), escalations.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(escalations.c.state == state)
    if channels is not None:
        query = query.where(escalations.c.channel.in_(channels))
    if after is not None:
        earlier = escalations.c.created_at < after.created_at
        same_time = and_(escalations.c.created_at == after.created_at, escalations.c.id < after.id)
        query = query.where(or_(earlier, same_time))
    return [_ticket(row) for row in await connection.execute(query)]


async def no_longer_pending(connection: AsyncConnection, ticket_ids: Collection[str]) -> set[str]:
    query = select(escalations.c.id).where(escalations.c.id.in_(ticket_ids), escalations.c.state != "pending")
    return set((await connection.execute(query)).scalars())


async def decide(connection: AsyncConnection, verdict: HumanVerdict, now: float) -> Ticket | None:
    """The decided ticket; None when it is not pending any more, is past its time, or the link is used up. The link
    is spent first: two uses of one link wait for each other at its row."""
    if verdict.token_hash is not None and not await _spend(connection, verdict, now):
        return None
    change = (
        update(escalations)
        .where(escalations.c.id == verdict.ticket_id, _PENDING, escalations.c.expires_at > now)
        .values(
            state=verdict.state,
            answer=verdict.answer,
            reason=verdict.reason,
            decided_by=verdict.decided_by,
            decided_at=now,
            version=escalations.c.version + 1,
        )
        .returning(*escalations.c)
    )
    row = (await connection.execute(change)).first()
    return None if row is None else _ticket(row)


async def close(connection: AsyncConnection, ticket_id: str, state: TicketState, now: float) -> Ticket | None:
    """Ends a pending ticket as `expired` or `abandoned`, whatever its time; None when it is not pending."""
    change = _closing(state, now).where(escalations.c.id == ticket_id)
    row = (await connection.execute(change.returning(*escalations.c))).first()
    return None if row is None else _ticket(row)


async def overdue(connection: AsyncConnection, now: float) -> bool:
    query = select(escalations.c.id).where(_PENDING, escalations.c.expires_at <= now).limit(1)
    return (await connection.execute(query)).first() is not None


async def expire(connection: AsyncConnection, now: float) -> list[Ticket]:
    change = _closing("expired", now).where(escalations.c.expires_at <= now)
    return [_ticket(row) for row in await connection.execute(change.returning(*escalations.c))]


async def use(connection: AsyncConnection, ticket_id: str, now: float) -> bool:
    """Takes the one passage that an approval gives."""
    change = update(escalations).where(escalations.c.id == ticket_id, _UNUSED)
    return (await connection.execute(change.values(used_at=now).returning(escalations.c.id))).first() is not None


async def use_approval(
    connection: AsyncConnection, request_hash: str, key_id: str, decided_after: float, now: float
) -> Ticket | None:
    """Takes the passage of an approval for this request and key."""
    candidates = _decided(request_hash, key_id, decided_after).where(_UNUSED)
    for row in (await connection.execute(candidates)).all():
        if await use(connection, row.id, now):
            return _ticket(row)
    return None


async def latest_decided(
    connection: AsyncConnection, request_hash: str, key_id: str, state: TicketState, decided_after: float
) -> Ticket | None:
    query = _decided(request_hash, key_id, decided_after).where(escalations.c.state == state).limit(1)
    row = (await connection.execute(query)).first()
    return None if row is None else _ticket(row)


async def pending_before(
    connection: AsyncConnection, request_hash: str, key_id: str, created_before: float, now: float
) -> list[Ticket]:
    same = and_(escalations.c.request_hash == request_hash, escalations.c.key_id == key_id, _PENDING)
    alive = and_(escalations.c.created_at < created_before, escalations.c.expires_at > now)
    query = select(escalations).where(same, alive).order_by(escalations.c.created_at)
    return [_ticket(row) for row in await connection.execute(query)]


async def untold(connection: AsyncConnection, limit: int) -> list[Ticket]:
    query = select(escalations).where(escalations.c.told_version < escalations.c.version)
    return [
        _ticket(row)
        for row in await connection.execute(query.order_by(escalations.c.created_at, escalations.c.id).limit(limit))
    ]


async def told(connection: AsyncConnection, ticket_id: str, version: int) -> None:
    change = update(escalations).where(escalations.c.id == ticket_id, escalations.c.told_version < version)
    await connection.execute(change.values(told_version=version))


async def add_token(connection: AsyncConnection, token: LinkToken) -> None:
    await connection.execute(insert(escalation_tokens), msgspec.structs.asdict(token))


async def token(connection: AsyncConnection, token_hash: str) -> LinkToken | None:
    row = (
        await connection.execute(select(escalation_tokens).where(escalation_tokens.c.token_hash == token_hash))
    ).first()
    return None if row is None else LinkToken(**{name: getattr(row, name) for name in _TOKEN_FIELDS})


async def due_notices(connection: AsyncConnection, now: float, limit: int) -> list[str]:
    query = select(escalation_notices.c.id).where(_due(now)).order_by(escalation_notices.c.next_attempt_at)
    return list((await connection.execute(query.limit(limit))).scalars())


async def claim_notices(
    connection: AsyncConnection, notice_ids: Collection[str], now: float, lease_s: float
) -> list[Notice]:
    """Those of the notices that are still due, each to one claimer: it must settle them within `lease_s`, or they are
    due again. In order of their ids, so that two claimers never wait in a circle."""
    claimed: list[Notice] = []
    for notice_id in sorted(notice_ids):
        change = update(escalation_notices).where(escalation_notices.c.id == notice_id, _due(now))
        change = change.values(next_attempt_at=now + lease_s, attempts=escalation_notices.c.attempts + 1)
        row = (await connection.execute(change.returning(*escalation_notices.c))).first()
        if row is not None:
            claimed.append(_notice(row))
    return claimed


async def settle_notice(
    connection: AsyncConnection, notice: Notice, state: NoticeState, next_attempt_at: float, error: str | None
) -> None:
    """Writes what came of the attempt that `notice` was claimed for; a later attempt's word is not overwritten."""
    mine = and_(escalation_notices.c.id == notice.id, escalation_notices.c.attempts == notice.attempts)
    change = update(escalation_notices).where(mine, escalation_notices.c.state == "pending")
    await connection.execute(change.values(state=state, next_attempt_at=next_attempt_at, last_error=error))


async def notices(connection: AsyncConnection, ticket_id: str) -> list[Notice]:
    query = select(escalation_notices).where(escalation_notices.c.ticket_id == ticket_id)
    return [_notice(row) for row in await connection.execute(query.order_by(escalation_notices.c.id))]


async def forget(connection: AsyncConnection, created_before: float) -> int:
    """Deletes old tickets that are decided and in the book, with their notices and links."""
    done = and_(escalations.c.state != "pending", escalations.c.told_version >= escalations.c.version)
    gone = delete(escalations).where(escalations.c.created_at < created_before, done)
    return (await connection.execute(gone)).rowcount


_UNUSED = and_(escalations.c.state == "approved", escalations.c.used_at.is_(None))


def _due(now: float) -> ColumnElement[bool]:
    """A moment too far ahead was written before the clock was set back."""
    moment = escalation_notices.c.next_attempt_at
    return and_(escalation_notices.c.state == "pending", or_(moment <= now, moment > now + _FARTHEST_ATTEMPT_S))


def _decided(request_hash: str, key_id: str, decided_after: float) -> Any:
    mine = and_(escalations.c.request_hash == request_hash, escalations.c.key_id == key_id)
    query = select(escalations).where(mine, escalations.c.decided_at > decided_after)
    return query.order_by(escalations.c.decided_at.desc(), escalations.c.id)


def _closing(state: TicketState, now: float) -> Update:
    change = update(escalations).where(_PENDING)
    return change.values(state=state, decided_at=now, version=escalations.c.version + 1)


async def _spend(connection: AsyncConnection, verdict: HumanVerdict, now: float) -> bool:
    tokens = escalation_tokens.c
    bound: ColumnElement[bool] = and_(tokens.ticket_id == verdict.ticket_id, tokens.approver == verdict.decided_by)
    change = update(escalation_tokens).where(
        tokens.token_hash == verdict.token_hash, bound, tokens.used_at.is_(None), tokens.expires_at > now
    )
    return (await connection.execute(change.values(used_at=now).returning(tokens.token_hash))).first() is not None


def _possible(ticket_id: str) -> bool:
    """An id comes from a client; a database may refuse NUL, lone surrogates or megabytes outright."""
    return len(ticket_id) <= _LONGEST_ID and ticket_id.isprintable()


def _ticket(row: Row[Any]) -> Ticket:
    return Ticket(**{name: getattr(row, name) for name in _TICKET_FIELDS})


def _notice(row: Row[Any]) -> Notice:
    return Notice(**{name: getattr(row, name) for name in _NOTICE_FIELDS})
