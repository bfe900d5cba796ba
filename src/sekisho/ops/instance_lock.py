"""One supervisor per home."""

import os
import sys
from pathlib import Path


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
        try:
            _lock(descriptor)
        except OSError:
            told = os.pread(descriptor, 32, 0) if sys.platform != "win32" else b""
            os.close(descriptor)
            raise AlreadyRunning(self.path, int(told) if told.strip().isdigit() else None) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
