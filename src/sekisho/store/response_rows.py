"""State of `/v1/responses` in the database. Every function runs inside the caller's transaction."""

from typing import Any

import msgspec
from sqlalchemy import Row, delete, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.store.backends import insert_into
from sekisho.store.responses import UNFINISHED, ResponseRecord
from sekisho.store.schema import responses

_FIELDS = tuple(field.name for field in msgspec.structs.fields(ResponseRecord))
_STOPPED = {"code": "server_error", "message": "The server stopped before this response was finished."}


async def put(connection: AsyncConnection, record: ResponseRecord) -> None:
    statement = insert_into(connection.dialect.name, responses)
    upsert = statement.on_conflict_do_update(
        index_elements=["id"],
        set_={name: statement.excluded[name] for name in _FIELDS if name not in ("id", "key_id")},
        where=responses.c.key_id == statement.excluded.key_id,
    ).returning(responses.c.id)
    if (await connection.execute(upsert, msgspec.structs.asdict(record))).first() is None:
        raise missing(record.id)  # the id is another key's, whose existence is not told


async def get(connection: AsyncConnection, response_id: str, key_id: str, now: float) -> ResponseRecord | None:
    if not _possible(response_id):
        return None
    query = select(responses).where(
        responses.c.id == response_id, responses.c.key_id == key_id, responses.c.expires_at > now
    )
    row = (await connection.execute(query)).first()
    return None if row is None else _record(row)


async def remove(connection: AsyncConnection, response_id: str, key_id: str) -> bool:
    if not _possible(response_id):
        return False
    gone = delete(responses).where(responses.c.id == response_id, responses.c.key_id == key_id)
    return (await connection.execute(gone.returning(responses.c.id))).first() is not None


async def chain(
    connection: AsyncConnection, response_id: str, key_id: str, now: float, limit: int
) -> list[ResponseRecord]:
    """Walks back by ids alone, then fetches the bodies of what it found, oldest first."""
    if not _possible(response_id):
        raise missing(response_id)
    mine = (responses.c.key_id == key_id) & (responses.c.expires_at > now)
    links = (
        select(responses.c.id, responses.c.previous_response_id, literal(1).label("depth"))
        .where(responses.c.id == response_id, mine)
        .cte("links", recursive=True)
    )
    links = links.union_all(
        select(responses.c.id, responses.c.previous_response_id, links.c.depth + 1)
        .join_from(links, responses, responses.c.id == links.c.previous_response_id)
        .where(mine, links.c.depth <= limit)
    )
    query = select(responses).join_from(links, responses, responses.c.id == links.c.id).order_by(links.c.depth.desc())
    found = [_record(row) for row in (await connection.execute(query)).all()]
    if len(found) > limit:
        raise InvalidRequest(
            f"the conversation has more than {limit} turns; start a new one", param="previous_response_id"
        )
    lost = found[0].previous_response_id if found else response_id
    if lost is not None:
        raise missing(lost)
    return found


async def expire(connection: AsyncConnection, now: float) -> int:
    gone = delete(responses).where(responses.c.expires_at <= now)
    return (await connection.execute(gone)).rowcount


async def fail_stale(connection: AsyncConnection, now: float, older_than_s: float) -> int:
    stale = (responses.c.status.in_(UNFINISHED)) & (responses.c.created_at <= now - older_than_s)
    rows = (await connection.execute(select(responses.c.id, responses.c.response).where(stale))).all()
    failed = 0
    for row in rows:
        change = update(responses).where(responses.c.id == row.id, stale)
        change = change.values(status="failed", response=_failed(row.response)).returning(responses.c.id)
        failed += (await connection.execute(change)).first() is not None
    return failed


def missing(response_id: str) -> NotFound:
    return NotFound(
        f"Previous response with id '{response_id[:128]}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _possible(response_id: str) -> bool:
    """An id comes from a client; a database may refuse NUL, lone surrogates or megabytes outright."""
    return len(response_id) <= 128 and response_id.isprintable()


def _failed(response: bytes) -> bytes:
    """The stored object says what the row says."""
    body = msgspec.json.decode(response)
    if not isinstance(body, dict):
        return response
    return msgspec.json.encode(body | {"status": "failed", "error": _STOPPED})


def _record(row: Row[Any]) -> ResponseRecord:
    return ResponseRecord(**{name: getattr(row, name) for name in _FIELDS})
