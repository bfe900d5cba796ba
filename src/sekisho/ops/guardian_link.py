"""The supervisor's end of the guardian process (`guardian.py`)."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)

_GUARDIAN = Path(__file__).with_name("guardian.py")


class GuardianLink:
    """Starts the guardian, starts another when it ends, and tells it which process groups to guard.

    Where there is none (Windows) every call does nothing."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if os.name == "posix":
            await self._spawn()
            self._watch = asyncio.create_task(self._respawn())

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_GUARDIAN),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(f"+{group}")

    async def _respawn(self) -> None:
        while self._process is not None:
            await self._process.wait()
            log.warning("the guardian process ended; starting another")
            await asyncio.sleep(1.0)
            await self._spawn()

    def add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}")

    def drop(self, group: int) -> None:
        self._groups.discard(group)
        self._tell(f"-{group}")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line.encode() + b"\n")

    async def stop(self) -> None:
        if self._watch is not None and self._process is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._tell("bye")
            if self._process.stdin is not None:
                self._process.stdin.close()
            await self._process.wait()
            self._process = self._watch = None
