"""What a journal does when inputs, plan or files are not what they were, and when something shall be done again."""

import json
from pathlib import Path
from typing import Any

import journal_harness as harness
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from journal_harness import Counted, done, entered, opened, the_run, the_step

from sekisho.core.errors import NotFound
from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.durable.journal_errors import (
    ArtifactChanged,
    FolderUnusable,
    RunChanged,
    StepChanged,
)
from sekisho.evaluate.durable.run_opening import canonical, differences
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import Store

clock, folder, store = harness.clock, harness.folder, harness.store


async def test_other_inputs_are_refused_by_name_until_redo(store: Store, folder: Path) -> None:
    """Neither a finished nor a failed step takes other inputs; after `redo` it does, and keeps counting."""
    work = Counted()

    async def failing(_: StepContext) -> None:
        raise RuntimeError("bad")

    async with opened(store, folder) as journal:
        await journal.step("bench", {"parallel": 3}, work)
        with pytest.raises(RuntimeError, match="bad"):
            await journal.step("cold", 1, failing)
    async with opened(store, folder) as journal:
        for key, work_again in (("bench", work), ("cold", failing)):
            with pytest.raises(StepChanged, match=f"step {key} .*--redo {key}"):
                await journal.step(key, {"parallel": 2}, work_again)
        assert await journal.step("bench", {"parallel": 3}, work) == 1
        await journal.redo("bench")
        assert not (folder / "out.txt").exists()
        assert await journal.step("bench", {"parallel": 2}, work) == 2
    bench = await the_step(store, "bench")
    assert (bench.state, bench.attempts, bench.position) == ("done", 2, 1)


async def test_redo_takes_later_steps_along_when_asked(store: Store, folder: Path) -> None:
    """Alone it touches one step; with `later` every one that began after it; an unknown one is answered with the list;
    and what was only asked for stays asked for in the next life."""
    works = {key: Counted(f"{key}.txt") for key in ("a", "b", "c")}
    await done(store, folder, *works.items())
    async with opened(store, folder) as journal:
        with pytest.raises(NotFound, match="no step d; it has: a, b, c"):
            await journal.redo("d")
        await journal.redo("a")
    assert (await the_run(store)).state == "failed"
    assert await done(store, folder, *works.items()) == [2, 1, 1]
    async with opened(store, folder) as journal:
        await journal.redo("b", later=True)
    assert await done(store, folder, *works.items()) == [2, 2, 2]
    assert (await the_run(store)).state == "finished"


async def test_redo_takes_the_parts_of_a_step_along(store: Store, folder: Path) -> None:
    """A step that runs steps of its own resumes without repeating them, and is done again with all of them, and with
    none of a step whose name only begins like its own."""
    works = {key: Counted(f"{key}.txt") for key in ("bench.a", "bench.b", "bench2")}
    journals: list[Journal] = []
    broken = True

    async def bench(_: StepContext) -> list[int]:
        results = [await journals[-1].step(key, key, works[key]) for key in ("bench.a", "bench.b")]
        if broken:
            raise RuntimeError("between the parts and the whole")
        return results

    async def life(redo: bool = False) -> tuple[list[int], int]:
        async with opened(store, folder) as journal:
            journals.append(journal)
            if redo:
                await journal.redo("bench")
            return await journal.step("bench", None, bench), await journal.step("bench2", None, works["bench2"])

    with pytest.raises(RuntimeError, match="between"):
        await life()
    broken = False
    assert await life() == ([1, 1], 1)
    assert await life(redo=True) == ([2, 2], 1)


async def test_another_plan_is_refused_and_what_differs_is_named(store: Store, folder: Path) -> None:
    """The stored plan stays; each difference is told with its path and both values, and so is another kind."""
    plan = {"bench": {"parallel": [1, 2, 3], "tokens": 256}, "gates": True}
    await entered(store, folder, plan)
    other = {"bench": {"parallel": [1, 2, 4]}, "gates": True, "cold": {"x" * 90: 1}}
    with pytest.raises(RunChanged) as caught:
        await entered(store, folder, other)
    told = caught.value.message
    assert "bench.parallel[2] was 3, is 4; bench.tokens was 256, is not there; cold was not there, is {" in told
    assert len(told) < 400
    with pytest.raises(RunChanged, match='kind was "test", is "pipeline"'):
        async with Journal.open(store, folder, "run-1", "pipeline", plan):
            pass
    await entered(store, folder, dict(reversed(plan.items())))
    run = await the_run(store)
    assert (json.loads(run.plan), run.state) == (plan, "finished")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_plans_differ_exactly_when_their_bytes_do(old: Any, new: Any) -> None:
    """No plan that is refused is refused without a reason, and none that is accepted has one."""
    old, new = msgspec.json.decode(canonical(old)), msgspec.json.decode(canonical(new))
    assert bool(list(differences(old, new, ""))) == (canonical(old) != canonical(new))
    assert list(differences(old, old, "")) == []


@pytest.mark.parametrize("harm", ["altered", "missing", "a folder"])
async def test_a_finished_step_vouches_for_its_files(store: Store, folder: Path, harm: str) -> None:
    """A file that is gone or has other bytes is named, with what to do; put back it is fine, with redo it is new."""
    work = Counted("raw/bench.csv")
    await done(store, folder, ("bench", work))
    file = folder / "raw" / "bench.csv"
    if harm == "altered":
        file.write_bytes(b"2")
    else:
        file.unlink()
    if harm == "a folder":
        file.mkdir()
        with pytest.raises(FolderUnusable, match=r"raw/bench\.csv"):
            await done(store, folder, ("bench", work))
        file.rmdir()
    expected = "was changed" if harm == "altered" else "is missing"
    with pytest.raises(ArtifactChanged, match=rf"raw/bench\.csv {expected} .*--redo bench"):
        await done(store, folder, ("bench", work))
    assert work.calls == 1
    file.write_bytes(b"1")
    assert await done(store, folder, ("bench", work)) == [1]
    file.unlink()
    async with opened(store, folder) as journal:
        await journal.redo("bench")
        assert await journal.step("bench", "bench", work) == 2
    assert file.read_bytes() == b"2"
