"""Two runners, killed runners and what they leave, with real processes."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path

import journal_harness as harness
import psutil
import pytest
from journal_harness import CHILD, Counted, done, entered, lines, opened, posix, the_run, the_step

from sekisho.core.clock import ManualClock
from sekisho.evaluate.durable import journal as journal_module
from sekisho.evaluate.durable import run_owner
from sekisho.evaluate.durable.journal_errors import (
    RunBusy,
    RunLost,
)
from sekisho.evaluate.durable.run_owner import LEASE_S
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import RunRecord, Store

clock, folder, store = harness.clock, harness.folder, harness.store


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process that is told to end may come to it late."""
    monkeypatch.setattr(run_owner, "_GRACE_S", 60.0)


async def test_a_second_runner_in_the_same_process_is_refused(store: Store, folder: Path) -> None:
    """It is told the process id; the first goes on undisturbed, and afterwards the run is free."""
    async with opened(store, folder) as journal:
        with pytest.raises(RunBusy, match=f"process {os.getpid()} works in"):
            await entered(store, folder)
        assert await journal.step("a", None, Counted()) == 1
    await entered(store, folder)


async def test_an_owner_elsewhere_holds_the_run_for_its_lease(
    store: Store, folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder's lock does not reach (another machine), the owner in the database counts: refused with its
    process and host while it was seen lately, taken over afterwards; the old one then writes nothing any more."""
    monkeypatch.setattr("sekisho.ops.instance_lock.try_lock", lambda descriptor: True)
    monkeypatch.setattr("platform.node", lambda: "gpu-7")

    async def overtaken(context: StepContext) -> str:
        with pytest.raises(RunBusy, match=f"process {os.getpid()} on gpu-7"):
            await entered(store, folder)
        monkeypatch.setattr("sekisho.evaluate.durable.run_owner._place", lambda: "another machine")
        clock.advance(LEASE_S / 2)
        with pytest.raises(RunBusy, match=f"process {os.getpid()} on gpu-7"):
            await entered(store, folder)
        clock.advance(LEASE_S)
        assert await done(store, folder, ("a", Counted("second.txt"))) == [1]
        with pytest.raises(RunLost):
            await context.checkpoint("mine")
        with pytest.raises(RunLost):
            context.write("x", b"")
        return "never kept"

    async def overtaken_life() -> None:
        async with opened(store, folder) as journal:
            for key in ("a", "b"):
                with pytest.raises(RunLost, match="taken over"):
                    await journal.step(key, key, overtaken)

    with pytest.raises(RunLost, match="taken over"):
        await overtaken_life()
    assert [(step.key, step.state, step.result) for step in await store.run_steps("run-1")] == [("a", "done", "1")]
    assert (await the_run(store)).state == "finished"


async def test_an_owner_tells_that_it_lives(
    store: Store, folder: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any step the owner's time in the database moves on, and a forgotten run is noticed without a write."""
    monkeypatch.setattr(journal_module, "HEARTBEAT_S", 0.01)

    async def until(condition: Callable[[RunRecord | None], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition(await store.get_run("run-1")):  # noqa: ASYNC110 - a row, no event to wait for
                await asyncio.sleep(0.01)

    async def work(context: StepContext) -> None:
        clock.advance(500)
        await until(lambda run: run is not None and run.owner is not None and run.owner.seen_at == clock.now())
        await store.forget_run("run-1")
        async with asyncio.timeout(60):
            while True:
                context.write("x", b"")
                await asyncio.sleep(0.01)

    async def life() -> None:
        async with opened(store, folder) as journal:
            await journal.step("a", None, work)

    with pytest.raises(RunLost):
        await life()


def living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def holder(tmp_path: Path, folder: Path, what: str) -> tuple[Process, list[int]]:
    """A runner in a process of its own that is at work, and the processes that it started."""
    command = (sys.executable, str(CHILD), "hold", str(tmp_path / "s.db"), str(folder), what)
    process = await asyncio.create_subprocess_exec(*command)
    while not (told := lines(Path(f"{folder}.told"))):
        assert process.returncode is None
        await asyncio.sleep(0.01)
    return process, [int(pid) for pid in told[0].split()[1:]]


@posix
@pytest.mark.parametrize("what", ["nothing", "processes", "fork"])
async def test_a_killed_runner_frees_the_run_and_its_orphans_are_ended(
    store: Store, folder: Path, tmp_path: Path, what: str
) -> None:
    """While it lives, a second runner is told its process id. After kill -9 the run goes on at once: the child that was
    kept, what that child started, one that only bears the mark and a forked one, which had the lock, are all gone
    before the step runs again."""
    process, pids = await holder(tmp_path, folder, what)
    try:
        with pytest.raises(RunBusy, match=f"process {process.pid} works in"):
            await entered(store, folder)
        process.kill()
        await process.wait()
        assert len(pids) == {"nothing": 0, "fork": 1, "processes": 3}[what]
        assert all(map(living, pids))
        seen: list[bool] = []

        async def engine(context: StepContext) -> int:
            seen.extend(map(living, pids))
            return context.attempt

        async with opened(store, folder, {}) as journal:
            assert await journal.step("engine", None, engine) == 2
        assert seen == [False] * len(pids)
    finally:
        for pid in pids:
            if living(pid):
                os.kill(pid, signal.SIGKILL)


@posix
async def test_a_failed_step_leaves_no_child_to_its_next_attempt(store: Store, folder: Path) -> None:
    """In one life: what the first attempt left running is ended before the second one begins. A process that has ended
    is not kept, nor is one of the same id that was born at another time ever touched."""
    children: list[Process] = []

    async def engine(context: StepContext) -> int:
        if context.attempt == 1:
            gone = await asyncio.create_subprocess_exec("true")
            await gone.wait()
            await context.child(gone)
            children.append(await asyncio.create_subprocess_exec("sleep", "600"))
            await context.child(children[0])
            assert [child.pid for child in (await the_step(store, "engine")).children] == [children[0].pid]
            raise RuntimeError("the engine does not answer")
        assert not living(children[0].pid)
        return context.attempt

    async with opened(store, folder) as journal:
        with pytest.raises(RuntimeError):
            await journal.step("engine", None, engine)
        assert await journal.step("engine", None, engine) == 2
    assert await children[0].wait() == -signal.SIGTERM
    assert (await the_step(store, "engine")).children == ()

    bystander = await asyncio.create_subprocess_exec("sleep", "600")
    async with store._write() as connection:
        kept = json.dumps([{"pid": bystander.pid, "birth": "another boot/1"}])
        await connection.exec_driver_sql("UPDATE run_steps SET state = 'running', children = ?", (kept,))
    assert await done(store, folder, plan=None) == []
    assert living(bystander.pid)
    bystander.kill()
    await bystander.wait()
