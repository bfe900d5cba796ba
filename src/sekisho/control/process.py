"""The agent as a process: what its environment asks for, and how it ends."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sekisho.control.assembly import Place, serve
from sekisho.control.config import ControlConfig
from sekisho.control.environment import from_environment

log = logging.getLogger("sekisho.control")


def adjusted(config: ControlConfig, values: Mapping[str, str]) -> tuple[ControlConfig, dict[str, Any]]:
    """The settings with what the environment says over them, and the changes of the policy that it asks for. Sets how
    much is logged. Raises PolicyProblem with the name of a variable that is wrong."""
    told = from_environment(values)
    for note in told.notes:
        log.warning("%s", note)
    if told.log_level is not None:
        logging.getLogger("sekisho").setLevel(told.log_level)
    port = 0 if told.random_port else config.port if told.port is None else told.port
    enabled = config.enabled if told.enabled is None else told.enabled
    return msgspec.structs.replace(config, port=port, enabled=enabled), told.changes


def run(place: Place, announce: Callable[[str, str | None], None]) -> None:
    """Blocks until SIGTERM or SIGINT. Raises what `assembly.serve` does."""
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_until_signal(place, announce))


async def _until_signal(place: Place, announce: Callable[[str, str | None], None]) -> None:
    serving = asyncio.ensure_future(serve(place, announce))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, serving.cancel)
        except NotImplementedError:  # Windows' loop has none
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(serving.cancel))
    await serving
