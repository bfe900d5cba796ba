"""Stores to test: SQLite in a fresh file, and a real PostgreSQL that this session starts on a Unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from sekisho.core.clock import ManualClock
from sekisho.store import Store, UsageRecord

START = 1_790_000_000.0


class Postgres:
    """A server in its own folder, run by an unprivileged user, without disk syncs. Knows `stop` and `start`."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self.folder = folder
        self._as_user: list[str] = []
        self._databases = 0
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._run("initdb", "-D", f"{folder}/data", "-U", "sekisho", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=60"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run("createdb", "-h", str(self.folder), "-U", "sekisho", name)
        return f"postgres://sekisho@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user, str(self._binaries / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # not a pipe: the server would inherit and hold it
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed; see {self.folder}/log"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    located = shutil.which("initdb")
    binaries = found[-1].parent if found else Path(located).parent if located else None
    if binaries is None:
        pytest.skip("PostgreSQL is not installed here (Debian package postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="sekisho-pg-", dir="/tmp"))  # short: a socket's path has 107 bytes
    server = Postgres(binaries, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    """One migrated database for the contract tests; each test empties it."""
    return postgres.new_database()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database of each kind, not migrated."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sekisho.db"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    """An empty store of each kind: what holds on one holds on the other."""
    url = str(tmp_path / "sekisho.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = await Store.open(url, clock=clock)
    await empty(opened)
    try:
        yield opened
    finally:
        await opened.close()


async def empty(store: Store) -> None:
    """Leaves the tables as after the first migration."""
    async with store._write() as connection:
        for table in ("key_secrets", "keys", "usage", "usage_months", "responses", "meta", "escalations"):
            await connection.execute(text(f"DELETE FROM {table}"))
        await connection.execute(text("UPDATE revisions SET value = 0"))


@pytest.fixture(scope="session")
def usage() -> Callable[..., UsageRecord]:
    """`usage("r1", model="m")`: a completed request of key `key_1`, with changes."""

    def make(request_id: str, **changes: object) -> UsageRecord:
        fields: dict[str, object] = {
            "request_id": request_id,
            "key_id": "key_1",
            "model": "mini",
            "protocol": "chat",
            "started_at": START,
            "duration_ms": 12.5,
            "status": "completed",
            "http_status": 200,
            "input_tokens": 7,
            "output_tokens": 5,
            "cost_micros": 3,
        }
        return UsageRecord(**(fields | changes))  # type: ignore[arg-type]

    return make
