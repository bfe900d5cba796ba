"""What happened to a segment's lines, told from which of them are genuine: a pure function.

A line that opens was written by the writer, for the sequence number it carries. So what is missing, what stands twice,
what stands elsewhere and what is foreign can be told apart without trusting a count or a place from the file.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal[
    "edited",
    "inserted",
    "deleted",
    "duplicated",
    "swapped",
    "truncated",
    "segment_missing",
    "rolled_back",
    "bad_anchor",
    "bad_deletion",
    "unreadable",
]


class Mark(msgspec.Struct, frozen=True):
    """A line of a segment. `sequence` is None where the line is not genuine."""

    line: int
    sequence: int | None


class Problem(msgspec.Struct, frozen=True):
    """`line` counts from 1, the header's. `sequence` is the record concerned, or the one expected there."""

    kind: Kind
    segment: int | None
    line: int | None
    sequence: int | None
    reason: str


class Diagnosis(msgspec.Struct, frozen=True):
    """`beyond` lines stand behind the last record that counts and replace none."""

    problems: tuple[Problem, ...]
    beyond: tuple[Mark, ...]


def diagnose(segment: int, first: int, last: int | None, marks: Sequence[Mark]) -> Diagnosis:
    """`first` is the sequence number that the segment begins with; `last` the one it ends with, None where nobody but
    the file says so."""
    problems: list[Problem] = []

    def tell(kind: Kind, line: int | None, sequence: int | None, reason: str) -> None:
        problems.append(Problem(kind, segment, line, sequence, reason))

    present = {mark.sequence for mark in marks if mark.sequence is not None}
    seen: set[int] = set()
    foreign: list[Mark] = []
    expected = first

    def settle(gap: list[int], line: int, cut: bool) -> list[Mark]:
        """Foreign lines stand for the missing records, one for one; what is left over of them is returned."""
        for mark, sequence in zip(foreign, gap, strict=False):
            tell("edited", mark.line, sequence, f"record {sequence} is not as it was written")
        for sequence in gap[len(foreign) :]:
            if cut:
                tell("truncated", line, sequence, f"the segment ends before record {sequence}, which it once had")
            else:
                tell("deleted", line, sequence, f"record {sequence} is missing before this line")
        rest = foreign[len(gap) :]
        foreign.clear()
        return rest

    for mark in marks:
        number = mark.sequence
        if number is None:
            foreign.append(mark)
            continue
        if last is not None and number > last:
            foreign.append(mark)
            continue
        gap = [each for each in range(expected, number) if each not in present]
        for rest in settle(gap, mark.line, cut=False):
            tell("inserted", rest.line, None, f"this line is not a record of the book; record {number} follows it")
        if number in seen:
            tell("duplicated", mark.line, number, f"record {number} stands here a second time")
            continue
        early = next((each for each in range(expected, number) if each in present and each not in seen), None)
        if early is not None:
            tell("swapped", mark.line, number, f"record {number} stands where record {early} belongs")
        seen.add(number)
        expected = max(expected, number + 1)
    end = marks[-1].line + 1 if marks else 2
    missing = [each for each in range(expected, last + 1) if each not in present] if last is not None else []
    beyond = settle(missing, end, cut=True)
    return Diagnosis(tuple(problems), tuple(beyond))
