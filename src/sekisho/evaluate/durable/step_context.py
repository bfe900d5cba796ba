"""What a step gets to work with."""

import asyncio
import os
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sekisho.evaluate.durable.run_folder import RunFolder
from sekisho.evaluate.durable.run_owner import still_living
from sekisho.evaluate.progress import Progress
from sekisho.ops import process_tree
from sekisho.store import RunRecord, StepChild, StepRecord


class Keeper(Protocol):
    """The journal, as a step's context knows it."""

    run: RunRecord

    async def put(self, step: StepRecord) -> None: ...

    def check_owned(self) -> None: ...

    def claim_name(self, name: str, key: str) -> None: ...


class Started(Protocol):
    """Any process object: of asyncio, subprocess, psutil."""

    @property
    def pid(self) -> int: ...


class StepContext:
    """One attempt at a step, until its work returns; used later it raises RuntimeError.

    `attempt` counts from 1. `folder` is the run's. `progress` is the one that was handed to the step.
    """

    def __init__(self, journal: Keeper, folder: RunFolder, begun: StepRecord, progress: Progress) -> None:
        self._journal = journal
        self._files = folder
        self._step = begun
        self._ended = False
        self.progress = progress

    @property
    def attempt(self) -> int:
        return self._step.attempts

    @property
    def folder(self) -> Path:
        return self._files.path

    @property
    def state(self) -> Any:
        """The last checkpoint, of an earlier attempt too; None where there is none."""
        return None if self._step.checkpoint is None else msgspec.json.decode(self._step.checkpoint)

    @property
    def environment(self) -> dict[str, str]:
        """For processes that the step starts: this process's own, and the run's mark, by which a resume finds even
        those that a kill left between their start and `child`."""
        return dict(os.environ) | {process_tree.RUN_ENV: self._journal.run.mark}

    def write(self, name: str, body: bytes) -> Path:
        """A file of the run, whole or not there, synced (blocks for milliseconds); the step's result vouches for it.

        `name` is relative, with slashes; the same in each attempt. Raises FolderUnusable (disk full), RunLost,
        ValueError for a name that is not allowed or another step's.
        """
        self._check(name)
        self._record(name, self._files.write(name, body))
        return self._files.target(name)

    def keep(self, name: str) -> Path:
        """The same for a file that the step, or a program it started, has already written to `folder`."""
        self._check(name)
        self._record(name, self._files.sync(name))
        return self._files.target(name)

    async def checkpoint(self, value: object) -> None:
        """Keeps what a later attempt finds in `state`, durably, together with the files written so far.

        An attempt goes on from it only if those files are as they were then: give each part a name of its own, or keep
        the data in `value`. Raises RunLost, StoreUnavailable.
        """
        self._check()
        self._step = msgspec.structs.replace(self._step, checkpoint=msgspec.json.encode(value).decode())
        await self._journal.put(self._step)

    async def child(self, process: Started) -> None:
        """Keeps the process's id and birth. If this process is killed, the next attempt ends it and its children
        first. Raises RunLost, StoreUnavailable."""
        self._check()
        born = await asyncio.to_thread(process_tree.birth, process.pid)
        if born is None:
            return  # it has ended already
        children = {*still_living(self._step.children), StepChild(process.pid, born)}
        self._step = msgspec.structs.replace(self._step, children=tuple(sorted(children, key=lambda one: one.pid)))
        await self._journal.put(self._step)

    def end(self) -> StepRecord:
        """For the journal: the step as the work left it; nothing more is taken from now on."""
        self._ended = True
        return self._step

    def _check(self, name: str | None = None) -> None:
        if self._ended:
            raise RuntimeError(f"step {self._step.key} is over")
        self._journal.check_owned()
        if name is not None:
            self._journal.claim_name(name, self._step.key)

    def _record(self, name: str, digest: str) -> None:
        self._step = msgspec.structs.replace(self._step, artifacts=self._step.artifacts | {name: digest})
