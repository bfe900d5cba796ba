"""From an address to an engine: SQLite from a path or URL, PostgreSQL from a URL. A new database is one function."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import URL, Connection, Table, event, make_url
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from sekisho.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

BUSY_TIMEOUT_MS = 5_000
_POOL_TIMEOUT_S = 10
_POSTGRES_CONNECT = {"timeout": 10, "command_timeout": 30}


class Backend(msgspec.Struct, frozen=True):
    """An open engine and what is special about it.

    `reader` and `writer` share the engine's pool. `errors` is everything that this database raises in trouble.
    `file` is SQLite's path. `turnstile` lets one writer in at a time where the database would make it poll.
    """

    engine: AsyncEngine
    reader: AsyncEngine
    writer: AsyncEngine
    durable_writer: AsyncEngine
    errors: tuple[type[Exception], ...]
    file: Path | None = None
    turnstile: asyncio.Lock | None = None


def connect(url_or_path: str | Path) -> Backend:
    """Makes the backend; opens no connection yet. Raises StoreUnavailable for an address nobody can use."""
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return _sqlite(URL.create("sqlite", database=str(url_or_path)))
    try:
        url = make_url(url_or_path)
    except (ArgumentError, ValueError) as error:
        raise StoreUnavailable("the database URL cannot be read; it looks like postgresql://user@host/name") from error
    scheme = url.drivername.partition("+")[0]
    if scheme not in _BACKENDS:
        raise StoreUnavailable(f"unknown database {scheme!r}; valid are {', '.join(sorted(_BACKENDS))}")
    return _BACKENDS[scheme](url)


def insert_into(dialect: str, table: Table) -> "sqlite.Insert | postgresql.Insert":
    """An INSERT that knows ON CONFLICT, in the database's own dialect (the two read alike)."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    return sqlite.insert(table)


def _sqlite(url: URL) -> Backend:
    if not url.database or url.database == ":memory:" or url.query:
        raise StoreUnavailable("SQLite needs the path of a file, without options: sqlite:////data/sekisho.db")
    file = Path(url.database).expanduser().absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives -wal and -shm the same rights
    except OSError as error:
        raise StoreUnavailable(f"the database file cannot be opened: {error}") from error
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(file)),
        # isolation_level None: transactions begin where we say, not where the driver guesses
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000},
        poolclass=AsyncAdaptedQueuePool,  # SQLAlchemy 2.0 would open the file anew for every statement
        pool_size=4,
        pool_timeout=_POOL_TIMEOUT_S,
        max_overflow=0,
    )
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return Backend(
        engine=engine,
        reader=engine,
        writer=engine.execution_options(sekisho_write="NORMAL"),
        durable_writer=engine.execution_options(sekisho_write="FULL"),
        errors=(SQLAlchemyError, OSError),
        file=file,
        turnstile=asyncio.Lock(),
    )


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the write lock at once: to ask for it in mid-transaction fails without waiting. A reader
    begins nothing: each of our reads is one statement."""
    wanted = connection.get_execution_options().get("sekisho_write")
    if wanted is None:
        return
    if connection.info.get("synchronous", "NORMAL") != wanted:
        connection.exec_driver_sql(f"PRAGMA synchronous={wanted}")
        connection.info["synchronous"] = wanted
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _postgresql(url: URL) -> Backend:
    try:
        import asyncpg
    except ImportError as error:
        raise StoreUnavailable('PostgreSQL needs asyncpg: pip install "sekisho[postgres]"') from error
    url = url.set(drivername="postgresql+asyncpg")
    if "sslmode" in url.query:  # libpq's spelling, which hosted databases hand out
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    engine = create_async_engine(
        url,
        pool_size=5,
        max_overflow=5,
        pool_timeout=_POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args=_POSTGRES_CONNECT,
    )
    return Backend(
        engine=engine,
        reader=engine.execution_options(isolation_level="AUTOCOMMIT"),
        writer=engine,
        durable_writer=engine,
        errors=(SQLAlchemyError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
    )


_BACKENDS: dict[str, Callable[[URL], Backend]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "postgres": _postgresql,
}
