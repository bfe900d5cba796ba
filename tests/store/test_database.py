import asyncio
import logging
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekisho.core.errors import StoreUnavailable
from sekisho.store import KeySpec, Store, UsageRecord, UsageSpool

Make = Callable[..., UsageRecord]


async def test_settings_are_kept_replaced_and_deleted(store: Store) -> None:
    """Small strings by name."""
    assert await store.get_setting("greeting") is None
    await store.set_setting("greeting", "こんにちは")
    await store.set_setting("greeting", "hello")
    assert await store.get_setting("greeting") == "hello"
    await store.set_setting("greeting", None)
    assert await store.get_setting("greeting") is None


async def test_a_closed_store_says_so(store: Store) -> None:
    """After close, which may come twice, every method raises StoreUnavailable."""
    await store.check()
    await store.close()
    await store.close()
    for call in (store.check(), store.keys_revision(), store.append_usage([]), store.create_key(KeySpec(name="a"))):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_cancelled_work_leaves_a_usable_store(store: Store, usage: Make) -> None:
    """Tasks cancelled at any point hold no lock and no connection; what they had begun is carried to its end."""
    for delay in range(12):
        batch = [usage(f"c{delay}-{n}") for n in range(20)]
        task = asyncio.create_task(store.append_usage(batch))
        await asyncio.sleep(delay * 0.0004)
        task.cancel()
        await asyncio.wait([task])
    await asyncio.wait_for(store.append_usage([usage("after")]), 60)
    while store._running:
        await asyncio.wait(store._running)
    ids = [row.request_id async for row in store.usage_rows(0, 1e12)]
    assert len(ids) == 12 * 20 + 1
    assert (await store.spent("2026-09"))["key_1"].requests == len(ids)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is no database that hangs."""
    monkeypatch.setattr("sekisho.store.connections._CLOSE_TIMEOUT_S", 100.0)


@pytest.mark.usefixtures("patient")
async def test_closing_waits_for_what_a_cancelled_caller_began(tmp_path: Path, usage: Make) -> None:
    """Work that is under way when the store closes is in the database afterwards."""
    store = await Store.open(tmp_path / "s.db")
    task = asyncio.create_task(store.append_usage([usage("r1")]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store.close()
    store = await Store.open(tmp_path / "s.db")
    assert (await store.spent("2026-09"))["key_1"].requests == 1
    await store.close()


@pytest.mark.usefixtures("patient")
async def test_what_fails_after_its_caller_is_gone_is_in_the_log(
    tmp_path: Path, usage: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """No error is lost because nobody waits for it any more."""
    store = await Store.open(tmp_path / "s.db")
    task = asyncio.create_task(store.append_usage([usage("r1"), None]))  # type: ignore[list-item]
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await store.close()
    assert "cancelled caller" in caplog.text
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("mysql://root@localhost/x", "valid are postgres, postgresql, sqlite"),
        ("postgresql://host:port/x", "cannot be read"),
        (":memory:", "path of a file"),
        ("sqlite://", "path of a file"),
        ("/proc/nowhere/s.db", "cannot be opened"),
        ("postgresql://nobody:hunter2@127.0.0.1:1/x", "cannot be used"),
    ],
)
async def test_a_useless_address_is_unavailable(address: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bad address is told as such, without its password in message or log."""
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable, match=told) as caught:
        await Store.open(address)
    assert "hunter2" not in caplog.text + caught.value.message


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    """A foreign file is refused and not overwritten."""
    file = tmp_path / "s.db"
    file.write_bytes(b"my diary, not a database" * 100)
    with pytest.raises(StoreUnavailable):
        await Store.open(file)
    assert file.read_bytes() == b"my diary, not a database" * 100


async def test_the_database_is_private_and_tuned(tmp_path: Path) -> None:
    """SQLite's files are the owner's alone; WAL, foreign keys and the busy wait are on; a durable write syncs."""
    store = await Store.open(tmp_path / "deep" / "s.db")
    await store.set_setting("a", "b")  # opening migrated this connection durably; the next write sets it back
    async with store._read() as connection:
        for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("synchronous", 1), ("busy_timeout", 5000)):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar_one() == value
    async with store._write(durable=True) as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one() == 2
    async with store._write() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one() == 1
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep").glob("s.db*")}
    assert modes == {0o600}
    await store.close()


async def test_trouble_is_logged_with_the_id_that_is_told_and_without_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A dropped table is StoreUnavailable; the log has the same id and the cause, not the parameters."""
    store = await Store.open(tmp_path / "s.db")
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.execute("DROP TABLE meta")
    raw.close()
    with pytest.raises(StoreUnavailable) as caught:
        await store.set_setting("diary", "dear diary")
    assert caught.value.id in caplog.text
    assert "meta" in caplog.text
    assert "dear diary" not in caplog.text
    assert caught.value.status == 503
    await store.close()


async def test_a_locked_sqlite_is_unavailable_and_nothing_is_lost(tmp_path: Path, usage: Make) -> None:
    """While another program holds the database, drains fail and the spool keeps all; afterwards all is billed."""
    store = await Store.open(tmp_path / "s.db")
    spool = UsageSpool(tmp_path / "spool")
    async with store._read() as connection:  # the wait shortened on every pooled connection there is: this one
        await connection.exec_driver_sql("PRAGMA busy_timeout=50")
    thief = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    thief.execute("BEGIN IMMEDIATE")
    for number in range(5):
        spool.append(usage(f"r{number}"))
        with pytest.raises(StoreUnavailable):
            await spool.drain(store)
    thief.execute("ROLLBACK")
    thief.close()
    assert await spool.drain(store) == 5
    assert (await store.spent("2026-09"))["key_1"].requests == 5
    spool.close()
    await store.close()


async def test_an_outage_of_postgresql_loses_nothing(postgres: Any, tmp_path: Path, usage: Make) -> None:
    """The server dies and comes back: StoreUnavailable meanwhile, then the same Store works and all is billed."""
    store = await Store.open(postgres.new_database())
    spool = UsageSpool(tmp_path / "spool")
    spool.append(usage("before"))
    assert await spool.drain(store) == 1
    postgres.stop()
    try:
        for number in range(3):
            spool.append(usage(f"r{number}"))
            with pytest.raises(StoreUnavailable):
                await spool.drain(store)
        with pytest.raises(StoreUnavailable):
            await store.check()
    finally:
        postgres.start()
    assert await spool.drain(store) == 3
    assert (await store.spent("2026-09"))["key_1"].requests == 4
    spool.close()
    await store.close()
