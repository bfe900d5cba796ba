import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from sekisho.core.errors import StoreUnavailable
from sekisho.store import KeySpec, Store
from sekisho.store.backends import connect
from sekisho.store.migrate import MIGRATIONS
from sekisho.store.schema import REVISIONS, metadata


def test_the_list_of_revisions_is_the_folder_of_migrations() -> None:
    """The version check without alembic knows exactly the migrations that are shipped, in their order."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == REVISIONS


async def test_migrating_an_empty_database_makes_the_tables_of_the_code(database_url: str) -> None:
    """Alembic finds no difference between the migrated database and `schema`."""
    store = await Store.open(database_url)
    async with store._backend.reader.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata)
        )
    await store.close()
    assert differences == []


async def test_going_down_leaves_nothing_and_up_again_works(database_url: str) -> None:
    """Every migration can be undone."""
    store = await Store.open(database_url)

    def downgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.downgrade(config, "base")

    async with store._write() as connection:
        await connection.run_sync(downgrade)
    await store.close()
    with pytest.raises(StoreUnavailable, match="migrate"):
        await Store.open(database_url, migrate=False)
    store = await Store.open(database_url)
    assert await store.keys_revision() == 0
    await store.close()


async def test_without_migrate_an_empty_database_is_refused_and_left_empty(database_url: str) -> None:
    """`migrate=False` changes nothing and says what is needed."""
    with pytest.raises(StoreUnavailable, match=f"needs {REVISIONS[-1]}"):
        await Store.open(database_url, migrate=False)
    backend = connect(database_url)
    async with backend.engine.connect() as connection:
        assert await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision()) is None
    await backend.engine.dispose()


async def test_a_newer_database_is_refused_with_advice(database_url: str) -> None:
    """Old code on a database of newer code touches nothing and tells to upgrade."""
    store = await Store.open(database_url)
    await store.create_key(KeySpec(name="taro"))
    async with store._write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0777'"))
    await store.close()
    for migrate in (True, False):
        with pytest.raises(StoreUnavailable, match=r"0777, newer .* upgrade Sekisho"):
            await Store.open(database_url, migrate=migrate)


async def test_many_that_open_an_empty_database_at_once_all_succeed(database_url: str) -> None:
    """Within one process: one migrates, the others wait and find it done."""
    stores = await asyncio.gather(*(Store.open(database_url) for _ in range(6)))
    for number, store in enumerate(stores):
        await store.create_key(KeySpec(name=f"k{number}"))
    assert await stores[0].keys_revision() == 6
    for store in stores:
        await store.close()


OPENER = """
import asyncio, sys
from sekisho.store import KeySpec, Store, backends

backends.BUSY_TIMEOUT_MS = 60_000  # a machine that stalls in mid-transaction is no fault of the others

async def main():
    sys.stdin.readline()
    store = await Store.open(sys.argv[1])
    await store.create_key(KeySpec(name=sys.argv[2]))
    await store.close()

asyncio.run(main())
"""


async def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    """Three processes that meet an empty database all come up, and every change they make is there."""
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", OPENER, database_url, f"k{n}", stdin=PIPE)
        for n in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [await process.wait() for process in processes] == [0, 0, 0]
    store = await Store.open(database_url, migrate=False)
    assert {key.name for key in await store.list_keys()} == {"k0", "k1", "k2"}
    await store.close()


CHEAP = """
import asyncio, sys
import sekisho.store
assert "sqlalchemy" not in sys.modules, "values need no SQLAlchemy"
from sekisho.store import Store

async def main():
    store = await Store.open(sys.argv[1])
    await store.close()

asyncio.run(main())
assert not any(name.split(".")[0] in ("alembic", "asyncpg") for name in sys.modules)
"""


async def test_a_ready_database_opens_without_alembic(tmp_path: Path) -> None:
    """Start-up pays for migrations only when there is one to do, and for SQLAlchemy only with a Store."""
    await (await Store.open(tmp_path / "s.db")).close()
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", CHEAP, str(tmp_path / "s.db"))
    assert await done.wait() == 0
