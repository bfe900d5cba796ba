"""A copy of a home's state, taken while it is in use: database, book, settings and the guard's files; never secrets."""

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sekisho.ops.home import Home

TRIES = 5


class BackUp(msgspec.Struct, frozen=True):
    """Where the copy lies, and what is not in it and why."""

    folder: Path
    left_out: dict[str, str]


def back_up(place: "Home", database: str, now: float | None = None) -> BackUp:
    """Copies into `backups/<time>` of the home. Raises OSError; a database that is no file of ours is left out."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    folder = place.path / "backups" / stamp
    folder.mkdir(parents=True, mode=0o700)
    os.chmod(folder.parent, 0o700)
    left_out: dict[str, str] = {}
    if "://" not in database or database.startswith("sqlite"):
        source = _file_of(database)
        if source.exists():
            _copy_database(source, folder / source.name)
    else:
        left_out["database"] = "not a file: back it up where it runs"
    for part in (place.audit, place.guard):
        if part.is_dir():
            copy_folder(part, folder / part.name)
    if place.settings_file.exists():
        _copy(place.settings_file, folder / place.settings_file.name)
    return BackUp(folder, left_out)


def _file_of(database: str) -> Path:
    """The file of a path, or of an address such as `sqlite:///relative` and `sqlite+aiosqlite:////absolute`."""
    return Path(database.partition("///")[2] if "://" in database else database)


def _copy_database(source: Path, target: Path) -> None:
    """With SQLite's own back-up, which is whole even while others write."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)) as origin,
        closing(sqlite3.connect(target)) as copy,
    ):
        origin.backup(copy)


def copy_folder(source: Path, target: Path) -> None:
    """Copies the files of a folder and its subfolders, oldest names first. A segment that is packed meanwhile is
    copied in its new form; the last line of one that is being written may be torn, which the book's reader knows."""
    for attempt in range(TRIES):
        try:
            for path in sorted(source.rglob("*")):
                copied = target / path.relative_to(source)
                if path.is_file() and path.name != ".lock" and not copied.exists():
                    copied.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    _copy(path, copied)
            return
        except FileNotFoundError:  # packed or deleted between the look and the copy
            if attempt == TRIES - 1:
                raise


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.copy")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out, source.open("rb") as file:
        shutil.copyfileobj(file, out)
    os.replace(draft, target)
