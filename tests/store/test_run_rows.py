"""Runs and steps in the database, and the journal on both kinds of database."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from sekisho.core.clock import ManualClock
from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.durable.journal_errors import RunLost
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import RunOwner, RunRecord, StepChild, StepRecord, Store

NOW = 1_790_000_000.0


@pytest.fixture(autouse=True)
async def _no_runs(store: Store) -> None:
    async with store._write() as connection:
        await connection.execute(text("DELETE FROM runs"))


def run(run_id: str = "run_1", **changes: object) -> RunRecord:
    made = RunRecord(
        id=run_id,
        kind="evaluation",
        title="花子の評価",
        plan='{"bench":{"parallel":[1,2,3]},"nul":"\\u0000"}',
        plan_hash="a" * 64,
        folder="/data/runs/run_1",
        mark="mark_1",
        created_at=NOW,
        updated_at=NOW,
    )
    return msgspec.structs.replace(made, **changes)


def owner(token: str, **changes: object) -> RunOwner:
    made = RunOwner(token=token, pid=4_194_303, birth="boot/7", host="gpu-1", place="boot/ns", seen_at=NOW + 1)
    return msgspec.structs.replace(made, **changes)


def step(key: str = "bench", **changes: object) -> StepRecord:
    made = StepRecord(
        run_id="run_1", key=key, position=1, inputs_hash="b" * 64, state="running", attempts=1, started_at=NOW
    )
    return msgspec.structs.replace(made, **changes)


async def owned(store: Store) -> None:
    await store.create_run(run())
    assert await store.claim_run("run_1", owner("t1"), None, "/data/runs/run_1") is not None


async def test_a_run_comes_back_as_it_was_put(store: Store) -> None:
    """Every field survives with and without an owner; a second run of the same id changes nothing and tells the first;
    an unknown or impossible id is None."""
    assert await store.create_run(run()) == run()
    assert await store.create_run(run(plan="{}", mark="mark_2")) == run()
    kept = await store.create_run(run("run_2", owner=owner("t9", birth=None), finished_at=NOW, state="failed"))
    assert await store.get_run("run_2") == kept
    assert kept.owner == owner("t9", birth=None)
    for hostile in ("run_3", "\0", "\ud800", "x" * 100_000, "", "' OR 1=1 --"):
        assert await store.get_run(hostile) is None
        assert await store.run_steps(hostile) == []
        assert await store.forget_run(hostile) is False


async def test_a_step_comes_back_as_it_was_put_and_is_replaced_whole(store: Store) -> None:
    """Every field survives, and the next record of the same step leaves nothing of the earlier one behind."""
    await owned(store)
    full = step(
        state="done",
        attempts=3,
        finished_at=NOW + 9,
        result='{"花子":"\\u0000"}',
        checkpoint="[1,2]",
        artifacts={"raw/答え.csv": "c" * 64},
        children=(StepChild(7, "boot/1"), StepChild(8, "boot/2")),
        error="RuntimeError: 駄目",
    )
    assert await store.put_step(full, "t1")
    assert await store.run_steps("run_1") == [full]
    bare = step(position=4)
    assert await store.put_step(bare, "t1")
    assert await store.put_step(step("gate", position=2), "t1")
    assert await store.run_steps("run_1") == [step("gate", position=2), bare]


async def test_one_of_many_that_want_a_run_gets_it(store: Store) -> None:
    """Twenty claims at once, of a run that nobody has and of one whose owner is dead: one each gets it."""
    await store.create_run(run())
    instead_of = None
    for life in range(2):
        wishes = [owner(f"t{life}-{n}", pid=n + 1) for n in range(20)]
        claims = await asyncio.gather(*(store.claim_run("run_1", one, instead_of, f"/f{one.pid}") for one in wishes))
        won = [claim for claim in claims if claim is not None]
        assert len(won) == 1
        assert won[0].owner in wishes
        assert won[0].folder == f"/f{won[0].owner.pid}"
        assert await store.get_run("run_1") == won[0]
        instead_of = won[0].owner.token


async def test_who_lost_the_run_changes_nothing_any_more(store: Store, clock: ManualClock) -> None:
    """After a take-over the old owner's steps, signs of life and end are turned away; the new owner's count."""
    await owned(store)
    assert await store.put_step(step(), "t1")
    assert await store.claim_run("run_1", owner("t2"), "t1", "/data/runs/run_1") is not None
    before = await store.get_run("run_1")
    assert not await store.put_step(step(state="done", result="1"), "t1")
    assert not await store.put_step(step("new"), "t1")
    assert not await store.run_seen("run_1", "t1")
    assert not await store.release_run("run_1", "t1", "finished", NOW)
    assert await store.get_run("run_1") == before
    assert await store.run_steps("run_1") == [step()]
    clock.advance(30)
    assert await store.run_seen("run_1", "t2")
    seen = await store.get_run("run_1")
    assert seen is not None
    assert seen.owner == owner("t2", seen_at=clock.now())
    assert await store.release_run("run_1", "t2", "finished", clock.now())
    released = run(state="finished", updated_at=clock.now(), finished_at=clock.now())
    assert await store.get_run("run_1") == released


async def test_steps_of_a_take_over_and_its_victim_never_mix(store: Store) -> None:
    """The old owner writes without pause while the run is taken over: what it wrote after that is not there."""
    await owned(store)
    kept: list[int] = []

    async def write_on() -> None:
        for number in range(60):
            if not await store.put_step(step(attempts=number), "t1"):
                return
            kept.append(number)

    writing = asyncio.create_task(write_on())
    while len(kept) < 5:  # noqa: ASYNC110 - another task's progress
        await asyncio.sleep(0)
    assert await store.claim_run("run_1", owner("t2"), "t1", "/data/runs/run_1") is not None
    at_takeover = await store.run_steps("run_1")
    await writing
    assert await store.run_steps("run_1") == at_takeover


async def test_runs_are_listed_newest_first_and_forgotten_with_their_steps(store: Store) -> None:
    """By kind or all; to forget one leaves the others and their steps."""
    await owned(store)
    await store.put_step(step(), "t1")
    await store.create_run(run("run_2", created_at=NOW + 5, kind="pipeline", owner=owner("t5")))
    await store.put_step(step(run_id="run_2"), "t5")
    assert [one.id for one in await store.list_runs()] == ["run_2", "run_1"]
    assert [one.id for one in await store.list_runs(limit=1)] == ["run_2"]
    assert [one.id for one in await store.list_runs("evaluation")] == ["run_1"]
    assert await store.forget_run("run_1")
    assert not await store.forget_run("run_1")
    assert await store.run_steps("run_1") == []
    assert await store.run_steps("run_2") == [step(run_id="run_2")]
    assert not await store.put_step(step(), "t1")


async def test_a_journal_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    """On both databases: a failed step is tried again, a finished one is not, and files and checkpoint are kept."""
    calls: list[tuple[str, int, Any]] = []

    async def first(context: StepContext) -> dict[str, int]:
        calls.append(("first", context.attempt, context.state))
        context.write("raw/一.csv", b"1\n")
        return {"n": 1}

    async def second(context: StepContext) -> list[str]:
        calls.append(("second", context.attempt, context.state))
        await context.checkpoint({"half": "花子 \0"})
        if context.attempt == 1:
            raise RuntimeError("the engine died \0 \ud800")
        return ["ok"]

    async def life() -> None:
        async with Journal.open(store, tmp_path / "r", "run_1", "evaluation", {"a": 1}) as journal:
            assert await journal.step("first", 1, first) == {"n": 1}
            assert await journal.step("second", 1, second) == ["ok"]

    with pytest.raises(RuntimeError, match="died"):
        await life()
    failed = await store.get_run("run_1")
    assert failed is not None
    assert (failed.state, failed.owner, failed.finished_at) == ("failed", None, None)
    await life()
    assert calls == [("first", 1, None), ("second", 1, None), ("second", 2, {"half": "花子 \0"})]
    finished = await store.get_run("run_1")
    assert finished is not None
    assert (finished.state, finished.owner, finished.finished_at) == ("finished", None, store.now())
    first_step, second_step = await store.run_steps("run_1")
    assert first_step.artifacts.keys() == {"raw/一.csv"}
    assert (second_step.state, second_step.attempts, second_step.error) == ("done", 2, None)


async def test_the_last_of_many_checkpoints_at_once_is_kept(store: Store, tmp_path: Path) -> None:
    """Two hundred from tasks of one step, over all connections that there are: none is overtaken by an earlier one."""
    called: list[int] = []

    async def work(context: StepContext) -> None:
        async def keep(number: int) -> None:
            for _ in range(number):
                await asyncio.sleep(0)
            called.append(number)
            await context.checkpoint(number)

        await asyncio.gather(*map(keep, range(200)))
        assert [step.checkpoint for step in await store.run_steps("run_1")] == [str(called[-1])]

    async with Journal.open(store, tmp_path / "r", "run_1", "evaluation", {}) as journal:
        await journal.step("a", None, work)
    assert len(called) == 200


async def test_a_journal_whose_run_is_forgotten_says_so(store: Store, tmp_path: Path) -> None:
    """The work of a run that was forgotten meanwhile ends in RunLost, at the step and at the end."""

    async def work(_: StepContext) -> None:
        await store.forget_run("run_1")

    async def life() -> None:
        async with Journal.open(store, tmp_path / "r", "run_1", "evaluation", {}) as journal:
            with pytest.raises(RunLost):
                await journal.step("a", None, work)

    with pytest.raises(RunLost, match="forgotten"):
        await life()


async def test_a_result_waits_for_a_database_that_comes_back(postgres: Any, tmp_path: Path) -> None:
    """PostgreSQL dies while a step works and is started again later: the result is kept, the work is not repeated."""
    store = await Store.open(postgres.new_database())
    attempts: list[int] = []
    starting: list[asyncio.Task[None]] = []

    async def start_again() -> None:
        await asyncio.sleep(0.5)
        await asyncio.to_thread(postgres.start)

    async def work(context: StepContext) -> str:
        attempts.append(context.attempt)
        postgres.stop()
        starting.append(asyncio.create_task(start_again()))
        return "hours of it"

    try:
        async with Journal.open(store, tmp_path / "r", "run_1", "evaluation", {}) as journal:
            assert await journal.step("bench", None, work) == "hours of it"
            assert [done.result for done in await store.run_steps("run_1")] == ['"hours of it"']
    finally:
        await asyncio.gather(*starting)
        await store.close()
    assert attempts == [1]
