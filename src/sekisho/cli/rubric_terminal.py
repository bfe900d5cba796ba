"""Rating in the terminal: the same sitting as on the page, line by line."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.evaluate.rubric.sheets import Score
    from sekisho.evaluate.rubric.sitting import Item, View
    from sekisho.evaluate.rubric.sitting import Sitting as SittingType

AXES = {"correctness": 2, "instructions": 2, "readability": 1}


class Paused(Exception):
    """The rater stops for now, or the input has ended."""


class GoBack(Exception):
    """To the task before this one."""


class Table:
    """Where one rater sits. `read` gives a line without its end, None at the end of the input."""

    def __init__(self, out: Output, sitting: "SittingType", read: Callable[[], str | None] | None = None) -> None:
        self._out = out
        self._sitting = sitting
        self._read = read or _line

    def work(self) -> None:
        """Goes on until the rater has handed in, must wait for the other one, or pauses."""
        try:
            while True:
                view = self._sitting.view()
                if view.stage in ("calibration", "rating"):
                    self._rate(view)
                elif view.stage == "discussion":
                    self._discuss(view)
                else:
                    break
        except Paused:
            self._out.say("rubric_paused")
            return
        if view.stage == "waiting":
            self._out.say("rubric_waiting")

    def _rate(self, view: "View") -> None:
        """Every open task, then the look over and the handing in."""
        items = view.items
        index = next((i for i, item in enumerate(items) if item.score is None), len(items))
        while True:
            if index < len(items):
                index = self._one(view, index)
                continue
            items = self._sitting.view().items
            self._overview(items)
            told = self._ask("rubric_hand_in", [*map(str, range(1, len(items) + 1)), "y"])
            if told == "y":
                self._sitting.hand_in(view.round)
                return
            self._one(view, int(told) - 1)

    def _one(self, view: "View", index: int) -> int:
        """Shows and scores one task; the index of the next one."""
        item = view.items[index]
        self._show(item, index + 1, len(view.items))
        try:
            score = self._score()
        except GoBack:
            return max(0, index - 1)
        self._sitting.rate(view.round, item.task, score)
        self._out.say("rubric_kept", total=score.total, verdict=self._verdict(score))
        scored = {one.task for one in self._sitting.view().items if one.score is not None}
        order = [*range(index + 1, len(view.items)), *range(index)]
        return next((i for i in order if view.items[i].task not in scored), len(view.items))

    def _show(self, item: "Item", number: int, count: int) -> None:
        out = self._out
        out.line()
        out.line(out.text("rubric_head", number=number, count=count, title=item.title), style="bold")
        for key, text in (("rubric_prompt", item.prompt), ("rubric_answer", item.answer)):
            out.line()
            out.line(f"── {out.text(key)} ──", style="bold cyan")
            out.line(text.rstrip("\n"))
        for key, notes in (("rubric_needs", item.needs), ("rubric_defects", item.defects)):
            out.line()
            out.line(f"── {out.text(key)} ──", style="cyan")
            for line in notes.get(out.language) or next(iter(notes.values()), ()):
                out.line(f"  · {line}")
        out.line()
        out.line(out.text("rubric_choices"), style="dim")

    def _score(self) -> "Score":
        from sekisho.evaluate.rubric.sheets import MOST_NOTE_CHARS, Score

        points = [
            int(self._ask(f"rubric_ask_{axis}", list(map(str, range(most + 1))), back=True))
            for axis, most in AXES.items()
        ]
        severe = self._ask("rubric_ask_severe", ["0", "1"], back=True) == "1"
        note = self._words("rubric_ask_note")
        while severe and not note:
            note = self._words("rubric_ask_defect")
        return Score(points[0], points[1], points[2], severe, note[:MOST_NOTE_CHARS])

    def _overview(self, items: "tuple[Item, ...]") -> None:
        out = self._out
        rows = [
            (number, item.title, item.score.total, self._verdict(item.score), item.score.note)
            for number, item in enumerate(items, 1)
            if item.score is not None
        ]
        out.line()
        out.table(["#", *out.columns("rubric_title", "rubric_points", "rubric_verdict", "rubric_note")], rows)

    def _discuss(self, view: "View") -> None:
        """The calibration side by side, the memo, and the opening of the tasks."""
        out = self._out
        out.line()
        out.line(out.text("rubric_discuss"), style="bold")
        for item in view.items:
            out.line()
            out.line(item.title, style="bold")
            columns = ("rubric_rater", *AXES, "rubric_points", "rubric_severe", "rubric_verdict", "rubric_note")
            out.table(out.columns(*columns), [self._cells(side.rater, side.scores[item.task]) for side in view.sides])
        for side in view.sides:
            if side.memo:
                out.say("rubric_memo_of", rater=side.rater, memo=side.memo)
        if memo := self._words("rubric_ask_memo"):
            self._sitting.remember(memo)
        if self._sitting.view().memo_needed:
            out.say("rubric_memo_needed")
            return
        if self._ask("rubric_ask_begin", ["y", "n"]) == "y":
            self._sitting.begin()
            return
        raise Paused

    def _cells(self, rater: str, score: "Score") -> tuple[object, ...]:
        points = [getattr(score, axis) for axis in AXES]
        severe = self._out.text("rubric_yes" if score.severe else "rubric_no")
        return (rater, *points, score.total, severe, self._verdict(score), score.note)

    def _verdict(self, score: "Score") -> str:
        return self._out.text("rubric_adoptable" if score.adoptable else "rubric_not_adoptable")

    def _ask(self, key: str, choices: list[str], *, back: bool = False) -> str:
        """One of the choices. Raises Paused, and GoBack where that is a choice."""
        while True:
            told = self._words(key).lower()
            if told == "q":
                raise Paused
            if told == "b" and back:
                raise GoBack
            if told in choices:
                return told
            shown = choices if len(choices) < 5 else [f"{choices[0]}–{choices[-2]}", choices[-1]]
            self._out.say("rubric_not_that", choices=", ".join(shown))

    def _words(self, key: str) -> str:
        self._out.console().print(f"{self._out.text(key)}: ", end="", markup=False, highlight=False)
        line = self._read()
        if line is None:
            raise Paused
        return line.strip()


def _line() -> str | None:
    sys.stdout.flush()
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
