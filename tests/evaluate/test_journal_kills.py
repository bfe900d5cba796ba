"""kill -9 at any moment: no finished step is repeated, and nothing is half."""

import asyncio
import json
import os
import random
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import journal_child
import msgspec
import psutil
import pytest
from journal_harness import CHILD, files_in, lines, posix, the_run

from sekisho.ops import process_tree
from sekisho.store import StepRecord, Store

SEED = 20261128


class Nursery:
    """Gives birth to runners of run-1, each in its own folder and database by name, and watches them die."""

    def __init__(self, process: Process, home: Path) -> None:
        self._process = process
        self.home = home

    async def born(self, name: str, steps: int, allowance: int, door: int = 0) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name} {steps} {allowance} {door}\n".encode())
        return int(await self._process.stdout.readline())

    async def dead(self, runner: int) -> None:
        async with asyncio.timeout(60):
            while psutil.pid_exists(runner):  # noqa: ASYNC110 - it is not our child: nobody tells us of its end
                await asyncio.sleep(0.001)

    def lines(self, name: str, kind: str) -> list[str]:
        return lines(self.home / f"{name}.{kind}")

    def finished(self, name: str) -> bool:
        return "finished" in self.lines(name, "told")


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    home = tmp_path / "home"
    home.mkdir()
    await (await Store.open(home / "template.db")).close()
    command = (sys.executable, str(CHILD), "nursery", str(home / "NAME.db"), str(home))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)
    try:
        yield Nursery(process, home)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def new_run(nursery: Nursery, name: str) -> None:
    shutil.copy(nursery.home / "template.db", nursery.home / f"{name}.db")


class Known(msgspec.Struct, frozen=True):
    """What was known after a life: steps that are done, parts behind a checkpoint, and how often each was worked on."""

    done: set[str] = set()
    parts: set[str] = set()
    effects: Counter[str] = Counter()


async def check_life(nursery: Nursery, name: str, before: Known) -> Known:
    """What must hold after every death: what was answered is done, with its files; what was done, or behind a
    checkpoint, before this life was not worked on again in it."""
    store = await Store.open(nursery.home / f"{name}.db", migrate=False)
    steps = await store.run_steps("run-1")
    await store.close()
    told = [line for line in nursery.lines(name, "told") if line != "finished"]
    now = Known(
        done={step.key for step in steps if step.state == "done"},
        parts={line for line in told if " " in line},
        effects=Counter(nursery.lines(name, "effects")),
    )
    assert set(told) - now.parts <= now.done
    assert before.done <= now.done
    for line, count in before.effects.items():
        if line in before.parts or line.partition(" ")[0] in before.done:
            assert now.effects[line] == count, f"{line} was repeated"
    for step in steps:
        for artifact, digest in step.artifacts.items() if step.state == "done" else ():
            assert sha256((nursery.home / name / artifact).read_bytes()).hexdigest() == digest
    return now


async def check_end(nursery: Nursery, name: str, count: int) -> list[StepRecord]:
    """Every result is there once, every file is as the step made it, nothing else lies about, nothing runs."""
    store = await Store.open(nursery.home / f"{name}.db", migrate=False)
    run = await the_run(store)
    steps = await store.run_steps("run-1")
    await store.close()
    assert (run.state, run.owner) == ("finished", None)
    assert [step.key for step in steps] == [journal_child.key(number) for number in range(count)]
    assert [json.loads(step.result or "") for step in steps] == [journal_child.result(n) for n in range(count)]
    expected: dict[str, bytes] = {}
    for number in range(count):
        key = journal_child.key(number)
        if number % 4 == 1:
            expected |= {f"raw/{key}.bin": journal_child.artifact(number)}
            expected |= {f"{key}.json": journal_child.artifact(-number)}
        if number % 4 == 2:
            expected |= {f"{key}-{part}.bin": journal_child.artifact(part) for part in range(journal_child.PARTS)}
    folder = nursery.home / name
    found = files_in(folder)
    assert {key: body for key, body in found.items() if not key.startswith(".")} == expected
    assert found.keys() - expected.keys() == {".lock", ".journal.json"}
    recorded = {artifact: digest for step in steps for artifact, digest in step.artifacts.items()}
    assert recorded == {artifact: sha256(body).hexdigest() for artifact, body in expected.items()}
    effects = Counter(nursery.lines(name, "effects"))
    for step in steps:
        lines = [count for line, count in effects.items() if line.partition(" ")[0] == step.key]
        assert len(lines) == (journal_child.PARTS if int(step.key[-3:]) % 4 == 2 else 1)
        assert 1 <= max(lines) <= step.attempts
    assert process_tree.leftovers(run.mark, []) == []
    return steps


@pytest.mark.slow
@posix
async def test_kills_at_random_moments_repeat_nothing_that_was_done(nursery: Nursery) -> None:
    """A run of 100 steps of four kinds is killed 45 times: afterwards each result is there exactly once, no step that
    was done was repeated, no part behind a checkpoint, the files match, and no process is left."""
    choose = random.Random(SEED)
    steps, kills = 100, 45
    new_run(nursery, "r")
    known = Known()
    for _ in range(kills):
        runner = await nursery.born("r", steps, allowance=2)
        progress = len(nursery.lines("r", "effects")) + choose.randrange(2)  # two steps have at least that
        while len(nursery.lines("r", "effects")) < progress:
            os.kill(runner, 0)  # raises when it died of itself
            await asyncio.sleep(0.001)
        await asyncio.sleep(choose.uniform(0, 0.02))
        os.kill(runner, signal.SIGKILL)
        await nursery.dead(runner)
        assert not nursery.finished("r")
        known = await check_life(nursery, "r", known)
    await nursery.dead(await nursery.born("r", steps, allowance=-1))
    await check_life(nursery, "r", known)
    await check_end(nursery, "r", steps)


async def _kill_at_doors(nursery: Nursery, step_by: int) -> int:
    """Kills a run of four steps at its n-th operation, and the run that resumes it at its own n-th, then lets a third
    life finish; for n = 1, 1 + step_by, … until no first life is long enough. How many died."""
    deaths = 0
    for door in range(1, 1_000, step_by):
        name, known, before = f"d{door}", Known(), deaths
        new_run(nursery, name)
        for own_door in (door, door, 0):
            await nursery.dead(await nursery.born(name, 4, allowance=-1, door=own_door))
            known = await check_life(nursery, name, known)
            if nursery.finished(name):
                break
            deaths += 1
        await check_end(nursery, name, 4)
        if deaths == before:
            return deaths
    raise AssertionError("a life of four steps has fewer than 1,000 operations")


@posix
async def test_a_kill_at_some_operations_is_survived(nursery: Nursery) -> None:
    """Before or after every eleventh write, sync, rename and database call: as after a random kill."""
    assert await _kill_at_doors(nursery, 11) >= 10


@posix
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_kill_at_every_operation_is_survived(nursery: Nursery) -> None:
    """Before and after each single one of them."""
    deaths = await _kill_at_doors(nursery, 1)
    print(f"\n{deaths} lives ended by their own hand, each run whole in the end")
    assert deaths >= 100
