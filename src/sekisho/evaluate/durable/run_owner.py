"""Who works on a run, whether that process still lives, and what it left running when it was killed."""

import asyncio
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sekisho.core import ids
from sekisho.evaluate.durable.journal_errors import RunBusy
from sekisho.ops import process_tree
from sekisho.store import RunOwner, StepChild

LEASE_S = 60.0
"""An owner in another machine or container, whose process nobody can see from here, is held for alive so long."""

_GRACE_S = 2.0


_HELD_HERE: set[str] = set()


@contextmanager
def holding(owner: RunOwner) -> Iterator[None]:
    """While this process works on a run: it may live on afterwards, and its leaving may not have been kept."""
    _HELD_HERE.add(owner.token)
    try:
        yield
    finally:
        _HELD_HERE.discard(owner.token)


def this_process(now: float) -> RunOwner:
    """A new owner with a token of its own."""
    pid = os.getpid()
    return RunOwner(
        token=ids.new("own"),
        pid=pid,
        birth=process_tree.birth(pid),
        host=platform.node(),
        place=_place(),
        seen_at=now,
    )


def lives(owner: RunOwner | None, now: float) -> bool:
    """Exact where process ids mean here what they mean there; else by when the owner was last seen. A moment too far
    ahead was written before the clock was set back."""
    if owner is None:
        return False
    if owner.birth is not None and owner.place == _place():
        return _lives(owner.pid, owner.birth) and (owner.pid != os.getpid() or owner.token in _HELD_HERE)
    return abs(now - owner.seen_at) < LEASE_S


async def end_orphans(children: Collection[StepChild], mark: str = "") -> int:
    """Ends those of the children that still live, what they started, and every process with `mark` in its environment;
    how many. Raises RunBusy when one does not go."""
    if not children and not mark:
        return 0
    return await asyncio.to_thread(_end_orphans, {(child.pid, child.birth) for child in children}, mark)


def still_living(children: Collection[StepChild]) -> tuple[StepChild, ...]:
    return tuple(child for child in children if _lives(child.pid, child.birth))


def _end_orphans(known: set[tuple[int, str]], mark: str) -> int:
    found = {process.pid: process for process in process_tree.leftovers(mark, known)}
    for process in list(found.values()):
        found |= {child.pid: child for child in _descendants(process)}
    found.pop(os.getpid(), None)
    orphans = [process for process in found.values() if _is_there(process)]
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        _until_gone(orphans, ask)
    for process in orphans:
        if _is_there(process):
            raise RunBusy(f"process {process.pid} of the run's earlier life does not end: end it, then resume the run")
    return len(orphans)


def _until_gone(processes: list[psutil.Process], ask: Callable[[psutil.Process], None]) -> None:
    """Waits for at most `_GRACE_S`. A zombie counts as gone and is left to whoever started it, who wants its exit
    code. psutil compares birth before it signals."""
    for process in processes:
        try:
            ask(process)
        except psutil.Error:
            continue  # gone meanwhile, or seen to be there below
    deadline = time.monotonic() + _GRACE_S
    while any(map(_is_there, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []  # gone meanwhile


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _lives(pid: int, birth: str) -> bool:
    try:
        return process_tree.birth(pid) == birth and _is_there(psutil.Process(pid))
    except psutil.Error:
        return False


def _place() -> str:
    """The space in which a process id names one process: on Linux a kernel's life and a pid namespace, so that the
    containers of one machine are told apart; elsewhere the machine."""
    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
        except OSError:
            return platform.node()
    return platform.node()
