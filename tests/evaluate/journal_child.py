"""Runs that are there to be killed.

usage: journal_child.py nursery STORE FOLDER     forks a runner for each line `STEPS ALLOWANCE DOOR` that it reads
       journal_child.py hold STORE FOLDER WHAT   one step that starts processes and then waits for its end

A runner tells everything it does beside FOLDER: `FOLDER.effects` has a line for each piece of work, `FOLDER.told` one
for each step that `journal.step` has answered. It stops, to be killed, after ALLOWANCE new steps, and kills itself
when it comes to its DOOR-th disk or database operation (0: never).
"""

import asyncio
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import Store

PARTS = 3


def artifact(number: int) -> bytes:
    return f"{number}:".encode() * 5_000


def key(number: int) -> str:
    return f"step-{number:03d}"


def result(number: int) -> dict[str, Any]:
    return {"number": number, "square": number * number, "kind": number % 4}


def tell(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


_write = os.write  # not a door: the test's own book-keeping


class Runner:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def work(self, number: int) -> Callable[[StepContext], Any]:
        chosen = (self.plain, self.files, self.parts, self.process)[number % 4]
        return lambda context: chosen(context, number)

    async def plain(self, _: StepContext, number: int) -> dict[str, Any]:
        tell(f"{self.folder}.effects", key(number))
        return result(number)

    async def files(self, context: StepContext, number: int) -> dict[str, Any]:
        context.write(f"raw/{key(number)}.bin", artifact(number))
        tell(f"{self.folder}.effects", key(number))
        context.write(f"{key(number)}.json", artifact(-number))
        return result(number)

    async def parts(self, context: StepContext, number: int) -> dict[str, Any]:
        for part in range(context.state or 0, PARTS):
            tell(f"{self.folder}.effects", f"{key(number)} {part}")
            context.write(f"{key(number)}-{part}.bin", artifact(part))
            await context.checkpoint(part + 1)
            tell(f"{self.folder}.told", f"{key(number)} {part}")
        return result(number)

    async def process(self, context: StepContext, number: int) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec("sleep", "600", env=context.environment)
        await context.child(child)
        tell(f"{self.folder}.effects", key(number))
        child.kill()
        await child.wait()
        return result(number)

    async def run(self, url: str, steps: int, allowance: int) -> None:
        store = await Store.open(url, migrate=False)
        new = 0
        async with Journal.open(store, Path(self.folder), "run-1", "test", {"steps": steps}) as journal:
            done = {step.key for step in journal.steps if step.state == "done"}
            for number in range(steps):
                if new == allowance:
                    await asyncio.sleep(3600)
                assert await journal.step(key(number), {"number": number}, self.work(number)) == result(number)
                tell(f"{self.folder}.told", key(number))
                new += key(number) not in done
        tell(f"{self.folder}.told", "finished")
        await store.close()


def set_doors(door: int) -> None:
    """Lets this process die before or after its `door`-th operation, whichever operation that is."""
    count = itertools.count(1)

    def maybe_die() -> None:
        if next(count) == door:
            os.kill(os.getpid(), signal.SIGKILL)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            maybe_die()
            answer = function(*arguments, **named)
            maybe_die()
            return answer

        return operation

    def guarded_method(method: Callable[..., Any]) -> Callable[..., Any]:
        async def operation(*arguments: Any, **named: Any) -> Any:
            maybe_die()
            answer = await method(*arguments, **named)
            maybe_die()
            return answer

        return operation

    for name in ("write", "fsync", "replace"):
        setattr(os, name, guarded(getattr(os, name)))
    for name in ("create_run", "claim_run", "put_step", "release_run"):
        setattr(Store, name, guarded_method(getattr(Store, name)))
    Runner.plain = guarded_method(Runner.plain)  # type: ignore[method-assign]
    StepContext.child = guarded_method(StepContext.child)  # type: ignore[method-assign]


def nursery(url: str, folder: str) -> None:
    from sekisho.store.backends import connect

    connect(url)  # imports the driver, opens nothing
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are gone at once
    for line in sys.stdin:
        name, steps, allowance, door = line.split()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if int(door):
                set_doors(int(door))
            asyncio.run(Runner(f"{folder}/{name}").run(url.replace("NAME", name), int(steps), int(allowance)))
            os._exit(0)
        print(child, flush=True)


async def hold(url: str, folder: str, what: str) -> None:
    """Tells the ids of its processes, one line, when all of them are kept. In a file: a pipe would stay open as long
    as its orphans live."""

    async def work(context: StepContext) -> None:
        pids = []
        if what == "fork":
            forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            forked.start()
            await context.child(forked)  # type: ignore[arg-type]
            pids.append(forked.pid)
        elif what == "processes":
            start = asyncio.create_subprocess_exec
            shell = await start("sh", "-c", "sleep 600 & echo $!; wait", stdout=asyncio.subprocess.PIPE)
            assert shell.stdout is not None
            grandchild = int(await shell.stdout.readline())
            await context.child(shell)
            unknown = await start("sleep", "600", env=context.environment)
            pids += [shell.pid, grandchild, unknown.pid]
        tell(f"{folder}.told", " ".join(["ready", *map(str, pids)]))
        await asyncio.sleep(3600)

    store = await Store.open(url)
    async with Journal.open(store, Path(folder), "run-1", "test", {}) as journal:
        await journal.step("engine", None, work)


if __name__ == "__main__":
    if sys.argv[1] == "nursery":
        nursery(*sys.argv[2:])
    else:
        asyncio.run(hold(*sys.argv[2:]))
