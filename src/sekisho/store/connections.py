"""How work reaches the database: a connection at a time, to its end, and with trouble told as StoreUnavailable."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core.clock import Clock, SystemClock
from sekisho.core.errors import StoreUnavailable
from sekisho.store.backends import Backend, connect
from sekisho.store.migrate import prepare

log = logging.getLogger("sekisho.store")

_CLOSE_TIMEOUT_S = 10.0  # a database that hangs must not hang the shutdown

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Owner = TypeVar("Owner", bound="Connections")


def to_its_end(
    method: Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Owner, Arguments], Coroutine[Any, Any, Result]]:
    """Lets the work end when its caller is cancelled: a driver stopped in mid-statement can leave a connection behind
    that still holds SQLite's write lock. The caller is cancelled at once all the same."""

    @wraps(method)
    async def carried(owner: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        task = asyncio.ensure_future(method(owner, *args, **kwargs))
        owner._running.add(task)
        task.add_done_callback(owner._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_the_log)
            raise

    return carried


def _tell_the_log(task: asyncio.Task[Any]) -> None:
    """For work whose caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("left behind by a cancelled caller, failed", exc_info=error)


class Connections:
    """A database that is open, for the methods of a subclass, which `to_its_end` wraps."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._closed = False
        self._running: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, url_or_path: str | Path, migrate: bool = True, clock: Clock | None = None) -> Self:
        """Connects and checks the schema; with `migrate` brings it up to date first.

        A path or `sqlite:///…` is SQLite; `postgres://`, `postgresql://`, `postgresql+asyncpg://` PostgreSQL.
        Raises StoreUnavailable, also for a database newer than this code.
        """
        store = cls(connect(url_or_path), clock or SystemClock())
        try:
            with store._trouble():
                await prepare(store._backend, migrate)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Waits for what is under way, then closes all connections. May be called twice; afterwards every method
        raises StoreUnavailable."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_TIMEOUT_S)
        await self._backend.engine.dispose()

    def now(self) -> float:
        """Seconds since 1970 by the clock handed to `open`."""
        return self._clock.now()

    @to_its_end
    async def check(self) -> None:
        """Asks the database for nothing, for /readyz."""
        async with self._read() as connection:
            await connection.execute(text("SELECT 1"))

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        """One statement without a transaction."""
        with self._trouble():
            async with self._backend.reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _write(self, durable: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction: commits at the end, rolls back on any error."""
        backend = self._backend
        writer = backend.durable_writer if durable else backend.writer
        with self._trouble():
            if backend.turnstile is None:
                async with writer.begin() as connection:
                    yield connection
            else:
                async with backend.turnstile, writer.begin() as connection:
                    yield connection

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            yield
        except self._backend.errors as error:
            unavailable = StoreUnavailable("The database cannot be used just now.", retry_after_s=2.0)
            # The driver's own words: SQLAlchemy's add the parameters, which may be a team's private text.
            cause = error.orig if isinstance(error, DBAPIError) else error
            log.warning("%s: %s: %s", unavailable.id, type(cause).__name__, cause)
            raise unavailable from error
