"""Findings about keys that are really in a database."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import cases, only, patient

from sekisho.ops.doctor import Finding, Patient, keys
from sekisho.ops.home import Home, RunState, write_state
from sekisho.store import KeySpec, Store

DAY_S = 86_400.0


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    """With an empty database."""
    made = Home(tmp_path / "home").create()
    await (await Store.open(made.database)).close()
    return made


def at(home: Home, **more: object) -> Patient:
    return patient(home, database=str(home.database), **more)  # type: ignore[arg-type]


async def add(home: Home, name: str, **more: object) -> str:
    store = await Store.open(home.database)
    try:
        record, _ = await store.create_key(KeySpec(name=name, **more))  # type: ignore[arg-type]
        return record.id
    finally:
        await store.close()


async def revoke(home: Home, name: str) -> None:
    store = await Store.open(home.database)
    try:
        await store.revoke_key(name)
    finally:
        await store.close()


async def found(home: Home, **more: object) -> list[Finding]:
    return await keys.check_database(at(home, **more))


async def test_databases(tmp_path: Path, home: Home) -> None:
    """None yet is no fault; one that opens is good; a file that is none, and an address where nobody is, are errors
    with different fixes."""
    assert only(await keys.check_database(at(Home(tmp_path / "new")))).case == "database.missing"
    assert (await found(home))[0].case == "database.good"
    home.database.write_bytes(b"not a database" * 100)
    broken = only(await found(home))
    assert (broken.case, "rights" in broken.fix) == ("database.unusable", True)
    gone = only(await keys.check_database(patient(home, database="postgresql://u:geheim@127.0.0.1:1/x")))
    assert (gone.case, "DATABASE_URL" in gone.fix) == ("database.unusable", True)
    assert "geheim" not in repr(gone)
    assert await keys.check_database(patient(home)) == []


async def test_no_key(home: Home) -> None:
    """Before the first start nobody expects one; under a running server nobody could get in."""
    assert cases(await found(home)) == []
    write_state(home, RunState.of_this_process("http://127.0.0.1:1", "1"))
    assert cases(await found(home)) == ["keys.none"]


async def test_keys_that_are_all_dead(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked and expired ones are counted; one that lives is enough."""
    later = time.time() + DAY_S
    await add(home, "old", expires_at=later)
    await add(home, "gone")
    await revoke(home, "gone")
    monkeypatch.setattr(keys, "time", SimpleNamespace(time=lambda: later))  # the doctor comes when that is over
    dead = (await found(home))[1]
    assert (dead.case, "1 revoked, 1 expired" in dead.what) == ("keys.all_dead", True)
    await add(home, "alive")
    assert [f.case for f in await found(home)] == ["database.good", "keys.good"]


async def test_an_admin_key_for_everybody(home: Home) -> None:
    """Told where other machines reach the server and neither the key nor the server is limited."""
    await add(home, "boss", scopes=frozenset({"admin"}))
    assert cases(await found(home)) == []
    for host in ("0.0.0.0", "::", "192.0.2.7", "llm.example.com"):
        told = await found(home, host=host)
        assert cases(told) == ["keys.admin_anywhere"], host
        assert "sekisho key revoke boss" in told[1].fix
    assert cases(await found(home, host="localhost")) == cases(await found(home, host="[::1]")) == []
    assert cases(await found(home, host="0.0.0.0", allow_networks=("10.0.0.0/8",))) == []
    await revoke(home, "boss")
    await add(home, "careful", scopes=frozenset({"admin"}), networks=("10.0.0.0/8",))
    await add(home, "user")
    assert cases(await found(home, host="0.0.0.0")) == []


async def test_keys_that_end_soon(home: Home) -> None:
    """Within seven days, the soonest first, with the day; later ones are not told."""
    await add(home, "next-week", expires_at=time.time() + 6 * DAY_S)
    await add(home, "tomorrow", expires_at=time.time() + DAY_S)
    await add(home, "next-month", expires_at=time.time() + 30 * DAY_S)
    await add(home, "for-ever")
    told = next(f for f in await found(home) if f.case == "keys.expire_soon")
    assert told.what.index("tomorrow") < told.what.index("next-week")
    assert "next-month" not in told.what
    for number in range(9):
        await add(home, f"many{number}", expires_at=time.time() + DAY_S)
    assert "(+6)" in next(f.what for f in await found(home) if f.case == "keys.expire_soon")
