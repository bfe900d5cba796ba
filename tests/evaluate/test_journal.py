"""The journal: results, failures, cancels, checkpoints, a database in trouble."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import journal_harness as harness
import msgspec
import pytest
from journal_harness import Counted, done, opened, the_run, the_step

from sekisho.core.clock import ManualClock
from sekisho.core.errors import StoreUnavailable
from sekisho.evaluate.durable import journal as journal_module
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.evaluate.figures import Figure
from sekisho.store import StepRecord, Store

clock, folder, store = harness.clock, harness.folder, harness.store


async def test_a_finished_step_gives_its_stored_result_and_does_nothing(store: Store, folder: Path) -> None:
    """Within one life and in the next one the result is the same value, of the types that JSON has."""
    figure = Figure(id="gate.engine.models", value=True)
    calls = 0

    async def work(context: StepContext) -> object:
        nonlocal calls
        calls += 1
        return {"figures": (figure,), "text": "計測\0", "none": None, "share": 0.25}

    async def nothing(_: StepContext) -> None:
        nonlocal calls
        calls += 1

    results = []
    for _ in range(2):
        async with opened(store, folder) as journal:
            results += [await journal.step("a", {"y": 1, "x": 2}, work) for _ in range(2)]
            results += [await journal.step("nothing", None, nothing)]
            results += [await journal.step("a", {"x": 2, "y": 1}, work)]
    assert calls == 2
    expected = {"figures": [msgspec.to_builtins(figure)], "text": "計測\0", "none": None, "share": 0.25}
    assert results == 2 * [expected, expected, None, expected]
    assert msgspec.convert(results[0]["figures"], tuple[Figure, ...]) == (figure,)


async def test_progress_reaches_the_work_and_is_told_of_what_was_done_before(store: Store, folder: Path) -> None:
    """A step that works tells as it likes; one that is finished counts as one of one."""
    told: list[tuple[str, int, int]] = []

    async def work(context: StepContext) -> None:
        context.progress("cells", 2, 9)

    for _ in range(2):
        async with opened(store, folder) as journal:
            await journal.step("a", None, work, progress=lambda *values: told.append(values))
    assert told == [("cells", 2, 9), ("a", 1, 1)]


async def test_steps_run_side_by_side_but_none_twice_at_once(store: Store, folder: Path) -> None:
    """Ten keys at once all end as done, in the order in which they were begun; a key that is at work is refused."""

    async def work(context: StepContext) -> int:
        for part in range(3):
            await context.checkpoint(part)
        return context.attempt

    async with opened(store, folder) as journal:
        steps = [journal.step(f"s{n}", n, work) for n in range(10)]
        outcomes = await asyncio.gather(*steps, journal.step("s3", 3, work), return_exceptions=True)
    assert outcomes[:10] == [1] * 10
    assert isinstance(outcomes[10], RuntimeError)
    steps_kept = await store.run_steps("run-1")
    assert [step.key for step in steps_kept] == [f"s{n}" for n in range(10)]
    assert [step.position for step in steps_kept] == list(range(1, 11))
    assert {step.state for step in steps_kept} == {"done"}


# Failing, cancelled, checkpoints


async def test_a_failed_step_keeps_its_error_and_is_tried_again(store: Store, folder: Path) -> None:
    """Two failures, then success: attempts are counted, the error is kept without the key that stood in it, and the
    finished step before it is not repeated."""
    before = Counted()
    attempts: list[int] = []

    async def shaky(context: StepContext) -> str:
        attempts.append(context.attempt)
        if len(attempts) < 3:
            raise ConnectionError(f"no answer {len(attempts)} for sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD")
        return "in the end"

    for number in (1, 2):
        with pytest.raises(ConnectionError, match=f"no answer {number}"):
            await done(store, folder, ("before", before), ("shaky", shaky))
        failed = await the_step(store, "shaky")
        assert (failed.state, failed.attempts) == ("failed", number)
        assert failed.error is not None
        assert failed.error.startswith(f"ConnectionError: no answer {number} for [")
        assert "sk-proj" not in failed.error
        assert ((await the_run(store)).state, (await the_run(store)).owner) == ("failed", None)
    assert await done(store, folder, ("before", before), ("shaky", shaky)) == [1, "in the end"]
    assert attempts == [1, 2, 3]
    assert before.calls == 1
    last = await the_step(store, "shaky")
    assert (last.state, last.attempts, last.error) == ("done", 3, None)


async def test_a_result_that_is_no_json_is_a_failure_of_the_step(store: Store, folder: Path) -> None:
    """A programmer's error is raised as such, and nothing counts as done."""

    async def work(_: StepContext) -> object:
        return object()

    with pytest.raises(TypeError):
        await done(store, folder, ("a", work))
    assert (await the_step(store, "a")).state == "failed"


async def test_a_long_step_goes_on_from_its_checkpoint(store: Store, folder: Path) -> None:
    """After a failure and after a second one: only what came after the last checkpoint is done again, and the files of
    the earlier attempts count among the step's."""
    parts: list[int] = []

    async def long(context: StepContext) -> int:
        for part in range(context.state or 0, 6):
            parts.append(part)
            context.write(f"parts/{part}.bin", bytes([part]))
            if part == 2 * context.attempt:
                raise RuntimeError("cut")
            await context.checkpoint(part + 1)
            assert context.state == part + 1
        return len(parts)

    for _ in range(2):
        with pytest.raises(RuntimeError, match="cut"):
            await done(store, folder, ("long", long))
    assert await done(store, folder, ("long", long)) == [8]
    assert parts == [0, 1, 2, 2, 3, 4, 4, 5]
    kept = await the_step(store, "long")
    assert kept.artifacts == {f"parts/{n}.bin": sha256(bytes([n])).hexdigest() for n in range(6)}
    assert kept.checkpoint is None


async def test_a_checkpoint_whose_files_were_altered_is_not_gone_on_from(store: Store, folder: Path) -> None:
    """What the earlier attempt wrote is gone: the step begins anew, and says nothing it cannot vouch for."""
    states: list[object] = []

    async def long(context: StepContext) -> None:
        states.append(context.state)
        context.write("part.bin", b"good")
        await context.checkpoint("half")
        if context.attempt < 3:
            raise RuntimeError("cut")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            await done(store, folder, ("long", long))
        (folder / "part.bin").write_bytes(b"other")
    await done(store, folder, ("long", long))
    assert states == [None, None, None]


async def test_an_interrupted_run_is_abandoned_and_goes_on(store: Store, folder: Path) -> None:
    """Ctrl+C is a cancel: the step says so, the run has no owner any more, and the next life finishes it."""
    started = asyncio.Event()

    async def slow(context: StepContext) -> str:
        if context.attempt == 1:
            await context.checkpoint("half")
            started.set()
            await asyncio.sleep(3600)
        return context.state

    task = asyncio.create_task(done(store, folder, ("slow", slow)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ((await the_run(store)).state, (await the_run(store)).owner) == ("abandoned", None)
    assert ((await the_step(store, "slow")).state, (await the_step(store, "slow")).error) == ("failed", "interrupted")
    assert await done(store, folder, ("slow", slow)) == ["half"]
    assert (await the_run(store)).state == "finished"


async def test_a_cancel_at_any_moment_leaves_a_run_that_goes_on(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled before each of its database writes in turn, the run is finished afterwards, every result is right, and
    what had been acknowledged is not repeated."""
    answered: set[str] = set()
    writes = 0
    cancel_at = 0
    running: list[asyncio.Task[Any]] = []
    real = Store.put_step

    async def put_step(self: Store, step: StepRecord, token: str) -> bool:
        nonlocal writes
        writes += 1
        if writes == cancel_at:
            running[-1].cancel()
        return await real(self, step, token)

    async def work(context: StepContext) -> int:
        await context.checkpoint(context.attempt)
        return 7

    async def life() -> None:
        async with opened(store, folder) as journal:
            for key in ("a", "b", "c"):
                begun = next((step.attempts for step in journal.steps if step.key == key), 0)
                assert await journal.step(key, key, work) == 7
                if key in answered:
                    assert (await the_step(store, key)).attempts == begun
                answered.add(key)

    monkeypatch.setattr(Store, "put_step", put_step)
    for cancel_at in range(1, 12):  # noqa: B007 - read by put_step
        writes = 0
        running.append(asyncio.create_task(life()))
        with contextlib.suppress(asyncio.CancelledError):
            await running[-1]
        assert (await the_run(store)).owner is None
    cancel_at = 0
    await life()
    assert (await the_run(store)).state == "finished"
    assert [step.state for step in await store.run_steps("run-1")] == ["done"] * 3


async def test_a_result_on_its_way_is_kept_when_the_run_is_cancelled(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while a slow database takes a step's `done`: the run waits for that and leaves afterwards."""
    real = Store.put_step
    running: list[asyncio.Task[Any]] = []

    async def put_step(self: Store, step: StepRecord, token: str) -> bool:
        if step.state == "done":
            running[0].cancel()
            await asyncio.sleep(0.2)
        return await real(self, step, token)

    monkeypatch.setattr(Store, "put_step", put_step)
    running.append(asyncio.create_task(done(store, folder, ("a", Counted()))))
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    assert ((await the_step(store, "a")).state, (await the_step(store, "a")).result) == ("done", "1")
    assert (await the_run(store)).state == "abandoned"


async def test_a_run_is_finished_only_when_all_that_was_asked_for_is_done(
    store: Store, folder: Path, clock: ManualClock
) -> None:
    """A failure that the caller swallows leaves the run failed; and looking at a finished run does not move its end."""

    async def bad(context: StepContext) -> None:
        if context.attempt == 1:
            raise RuntimeError("once")

    async with opened(store, folder) as journal:
        with pytest.raises(RuntimeError):
            await journal.step("bad", None, bad)
    assert ((await the_run(store)).state, (await the_run(store)).finished_at) == ("failed", None)
    async with opened(store, folder) as journal:
        await journal.step("bad", None, bad)
    end = clock.now()
    clock.advance(1000)
    async with opened(store, folder) as journal:
        await journal.step("bad", None, bad)
    assert ((await the_run(store)).state, (await the_run(store)).finished_at) == ("finished", end)


@pytest.fixture
async def thief(store: Store, tmp_path: Path) -> AsyncIterator[sqlite3.Connection]:
    """Another program that can take SQLite's write lock; our own waiting is cut to 50 ms a try."""
    async with store._read() as connection:
        await connection.exec_driver_sql("PRAGMA busy_timeout=50")
    connection = sqlite3.connect(tmp_path / "s.db", isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


async def test_a_locked_database_is_waited_for(store: Store, folder: Path, thief: sqlite3.Connection) -> None:
    """The result of a step is kept although the database was locked when the work was done."""
    work = Counted()

    async def locking(context: StepContext) -> int:
        thief.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.4, thief.execute, "ROLLBACK")
        return await work(context)

    assert await done(store, folder, ("a", locking)) == [1]
    assert await done(store, folder, ("a", locking)) == [1]
    assert (await the_run(store)).state == "finished"


async def test_a_database_that_stays_away_loses_no_finished_step(
    store: Store, folder: Path, thief: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patience ends in StoreUnavailable: not in a step that counts as done and is not, nor in the work's own error
    being hidden; the next life does the step again and the finished one not."""
    monkeypatch.setattr(journal_module, "PATIENCE_S", 0.0)
    first, second = Counted("1.txt"), Counted("2.txt")

    async def locking(context: StepContext) -> int:
        if second.calls < 2:
            thief.execute("BEGIN IMMEDIATE")
        if second.calls == 1:
            second.calls += 1
            raise RuntimeError("the work's own")
        return await second(context)

    with pytest.raises(StoreUnavailable):
        await done(store, folder, ("a", first), ("b", locking))
    thief.execute("ROLLBACK")
    assert ((await the_step(store, "b")).state, (await the_step(store, "b")).result) == ("running", None)
    with pytest.raises(RuntimeError, match="the work's own"):
        await done(store, folder, ("a", first), ("b", locking))
    thief.execute("ROLLBACK")
    assert await done(store, folder, ("a", first), ("b", locking)) == [1, 3]
    assert (await the_step(store, "b")).attempts == 3
    assert first.calls == 1
