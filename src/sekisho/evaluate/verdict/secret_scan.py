"""Looks for keys in plain text where none may stand: logs, old compressed ones too, run folders, state files.

A key of our own that opens this server now is `definite`: its hash is in the store. Whatever else looks like a key of
ours or of a vendor is `suspicious`. Findings show the last four characters and no more. Files are read in blocks.

In the files of runs only keys of ours are looked for. They hold what models answered, who write keys as examples
(`sk-your-api-key-here`, a textbook's JWT), and no vendor's key ever comes near them.
"""

import gzip
import os
import re
import stat
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from sekisho.evaluate.progress import Progress, silent
from sekisho.guard.personal.credentials import credentials
from sekisho.ops.home import Home
from sekisho.store import KeyRecord, hash_secret, mask

MOST_LISTED = 1000
_BLOCK_BYTES = 256 << 10
_LONGEST_LINE_BYTES = 64 << 10
_OVERLAP_BYTES = 8 << 10
_HELD_BYTES = 4 << 10
_KINDS = frozenset({"API_KEY", "TOKEN", "PRIVATE_KEY"})
_OWN = re.compile(rb"sk-sekisho-([A-Za-z0-9_\-]{8,43})")
_OWN_CHARACTERS = 43
# One of these stands in every key that the guard's finders know by its form; a test compares them with its list. They
# are looked for first: the finders alone would need minutes for the logs of a busy month.
# fmt: off
MARKS = (
    "sk-", "AKIA", "ASIA", "ABIA", "ACCA", "AIza", "GOCSPX-", "ya29.", "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
    "pat_", "glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glsoat-", "xox", "xapp-", "_live_", "_test_", "whsec_",
    "hf_", "gsk_", "npm_", "r8_", "xai-", "pplx-", "dop_v1_", "nvapi-", "pypi-", "SG.", "AGE-SECRET-KEY-1",
    "hooks.slack.com/", "eyJ", "PRIVATE KEY",
)
# fmt: on
_BEARERS = (b"earer", b"EARER", b"asic", b"Token")
_MARKS = tuple(mark.encode() for mark in MARKS)
_NOT_SCANNED = ("models", "secrets")


class Leak(msgspec.Struct, frozen=True, kw_only=True):
    """A key in plain text. `path` is relative to the scanned root where it lies in it; `line` counts from 1, 0 in a
    file that is no text. `kind`: `sekisho_key` or what the guard calls it. `key_id` and `key_name` are known where it
    is definite."""

    path: str
    line: int
    kind: str
    certainty: Literal["definite", "suspicious"]
    shown: str
    key_id: str = ""
    key_name: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind} {self.shown} ({self.certainty})"


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """`leaks` holds the first `MOST_LISTED`; the counts are of all. `unreadable`: files that could not be read, or not
    to their end, with the reason; they may hold anything."""

    leaks: tuple[Leak, ...]
    definite: int
    suspicious: int
    files: int
    bytes: int
    unreadable: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return self.definite + self.suspicious


def scan(
    paths: Iterable[Path],
    known: Mapping[str, KeyRecord],
    root: Path | None = None,
    progress: Progress = silent,
    own_only: Sequence[Path] = (),
) -> Scan:
    """`paths`: files and folders. `known`: the live keys by the hash of their secret (`Store.load_keys`). Blocks.

    Below `own_only` only keys of ours are looked for.
    """
    places = list(paths)
    leaks: list[Leak] = []
    counts = {"definite": 0, "suspicious": 0}
    unreadable: list[str] = []
    size = 0
    seen: set[tuple[int, int]] = set()
    for _ in range(2):  # a log that gives way to its compressed self meanwhile is found in the second round
        fresh = [path for path in _files(places) if _identity(path) not in seen]
        for done, path in enumerate(fresh):
            progress("scan", done, len(fresh))
            identity = _identity(path)
            if identity is None or identity in seen:
                continue  # gone meanwhile, no file, or another name of one
            shown = _relative(path, root)
            try:
                ours = any(path.is_relative_to(place) for place in own_only)
                for leak, length in _in_file(path, shown, known, ours):
                    size += length
                    if leak is not None:
                        counts[leak.certainty] += 1
                        if len(leaks) < MOST_LISTED:
                            leaks.append(leak)
            except FileNotFoundError:
                continue
            except (OSError, EOFError, zlib.error) as error:
                unreadable.append(f"{shown}: {getattr(error, 'strerror', None) or error}")
            seen.add(identity)
        if fresh:
            progress("scan", len(fresh), len(fresh))
    return Scan(
        leaks=tuple(leaks),
        definite=counts["definite"],
        suspicious=counts["suspicious"],
        files=len(seen),
        bytes=size,
        unreadable=tuple(unreadable),
    )


def scan_home(
    home: Home, known: Mapping[str, KeyRecord], extra: Iterable[Path] = (), progress: Progress = silent
) -> Scan:
    """Everything in the home but the models and the folder of secrets, and whatever else is named. In the book, which
    is encrypted and by chance looks like a vendor's token, and in runs only keys of ours are looked for."""
    own = sorted(path for path in home.path.iterdir() if path.name not in _NOT_SCANNED) if home.path.is_dir() else []
    return scan([*own, *extra], known, home.path, progress, own_only=(home.audit, home.runs))


# --- files ----------------------------------------------------------------------------------------------------------


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir() and not place.is_symlink():
            for folder, folders, names in os.walk(place):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(names))
        else:
            yield place


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a regular file; None for what is none, or not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _relative(path: Path, root: Path | None) -> str:
    return str(path.relative_to(root)) if root is not None and path.is_relative_to(root) else str(path)


def _in_file(
    path: Path, shown: str, known: Mapping[str, KeyRecord], own_only: bool
) -> Iterator[tuple[Leak | None, int]]:
    """The leaks of a file, and with a None the bytes that were read. Raises OSError, EOFError, zlib.error."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield from _in_stream(raw, shown, known, own_only)
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield from _in_stream(unpacked, shown, known, own_only)  # type: ignore[arg-type]  # it reads like one


def _in_stream(
    stream: BinaryIO, shown: str, known: Mapping[str, KeyRecord], own_only: bool
) -> Iterator[tuple[Leak | None, int]]:
    """A line longer than a block is read with an overlap: a find that touches a cut is told with what follows it."""
    line = 1
    carried = fresh = b""
    following = _block(stream)
    binary = b"\0" in following[:8192]
    while following:
        fresh, following = following, _block(stream)
        yield None, len(fresh)
        block = carried + fresh
        cut = bool(following) and not fresh.endswith(b"\n")
        finds = _own(block, known)
        if not binary and not own_only:
            finds += _outside(finds, _foreign(block))
        for start, end, leak in sorted(finds, key=lambda find: find[0]):
            told = end < len(carried) or (end == len(carried) and start < end - _HELD_BYTES)
            held = cut and end == len(block) and start >= end - _HELD_BYTES
            if not told and not held:
                number = 0 if binary else line + block.count(b"\n", 0, start)
                yield msgspec.structs.replace(leak, path=shown, line=number), 0
        carried = block[-_OVERLAP_BYTES:] if cut else b""
        line += block.count(b"\n", 0, len(block) - len(carried))


def _block(stream: BinaryIO) -> bytes:
    block = stream.read(_BLOCK_BYTES)
    return block if not block or block.endswith(b"\n") else block + stream.readline(_LONGEST_LINE_BYTES)


Find = tuple[int, int, Leak]


def _own(block: bytes, known: Mapping[str, KeyRecord]) -> list[Find]:
    finds: list[Find] = []
    for match in _OWN.finditer(block):
        secret = match[0].decode("ascii")
        record = known.get(hash_secret(secret)) if len(match[1]) == _OWN_CHARACTERS else None
        leak = Leak(
            path="",
            line=0,
            kind="sekisho_key",
            certainty="suspicious" if record is None else "definite",
            shown=mask(secret),
            key_id="" if record is None else record.id,
            key_name="" if record is None else record.name,
        )
        finds.append((match.start(), match.end(), leak))
    return finds


def _outside(own: list[Find], foreign: list[Find]) -> list[Find]:
    """Those that begin in no key of ours: its random characters may by chance look like a vendor's key."""
    starts = [start for start, _, _ in own]
    kept = []
    for find in foreign:
        before = bisect_right(starts, find[0])
        if before == 0 or own[before - 1][1] <= find[0]:
            kept.append(find)
    return kept


def _foreign(block: bytes) -> list[Find]:
    """Keys of vendors, tokens and private keys, by the finders that redact the logs. What only a word beside it calls a
    key is left to them: in a log it is gone, and in an answer of a model it is an example."""
    if not any(mark in block for mark in (*_MARKS, *_BEARERS)):
        return []
    text = block.decode("utf-8", "surrogateescape")
    lower = (text if text.isascii() else text.replace("İ", "I")).lower()
    finds: list[Find] = []
    done = 0
    for start, end, kind in sorted(credentials(text, lower), key=lambda span: (span[0], -span[1])):
        found = text[start:end]
        if start < done or kind not in _KINDS or "sk-sekisho-" in found:
            continue
        if kind == "API_KEY" and not any(mark in found for mark in MARKS):
            continue
        done = end
        first = len(text[:start].encode("utf-8", "surrogateescape"))
        last = first + len(found.encode("utf-8", "surrogateescape"))
        shown = "…" if kind == "PRIVATE_KEY" else f"…{found[-4:]}"
        finds.append((first, last, Leak(path="", line=0, kind=kind, certainty="suspicious", shown=shown)))
    return finds
