"""Keys in the database. Every function runs inside the caller's transaction."""

from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core import ids
from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.store.keys import KeyRecord, KeySpec, checked, hash_secret, new_secret
from sekisho.store.schema import key_secrets, keys, revisions

_COLUMNS = [
    *keys.c,
    key_secrets.c.last4,
    key_secrets.c.secret_hash,
    key_secrets.c.expires_at.label("secret_expires_at"),
]
_WITH_SECRET = select(*_COLUMNS).join_from(keys, key_secrets)
_REVISION = select(revisions.c.value).where(revisions.c.name == "keys")


async def create(connection: AsyncConnection, spec: KeySpec, now: float) -> tuple[KeyRecord, str]:
    spec = checked(spec, now)
    key_id, secret = ids.new("key"), new_secret()
    revision = await _next_revision(connection)
    taken = select(keys.c.id).where(keys.c.name == spec.name, keys.c.revoked_at.is_(None))
    if (await connection.execute(taken)).first() is not None:
        raise _taken(spec.name)
    row = _row(spec) | {"id": key_id, "created_at": now, "revision": revision}
    try:
        await connection.execute(insert(keys), row)
    except IntegrityError as error:
        # Only a transaction that began before ours and is not bound by the revision row's lock comes here.
        raise _taken(spec.name) from error
    await connection.execute(insert(key_secrets), _secret_row(key_id, secret))
    return await _current(connection, key_id), secret


async def rotate(connection: AsyncConnection, id_or_name: str, grace_s: float, now: float) -> tuple[KeyRecord, str]:
    if not 0 <= grace_s <= 366 * 86_400:
        raise InvalidRequest("grace_s must lie between 0 and one year", param="grace_s")
    revision = await _next_revision(connection)
    key_id = await _live_id(connection, id_or_name)
    mine = key_secrets.c.key_id == key_id
    # An older secret that is still in its own grace stops now: at most two secrets open a key.
    await connection.execute(delete(key_secrets).where(mine, key_secrets.c.expires_at.is_not(None)))
    if grace_s > 0:
        await connection.execute(update(key_secrets).where(mine).values(expires_at=now + grace_s))
    else:
        await connection.execute(delete(key_secrets).where(mine))
    secret = new_secret()
    await connection.execute(insert(key_secrets), _secret_row(key_id, secret))
    await connection.execute(update(keys).where(keys.c.id == key_id).values(rotated_at=now, revision=revision))
    return await _current(connection, key_id), secret


async def revoke(connection: AsyncConnection, id_or_name: str, now: float) -> KeyRecord:
    revision = await _next_revision(connection)
    key_id = await _live_id(connection, id_or_name)
    await connection.execute(update(keys).where(keys.c.id == key_id).values(revoked_at=now, revision=revision))
    return await _current(connection, key_id)


async def every(connection: AsyncConnection, include_revoked: bool) -> list[KeyRecord]:
    query = _WITH_SECRET.where(key_secrets.c.expires_at.is_(None)).order_by(keys.c.created_at, keys.c.id)
    if not include_revoked:
        query = query.where(keys.c.revoked_at.is_(None))
    return [_record(row) for row in (await connection.execute(query)).all()]


async def find(connection: AsyncConnection, secret_hash: str, now: float) -> KeyRecord | None:
    query = _WITH_SECRET.where(key_secrets.c.secret_hash == secret_hash, keys.c.revoked_at.is_(None))
    row = (await connection.execute(query)).first()
    return _record(row) if row is not None and _open(row, now) else None


async def load(connection: AsyncConnection, now: float) -> dict[str, KeyRecord]:
    rows = (await connection.execute(_WITH_SECRET.where(keys.c.revoked_at.is_(None)))).all()
    return {row.secret_hash: _record(row) for row in rows if _open(row, now)}


async def revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(_REVISION)).scalar_one())


async def _next_revision(connection: AsyncConnection) -> int:
    """First statement of every change: its row lock also puts changes of keys in one order."""
    step = update(revisions).where(revisions.c.name == "keys").values(value=revisions.c.value + 1)
    return int((await connection.execute(step.returning(revisions.c.value))).scalar_one())


async def _live_id(connection: AsyncConnection, id_or_name: str) -> str:
    if id_or_name.isprintable():  # a database may refuse NUL and the like outright
        wanted = keys.c.id if id_or_name.startswith("key_") else keys.c.name
        query = select(keys.c.id).where(wanted == id_or_name, keys.c.revoked_at.is_(None))
        found = (await connection.execute(query)).scalar_one_or_none()
        if found is not None:
            return str(found)
    raise NotFound(f"there is no live key {id_or_name!r}", param="key")


async def _current(connection: AsyncConnection, key_id: str) -> KeyRecord:
    query = _WITH_SECRET.where(keys.c.id == key_id, key_secrets.c.expires_at.is_(None))
    return _record((await connection.execute(query)).one())


def _taken(name: str) -> InvalidRequest:
    return InvalidRequest(f"a live key is already named {name!r}", param="name", code="name_taken")


def _open(row: Row[Any], now: float) -> bool:
    ends = _earlier(row.expires_at, row.secret_expires_at)
    return ends is None or ends > now


def _earlier(first: float | None, second: float | None) -> float | None:
    known = [moment for moment in (first, second) if moment is not None]
    return min(known, default=None)


def _secret_row(key_id: str, secret: str) -> dict[str, Any]:
    return {"secret_hash": hash_secret(secret), "key_id": key_id, "last4": secret[-4:], "expires_at": None}


def _row(spec: KeySpec) -> dict[str, Any]:
    row = msgspec.structs.asdict(spec)
    row["scopes"] = msgspec.json.encode(sorted(spec.scopes)).decode()
    row["models"] = None if spec.models is None else msgspec.json.encode(sorted(spec.models)).decode()
    row["networks"] = msgspec.json.encode(spec.networks).decode()
    return row


def _record(row: Row[Any]) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        scopes=msgspec.json.decode(row.scopes, type=frozenset[str]),
        models=None if row.models is None else msgspec.json.decode(row.models, type=frozenset[str]),
        rpm=row.rpm,
        tpm=row.tpm,
        parallel=row.parallel,
        budget_tokens=row.budget_tokens,
        budget_cost_micros=row.budget_cost_micros,
        networks=msgspec.json.decode(row.networks, type=tuple[str, ...]),
        expires_at=_earlier(row.expires_at, row.secret_expires_at),
        last4=row.last4,
        created_at=row.created_at,
        revision=row.revision,
        revoked_at=row.revoked_at,
        rotated_at=row.rotated_at,
    )
