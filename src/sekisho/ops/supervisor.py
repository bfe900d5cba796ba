"""The supervisor: starts our child processes, keeps them running, and ends them in order.

It lives in one asyncio loop and owns three files of its home: `supervisor.lock` (one supervisor at a time),
`children.json` (who runs, for `sekisho status` and for the next supervisor) and the children's logs.

A child leads its own process group. Four things see to it that nothing outlives us: the orderly stop; the child's
own `die_with_parent`; the guardian process, which kills the groups when our pipe to it breaks; and the next
supervisor, which reads `children.json`.
"""

import asyncio
import logging
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import msgspec

from sekisho.core import ids
from sekisho.core.clock import Clock, SystemClock
from sekisho.engines import lifeline
from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildrenFile, ChildStatus, State, read_children, replace_file
from sekisho.ops.config import LogsConfig
from sekisho.ops.guardian_link import GuardianLink
from sekisho.ops.instance_lock import InstanceLock
from sekisho.ops.log_file import RotatingLog
from sekisho.ops.restart_policy import Exits, RestartPolicy

log = logging.getLogger(__name__)

_KILL: int = getattr(signal, "SIGKILL", 9)
_NOT_STARTED = 127  # as a shell says it


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


class Supervisor:
    """Keeps children running from `start` to `stop`. Both are called once, `stop` also twice.

    `on_change` is called in the loop at every change of a child's state; it must not block. What it raises is logged.
    """

    def __init__(
        self,
        home: Path,
        specs: Iterable[ChildSpec],
        *,
        policy: RestartPolicy | None = None,
        clock: Clock | None = None,
        on_change: Callable[[ChildStatus], None] | None = None,
    ) -> None:
        self.home = home
        self.run = ids.new("run")
        self._policy = policy or RestartPolicy()
        self._clock = clock or SystemClock()
        self._on_change = on_change
        self._lock = InstanceLock(home / "supervisor.lock")
        self._guardian = GuardianLink()
        self._children: dict[str, _Child] = {}
        self._writable = True
        self._claimed = False
        self._stopped: asyncio.Task[None] | None = None
        for spec in specs:
            self._put(spec)

    async def claim(self) -> None:
        """Takes the home and ends what an earlier supervisor left: from now on nobody else writes there. `start` does
        it where it was not done. Raises `AlreadyRunning`, and `OSError` when the home cannot be written."""
        if self._claimed:
            return
        self._lock.acquire()
        try:
            await self._reap()
            self._write()
        except BaseException:
            self._lock.release()
            raise
        self._claimed = True

    async def start(self) -> None:
        """Claims the home and starts every child. Raises as `claim` does. Does not wait until they are ready."""
        await self.claim()
        try:
            await self._guardian.start()
        except BaseException:
            self._claimed = False
            self._lock.release()
            raise
        for child in self._children.values():
            child.begin()

    async def add(self, spec: ChildSpec) -> None:
        """Takes one more child into the running supervisor; the name must be new."""
        self._put(spec).begin()

    async def remove(self, name: str) -> None:
        """Stops a child and forgets it. Raises KeyError."""
        await self._children[name].stop()
        del self._children[name]
        self._write()

    async def restart(self, name: str) -> None:
        """Stops a child in order and starts it again with a clean record. Raises KeyError."""
        spec = self._children[name].spec
        await self.remove(name)
        await self.add(spec)

    def statuses(self) -> list[ChildStatus]:
        return [child.status for child in self._children.values()]

    def status(self, name: str) -> ChildStatus:
        """Raises KeyError."""
        return self._children[name].status

    async def stop(self) -> None:
        """Stops all children by `stop_order`, each within its grace. A second caller waits for the first."""
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopped)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _stop(self) -> None:
        for order in sorted({child.spec.stop_order for child in self._children.values()}):
            these = [child for child in self._children.values() if child.spec.stop_order == order]
            ends = await asyncio.gather(*(child.stop() for child in these), return_exceptions=True)
            for child, end in zip(these, ends, strict=True):
                if isinstance(end, BaseException):  # a mistake of ours; the others must stop all the same
                    log.error("stopping %s failed", child.spec.name, exc_info=end)
        self._write()
        await self._guardian.stop()
        self._lock.release()

    def _put(self, spec: ChildSpec) -> "_Child":
        if spec.name in self._children:
            raise ValueError(f"two children are named {spec.name!r}")
        child = _Child(spec, self.run, self._policy, self._clock, self._guardian, self._changed)
        self._children[spec.name] = child
        return child

    def _changed(self, status: ChildStatus) -> None:
        self._write()
        if self._on_change is not None:
            try:
                self._on_change(status)
            except Exception:  # whoever looks on must not end the task that keeps a child
                log.exception("whoever is told of the children's states failed at %s of %s", status.state, status.name)

    async def _reap(self) -> None:
        earlier = read_children(self.home)
        if earlier is None:
            return
        known = [(child.pid, child.birth) for child in earlier.children if child.pid and child.birth]
        if not known and all(child.state in ("stopped", "misconfigured") for child in earlier.children):
            return  # it ended in order
        count = await asyncio.to_thread(_end_leftovers, earlier.run, known)
        if count:
            log.warning("ended %d processes that an earlier supervisor left behind", count)

    def _write(self) -> None:
        me = os.getpid()
        body = msgspec.json.encode(ChildrenFile(self.run, me, process_tree.birth(me), self.statuses()))
        try:
            replace_file(self.home / "children.json", msgspec.json.format(body, indent=2) + b"\n")
            self._writable = True
        except OSError as error:
            if self._writable:  # a full disk must not stop what runs; say it once
                log.error("cannot write %s: %s", self.home / "children.json", error)
            self._writable = False


def _end_leftovers(run: str, known: list[tuple[int, str]]) -> int:
    return process_tree.end(process_tree.leftovers(run, known))


class _Child:
    """One child through all its lives. One task starts it, waits for its end, decides, and starts it again."""

    def __init__(
        self,
        spec: ChildSpec,
        run: str,
        policy: RestartPolicy,
        clock: Clock,
        guardian: GuardianLink,
        changed: Callable[[ChildStatus], None],
    ) -> None:
        self.spec = spec
        self.status = ChildStatus(spec.name, "starting", since=clock.now())
        self._run = run
        self._policy = policy
        self._clock = clock
        self._guardian = guardian
        self._changed = changed
        self._exits = Exits(policy)
        self._log = RotatingLog(spec.log_path, spec.logs, by_kind=spec.logs_by_kind)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")

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
            await asyncio.wait({drained}, timeout=1.0)
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
