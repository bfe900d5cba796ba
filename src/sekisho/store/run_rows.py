"""Runs and their steps in the database. Every function runs inside the caller's transaction.

A write names its owner's token in its WHERE: whoever lost the run to somebody else changes nothing any more.
"""

from typing import Any

import msgspec
from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.store.backends import insert_into
from sekisho.store.runs import RunOwner, RunRecord, RunState, StepChild, StepRecord
from sekisho.store.schema import run_steps, runs

_LONGEST_ID = 64
_RUN_FIELDS = tuple(field.name for field in msgspec.structs.fields(RunRecord) if field.name != "owner")
_OWNER_FIELDS = tuple(field.name for field in msgspec.structs.fields(RunOwner))
_STEP_KEY = ("run_id", "key")
_NOBODY: dict[str, object] = {f"owner_{name}": None for name in _OWNER_FIELDS}


async def create(connection: AsyncConnection, run: RunRecord) -> RunRecord:
    """The run as it is stored: this one, or an earlier one of the same id."""
    values = {name: getattr(run, name) for name in _RUN_FIELDS} | _owner_values(run.owner)
    await connection.execute(insert_into(connection.dialect.name, runs).on_conflict_do_nothing(), values)
    return _run((await connection.execute(select(runs).where(runs.c.id == run.id))).one())


async def get(connection: AsyncConnection, run_id: str) -> RunRecord | None:
    if not _possible(run_id):
        return None
    row = (await connection.execute(select(runs).where(runs.c.id == run_id))).first()
    return None if row is None else _run(row)


async def page(connection: AsyncConnection, kind: str | None, limit: int) -> list[RunRecord]:
    """Newest first."""
    query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(runs.c.kind == kind)
    return [_run(row) for row in await connection.execute(query)]


async def claim(
    connection: AsyncConnection, run_id: str, owner: RunOwner, instead_of: str | None, folder: str
) -> RunRecord | None:
    """Makes `owner` the owner if the token there is still `instead_of`; None when somebody was first."""
    change = update(runs).where(runs.c.id == run_id, runs.c.owner_token.is_not_distinct_from(instead_of))
    values = _owner_values(owner) | {"state": "running", "folder": folder, "updated_at": owner.seen_at}
    row = (await connection.execute(change.values(values).returning(*runs.c))).first()
    return None if row is None else _run(row)


async def seen(connection: AsyncConnection, run_id: str, token: str, now: float) -> bool:
    """The owner lives; False when it is the owner no more."""
    change = update(runs).where(runs.c.id == run_id, runs.c.owner_token == token).values(owner_seen_at=now)
    return (await connection.execute(change.returning(runs.c.id))).first() is not None


async def release(
    connection: AsyncConnection, run_id: str, token: str, state: RunState, finished_at: float | None, now: float
) -> bool:
    """The owner leaves the run in `state`; False when it is the owner no more."""
    change = update(runs).where(runs.c.id == run_id, runs.c.owner_token == token)
    values = _NOBODY | {"state": state, "finished_at": finished_at, "updated_at": now}
    return (await connection.execute(change.values(values).returning(runs.c.id))).first() is not None


async def put_step(connection: AsyncConnection, step: StepRecord, token: str, now: float) -> bool:
    """Inserts or replaces a step; False, and nothing changes, when `token` is not the owner's. The run's row is locked
    first: an owner that is being replaced is either before or after its successor."""
    fence = update(runs).where(runs.c.id == step.run_id, runs.c.owner_token == token)
    fence = fence.values(updated_at=now, owner_seen_at=now)
    if (await connection.execute(fence.returning(runs.c.id))).first() is None:
        return False
    statement = insert_into(connection.dialect.name, run_steps)
    changes = {column.name: statement.excluded[column.name] for column in run_steps.c if column.name not in _STEP_KEY}
    values = msgspec.structs.asdict(step) | {"artifacts": _json(step.artifacts), "children": _json(step.children)}
    await connection.execute(statement.on_conflict_do_update(index_elements=_STEP_KEY, set_=changes), values)
    return True


async def steps(connection: AsyncConnection, run_id: str) -> list[StepRecord]:
    """In the order in which they first began."""
    if not _possible(run_id):
        return []
    query = select(run_steps).where(run_steps.c.run_id == run_id).order_by(run_steps.c.position, run_steps.c.key)
    return [_step(row) for row in await connection.execute(query)]


async def forget(connection: AsyncConnection, run_id: str) -> bool:
    """Deletes the run with its steps."""
    if not _possible(run_id):
        return False
    gone = delete(runs).where(runs.c.id == run_id).returning(runs.c.id)
    return (await connection.execute(gone)).first() is not None


def _possible(run_id: str) -> bool:
    """An id may come from a client; a database may refuse NUL, lone surrogates or megabytes outright."""
    return len(run_id) <= _LONGEST_ID and run_id.isprintable()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _owner_values(owner: RunOwner | None) -> dict[str, object]:
    return _NOBODY if owner is None else {f"owner_{name}": getattr(owner, name) for name in _OWNER_FIELDS}


def _run(row: Row[Any]) -> RunRecord:
    owner = None
    if row.owner_token is not None:
        owner = RunOwner(**{name: getattr(row, f"owner_{name}") for name in _OWNER_FIELDS})
    return RunRecord(**{name: getattr(row, name) for name in _RUN_FIELDS}, owner=owner)


def _step(row: Row[Any]) -> StepRecord:
    values = dict(row._mapping)
    values["artifacts"] = msgspec.json.decode(row.artifacts, type=dict[str, str])
    values["children"] = msgspec.json.decode(row.children, type=tuple[StepChild, ...])
    return StepRecord(**values)
