"""The database gone, locked, broken, the disk full, clients that leave in mid-write: told with an id, nothing lost."""

import asyncio
import importlib.util
import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hostile_harness import RawConnection, error_id, eventually, request_bytes

from sekisho.core.clock import ManualClock
from sekisho.core.errors import Unauthenticated
from sekisho.gateway.identity import KeyRing
from sekisho.gateway.ledger import Ledger
from sekisho.store import KeySpec, Store, UsageRecord, UsageSpool

if TYPE_CHECKING:
    from conftest import Target

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
HELLO = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
KEEP = {"model": "fake", "input": "hello"}
OwnTarget = Callable[..., "Target"]


def unavailable(answer: httpx.Response) -> None:
    """Checks a 503 of the store: our trouble, with an id, and the word when to come again."""
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "store_unavailable"
    assert error_id("chat", answer)
    assert int(answer.headers["retry-after"]) >= 1


def completed(target: "Target") -> int:
    return sum(row.status == "completed" for row in target.usage())


# --- PostgreSQL that comes and goes -----------------------------------------------------------------------------------


@pytest.fixture
def postgres() -> Iterator[Any]:
    """A PostgreSQL of this test's own, to be stopped and started."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    located = shutil.which("initdb")
    binaries = found[-1].parent if found else Path(located).parent if located else None
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (Debian package postgresql)")
    source = Path(__file__).parents[1] / "store" / "conftest.py"
    spec = importlib.util.spec_from_file_location("store_conftest", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(tempfile.mkdtemp(prefix="sekisho-pg-", dir="/tmp"))  # short: a socket's path has 107 bytes
    server = module.Postgres(binaries, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_database_that_comes_late_and_goes_away(own_target: OwnTarget, postgres: Any) -> None:
    """Without it at the start: 503 and never 401, for known and unknown keys. It comes: served without a hand. It goes:
    who was known works on, who was not gets 503, and the usage of that time is in the database afterwards."""
    target = own_target(database=postgres.new_database())
    target.close()
    postgres.stop()
    target.start(wait=False)
    for key in (target.key, "sk-sekisho-nobody"):
        unavailable(httpx.post(target.process.url + CHAT, json=HELLO, headers={"x-api-key": key}))
    assert httpx.get(target.process.url + "/readyz").status_code == 503
    missing = httpx.post(target.process.url + CHAT, json=HELLO)
    assert missing.status_code == 401, "who shows no key needs no database to be refused"
    postgres.start()
    client, stranger = target.process.client(target.key), target.process.client("sk-sekisho-nobody")
    assert eventually(lambda: client.post(CHAT, json=HELLO).status_code == 200)
    assert stranger.post(CHAT, json=HELLO).status_code == 401
    assert eventually(lambda: client.get("/readyz").status_code == 200)
    assert eventually(lambda: completed(target) == 1)
    postgres.stop()
    assert [client.post(CHAT, json=HELLO).status_code for _ in range(20)] == [200] * 20
    unavailable(stranger.post(CHAT, json=HELLO))
    unavailable(client.post(RESPONSES, json=KEEP))
    assert client.post(RESPONSES, json={**KEEP, "store": False}).status_code == 200
    postgres.start()
    assert eventually(lambda: client.post(RESPONSES, json=KEEP).status_code == 200)
    assert eventually(lambda: {row.request_id for row in target.usage()} and completed(target) >= 23)
    chats = [row for row in target.usage() if row.protocol == "chat" and row.status == "completed"]
    assert len(chats) == 21
    client.close()
    stranger.close()


# --- SQLite in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_that_somebody_locks_for_long(own_target: OwnTarget) -> None:
    """Ten seconds of a foreign write lock: chats go on, what must be stored is refused with an id, then all is well."""
    target = own_target()
    assert target.client.post(CHAT, json=HELLO).status_code == 200
    other = sqlite3.connect(target.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert [target.client.post(CHAT, json=HELLO).status_code for _ in range(10)] == [200] * 10
    unavailable(target.client.post(RESPONSES, json=KEEP))
    time.sleep(max(0.0, 10 - (time.monotonic() - began)))
    other.execute("COMMIT")
    other.close()
    kept = target.client.post(RESPONSES, json=KEEP)
    assert kept.status_code == 200
    assert target.client.get(f"{RESPONSES}/{kept.json()['id']}").status_code == 200
    assert eventually(lambda: sum(row.protocol == "chat" for row in target.usage()) == 11)


def test_a_file_that_somebody_locks_for_a_moment(own_target: OwnTarget) -> None:
    """A foreign write lock delays what is stored, and loses nothing."""
    target = own_target()
    other = sqlite3.connect(target.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        keeping = pool.submit(target.client.post, RESPONSES, json=KEEP)
        assert eventually(lambda: target.completed() == 1)  # what follows is to store it
        time.sleep(0.3)
        assert not keeping.done()
        other.execute("COMMIT")
        kept = keeping.result()
    other.close()
    assert kept.status_code == 200
    assert target.client.get(f"{RESPONSES}/{kept.json()['id']}").json()["output"]
    assert eventually(lambda: completed(target) == 1)


@pytest.mark.parametrize("damage", ["folder", pytest.param("garbage", marks=pytest.mark.slow)])
def test_a_file_that_cannot_be_used_at_the_start(own_target: OwnTarget, damage: str) -> None:
    """A folder in its place, bytes that are no database: 503 with an id, and service as soon as the file is back."""
    target = own_target()
    target.close()
    file, safe = Path(target.database), Path(target.database + ".safe")
    file.rename(safe)
    for suffix in ("-wal", "-shm"):
        Path(target.database + suffix).unlink(missing_ok=True)
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(b"this is no database at all " * 400)
    target.start(wait=False)
    client = target.process.client(target.key)
    unavailable(client.post(CHAT, json=HELLO))
    assert client.get("/readyz").status_code == 503
    assert "traceback" not in target.process.log()
    if damage == "folder":
        file.rmdir()
    safe.replace(file)
    assert eventually(lambda: client.post(CHAT, json=HELLO).status_code == 200)
    assert eventually(lambda: completed(target) == 1)
    client.close()


def test_a_full_disk_refuses_what_it_cannot_book(own_target: OwnTarget) -> None:
    """While nothing can be written, whole answers are 503 with an id and streams end with an error instead of their
    end; before and after, everything is booked once."""
    target = own_target()
    for _ in range(5):
        assert target.client.post(CHAT, json=HELLO).status_code == 200
    assert eventually(lambda: completed(target) == 5)
    target.process.fill_disk(True)
    try:
        for _ in range(3):
            unavailable(target.client.post(CHAT, json=HELLO))
            unavailable(target.client.post(RESPONSES, json=KEEP))
        stream = target.client.post(CHAT, json={**HELLO, "stream": True}).text
        assert "err_" in stream
        assert "[DONE]" not in stream
        assert target.client.get("/v1/models").status_code == 200
    finally:
        target.process.fill_disk(False)
    for _ in range(5):
        assert eventually(lambda: target.client.post(CHAT, json=HELLO).status_code == 200)
    assert target.client.post(RESPONSES, json=KEEP).status_code == 200
    assert eventually(lambda: completed(target) == 11)
    target.close()
    assert completed(target) == 11
    ids = [row.request_id for row in target.usage()]
    assert len(ids) == len(set(ids))


# --- clients that leave in mid-write; crowds --------------------------------------------------------------------------


def test_leaving_in_the_middle_of_a_write_locks_nothing(target: "Target") -> None:
    """Sixty clients leave at random moments of storing a response; a colleague's is stored between them each time."""
    dice = random.Random(5)
    body = b'{"model":"fake","input":"hello","stream":%b}'
    for number in range(60):
        with RawConnection(target.port) as raw:
            stream = b"true" if number % 2 else b"false"
            raw.send(request_bytes("POST", RESPONSES, target.key, body % stream))
            time.sleep(dice.random() * 0.012)
        if number % 6 == 0:
            kept = target.colleague.post(RESPONSES, json=KEEP)
            assert kept.status_code == 200, kept.text
            assert target.colleague.get(f"{RESPONSES}/{kept.json()['id']}").status_code == 200
    assert "database is locked" not in target.process.log()


async def test_two_hundred_clients_at_once_are_all_booked(target: "Target") -> None:
    """200 connections that ask in the same moment, half of them streaming: 200 whole answers, 200 rows."""

    async def ask(client: httpx.AsyncClient, number: int) -> str:
        body = {**HELLO, "stream": number % 2 == 0, "user": f"crowd-{number}"}
        return (await client.post(CHAT, json=body)).text

    limits = httpx.Limits(max_connections=200)
    headers = {"authorization": f"Bearer {target.key}"}
    async with httpx.AsyncClient(base_url=target.process.url, limits=limits, headers=headers, timeout=60) as client:
        texts = await asyncio.gather(*(ask(client, number) for number in range(200)))
    assert all(("[DONE]" in text) if number % 2 == 0 else ('"stop"' in text) for number, text in enumerate(texts))

    def users() -> list[str | None]:
        return sorted(str(row.user) for row in target.usage() if str(row.user).startswith("crowd-"))

    found = await asyncio.to_thread(lambda: eventually(lambda: rows if len(rows := users()) >= 200 else None))
    assert found == sorted(f"crowd-{number}" for number in range(200))


# --- clocks that jump -------------------------------------------------------------------------------------------------


async def test_a_key_expires_by_the_wall_clock_whichever_way_it_jumps(tmp_path: Path) -> None:
    """Forward beyond the key's end: refused at once. Back again: valid again, without a restart."""
    clock = ManualClock()
    store = await Store.open(tmp_path / "x.db", clock=clock)
    _, secret = await store.create_key(KeySpec(name="a", expires_at=clock.now() + 3600))
    ring = KeyRing(lambda: store, clock)
    headers = {b"x-api-key": secret.encode()}
    assert (await ring.identify(headers)).record.name == "a"
    clock.jump(7200)
    with pytest.raises(Unauthenticated):
        await ring.identify(headers)
    clock.jump(-7200)
    assert (await ring.identify(headers)).record.name == "a"
    await store.close()


async def test_spending_follows_the_month_of_the_wall_clock(tmp_path: Path) -> None:
    """A jump into the next month starts a new account; a jump back finds the old one, with nothing lost or doubled."""
    clock = ManualClock()
    store = await Store.open(tmp_path / "x.db", clock=clock)
    spool = UsageSpool(tmp_path / "spool")
    ledger = Ledger(spool, lambda: store, clock, {})

    def book(request_id: str, tokens: int) -> None:
        ledger.record(
            UsageRecord(
                request_id=request_id,
                key_id="k",
                model="m",
                protocol="chat",
                started_at=clock.now(),
                duration_ms=1.0,
                status="completed",
                http_status=200,
                input_tokens=tokens,
                output_tokens=0,
            )
        )

    book("r1", 5)
    assert ledger.spending("k").tokens == 5
    await ledger.drain()
    clock.jump(40 * 86_400)
    clock.advance(2.0)
    assert ledger.spending("k").tokens == 0
    book("r2", 7)
    await ledger.drain()
    assert ledger.spending("k").tokens == 7
    clock.jump(-40 * 86_400)
    clock.advance(2.0)
    ledger.spending("k")
    await ledger.drain()
    assert ledger.spending("k").tokens == 5
    assert len([row async for row in store.usage_rows(0, 1e11)]) == 2
    spool.close()
    await store.close()


STRANGE_IDS = ["resp_\x00", "\x00", "resp_\ud800", "x" * 100_000, "é" * 300, "'; DROP TABLE responses; --", "%", "_"]


def check_strange_ids(target: "Target") -> None:
    def send(path: str, body: dict[str, Any]) -> httpx.Response:
        return target.client.post(path, content=json.dumps(body).encode())  # with escapes: httpx refuses surrogates

    for strange in STRANGE_IDS:
        body = {**KEEP, "previous_response_id": strange, "user": strange, "metadata": {"a": strange[:500]}}
        answer = send(RESPONSES, body)
        assert answer.status_code in (400, 404), (strange, answer.text)
    for escaped in ("%00", "resp_%00", "%ED%A0%80", "%ff", "%25", "x" * 8_000):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            answer = target.client.request(method, f"{RESPONSES}/{escaped}{path}")
            assert answer.status_code in (400, 404), (method, escaped, answer.text)
    rows = len(target.usage())
    users = ["a\x00b", "\ud800", "é" * 1000, "", " ", "\u202e", "x\r\ny"]
    for user in users:
        assert send(CHAT, {**HELLO, "user": user}).status_code in (200, 400)
        kept = send(RESPONSES, {**KEEP, "input": f"hello {user}", "user": user})
        if kept.status_code == 200:
            assert target.client.get(f"{RESPONSES}/{kept.json()['id']}").json()["output"] == kept.json()["output"]
        else:
            assert kept.status_code == 400, kept.text
    target.client.post(CHAT, json={**HELLO, "user": "last"})
    assert eventually(lambda: any(row.user == "last" for row in target.usage()[rows:]))


def test_strange_ids_and_users_do_not_trouble_sqlite(target: "Target") -> None:
    """NUL, lone surrogates, very long ids and user names: 4xx, or stored and given back; the book goes on."""
    check_strange_ids(target)


@pytest.mark.slow
def test_strange_ids_and_users_do_not_trouble_postgresql(own_target: OwnTarget, postgres: Any) -> None:
    """The same where the database itself refuses NUL in a text."""
    target = own_target(database=postgres.new_database())
    check_strange_ids(target)
    assert "0x00" not in target.process.log()
