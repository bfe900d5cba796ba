"""Processes by what cannot be mistaken: a process id alone may name somebody else by tomorrow."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

RUN_ENV = "SEKISHO_RUN"
"""Marks every process of one supervisor's run; inherited by what the children start."""


def birth(pid: int) -> str | None:
    """When a process began, exactly, and told apart from any earlier or later one of the same id; None when there is
    no such process. On Linux it does not move when the wall clock is corrected."""
    try:
        if sys.platform == "linux":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return f"{boot}/{fields[19]}"
        return f"{psutil.Process(pid).create_time():.3f}"
    except (OSError, psutil.Error):
        return None


def signal_group(pid: int, number: int) -> bool:
    """Signals the process group that `pid` leads (on Windows: its tree). False when nobody was there."""
    if os.name == "posix":
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            return False
        return True
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.Error:
        return False
    for process in family:
        try:
            process.kill() if number == _KILL else process.terminate()
        except psutil.Error:
            continue  # gone between listing and signalling
    return True


_KILL = getattr(signal, "SIGKILL", 9)


def leftovers(run: str, known: Iterable[tuple[int, str]]) -> list[psutil.Process]:
    """What still lives of an earlier run: the children known by id and birth, and whatever bears the run's mark."""
    certain = set(known)
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        if any(pid == process.pid and birth(pid) == born for pid, born in certain) or _bears(process, run):
            found.append(process)
    return found


def _bears(process: psutil.Process, run: str) -> bool:
    try:
        return bool(run) and process.environ().get(RUN_ENV) == run
    except (psutil.Error, OSError):
        return False  # somebody else's process: not ours by definition


def end(processes: list[psutil.Process], grace_s: float = 2.0) -> int:
    """Asks, waits up to `grace_s`, then kills; blocks. Gives the number that had to go. psutil compares start times
    before it signals, so an id that changed hands meanwhile is safe."""
    for process in processes:
        _try(process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        _try(process.kill)
    psutil.wait_procs(alive, timeout=grace_s)
    return len(processes)


def _try(action: Callable[[], None]) -> None:
    try:
        action()
    except psutil.Error:
        return  # already gone
