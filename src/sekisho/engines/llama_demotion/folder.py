"""Where slot files lie. They hold what people wrote: a folder that nobody else may open, in memory where there is room,
removed with its worker; what a killed worker left is removed by the next one."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

PREFIX: Final = "sekisho-demotion-"
SHARED_MEMORY: Final = Path("/dev/shm")
_CLOCKS_APART_S: Final = 2.0


def open_folder(need_bytes: int, shared: Path = SHARED_MEMORY) -> Path:
    """A fresh folder, in memory where `need_bytes` are free there. Raises OSError."""
    place = shared if _has_room(shared, need_bytes) else None
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))


def _has_room(shared: Path, need_bytes: int) -> bool:
    try:
        return os.access(shared, os.W_OK | os.X_OK) and shutil.disk_usage(shared).free >= need_bytes
    except OSError:
        return False


def remove_leftovers(places: Iterable[Path] | None = None) -> None:
    """Removes folders of this user's workers that are gone. Never raises."""
    for place in {SHARED_MEMORY, Path(tempfile.gettempdir())} if places is None else places:
        for folder in place.glob(f"{PREFIX}*"):
            if _is_left_over(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: Path) -> bool:
    number = folder.name.removeprefix(PREFIX).partition("-")[0]
    try:
        status = folder.lstat()
        if not number.isdecimal() or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return False
        # A process that began after the folder last changed has only the same number.
        return psutil.Process(int(number)).create_time() > status.st_mtime + _CLOCKS_APART_S
    except (psutil.NoSuchProcess, OverflowError):
        return True
    except (OSError, psutil.Error):
        return False
