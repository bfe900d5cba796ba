"""Brings a database to the schema of this code. Alembic is imported only where there is something to do."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core.errors import StoreUnavailable
from sekisho.store.backends import Backend
from sekisho.store.locks import file_lock
from sekisho.store.schema import HEAD, REVISIONS

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_TIMEOUT_S = 60.0
_ADVISORY_LOCK = 0x5E_15_40  # any number that every Sekisho takes and nothing else in the same database


async def prepare(backend: Backend, migrate: bool) -> None:
    """Checks the schema, and with `migrate` upgrades it, once however many processes start together.

    Raises StoreUnavailable when the database is newer than this code, or older and `migrate` is False.
    """
    if backend.file is None:
        await _prepare(backend, migrate)
        return
    # SQLite does not wait for a lock while a new file becomes WAL, so the first connections come one by one.
    async with file_lock(backend.file.with_name(backend.file.name + ".lock"), _LOCK_TIMEOUT_S):
        await _prepare(backend, migrate)


async def _prepare(backend: Backend, migrate: bool) -> None:
    async with backend.reader.connect() as connection:
        version = await _version(connection)
    if version == HEAD:
        return
    if version is not None and version not in REVISIONS:
        raise StoreUnavailable(
            f"the database has schema {version}, newer than this Sekisho knows ({HEAD}): upgrade Sekisho, "
            "or restore the backup made before the upgrade"
        )
    if not migrate:
        raise StoreUnavailable(f"the database has schema {version or 'none'}, this Sekisho needs {HEAD}: migrate it")
    async with backend.durable_writer.begin() as connection:
        if backend.file is None:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK})
        if await _version(connection) != HEAD:  # another process may have been first
            await connection.run_sync(_upgrade)


async def _version(connection: AsyncConnection) -> str | None:
    if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
        return None
    return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
