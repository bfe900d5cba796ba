"""`children.json`: which processes belong to this home, as the supervisor last wrote it."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops import process_tree

State = Literal["starting", "running", "waiting", "failing", "misconfigured", "stopping", "stopped"]


class ChildStatus(msgspec.Struct, frozen=True):
    """What is known of a child now. `failing`: in a crash loop, tried again every half minute. `misconfigured`: it
    said itself that starting again cannot help. `since` is when the state began, `started_at` when the process did
    (seconds since 1970). `exit_code` below zero is the signal that ended it. `log_tail` explains an end."""

    name: str
    state: State
    pid: int | None = None
    birth: str | None = None
    started_at: float | None = None
    since: float = 0.0
    restarts: int = 0
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()


class ChildrenFile(msgspec.Struct, frozen=True):
    """`children.json`. `run` marks the processes of one supervisor's life in their environment."""

    run: str
    supervisor_pid: int
    supervisor_birth: str | None
    children: list[ChildStatus]


def read_children(home: Path) -> ChildrenFile | None:
    """The state as the supervisor last wrote it, whether or not that one still lives; None where there is none."""
    try:
        return decoded((home / "children.json").read_bytes(), ChildrenFile)
    except (FileNotFoundError, Undecodable):
        return None


def is_running(children: ChildrenFile) -> bool:
    """Whether the supervisor that wrote this is alive."""
    born = process_tree.birth(children.supervisor_pid)
    return born is not None and born == children.supervisor_birth


def replace_file(path: Path, body: bytes) -> None:
    """A reader sees the old file or the new one, never a part. Not synced: after a power cut nobody in it lives."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
