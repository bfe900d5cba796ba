"""The folder of a run: one worker at a time, whose folder it is, and files that are whole or not there."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from weakref import WeakSet

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.evaluate.durable.journal_errors import FolderUnusable, RunBusy, WrongFolder
from sekisho.ops.instance_lock import AlreadyRunning, InstanceLock

IDENTITY = ".journal.json"
LOCK = ".lock"
_DRAFT = ".part"
_FORBIDDEN = frozenset('\\:*?"<>|')
_LONGEST_PART_BYTES = 200
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


class Identity(msgspec.Struct, frozen=True):
    """Which run a folder belongs to. `mark` is random: another database may have a run of the same id."""

    run: str
    mark: str


class RunFolder:
    """Names are relative, with slashes. What begins with a dot is the journal's own. All of it blocks, and raises
    FolderUnusable where the disk or the rights do not allow it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = InstanceLock(self.path / LOCK)

    def acquire(self) -> None:
        """Makes the folder and takes its lock, which ends with this process. Raises RunBusy."""
        try:
            if not self.path.is_dir():
                _make_folder(self.path)
            self._lock.acquire()
            _HELD.add(self)
        except AlreadyRunning as error:
            who = "another process" if error.pid is None else f"process {error.pid}"
            raise RunBusy(
                f"{who} works in {self.path}: wait for it to end, or end it, then resume the run", retry_after_s=60
            ) from error
        except OSError as error:
            raise _unusable(self.path, error) from error

    def release(self) -> None:
        """May be called twice."""
        _HELD.discard(self)
        self._lock.release()

    def identity(self) -> Identity | None:
        """None where there is none. Raises WrongFolder when it cannot be read as one."""
        try:
            return decoded((self.path / IDENTITY).read_bytes(), Identity)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Undecodable as error:
            raise WrongFolder(f"{self.path / IDENTITY} is damaged: put it back from a backup of the folder") from error
        except OSError as error:
            raise _unusable(self.path / IDENTITY, error) from error

    def write_identity(self, identity: Identity) -> None:
        self._write(self.path / IDENTITY, msgspec.json.encode(identity) + b"\n")

    def sweep(self) -> list[str]:
        """Removes what a killed write left behind; the names. Only for the holder of the lock."""
        swept = []
        for folder, _, names in os.walk(self.path):
            for name in names:
                if name.startswith(".") and name.endswith(_DRAFT):
                    draft = Path(folder, name)
                    _remove(draft)
                    swept.append(draft.relative_to(self.path).as_posix())
        return swept

    def write(self, name: str, body: bytes) -> str:
        """The file is there whole, and stays there after a power cut, or nothing changed. Its SHA-256."""
        self._write(self.target(name), body)
        return hashlib.sha256(body).hexdigest()

    def sync(self, name: str) -> str:
        """The same promise for a file that somebody else wrote here. Its SHA-256."""
        target = self.target(name)
        try:
            with target.open("rb+") as file:
                os.fsync(file.fileno())
            _sync_folder(target.parent)
        except OSError as error:
            raise _unusable(target, error) from error
        digest = self.digest(name)
        if digest is None:
            raise _unusable(target, FileNotFoundError(2, "No such file"))
        return digest

    def digest(self, name: str) -> str | None:
        """The file's SHA-256 now; None when it is not there."""
        target = self.target(name)
        try:
            with target.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unusable(target, error) from error

    def first_change(self, artifacts: Mapping[str, str]) -> tuple[str, str] | None:
        """The first of the files that is not as recorded, and what is wrong with it."""
        for name, recorded in artifacts.items():
            found = self.digest(name)
            if found != recorded:
                return name, "is missing" if found is None else "was changed"
        return None

    def remove(self, name: str) -> None:
        """Nothing happens when it is gone already."""
        _remove(self.target(name))

    def target(self, name: str) -> Path:
        """Where a name lies. Raises ValueError for one that is not allowed or leads out of the folder."""
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or not all(map(_allowed, parts)):
            raise ValueError(f"not a name for a file of a run: {name!r}")
        target = self.path.joinpath(*parts)
        if not target.parent.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"leads out of the run's folder: {name!r}")
        return target

    def _write(self, target: Path, body: bytes) -> None:
        draft = target.with_name(f".{target.name}{_DRAFT}")
        try:
            if not self.path.is_dir():  # somebody moved it: what is written must not begin another one
                raise FileNotFoundError(2, "The run's folder is not there any more")
            _make_folder(target.parent)
            descriptor = os.open(draft, _FLAGS, 0o600)
            try:
                view = memoryview(body)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(draft, target)
            _sync_folder(target.parent)
        except OSError as error:
            try:
                draft.unlink(missing_ok=True)
            except OSError:
                pass  # swept at the next opening
            raise _unusable(target, error) from error


_HELD: WeakSet[RunFolder] = WeakSet()


def _let_go_after_fork() -> None:
    """A forked child has the descriptor too, and would hold the lock when its parent has been killed."""
    for folder in list(_HELD):
        folder.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


def _allowed(part: str) -> bool:
    """A name that every file system takes, and that is none of the journal's own."""
    possible = part.isprintable() and not _FORBIDDEN & set(part) and not part.startswith((".", "/"))
    return possible and len(part.encode()) <= _LONGEST_PART_BYTES


def _make_folder(folder: Path) -> None:
    """With its parents, durably, readable by its owner alone."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Makes names durable. Windows keeps names in a journal of its own and opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> FolderUnusable:
    return FolderUnusable(f"{path}: {error.strerror or error}; mend that (space, rights), then resume the run")
