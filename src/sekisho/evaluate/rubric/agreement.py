"""What two sheets say together: how many answers are adoptable, and how far the raters agree.

Two raters agree on a task when both call its answer adoptable, or neither does. An answer is adoptable when both say
so: one on which they disagree is not, and one that never came is not. Agreement is over the rated tasks; the share of
adoptable answers is over all of them.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.figures import Interval
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import AXES, FIRST, Axis, Score, Sheet
from sekisho.evaluate.rubric.tasks import Task
from sekisho.evaluate.statistics import Agreement, agreement, share_interval

ADOPTABLE_SHARE: Final = 0.70
AGREEMENT_SHARE: Final = 0.80


class Disagreement(msgspec.Struct, frozen=True):
    """A task that one rater would adopt and the other would not; scores in the order of the raters."""

    task: str
    title: str
    kind: str
    scores: tuple[Score, Score]


class Count(msgspec.Struct, frozen=True):
    """`adoptable` of `tasks`."""

    adoptable: int
    tasks: int


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """Two raters' judgement of one set of answers, after the last round that both handed in.

    `agreement` is on adoptable or not; `first_agreement` the same before any re-rating. `total`: on the sum of points,
    `total_within_one` with one point of tolerance, `axes` on each axis; each knows what chance would give. `each`: how
    many answers each rater would adopt. `either`: how many at least one would. `severe`: answers in which at least one
    saw a severe defect. `unanswered`: tasks without an answer.
    """

    raters: tuple[str, str]
    rounds: int
    tasks: int
    unanswered: tuple[str, ...]
    agreement: Agreement
    first_agreement: Agreement
    total: Agreement
    total_within_one: Agreement
    axes: dict[Axis, Agreement]
    both: int
    either: int
    each: tuple[int, int]
    severe: int
    by_language: dict[str, Count]
    interval: Interval | None
    disagreements: tuple[Disagreement, ...]

    @property
    def adoptable_share(self) -> float:
        return self.both / self.tasks

    @property
    def enough_adoptable(self) -> bool:
        return self.adoptable_share >= ADOPTABLE_SHARE

    @property
    def enough_agreement(self) -> bool:
        """False also where nothing was rated."""
        return self.agreement.n > 0 and enough(self.agreement.agreed, self.agreement.n)

    @property
    def passed(self) -> bool:
        return self.enough_adoptable and self.enough_agreement

    @property
    def round_due(self) -> int | None:
        """The round in which what they disagree on is rated again; None where they agree enough. Until it is over the
        scores are better not shown: it would not be blind."""
        return self.rounds + 1 if self.disagreements and not self.enough_agreement else None


def enough(agreed: int, count: int) -> bool:
    return agreed / count >= AGREEMENT_SHARE


def disagreed(first: Mapping[str, Score], second: Mapping[str, Score]) -> tuple[str, ...]:
    """Tasks of both that one would adopt and the other would not, in the order of the first."""
    return tuple(task for task in first if task in second and first[task].adoptable != second[task].adoptable)


def assess(folder: RubricFolder) -> Assessment:
    """Raises NotFound while a rater is missing or has not handed in, InvalidRequest where sheets do not fit."""
    tasks, answers = folder.tasks(), folder.answers()
    names = folder.raters()
    if len(names) > 2:
        raise InvalidRequest(f"There are {len(names)} raters ({', '.join(names)}): two count. Move a sheet away.")
    sheets = [sheet for name in names if (sheet := folder.sheet(name)) is not None]
    for sheet in sheets:
        check(sheet, answers.sha256)
    if len(sheets) < 2:
        who = f"only {sheets[0].rater} has" if sheets else "nobody has"
        run = folder.path.parent.name
        raise NotFound(f"Two raters are needed, and {who} begun: sekisho rubric rate {run} --rater NAME")
    for sheet in sheets:
        if not sheet.closed(FIRST):
            raise NotFound(f"{sheet.rater} has not handed in the ratings yet.")
    unanswered = tuple(task.id for task in tasks.tasks if not (answer := answers.get(task.id)) or not answer.to_rate)
    return assessment(tasks.tasks, unanswered, (sheets[0], sheets[1]))


def check(sheet: Sheet, answers_sha256: str) -> None:
    """Raises InvalidRequest for a sheet about other answers."""
    if sheet.answers_sha256 != answers_sha256:
        raise InvalidRequest(f"{sheet.rater} rated other answers than these: the sheet does not belong here.")


def assessment(tasks: tuple[Task, ...], unanswered: tuple[str, ...], sheets: tuple[Sheet, Sheet]) -> Assessment:
    """Both sheets have handed in round 1."""
    rounds = min(max(one.number for one in sheet.rounds if one.closed_at is not None) for sheet in sheets)
    scores = [sheet.latest(rounds) for sheet in sheets]
    rated = [task for task in tasks if task.id in scores[0] and task.id in scores[1]]
    pairs = [(scores[0][task.id], scores[1][task.id]) for task in rated]
    firsts = [[sheet.latest(FIRST)[task.id].adoptable for task in rated] for sheet in sheets]
    both = {task.id for task, (one, two) in zip(rated, pairs, strict=True) if one.adoptable and two.adoptable}
    apart = disagreed(scores[0], scores[1])
    totals = [one.total for one, _ in pairs], [two.total for _, two in pairs]
    languages = sorted({task.language for task in tasks}, reverse=True)
    of = {language: [task.id for task in tasks if task.language == language] for language in languages}
    return Assessment(
        raters=(sheets[0].rater, sheets[1].rater),
        rounds=rounds,
        tasks=len(tasks),
        unanswered=unanswered,
        agreement=agreement([one.adoptable for one, _ in pairs], [two.adoptable for _, two in pairs]),
        first_agreement=agreement(firsts[0], firsts[1]),
        total=agreement(*totals),
        total_within_one=agreement(*totals, within=1),
        axes={
            axis: agreement([getattr(one, axis) for one, _ in pairs], [getattr(two, axis) for _, two in pairs])
            for axis in AXES
        },
        both=len(both),
        either=sum(one.adoptable or two.adoptable for one, two in pairs),
        each=(sum(one.adoptable for one, _ in pairs), sum(two.adoptable for _, two in pairs)),
        severe=sum(one.severe or two.severe for one, two in pairs),
        by_language={name: Count(len(both & set(ids)), len(ids)) for name, ids in of.items()},
        interval=share_interval(len(both), len(tasks)),
        disagreements=tuple(
            Disagreement(task.id, task.title, task.kind, pair)
            for task, pair in zip(rated, pairs, strict=True)
            if task.id in apart
        ),
    )
