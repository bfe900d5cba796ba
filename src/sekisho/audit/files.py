"""The few operations on files that the book needs, in one place, so that tests can make each of them fail."""

import os
from pathlib import Path

from sekisho.core.file_lock import try_lock

_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
_sync = getattr(os, "fdatasync", os.fsync)


class Files:
    """The machine's files. Every method raises OSError."""

    def create(self, path: Path) -> int:
        """A new file, readable by its owner alone, open for appending."""
        return os.open(path, _WRITE_FLAGS, 0o600)

    def write(self, descriptor: int, blob: bytes) -> int:
        """Appends; how many bytes the disk took, which may be fewer."""
        return os.write(descriptor, blob)

    def sync(self, descriptor: int) -> None:
        _sync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Makes names durable. Windows keeps names in a journal of its own and opens no folders."""
        if os.name == "nt":
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(files: Files, descriptor: int, blob: bytes) -> None:
    """Goes on after a short write, as after a signal; a full disk then says so."""
    view = memoryview(blob)
    while view:
        view = view[files.write(descriptor, bytes(view)) :]


def write_atomically(files: Files, path: Path, body: bytes) -> None:
    """Readers see the old file or the new one, never a part. Durable when it returns."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = files.create(draft)
    try:
        write_all(files, descriptor, body)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.replace(draft, path)
    files.sync_folder(path.parent)


def append_line(files: Files, path: Path, line: bytes) -> None:
    """Appends a line durably to a file that is opened for it alone. A torn last line does not swallow it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end:
            os.lseek(descriptor, end - 1, os.SEEK_SET)
            line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line
        try:
            write_all(files, descriptor, line)
        except OSError:
            files.truncate(descriptor, end)
            raise
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    if not end:
        files.sync_folder(path.parent)


class FolderLock:
    """One writer per folder. The kernel frees the lock however its holder ends; the lock file itself stays."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """False at once when somebody else holds it, in this process or another."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """May be called twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
