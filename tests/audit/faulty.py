"""Files that fail when told to, in place of the machine's."""

import errno
import math
import os
import threading
from pathlib import Path

from sekisho.audit.files import Files

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT}


class FaultyFiles(Files):
    """`fail(operation, error)` makes the next calls of an operation raise. `room_bytes` is what the disk still takes;
    a write beyond it is short first, as on a real full disk.

    The anchors' thread writes when it likes, so it would take a fault that is counted, or a part of the room, from the
    segment that a test means: it meets only the faults that last."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.left: dict[str, float] = {}
        self.room_bytes: int | None = None

    def fail(self, operation: str, error: int = errno.EIO, times: float = math.inf) -> None:
        self.failing[operation] = error
        self.left[operation] = times

    def heal(self) -> None:
        self.failing.clear()
        self.room_bytes = None

    def _check(self, operation: str) -> None:
        error = self.failing.get(operation)
        if error is not None and self.left[operation] > 0 and (self._mine() or self.left[operation] == math.inf):
            self.left[operation] -= 1
            raise OSError(error, os.strerror(error))

    def _mine(self) -> bool:
        return threading.current_thread().name != "sekisho-anchor"

    def create(self, path: Path) -> int:
        self._check("create")
        return super().create(path)

    def write(self, descriptor: int, blob: bytes) -> int:
        self._check("write")
        if self.room_bytes is not None and self._mine():
            if self.room_bytes == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            blob = blob[: self.room_bytes]
            self.room_bytes -= len(blob)
        return super().write(descriptor, blob)

    def sync(self, descriptor: int) -> None:
        self._check("sync")
        super().sync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._check("truncate")
        super().truncate(descriptor, size_bytes)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self._check("close")

    def replace(self, source: Path, target: Path) -> None:
        self._check("replace")
        super().replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._check("sync_folder")
        super().sync_folder(folder)
