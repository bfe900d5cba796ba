"""Files that fail when told to, in place of the machine's."""

import errno
import math
import os
import threading
from pathlib import Path

from sekisho.audit.files import Files

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT}


def _on_the_anchors_thread() -> bool:
    return threading.current_thread().name == "sekisho-anchor"


class FaultyFiles(Files):
    """`fail(operation, error)` makes the next calls of an operation raise. `room_bytes` is what the disk still takes;
    a write beyond it is short first, as on a real full disk.

    The anchors' thread writes when it likes, so it would take a fault that is counted, or a part of the room, from the
    segment that a test means: it meets only the faults that last. Threads write while a test sets and heals faults."""

    def __init__(self) -> None:
        self.failing: dict[str, tuple[int, float]] = {}
        self.room_bytes: int | None = None
        self._changing = threading.Lock()

    def fail(self, operation: str, error: int = errno.EIO, times: float = math.inf) -> None:
        with self._changing:
            self.failing[operation] = error, times

    def heal(self) -> None:
        with self._changing:
            self.failing.clear()
            self.room_bytes = None

    def _check(self, operation: str) -> None:
        with self._changing:
            error, left = self.failing.get(operation, (0, 0))
            if left > 0 and (left == math.inf or not _on_the_anchors_thread()):
                self.failing[operation] = error, left - 1
                raise OSError(error, os.strerror(error))

    def create(self, path: Path) -> int:
        self._check("create")
        return super().create(path)

    def write(self, descriptor: int, blob: bytes) -> int:
        self._check("write")
        with self._changing:
            if self.room_bytes is not None and not _on_the_anchors_thread():
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
