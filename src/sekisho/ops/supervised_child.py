"""One child process through all its lives, for `supervisor`."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from sekisho.core.clock import Clock
from sekisho.engines import lifeline
from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildStatus, State
from sekisho.ops.config import LogsConfig
from sekisho.ops.guardian_link import GuardianLink
from sekisho.ops.log_file import RotatingLog
from sekisho.ops.restart_policy import Exits, RestartPolicy

log = logging.getLogger(__name__)

_KILL: int = getattr(signal, "SIGKILL", 9)
_NOT_STARTED = 127  # as a shell says it
_LAST_WORDS_S = 10.0
"""For the thread that copies the log to come to the end of what a dead child said: milliseconds, but a busy machine may
not run it for seconds. Only what has left the child's group and holds its output makes us wait so long."""


class ChildSpec(msgspec.Struct, frozen=True):
    """One process to keep. `env` is added to ours. Lower `stop_order` is stopped first; equals stop together.
    `grace_s` is how long it may take after `stop_signal` before its group is killed. `logs_by_kind`: its lines are JSON
    and go to `error.log` and `performance.log` too (`log_file.RotatingLog`)."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    env: dict[str, str] = {}
    stop_order: int = 0
    stop_signal: int = signal.SIGTERM
    grace_s: float = 10.0
    logs: LogsConfig = LogsConfig()
    logs_by_kind: bool = False


class SupervisedChild:
    """One task starts it, waits for its end, decides, and starts it again."""

    def __init__(
        self,
        spec: ChildSpec,
        run: str,
        policy: RestartPolicy,
        clock: Clock,
        guardian: GuardianLink,
        changed: Callable[[ChildStatus], None],
        beside: "SupervisedChild | None" = None,
    ) -> None:
        self.spec = spec
        self.status = ChildStatus(spec.name, "starting", since=clock.now())
        self.last_words: tuple[str, ...] = ()
        self._run = run
        self._policy = policy
        self._clock = clock
        self._guardian = guardian
        self._changed = changed
        self._exits = Exits(policy)
        shared = None if beside is None else beside._log
        self._log: RotatingLog = RotatingLog(spec.log_path, spec.logs, by_kind=spec.logs_by_kind, beside=shared)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

    def begin_again(self) -> None:
        """After `stop`."""
        if self._task is not None and not self._task.done():
            return
        self._stopping.clear()
        self._exits = Exits(self._policy)
        self.last_words = ()
        self._become("starting")
        self.begin()

    def rename(self, name: str) -> None:
        self.spec = msgspec.structs.replace(self.spec, name=name)
        self.status = msgspec.structs.replace(self.status, name=name)

    @property
    def log_tail(self) -> tuple[str, ...]:
        return tuple(self._log.tail)

    async def stop(self) -> None:
        """Signal, grace, kill. When it returns the group is gone."""
        self._stopping.set()
        if self._task is None:
            self._become("stopped")
            return
        while not self._task.done():
            if self._process is None:  # between two lives, or just being started
                await asyncio.wait({self._task}, timeout=0.05)
                continue
            self._become("stopping")
            process_tree.signal_group(self._process.pid, self.spec.stop_signal)
            await asyncio.wait({self._task}, timeout=self.spec.grace_s)
            if self._process is not None and not self._task.done():
                log.warning("%s did not stop within %g s; killing it", self.spec.name, self.spec.grace_s)
                process_tree.signal_group(self._process.pid, _KILL)
                await asyncio.wait({self._task})
        await self._task

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            began = self._clock.monotonic()
            try:
                code = await self._live()
            except OSError as error:
                self._log.write(f"cannot start {self.spec.argv[0]}: {error}\n".encode())
                self._log.close()
                code = _NOT_STARTED
            self.last_words = self.log_tail
            decision = self._exits.ended(
                now_s=self._clock.monotonic(),
                ran_s=self._clock.monotonic() - began,
                exit_code=code,
                chance=random.random(),
            )
            if self._stopping.is_set():
                self._become("stopped", pid=None, birth=None, started_at=None, exit_code=code)
                return
            self._become(decision.state, pid=None, birth=None, started_at=None, exit_code=code, tail=True)
            log.warning(
                "%s ended with %d (%s): %s", self.spec.name, code, decision.state, " / ".join(self.status.log_tail[-1:])
            )
            if decision.state == "misconfigured":
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), decision.delay_s)
            except TimeoutError:
                self.status = msgspec.structs.replace(self.status, restarts=self.status.restarts + 1)
        self._become("stopped", pid=None, birth=None, started_at=None)

    async def _live(self) -> int:
        """Starts the process and waits for its end; its exit code. Raises OSError where it cannot be started.

        The pipes are our own and not asyncio's, whose `wait` would also wait for what the child left behind."""
        self._log.tail.clear()
        theirs, lifeline_end = os.pipe()
        output, theirs_output = os.pipe()
        try:
            process = await self._spawn(theirs, theirs_output)
        except BaseException:
            os.close(output)
            os.close(lifeline_end)
            raise
        finally:
            os.close(theirs)
            os.close(theirs_output)
        drained = self._pump(output)
        try:
            return await self._watch(process)
        finally:
            process_tree.signal_group(process.pid, _KILL)  # what it started and left behind
            self._guardian.drop(process.pid)
            os.close(lifeline_end)
            await asyncio.wait({drained}, timeout=_LAST_WORDS_S)
            self._log.close()
            self._process = None

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        self._process = process
        self._guardian.add(process.pid)
        self._become(
            "failing" if self.status.state == "failing" else "running",
            pid=process.pid,
            birth=process_tree.birth(process.pid),
            started_at=self._clock.now(),
        )
        steady = asyncio.get_running_loop().call_later(self._policy.reset_after_s, self._steady, process.pid)
        try:
            return await process.wait()
        finally:
            steady.cancel()

    def _pump(self, output: int) -> asyncio.Future[None]:
        """Copies a pipe into the log until its end; a thread, because Windows' loop cannot watch a pipe."""
        loop = asyncio.get_running_loop()
        drained: asyncio.Future[None] = loop.create_future()

        def copy() -> None:
            with os.fdopen(output, "rb", buffering=0) as pipe:
                try:
                    while data := pipe.read(65536):
                        loop.call_soon_threadsafe(self._log.write, data)
                    loop.call_soon_threadsafe(_settle, drained)
                except RuntimeError:
                    return  # the loop is closed: somebody held the pipe longer than we ran

        threading.Thread(target=copy, name=f"log {self.spec.name}", daemon=True).start()
        return drained

    async def _spawn(self, lifeline_end: int, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.spec.argv,
            stdin=lifeline_end,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | self.spec.env | lifeline.environment() | {process_tree.RUN_ENV: self._run},
        )

    def _steady(self, pid: int) -> None:
        if self._process is not None and self._process.pid == pid and self.status.state == "failing":
            self._become("running")

    def _become(
        self,
        state: State,
        *,
        pid: int | msgspec.UnsetType | None = msgspec.UNSET,
        birth: str | msgspec.UnsetType | None = msgspec.UNSET,
        started_at: float | msgspec.UnsetType | None = msgspec.UNSET,
        exit_code: int | msgspec.UnsetType = msgspec.UNSET,
        tail: bool = False,
    ) -> None:
        changes = {"pid": pid, "birth": birth, "started_at": started_at, "exit_code": exit_code}
        known = {name: value for name, value in changes.items() if value is not msgspec.UNSET}
        moved = self.status.state != state
        self.status = msgspec.structs.replace(
            self.status,
            state=state,
            since=self._clock.now() if moved else self.status.since,
            log_tail=tuple(self._log.tail) if tail else (),
            **known,
        )
        self._changed(self.status)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
