"""The verifier: is this book what was written? It takes keys and anchors from elsewhere and nothing on trust from the
files: segment numbers come from counting, lengths and ends from what a later authenticated header says."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sekisho.audit.anchor import Anchor, read_anchors
from sekisho.audit.diagnosis import Kind, Mark, Problem, diagnose
from sekisho.audit.keys import KeyUnavailable, ReaderKeys, chain
from sekisho.audit.reader import SegmentReader
from sekisho.audit.records import AdminRecord, decode
from sekisho.audit.retention import DELETIONS_FILE, RETENTION_ACTION, Deletion, read_deletions
from sekisho.audit.segment import ORIGIN, Header, segments

MAX_PROBLEMS = 1000
_TRIES = 3


class Report(msgspec.Struct, frozen=True):
    """`problems` in the order of the book; `notes` are worth knowing and no fault. `anchored` is the count up to which
    anchors vouch for the book: what came after it could have been cut off unseen."""

    ok: bool
    records: int
    segments: int
    first_sequence: int | None
    last_sequence: int | None
    head: str
    anchored: int
    removed: tuple[Deletion, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> Problem | None:
        """The first bad record and why."""
        return self.problems[0] if self.problems else None


def verify(folder: Path, keys: ReaderKeys, anchors: Sequence[Path] = ()) -> Report:
    """Reads the whole book. `anchors` are the folders that anchors were written to. Raises OSError when the folder
    itself cannot be read; whatever is wrong inside it is a problem in the report."""
    for _ in range(_TRIES - 1):
        before = segments(folder)
        report = _Verifier(folder, keys, anchors).run()
        if report.ok or segments(folder).keys() == before.keys():
            return report  # else the book was rotated or shortened under our eyes: look again
    return _Verifier(folder, keys, anchors).run()


class _Verifier:
    def __init__(self, folder: Path, keys: ReaderKeys, anchors: Sequence[Path]) -> None:
        self._folder = folder
        self._keys = keys
        self._anchor_folders = anchors
        self._problems: list[Problem] = []
        self._notes: list[str] = []
        self._anchors: dict[tuple[int, int], list[Anchor]] = {}
        self._announced: dict[int, AdminRecord] = {}
        self._records = 0
        self._anchored = 0
        self._head, self._sequence = ORIGIN, 0  # where the book stands, as far as it is known to be good
        self._known = True  # False behind a place that could not be read

    def run(self) -> Report:
        self._read_anchors()  # before the segments: what was anchored by then must be found in them
        found = segments(self._folder)
        readers = [reader for index, path in found.items() if (reader := self._open(index, path)) is not None]
        readers = self._without_strays(readers)
        deletions = self._read_deletions()
        first_sequence = readers[0].header.first if readers and readers[0].header and readers[0].genuine else None
        self._check_start(next(iter(found), None), readers, deletions)
        expected = next(iter(found), 0)
        for place, reader in enumerate(readers):
            if reader.index > expected:
                self._tell_missing(expected, reader)
            expected = reader.index + 1
            following = readers[place + 1] if place + 1 < len(readers) else None
            self._check_segment(reader, following)
        self._check_end(readers[-1].index if readers else -1)
        self._check_deletions(deletions)
        problems = sorted(self._problems, key=_order)[:MAX_PROBLEMS]
        return Report(
            ok=not problems,
            records=self._records,
            segments=len(found),
            first_sequence=first_sequence,
            last_sequence=self._sequence or None,
            head=self._head.hex(),
            anchored=self._anchored,
            removed=tuple(deletions),
            problems=tuple(problems),
            notes=tuple(self._notes),
        )

    def _open(self, index: int, path: Path) -> SegmentReader | None:
        try:
            return SegmentReader(path, index, self._keys)
        except KeyUnavailable:
            self._tell(Problem("inserted", index, 1, None, "no book has this many segments: the file is not one of it"))
        except OSError as error:
            self._tell(Problem("unreadable", index, None, None, f"{path.name} cannot be read: {error}"))
        return None

    def _without_strays(self, readers: list[SegmentReader]) -> list[SegmentReader]:
        """Leaves out files behind a gap at the end whose headers are not genuine: their numbers prove nothing."""
        kept = list(readers)
        while len(kept) > 1 and not kept[-1].genuine and kept[-1].index > kept[-2].index + 1:
            stray = kept.pop()
            self._tell(Problem("inserted", stray.index, 1, None, "the file is no segment of this book"))
        return kept

    def _check_start(self, first: int | None, readers: list[SegmentReader], deletions: list[Deletion]) -> None:
        """The first segment there is must be the first there ever was, or a signed deletion must lead up to it."""
        header = readers[0].header if readers and readers[0].genuine else None
        if first is None or first == 0 or header is None or readers[0].index != first:
            if first and header is None:
                self._known = False
            return
        for deletion in deletions:
            if deletion.last_segment + 1 == first and deletion.last_sequence + 1 == header.first:
                if deletion.head != header.head:
                    break
                self._head, self._sequence = deletion.head, deletion.last_sequence
                return
        reason = f"segments 0 to {first - 1} are missing, and no signed deletion leads up to segment {first}"
        self._tell(Problem("segment_missing", 0, None, 1, reason))
        self._head, self._sequence = header.head, header.first - 1

    def _tell_missing(self, expected: int, reader: SegmentReader) -> None:
        lost = "" if not reader.genuine or reader.header is None else f", with records up to {reader.header.first - 1}"
        names = (
            f"segment {expected} is"
            if reader.index == expected + 1
            else f"segments {expected} to {reader.index - 1} are"
        )
        self._tell(Problem("segment_missing", expected, None, self._sequence + 1, f"{names} missing{lost}"))
        self._known = False

    def _check_segment(self, reader: SegmentReader, following: SegmentReader | None) -> None:
        header = reader.header
        if header is None or not reader.genuine:
            reason = "the segment's header is not as it was written: none of its records can be opened"
            self._tell(Problem("edited", reader.index, 1, self._sequence + 1, reason))
            self._known = False
            return
        if self._known and (header.first, header.head) != (self._sequence + 1, self._head):
            reason = f"the segment continues record {header.first - 1} of a book other than the one before it"
            self._tell(Problem("rolled_back", reader.index, 1, header.first, reason))
        ahead = None
        if following is not None and following.index == reader.index + 1 and following.genuine:
            ahead = following.header
        self._known = True
        try:
            self._check_lines(reader, header, ahead)
        except OSError as error:
            reason = f"the segment cannot be read to its end: {error}"
            self._tell(Problem("unreadable", reader.index, None, self._sequence + 1, reason))
            self._known = False

    def _check_lines(self, reader: SegmentReader, header: Header, ahead: Header | None) -> None:
        last = None if ahead is None else ahead.first - 1
        head = chain(header.head, header.line())
        marks: list[Mark] = []
        good, end = header.first - 1, (header.first - 1, head)
        torn = 0
        self._compare_anchors(reader.index, good, head)
        for opened in reader.lines():
            genuine = opened.line is not None and opened.payload is not None
            number = opened.line.sequence if opened.line is not None and genuine else None
            if not opened.raw.endswith(b"\n"):
                torn = opened.number
            marks.append(Mark(opened.number, number))
            follows = opened.line is not None and number == good + 1 and opened.line.before == head
            head = chain(head, opened.raw)
            if opened.line is None or number is None or (last is not None and number > last):
                continue
            self._note_admin(number, opened.payload)
            self._records += 1
            good = max(good, number)
            if follows:
                self._compare_anchors(reader.index, number, head)
            elif number == good:
                head = chain(opened.line.before, opened.raw)  # what stood before it is told by `diagnose`
            if number == good:
                end = (number, head)
        self._judge(reader.index, header, ahead, marks, torn)
        self._sequence, self._head = end
        if ahead is not None and end != (ahead.first - 1, ahead.head):
            self._known = False  # told already: the end of this segment is not what the next one continues

    def _judge(self, index: int, header: Header, ahead: Header | None, marks: list[Mark], torn: int) -> None:
        last = None if ahead is None else ahead.first - 1
        diagnosis = diagnose(index, header.first, last, marks)
        for problem in diagnosis.problems:
            self._tell(problem)
        beyond = diagnosis.beyond
        if not beyond:
            return
        genuine = any(mark.sequence is not None for mark in beyond)
        where = f"segment {index}: {len(beyond)} lines from line {beyond[0].line}"
        if ahead is None and len(beyond) == 1 and beyond[0].line == torn:
            self._notes.append(f"{where} were begun and never finished, or are being written now")
        elif ahead is None:
            for place, mark in enumerate(beyond):
                if mark.line != torn:
                    number = max((m.sequence for m in marks if m.sequence is not None), default=header.first - 1)
                    reason = "the line is not as it was written, or was never written by the book"
                    self._tell(Problem("edited", index, mark.line, number + 1 + place, reason))
        elif ahead.previous == "failed" or (ahead.previous == "recovered" and not genuine):
            self._notes.append(f"{where} were never acknowledged and do not count")
        elif ahead.previous == "recovered":
            kind: Kind = "edited" if beyond[0].sequence is None else "deleted"
            reason = (
                f"record {ahead.first} is not as it was written, genuine ones follow, and a start went on before it"
            )
            self._tell(Problem(kind, index, beyond[0].line, ahead.first, reason))
        else:
            reason = f"the book ended this segment with record {last}; this line came after"
            self._tell(Problem("inserted", index, beyond[0].line, None, reason))

    def _check_end(self, last_segment: int) -> None:
        """Anchors and the writer's own key state know of what came after the end."""
        for (segment, count), stated in sorted(self._anchors.items(), reverse=True):
            anchor = stated[0]
            if segment > last_segment or count > self._sequence:
                kind: Kind = "rolled_back" if segment > last_segment else "truncated"
                reason = (
                    f"the anchor of {anchor.time} vouches for {count} records up to segment {segment}; "
                    f"the book ends with record {self._sequence} in segment {last_segment}"
                )
                self._tell(Problem(kind, last_segment, None, self._sequence + 1, reason))
                break
        index = self._keys.ratchet_index
        if index is not None and index > last_segment + 1:
            reason = f"the writer's keys have moved on to segment {index}; the book ends with segment {last_segment}"
            self._tell(Problem("rolled_back", last_segment + 1, None, self._sequence + 1, reason))

    def _compare_anchors(self, segment: int, count: int, head: bytes) -> None:
        for anchor in self._anchors.get((segment, count), ()):
            if anchor.head == head:
                self._anchored = max(self._anchored, count)
            else:
                reason = f"the anchor of {anchor.time} vouches for other records up to here: the book was rewritten"
                self._tell(Problem("rolled_back", segment, None, count, reason))

    def _read_anchors(self) -> None:
        for folder in self._anchor_folders:
            good, bad = read_anchors(folder, self._keys.book, self._keys.public)
            for anchor in good:
                self._anchors.setdefault((anchor.segment, anchor.count), []).append(anchor)
            for each in bad:
                if each.torn:
                    self._notes.append(f"{each.file}, line {each.line}: {each.reason}")
                else:
                    reason = f"{each.file}, line {each.line}: {each.reason}"
                    self._tell(Problem("bad_anchor", None, each.line, None, reason))

    def _read_deletions(self) -> list[Deletion]:
        good, bad, torn = read_deletions(self._folder, self._keys.book, self._keys.public)
        self._notes += [f"{DELETIONS_FILE}, line {line} was begun and never finished" for line in torn]
        for line in bad:
            reason = f"{DELETIONS_FILE}, line {line} is not a deletion signed with this book's key"
            self._tell(Problem("bad_deletion", None, line, None, reason))
        return good

    def _note_admin(self, sequence: int, payload: bytes | None) -> None:
        if payload is not None and b'"kind":"admin"' in payload[:20]:
            record = decode(payload)
            if isinstance(record, AdminRecord) and record.action == RETENTION_ACTION:
                self._announced[sequence] = record

    def _check_deletions(self, deletions: list[Deletion]) -> None:
        """The book itself must have announced each deletion: the signing key alone cannot make one."""
        gone = max((deletion.last_sequence for deletion in deletions), default=0)
        for deletion in deletions:
            record = self._announced.get(deletion.announced)
            if deletion.announced > gone and (record is None or record.detail != deletion.detail()):
                reason = (
                    f"the deletion of segments {deletion.first_segment} to {deletion.last_segment} is not in the book"
                )
                self._tell(Problem("bad_deletion", None, None, deletion.announced, reason))

    def _tell(self, problem: Problem) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)


def _order(problem: Problem) -> tuple[float, float]:
    """By place in the book; what concerns the whole comes last."""
    far = float("inf")
    return (
        far if problem.segment is None else problem.segment,
        far if problem.line is None else problem.line,
    )
