"""kill -9 at any moment: everything acknowledged is billed exactly once."""

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from sekisho.core.clock import ManualClock
from sekisho.store import Spent, Store, UsageSpool

ROUNDS = 8
SEED = 20261120

# Forks a worker for every name it reads (imports cost half a second, a fork nothing) and tells its process id.
# A worker is a gateway in small: it adopts, appends, acknowledges each record in a file, and drains all the time.
NURSERY = """
import asyncio, os, signal, sys
from pathlib import Path
from sekisho.store import Store, UsageRecord, UsageSpool, backends

backends.BUSY_TIMEOUT_MS = 60_000  # a machine that stalls in mid-transaction is no fault of the other worker

async def main(url, folder, name):
    told = os.open(f"{folder}/{name}.told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = await Store.open(url, migrate=False)
    spool = UsageSpool(Path(folder), segment_bytes=20_000)
    spool.recover()

    async def drain():
        while True:
            await spool.drain(store)
            await asyncio.sleep(0.002)

    draining = asyncio.create_task(drain())
    number = 0
    while not draining.done():
        for _ in range(5):
            number += 1
            spool.append(UsageRecord(
                request_id=f"{name}-{number}", key_id=f"key_{number % 3}", model="m", protocol="chat",
                started_at=1_790_000_000.0 + number, duration_ms=1.0, status="completed", http_status=200,
                input_tokens=number, output_tokens=1, cost_micros=2))
            os.write(told, f"{name}-{number}\\n".encode())
        await asyncio.sleep(0.001)
    await draining

url, folder = sys.argv[1:]
backends.connect(url)  # imports the driver, opens nothing
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(main(url, folder, line.strip()))
    print(child, flush=True)
"""


async def born(nursery: Process, name: str) -> int:
    """The process id of a new worker."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write(f"{name}\n".encode())
    return int(await nursery.stdout.readline())


async def killed(worker: int, folder: Path, name: str, lines: int) -> list[str]:
    """Lets a worker acknowledge some records, kills it, and returns all it acknowledged before it died."""
    while len(acknowledged_by(folder, name)) < lines:
        os.kill(worker, 0)  # raises when it died of itself
        await asyncio.sleep(0.005)
    os.kill(worker, signal.SIGKILL)
    while alive(worker):  # noqa: ASYNC110 (it is not our child: nobody tells us of its end)
        await asyncio.sleep(0.001)
    told = acknowledged_by(folder, name)
    (folder / f"{name}.told").unlink()
    return told


def acknowledged_by(folder: Path, name: str) -> list[str]:
    file = folder / f"{name}.told"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_every_acknowledged_request_is_billed_once_whatever_is_killed(
    store: Store, clock: ManualClock, tmp_path: Path
) -> None:
    """Two workers at a time share folder and database, sixteen are killed at random moments of appending, draining and
    adopting. Afterwards each acknowledged id is in the database, none twice, and the months equal a recount."""
    choose = random.Random(SEED)
    url = store._backend.engine.url.render_as_string(hide_password=False)
    folder = tmp_path / "spool"
    folder.mkdir()
    nursery = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        NURSERY,
        url.replace("+aiosqlite", ""),
        str(folder),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    )
    acknowledged: list[str] = []
    try:
        for round_number in range(ROUNDS):
            names = [f"w{round_number}a", f"w{round_number}b"]
            workers = [(await born(nursery, name), name) for name in names]
            ends = [killed(worker, folder, name, choose.randrange(1, 300)) for worker, name in workers]
            for told in await asyncio.gather(*ends):
                acknowledged += told
    finally:
        os.killpg(nursery.pid, signal.SIGKILL)
        await nursery.wait()
    spool = UsageSpool(folder)
    spool.recover()
    await spool.drain(store)
    spool.close()
    assert names_in(folder) == []
    rows = [row async for row in store.usage_rows(0, 1e12)]
    billed = [row.request_id for row in rows]
    assert len(set(billed)) == len(billed)
    assert set(acknowledged) <= set(billed)
    # A worker may die between the append and telling of it: at most one record each.
    assert len(billed) - len(acknowledged) <= 2 * ROUNDS
    recount: dict[str, Spent] = {}
    for row in rows:
        old = recount.get(row.key_id, Spent())
        recount[row.key_id] = Spent(
            old.requests + 1,
            old.input_tokens + (row.input_tokens or 0),
            old.output_tokens + (row.output_tokens or 0),
            old.cost_micros + row.cost_micros,
        )
    assert await store.spent("2026-09") == recount
