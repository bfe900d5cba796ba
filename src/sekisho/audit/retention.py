"""Deleting old segments in the open: the book says so itself, and a signed record bridges the gap for the verifier.

Order: an admin record in the book, the signed line in `deletions.jsonl`, then the files. A crash in between leaves
files that are already said to be deleted; the next run removes them.
"""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec

from sekisho.audit.files import Files, append_line
from sekisho.audit.keys import sign, signed_by
from sekisho.audit.segment import Header, parse_header, read_lines, segments

DELETIONS_FILE = "deletions.jsonl"
RETENTION_ACTION = "retention"


class Deletion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Segments `first_segment` … `last_segment` are gone. The book goes on after record `last_sequence` and the running
    hash `head`; `announced` is the sequence number of the admin record that says the same."""

    book: str
    first_segment: int
    last_segment: int
    first_sequence: int
    last_sequence: int
    head: bytes
    announced: int
    time: str
    signature: bytes = b""

    def signed(self, signing: bytes) -> "Deletion":
        return msgspec.structs.replace(self, signature=sign(signing, self._body()))

    def genuine(self, public: bytes) -> bool:
        return signed_by(public, self._body(), self.signature)

    def detail(self) -> dict[str, str | int | float | bool | None]:
        """What the admin record says of it."""
        return {
            "first_segment": self.first_segment,
            "last_segment": self.last_segment,
            "first_sequence": self.first_sequence,
            "last_sequence": self.last_sequence,
        }

    def _body(self) -> bytes:
        return b"sekisho deletion\n" + msgspec.json.encode(msgspec.structs.replace(self, signature=b""))


def plan(folder: Path, book: str, before_s: float, time: str) -> Deletion | None:
    """The deletion of every leading segment that ended before `before_s`; None when there is none. The last segment
    always stays. A segment ended when the next one began. Raises OSError; damaged headers stop the plan there."""
    found = list(segments(folder).items())
    last: tuple[int, Header] | None = None
    for (index, _), (following, path) in pairwise(found):
        header = parse_header(next(read_lines(path), b""))
        if header is None or following != index + 1 or _seconds(header.started) >= before_s:
            break
        last = index, header
    if last is None:
        return None
    first_header = parse_header(next(read_lines(found[0][1]), b""))
    return Deletion(
        book=book,
        first_segment=found[0][0],
        last_segment=last[0],
        first_sequence=first_header.first if first_header is not None else 0,
        last_sequence=last[1].first - 1,
        head=last[1].head,
        announced=0,
        time=time,
    )


def record(files: Files, folder: Path, deletion: Deletion) -> None:
    """Appends the signed line, durably. Raises OSError."""
    append_line(files, folder / DELETIONS_FILE, msgspec.json.encode(deletion) + b"\n")


def remove(files: Files, folder: Path, deletion: Deletion) -> int:
    """Removes the files, oldest first; how many. Raises OSError."""
    removed = 0
    for path in sorted(folder.glob("*.jsonl*")):
        number = path.name.partition(".")[0]
        if number.isdigit() and deletion.first_segment <= int(number) <= deletion.last_segment:
            files.remove(path)
            removed += 1
    files.sync_folder(folder)
    return removed


def read_deletions(folder: Path, book: str, public: bytes) -> tuple[list[Deletion], list[int], list[int]]:
    """The genuine deletion records, the numbers of the lines that are none, and of those that are torn, as by a crash.
    Raises OSError."""
    good: list[Deletion] = []
    bad: list[int] = []
    torn: list[int] = []
    path = folder / DELETIONS_FILE
    if not path.exists():
        return good, bad, torn
    for number, line in enumerate(read_lines(path), 1):
        try:
            deletion = msgspec.json.decode(line, type=Deletion)
        except msgspec.ValidationError:
            bad.append(number)
            continue
        except (msgspec.DecodeError, UnicodeDecodeError):
            torn.append(number)
            continue
        canonical = msgspec.json.encode(deletion) + b"\n" == line
        if canonical and deletion.book == book and deletion.genuine(public):
            good.append(deletion)
        else:
            bad.append(number)
    return good, bad, torn


def _seconds(started: str) -> float:
    try:
        return datetime.fromisoformat(started).astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        return float("inf")  # somebody was at the header: nothing is deleted by what it says
