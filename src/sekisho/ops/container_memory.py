"""Memory of the container that this process runs in: its limit, and what it really needs of it.

The kernel counts cached files as use, though it gives them back as soon as somebody needs memory. What is left without
the files that were not read lately is the working set, which is what the kernel cannot give back.
"""

from pathlib import Path

import msgspec

_NO_LIMIT = 1 << 60  # version 1 writes a huge number for «no limit»


class ContainerMemory(msgspec.Struct, frozen=True):
    limit_bytes: int
    used_bytes: int
    working_set_bytes: int

    @property
    def free_bytes(self) -> int:
        """What somebody who asks for it can have."""
        return max(0, self.limit_bytes - self.working_set_bytes)


def read(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> ContainerMemory | None:
    """The tightest limit on the way up from this process' group; None where there is none. Reads some small files."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # not Linux
    found: list[ContainerMemory] = []
    for line in lines:
        hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
        if hierarchy == "0":
            found += _upward(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _upward(root / "memory", path, *names)
    return min(found, key=lambda memory: memory.limit_bytes, default=None)


def _upward(root: Path, path: str, limit_name: str, usage_name: str, cached_name: str) -> list[ContainerMemory]:
    found = []
    folder = root / path.strip("/")
    while True:
        limit, usage = _number(_text(folder / limit_name)), _number(_text(folder / usage_name)) or 0
        if limit is not None and limit < _NO_LIMIT:
            cached = _statistic(_text(folder / "memory.stat"), cached_name)
            found.append(ContainerMemory(limit, usage, max(0, usage - cached)))
        if folder == root or root not in folder.parents:
            return found
        folder = folder.parent


def _statistic(text: str, name: str) -> int:
    cells = (line.split() for line in text.splitlines())
    return next((_number(cell[1]) or 0 for cell in cells if len(cell) == 2 and cell[0] == name), 0)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # this level has no such file
