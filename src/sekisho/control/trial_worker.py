"""A worker that is started to be measured, beside the server and unknown to it, and ended whatever happens."""

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import IO, Final

import msgspec

from sekisho.control.measured import MeasurementFailed
from sekisho.core.clock import Clock
from sekisho.engines import lifeline, registry, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.engines.http_client import HttpClient, HttpTrouble

START_S: Final = 600.0
_POLL_S: Final = 0.05
_ASK_S: Final = 5.0
_TAIL_BYTES: Final = 4000
_SHOWN: Final = 400
_ABOVE: Final = "The lines above say why."
_ERROR: Final = re.compile(r"[\d.]+ E (.+)")


class Running(msgspec.Struct, frozen=True):
    """`root`: without /v1."""

    root: str
    key: str
    process: int


@asynccontextmanager
async def started(config: ModelConfig, clock: Clock, start_s: float = START_S) -> AsyncIterator[Running]:
    """Starts a worker with these settings, waits until it has loaded, and ends it after the body. It dies with this
    process as well. Raises MeasurementFailed, with its last line, where it does not start."""
    port, key = worker_process.free_port(), worker_process.new_key()
    environment = os.environ | worker_process.environment(key) | lifeline.environment()
    with tempfile.TemporaryFile() as log:
        child = await asyncio.create_subprocess_exec(
            *registry.WORKERS[config.engine](config, port),
            stdin=asyncio.subprocess.PIPE,  # its lifeline
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=os.name == "posix",  # Ctrl+C is for us; we end it
        )
        running = Running(f"http://127.0.0.1:{port}", key, child.pid)
        try:
            await _ready(running, child, log, clock, start_s)
            yield running
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.communicate()


async def _ready(
    running: Running, child: asyncio.subprocess.Process, log: IO[bytes], clock: Clock, start_s: float
) -> None:
    client = HttpClient(running.root, {"Authorization": f"Bearer {running.key}"})
    until_s = clock.monotonic() + start_s
    try:
        while child.returncode is None:
            with suppress(HttpTrouble):  # not listening yet
                response = await client.send("GET", "/health", b"", _ASK_S)
                await response.read()
                if response.status == 200:
                    return
            if clock.monotonic() > until_s:
                raise MeasurementFailed(f"the worker was not ready within {start_s:g} s: {_last_line(log)}")
            await asyncio.sleep(_POLL_S)
    finally:
        await client.close()
    raise MeasurementFailed(f"the worker did not start (exit code {child.returncode}): {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    """The worker's own word on what is wrong, with llama.cpp's first where it points to that; else its last line."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = (told or lines or ["it said nothing"])[-1]
    if last.endswith(_ABOVE) and (errors := [found[1] for line in lines if (found := _ERROR.fullmatch(line))]):
        last = f"{last.removesuffix(_ABOVE).strip()} ({errors[0]})"
    return last[:_SHOWN]
