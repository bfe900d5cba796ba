"""One rater at work: what they may see now, and what they may change. Page and terminal are two faces of it.

Of the other rater's sheet nothing leaves this file but the calibration's scores and the memo, once both have handed
the calibration in. A model's name, its time and its tokens never do.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.rubric.agreement import check, disagreed, enough
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import CALIBRATION, FIRST, Rated, Round, Score, Sheet
from sekisho.evaluate.rubric.tasks import Task

Stage = Literal["calibration", "waiting", "discussion", "rating", "done"]
"""`waiting`: for the other rater's calibration. `rating` is also a later round."""


class Item(msgspec.Struct, frozen=True):
    """One task with its answer, as a rater sees it. `score` is the rater's own, of this round."""

    task: str
    title: str
    language: str
    kind: str
    prompt: str
    answer: str
    needs: dict[str, tuple[str, ...]]
    defects: dict[str, tuple[str, ...]]
    score: Score | None


class Side(msgspec.Struct, frozen=True):
    """What a rater brings into the discussion: the calibration's scores by task, and the memo."""

    rater: str
    memo: str
    scores: dict[str, Score] = {}


class View(msgspec.Struct, frozen=True):
    """All that a rater may see now. `sides`: from the discussion on, the rater's own first; scores are in it only as
    long as the discussion lasts. `memo_needed`: they differ on whether an answer is adoptable, and nobody has written
    down what they make of that. `other_done`: the other one has handed in this round."""

    rater: str
    stage: Stage
    round: int
    items: tuple[Item, ...] = ()
    sides: tuple[Side, ...] = ()
    memo_needed: bool = False
    other_done: bool = False


class Sitting:
    """`number` asks for a later round, of what the raters disagreed on; None goes on where the rater is.

    Raises InvalidRequest where the rater cannot go on, NotFound where there are no answers.
    """

    def __init__(
        self, folder: RubricFolder, rater: str, number: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._tasks = folder.tasks()
        self._answers = folder.answers()
        self.rater = rater
        self._sheet = folder.sheet(rater) or Sheet(rater, self._answers.sha256)
        check(self._sheet, self._answers.sha256)
        self._other()
        if not self._sheet.rounds:
            self._sheet = self._sheet.with_round(self._first_round())
        if number is not None and number != self._current.number:
            self._sheet = self._sheet.with_round(self._later_round(number))

    def view(self) -> View:
        """Reads the other's sheet anew."""
        stage, current, other = self._stage(), self._current, self._other()
        shown = stage in ("calibration", "discussion", "rating")
        discussed = stage in ("discussion", "rating")
        sheets = [sheet for sheet in (self._sheet, other) if sheet is not None]
        return View(
            rater=self.rater,
            stage=stage,
            round=current.number,
            items=tuple(map(self._item, current.tasks)) if shown else (),
            sides=tuple(_side(sheet, stage == "discussion") for sheet in sheets) if discussed else (),
            memo_needed=stage == "discussion" and self._memo_needed(),
            other_done=other is not None and other.closed(current.number),
        )

    def rate(self, number: int, task: str, score: Score) -> None:
        """Durable when it returns. Raises InvalidRequest for a round that is handed in, or a task that is not in it."""
        current = self._open(number)
        answer = self._answers.get(task)
        if task not in current.tasks or answer is None:
            raise InvalidRequest(f"{task[:64]} is not in this round.")
        score = msgspec.structs.replace(score, note=score.note.strip())
        if score.severe and not score.note:
            raise InvalidRequest("A severe defect needs a note that says which.")
        rated = Rated(task, answer.sha256, score, self._clock())
        self._keep(self._sheet.with_round(current.with_(rated)))

    def hand_in(self, number: int) -> None:
        """Ends a round: nothing in it is changed after that. Raises InvalidRequest while a score is missing."""
        current = self._open(number)
        if current.missing:
            raise InvalidRequest(f"{len(current.missing)} of {len(current.tasks)} are not rated yet.")
        self._keep(self._sheet.with_round(msgspec.structs.replace(current, closed_at=self._clock())))

    def remember(self, memo: str) -> None:
        """Keeps what was learnt in the discussion. Raises InvalidRequest at another time."""
        if self._stage() != "discussion":
            raise InvalidRequest("The memo is written after both calibrations and before the tasks.")
        self._keep(msgspec.structs.replace(self._sheet, memo=memo.strip()))

    def begin(self) -> None:
        """Ends the discussion: the tasks are opened. Raises InvalidRequest while the calibration is not settled."""
        if self._stage() != "discussion":
            raise InvalidRequest("The tasks are opened after both calibrations.")
        if self._memo_needed():
            raise InvalidRequest("You differ on what is adoptable: write down first what you agreed on.")
        self._keep(self._sheet.with_round(self._round(FIRST, self._tasks.tasks)))

    @property
    def _current(self) -> Round:
        current = self._sheet.current
        assert current is not None  # the constructor begins one
        return current

    def _stage(self) -> Stage:
        current = self._current
        if current.number != CALIBRATION:
            return "rating" if current.closed_at is None else "done"
        if current.closed_at is None:
            return "calibration"
        other = self._other()
        return "discussion" if other is not None and other.closed(CALIBRATION) else "waiting"

    def _other(self) -> Sheet | None:
        """The other rater's sheet as it is now. Raises InvalidRequest where there are more than two raters."""
        names = [name for name in self._folder.raters() if name != self.rater]
        if len(names) > 1:
            raise InvalidRequest(f"{' and '.join(names)} rate here already: two raters count.")
        sheet = self._folder.sheet(names[0]) if names else None
        if sheet is not None:
            check(sheet, self._answers.sha256)
        return sheet

    def _first_round(self) -> Round:
        calibration = self._round(CALIBRATION, self._tasks.calibration)
        return calibration if calibration.tasks else self._round(FIRST, self._tasks.tasks)

    def _later_round(self, number: int) -> Round:
        if number <= FIRST or number < self._current.number:
            raise InvalidRequest(f"You are not in round {number}: leave --round out to go on where you are.")
        other = self._other()
        if other is None or not self._sheet.closed(number - 1) or not other.closed(number - 1):
            raise InvalidRequest(f"Round {number} begins once both raters have handed in round {number - 1}.")
        mine, theirs = self._sheet.latest(number - 1), other.latest(number - 1)
        apart = disagreed(mine, theirs)
        if not apart or enough(len(mine) - len(apart), len(mine)):
            raise InvalidRequest(f"You agree on {len(mine) - len(apart)} of {len(mine)} tasks: that is enough.")
        return self._round(number, (task for task in self._tasks.tasks if task.id in apart))

    def _round(self, number: int, tasks: Iterable[Task]) -> Round:
        """In an order of this rater's own, so that the two do not tire at the same tasks."""

        def place(task: str) -> bytes:
            return hashlib.sha256(f"{self._answers.sha256}\0{self.rater}\0{number}\0{task}".encode()).digest()

        answered = [task.id for task in tasks if (answer := self._answers.get(task.id)) and answer.to_rate]
        return Round(number, tuple(sorted(answered, key=place)))

    def _open(self, number: int) -> Round:
        current = self._current
        if number != current.number or current.closed_at is not None:
            raise InvalidRequest("This round was handed in: it is kept as it is.")
        return current

    def _memo_needed(self) -> bool:
        other = self._other()
        if other is None or self._sheet.memo or other.memo:
            return False
        mine, theirs = (_scores(sheet) for sheet in (self._sheet, other))
        return bool(disagreed(mine, theirs))

    def _item(self, name: str) -> Item:
        task = next(task for task in self._tasks.all if task.id == name)
        answer = self._answers.get(name)
        return Item(
            task=name,
            title=task.title,
            language=task.language,
            kind=task.kind,
            prompt=task.prompt,
            answer=answer.text if answer else "",
            needs=task.needs,
            defects=task.defects,
            score=self._current.score(name),
        )

    def _keep(self, sheet: Sheet) -> None:
        self._folder.keep(sheet)
        self._sheet = sheet


def _scores(sheet: Sheet) -> dict[str, Score]:
    calibration = sheet.round(CALIBRATION)
    return {rated.task: rated.score for rated in calibration.rated} if calibration else {}


def _side(sheet: Sheet, with_scores: bool) -> Side:
    return Side(sheet.rater, sheet.memo, _scores(sheet) if with_scores else {})
