"""Errors that nobody foresaw: told with an id that is in the log, and what must not end goes on after them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sekisho.core.errors import SekishoError

log = logging.getLogger("sekisho.gateway.trouble")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


def unexpected(where: str, error: Exception) -> SekishoError:
    """Logs a programmer's error with its traceback and gives what the client may know of it."""
    shown = SekishoError(
        "An internal error of the server. Its administrator finds it in the log by this id.", code="internal_error"
    )
    log.error("%s: unexpected %s (%s)", where, type(error).__name__, shown.id, exc_info=error)
    return shown


async def persistently(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work`, which only a cancellation may end: after an unexpected error it is begun again, with pauses that
    grow while it keeps breaking."""
    loop = asyncio.get_running_loop()
    pause_s = FIRST_PAUSE_S
    while True:
        began_s = loop.time()
        try:
            await work()
            return
        except Exception as error:  # noqa: BLE001  # logged with its id; a watcher that ended would blind the server
            unexpected(f"background task {name}", error)
        if loop.time() - began_s > LONGEST_PAUSE_S:
            pause_s = FIRST_PAUSE_S
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
