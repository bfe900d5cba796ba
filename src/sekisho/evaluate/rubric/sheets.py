"""One rater's sheet: scores by round, bound to the answers by their SHA-256. Earlier rounds are kept as they were."""

import re
import unicodedata
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sekisho.core.errors import InvalidRequest

CALIBRATION: Final = 0
FIRST: Final = 1
ADOPTABLE_FROM: Final = 4
MOST_NOTE_CHARS: Final = 4_000
_NAME = re.compile(r"[^\W_][\w-]{0,31}")

Axis = Literal["correctness", "instructions", "readability"]
AXES: Final[dict[Axis, int]] = {"correctness": 2, "instructions": 2, "readability": 1}
"""The most points of each, 5 together. `instructions`: how far they were followed; `readability`: also whether code
can be maintained."""


class Score(msgspec.Struct, frozen=True):
    """A severe defect is named in the note."""

    correctness: Annotated[int, Meta(ge=0, le=2)]
    instructions: Annotated[int, Meta(ge=0, le=2)]
    readability: Annotated[int, Meta(ge=0, le=1)]
    severe: bool
    note: Annotated[str, Meta(max_length=MOST_NOTE_CHARS)] = ""

    @property
    def total(self) -> int:
        return self.correctness + self.instructions + self.readability

    @property
    def adoptable(self) -> bool:
        return self.total >= ADOPTABLE_FROM and not self.severe


class Rated(msgspec.Struct, frozen=True):
    """`answer_sha256`: the text that was rated. `at`: seconds since 1970."""

    task: str
    answer_sha256: str
    score: Score
    at: float


class Round(msgspec.Struct, frozen=True):
    """0 is the calibration, 1 the rating, 2 and more are of what the raters disagreed on. `tasks`: in the order in
    which this rater sees them. Once handed in (`closed_at`) it is not changed any more."""

    number: int
    tasks: tuple[str, ...]
    rated: tuple[Rated, ...] = ()
    closed_at: float | None = None

    def score(self, task: str) -> Score | None:
        return next((rated.score for rated in self.rated if rated.task == task), None)

    @property
    def missing(self) -> tuple[str, ...]:
        done = {rated.task for rated in self.rated}
        return tuple(task for task in self.tasks if task not in done)

    def with_(self, rated: Rated) -> "Round":
        others = tuple(one for one in self.rated if one.task != rated.task)
        return msgspec.structs.replace(self, rated=(*others, rated))


class Sheet(msgspec.Struct, frozen=True):
    """`memo`: what the rater took along from the calibration."""

    rater: str
    answers_sha256: str
    rounds: tuple[Round, ...] = ()
    memo: Annotated[str, Meta(max_length=MOST_NOTE_CHARS)] = ""
    version: int = 1

    def round(self, number: int) -> Round | None:
        return next((one for one in self.rounds if one.number == number), None)

    @property
    def current(self) -> Round | None:
        """The latest round that was begun."""
        return max(self.rounds, key=lambda one: one.number, default=None)

    def closed(self, number: int) -> bool:
        found = self.round(number)
        return found is not None and found.closed_at is not None

    def with_round(self, changed: Round) -> "Sheet":
        others = tuple(one for one in self.rounds if one.number != changed.number)
        rounds = tuple(sorted((*others, changed), key=lambda one: one.number))
        return msgspec.structs.replace(self, rounds=rounds)

    def latest(self, up_to: int | None = None) -> dict[str, Score]:
        """The score that counts for each task, calibration left out: of the last round, up to `up_to`, that has it."""
        found: dict[str, Score] = {}
        for one in self.rounds:
            if one.number >= FIRST and (up_to is None or one.number <= up_to) and one.closed_at is not None:
                found.update({rated.task: rated.score for rated in one.rated})
        return found


def rater_name(told: str) -> str:
    """The name as it stands in a file's name: letters of any script, small, digits, `-` and `_`. Raises
    InvalidRequest."""
    name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", told).strip().casefold())
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{told!r} is no rater's name: 1 to 32 letters, digits, - and _")
    return name
