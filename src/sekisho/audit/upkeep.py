"""What is done to closed segments in the background: packing, and deleting what has passed its time."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from sekisho.audit.files import Files
from sekisho.audit.packing import pack_closed
from sekisho.core.errors import BookUnavailable

log = logging.getLogger("sekisho.audit")

EVERY_S = 3600.0


class Upkeep:
    """A thread that looks at the folder at start, after each rotation and every hour. Its failures are logged and tried
    again; they never touch the writing."""

    def __init__(self, folder: Path, files: Files, compress: bool, retain: Callable[[], Awaitable[object]] | None):
        self._folder = folder
        self._files = files
        self._compress = compress
        self._retain = retain
        self._awake = threading.Event()
        self._closing = False
        self.files_lock = threading.Lock()  # packing and deleting do not meet
        self._thread = threading.Thread(target=self._work, name="sekisho-upkeep", daemon=True)

    def start(self) -> None:
        if self._compress or self._retain is not None:
            self._thread.start()

    def wake(self) -> None:
        self._awake.set()

    def stop(self) -> None:
        """Returns when the work in hand is done. May be called twice."""
        self._closing = True
        self._awake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._closing:
            try:
                if self._compress:
                    with self.files_lock:
                        pack_closed(self._files, self._folder)
                if self._retain is not None:
                    asyncio.run(_wait(self._retain))
            except OSError as error:
                log.error("book: packing: %s", error)
            except BookUnavailable as error:
                log.error("%s: book: retention: %s", error.id, error.message)
            except Exception:  # the thread must live: what failed once is tried again in an hour
                log.exception("book: upkeep failed")
            self._awake.wait(EVERY_S)
            self._awake.clear()


async def _wait(work: Callable[[], Awaitable[object]]) -> None:
    await work()
