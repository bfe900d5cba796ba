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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from sekisho.core import ids
from sekisho.core.clock import Clock, SystemClock
from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildrenFile, ChildStatus, read_children, replace_file
from sekisho.ops.guardian_link import GuardianLink
from sekisho.ops.instance_lock import InstanceLock
from sekisho.ops.restart_policy import RestartPolicy
from sekisho.ops.supervised_child import ChildSpec, SupervisedChild

__all__ = ["ChildSpec", "Supervisor"]

log = logging.getLogger(__name__)


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
        self._children: dict[str, SupervisedChild] = {}
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

    async def pause(self, name: str) -> None:
        """Stops a child and keeps it in mind, for `resume`. Raises KeyError."""
        await self._children[name].stop()

    def resume(self, name: str) -> None:
        """Starts a paused child again with a clean record; nothing where it runs. Raises KeyError."""
        self._children[name].begin_again()

    def rename(self, names: Mapping[str, str]) -> None:
        """Gives children new names, all at once: whoever reads `children.json` sees the old ones or the new ones.
        Raises KeyError for a child that is not there, ValueError where two would have one name."""
        children = {names.get(name, name): child for name, child in self._children.items()}
        if missing := set(names) - set(self._children):
            raise KeyError(*missing)
        if len(children) < len(self._children):
            raise ValueError(f"two children of one name: {dict(names)}")
        self._children = children
        for name, child in children.items():
            child.rename(name)
        self._write()
        for name in names.values():
            self._tell(children[name].status)

    def log_tail(self, name: str) -> tuple[str, ...]:
        """The last lines that a child's process has written. Raises KeyError."""
        return self._children[name].log_tail

    def last_words(self, name: str) -> tuple[str, ...]:
        """The last lines of a child's process that ended, whatever a later one says; empty where none has ended. Raises
        KeyError."""
        return self._children[name].last_words

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

    def _put(self, spec: ChildSpec) -> SupervisedChild:
        if spec.name in self._children:
            raise ValueError(f"two children are named {spec.name!r}")
        beside = next((child for child in self._children.values() if child.spec.log_path == spec.log_path), None)
        child = SupervisedChild(spec, self.run, self._policy, self._clock, self._guardian, self._changed, beside)
        self._children[spec.name] = child
        return child

    def _changed(self, status: ChildStatus) -> None:
        self._write()
        self._tell(status)

    def _tell(self, status: ChildStatus) -> None:
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
