"""What the tests of the journal share."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sekisho.core.clock import ManualClock
from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import RunRecord, StepRecord, Store

CHILD = Path(__file__).with_name("journal_child.py")

posix = pytest.mark.skipif(os.name != "posix", reason="forks and kill -9 are those of POSIX")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "s.db", clock=clock)
    yield opened
    await opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run-1"


def opened(store: Store, folder: Path, plan: object = None, run_id: str = "run-1") -> Any:
    return Journal.open(store, folder, run_id, "test", plan)


async def entered(*arguments: Any) -> None:
    async with opened(*arguments):
        pass


async def done(store: Store, folder: Path, *works: tuple[str, Any], plan: object = None) -> list[Any]:
    """Runs the steps, each with its key as its inputs, in a life of its own; their results."""
    async with opened(store, folder, plan) as journal:
        return [await journal.step(key, key, work) for key, work in works]


async def the_run(store: Store) -> RunRecord:
    run = await store.get_run("run-1")
    assert run is not None
    return run


async def the_step(store: Store, key: str) -> StepRecord:
    return next(step for step in await store.run_steps("run-1") if step.key == key)


def files_in(folder: Path) -> dict[str, bytes]:
    """Hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Counted:
    """Work that counts its calls and writes its count to a file."""

    def __init__(self, name: str = "out.txt") -> None:
        self.name = name
        self.calls = 0

    async def __call__(self, context: StepContext) -> int:
        self.calls += 1
        context.write(self.name, f"{self.calls}".encode())
        return self.calls


def lines(file: Path) -> list[str]:
    """Those that are whole; none while there is no file."""
    return file.read_text().split("\n")[:-1] if file.exists() else []
