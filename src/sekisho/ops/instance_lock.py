"""One supervisor per home."""

import os
import sys
from pathlib import Path

from sekisho.core.file_lock import try_lock


class AlreadyRunning(Exception):
    """Another supervisor holds this home. `pid` is its process id where it could be read."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"already running{'' if pid is None else f' as process {pid}'} (lock {path})")
        self.pid = pid


class InstanceLock:
    """A lock on a file that the operating system frees however the holder ends. The file itself stays: removing it
    would let two holders lock two different files of the same name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises `AlreadyRunning` at once when somebody else holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(descriptor):
            told = os.pread(descriptor, 32, 0) if sys.platform != "win32" else b""
            os.close(descriptor)
            raise AlreadyRunning(self.path, int(told) if told.strip().isdigit() else None)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
