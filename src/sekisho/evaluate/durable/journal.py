"""The journal of a long run: finished steps are not done again, whatever was killed in between.

    async with Journal.open(store, folder, run_id, "evaluation", plan) as journal:
        cells = await journal.step("bench", {"parallel": 3}, bench)      # bench(context) -> anything JSON takes

A step's result, its files' SHA-256 and the word `done` are one durable transaction, after the files are on the disk.
A step is done at least once: a kill before that transaction has it done again, from its last checkpoint.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sekisho.core.errors import NotFound, SekishoError, StoreUnavailable
from sekisho.evaluate.durable import run_owner
from sekisho.evaluate.durable.journal_errors import ArtifactChanged, RunLost, StepChanged
from sekisho.evaluate.durable.run_folder import RunFolder
from sekisho.evaluate.durable.run_opening import canonical, enter
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.evaluate.progress import Progress, silent
from sekisho.guard.personal import redact
from sekisho.store import RunRecord, RunState, StepRecord

if TYPE_CHECKING:
    from sekisho.store import Store  # it brings SQLAlchemy

log = logging.getLogger("sekisho.evaluate")

Work = Callable[[StepContext], Awaitable[Any]]

HEARTBEAT_S = 15.0
PATIENCE_S = 60.0
"""How long a write is tried again while the database is locked or away: hours of work wait for it."""

_LONGEST_KEY = 128
_LONGEST_ERROR = 4_000


class Journal:
    """One run in the hands of one process. Made by `open`. Steps with different keys may run at the same time."""

    def __init__(self, store: "Store", folder: RunFolder, run: RunRecord, token: str, steps: list[StepRecord]) -> None:
        self._store = store
        self._folder = folder
        self._token = token
        self._steps = {step.key: step for step in steps}  # as they are in the database
        self._wanted = dict(self._steps)  # as they shall be there
        self._last_position = max((step.position for step in steps), default=0)
        self._names = {name: step.key for step in steps for name in step.artifacts}
        self._asked: set[str] = set()
        self._at_work: set[str] = set()
        self._order = asyncio.Lock()
        self._writes: set[asyncio.Task[bool]] = set()
        self._lost = False
        self._worked = False
        self.run = run

    @classmethod
    @asynccontextmanager
    async def open(
        cls, store: "Store", folder: Path, run_id: str, kind: str, plan: object, title: str = ""
    ) -> AsyncIterator["Journal"]:
        """Begins the run, or goes on with it: ends what its killed processes left running, sweeps torn files.

        `plan` is whatever decides what the run does, JSON-able and without secrets. Raises RunBusy while somebody else
        works on it, RunChanged for another plan, WrongFolder, FolderUnusable, StoreUnavailable. Left without an error
        the run is finished; with one it is failed, and by a cancel abandoned: all the same to the next opening.
        """
        place = RunFolder(folder)
        try:
            owner, run = await enter(store, place, run_id, kind, plan, title)
            with run_owner.holding(owner):
                journal = cls(store, place, run, owner.token, await store.run_steps(run_id))
                async with journal._entered():
                    yield journal
        finally:
            place.release()

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[None]:
        alive = asyncio.create_task(self._tell_that_it_lives())
        try:
            yield
        except BaseException as error:
            await self._leave("failed" if isinstance(error, Exception) else "abandoned", broken=True)
            raise
        else:
            await self._leave("finished" if self._complete() else "failed", broken=False)
        finally:
            alive.cancel()
            await asyncio.wait([alive])

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def steps(self) -> tuple[StepRecord, ...]:
        """As they stand, in the order in which they first began."""
        return tuple(sorted(self._steps.values(), key=lambda step: step.position))

    async def step(self, key: str, inputs: object, work: Work, progress: Progress = silent) -> Any:
        """The result of `work`, as JSON brings it back; of a finished step the stored one, without doing anything.

        `inputs` is what the result depends on besides the plan. Raises StepChanged when they differ from those with
        which the step was begun, ArtifactChanged when a file of the finished step is gone or altered, what `work`
        raises, RunLost, FolderUnusable, StoreUnavailable. A failed step is tried again by the next call.
        """
        if not key or len(key) > _LONGEST_KEY or not key.isprintable():
            raise ValueError(f"not a key for a step: {key!r}")
        if key in self._at_work:
            raise RuntimeError(f"step {key} runs already")
        self._at_work.add(key)
        self._asked.add(key)
        try:
            inputs_hash = hashlib.sha256(canonical(inputs)).hexdigest()
            known = self._steps.get(key)
            if known is not None and known.state != "redo" and known.inputs_hash != inputs_hash:
                raise StepChanged(
                    f"the inputs of step {key} have changed since it was begun: do it again with `--redo {key}`, "
                    "or start a new run",
                    param=key,
                )
            if known is None or known.state != "done":
                return await self._do(await self._begin(key, inputs_hash, known), work, progress)
            await self._verify(known)
            progress(key, 1, 1)
            return msgspec.json.decode(known.result or "null")
        finally:
            self._at_work.discard(key)

    async def redo(self, key: str, later: bool = False) -> None:
        """Has a step done again by its next call, whatever its inputs then are, with its parts (`bench.cell1` is one of
        `bench`); with `later` also every step that began after it. Their files are removed. Raises NotFound naming the
        steps that there are."""
        chosen = self._steps.get(key)
        if chosen is None:
            known = ", ".join(step.key for step in self.steps) or "none yet"
            raise NotFound(f"run {self.run.id} has no step {key}; it has: {known}", param=key)
        for step in self.steps:
            part = step.key.startswith(f"{key}.")
            if step is not chosen and not part and not (later and step.position > chosen.position):
                continue
            if step.key in self._at_work:
                raise RuntimeError(f"step {step.key} runs")
            self._asked.add(step.key)
            await run_owner.end_orphans(step.children)
            for name in step.artifacts:
                self._folder.remove(name)
                self._names.pop(name, None)
            await self.put(
                StepRecord(
                    run_id=step.run_id,
                    key=step.key,
                    position=step.position,
                    inputs_hash=step.inputs_hash,
                    state="redo",
                    attempts=step.attempts,
                    started_at=step.started_at,
                )
            )

    # What a step does through its context

    async def put(self, step: StepRecord, patience_s: float | None = None) -> None:
        """Writes a step, again and again while the database is away. Each record of a step holds all of the earlier
        ones: the last one wanted is written. A cancelled caller's write goes on. Raises RunLost, StoreUnavailable."""
        clock = asyncio.get_running_loop()
        deadline = clock.time() + (PATIENCE_S if patience_s is None else patience_s)
        delay_s = 0.1
        self._wanted[step.key] = step
        while True:
            self.check_owned()
            write = asyncio.create_task(self._put_wanted(step.key))
            self._writes.add(write)
            write.add_done_callback(self._writes.discard)
            try:
                if not await asyncio.shield(write):
                    self._lost = True
                    continue
                return
            except StoreUnavailable:
                if clock.time() + delay_s > deadline:
                    raise
                log.warning("run %s: step %s waits for the database", self.run.id, step.key)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, 5.0)

    def check_owned(self) -> None:
        """Raises RunLost."""
        if self._lost:
            raise RunLost(
                f"run {self.run.id} was taken over by another process, or forgotten: nothing more is written here"
            )

    def claim_name(self, name: str, key: str) -> None:
        """Raises ValueError when the file is another step's."""
        if self._names.setdefault(name, key) != key:
            raise ValueError(f"{name} is written by step {self._names[name]} already")

    async def _put_wanted(self, key: str) -> bool:
        async with self._order:
            step = self._wanted[key]
            kept = await self._store.put_step(step, self._token)
            if kept:
                self._steps[key] = step
            return kept

    # One step

    async def _begin(self, key: str, inputs_hash: str, known: StepRecord | None) -> StepRecord:
        """Counts the attempt, before anything of it happens."""
        if known is None:
            self._last_position += 1
        step = StepRecord(
            run_id=self.run.id,
            key=key,
            position=self._last_position,
            inputs_hash=inputs_hash,
            state="running",
            attempts=1,
            started_at=self._store.now(),
        )
        if known is not None:
            await run_owner.end_orphans(known.children)
            step = msgspec.structs.replace(step, position=known.position, attempts=known.attempts + 1)
            if known.checkpoint is not None:
                step = await self._from_checkpoint(step, known)
        self._worked = True
        await self.put(step)
        return step

    async def _from_checkpoint(self, step: StepRecord, known: StepRecord) -> StepRecord:
        changed = await asyncio.to_thread(self._folder.first_change, known.artifacts)
        if changed is None:
            return msgspec.structs.replace(step, checkpoint=known.checkpoint, artifacts=known.artifacts)
        log.warning("run %s: step %s begins anew: %s %s", self.run.id, step.key, *changed)
        return step

    async def _do(self, begun: StepRecord, work: Work, progress: Progress) -> Any:
        context = StepContext(self, self._folder, begun, progress)
        try:
            result = msgspec.json.encode(await work(context))
        except asyncio.CancelledError:
            await self._fail(context.end(), "interrupted")
            raise
        except Exception as error:
            await self._fail(context.end(), _told(error))
            raise
        done = msgspec.structs.replace(
            context.end(),
            state="done",
            result=result.decode(),
            checkpoint=None,
            children=(),
            finished_at=self._store.now(),
        )
        await self.put(done)
        return msgspec.json.decode(result)

    async def _fail(self, step: StepRecord, error: str) -> None:
        """Keeps the error; trouble with that does not hide it."""
        failed = msgspec.structs.replace(step, state="failed", error=error, finished_at=self._store.now())
        try:
            await self.put(failed, patience_s=0)
        except (RunLost, StoreUnavailable) as trouble:
            log.warning("run %s: that step %s failed could not be kept: %s", self.run.id, step.key, trouble)

    async def _verify(self, done: StepRecord) -> None:
        changed = await asyncio.to_thread(self._folder.first_change, done.artifacts)
        if changed is not None:
            name, what = changed
            raise ArtifactChanged(
                f"{self.folder / name} {what} since step {done.key} was done: put it back, or do the step again with "
                f"`--redo {done.key}`",
                param=done.key,
            )

    # The run

    def _complete(self) -> bool:
        return all(self._steps[key].state == "done" for key in self._asked if key in self._steps)

    async def _leave(self, state: RunState, *, broken: bool) -> None:
        """Writes that are under way come first. With `broken` an error is on its way: trouble here does not hide it."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        finished_at = self.run.finished_at
        if state == "finished" and (self._worked or finished_at is None):
            finished_at = self._store.now()
        try:
            if not await self._store.release_run(self.run.id, self._token, state, finished_at):
                self._lost = True
            if not broken:
                self.check_owned()
        except StoreUnavailable as trouble:
            if not broken:
                raise
            log.warning("run %s: its end could not be kept: %s", self.run.id, trouble)

    async def _tell_that_it_lives(self) -> None:
        while not self._lost:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                self._lost = not await self._store.run_seen(self.run.id, self._token)
            except StoreUnavailable as trouble:
                log.warning("run %s: that it lives could not be told: %s", self.run.id, trouble)


def _told(error: Exception) -> str:
    """An error for the database: without secrets and personal data, without what a database refuses."""
    text = error.message if isinstance(error, SekishoError) else f"{type(error).__name__}: {error}"
    clean = text.encode("utf-8", "replace").decode().replace("\0", "")
    return redact(clean[:_LONGEST_ERROR]).text
