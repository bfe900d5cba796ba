"""The rubric's figures, from the files of a run."""

from pathlib import Path

import msgspec

from sekisho.core.errors import RequestError
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.rubric.agreement import Assessment, assess
from sekisho.evaluate.rubric.folder import NAME, RubricFolder

_IDS = ("rubric.adoptable_rate", "rubric.agreement", "rubric.kappa", "rubric.severe", "rubric.tasks")
_UNITS: dict[str, Unit] = {"rubric.kappa": "ratio", "rubric.severe": "count", "rubric.tasks": "count"}


def rubric_figures(run: Path) -> list[Figure]:
    """Figures without values, and with the reason, while the run has no two finished ratings or they do not fit."""
    command = f"sekisho rubric verdict {run.name}"
    try:
        return figures(assess(RubricFolder(run)), command)
    except RequestError as error:
        why = error.message
        return [Figure(id=i, value=None, unit=_UNITS.get(i, "share"), why_null=why, command=command) for i in _IDS]


def figures(found: Assessment, command: str = "") -> list[Figure]:
    """Attested by the raters: people counted them."""
    agreed = found.agreement
    each = ", ".join(f"{rater} {count}" for rater, count in zip(found.raters, found.each, strict=True))
    adoptable = f"both raters say so; at least one: {found.either} of {found.tasks}; {each}"
    if found.unanswered:
        adoptable += f"; {len(found.unanswered)} without an answer count as not adoptable"
    same = f"adoptable or not; by chance {_percent(agreed.by_chance)}"
    if found.rounds > 1:
        first = found.first_agreement
        same += f"; {first.agreed} of {first.n} before what they disagreed on was rated again ({found.rounds} rounds)"
    kappa = "" if agreed.kappa is not None else "both raters said the same of every task, so chance agrees fully"
    made = [
        Figure(
            id="rubric.adoptable_rate",
            value=found.adoptable_share,
            unit="share",
            n=found.tasks,
            interval=found.interval,
            note=adoptable,
        ),
        Figure(
            id="rubric.agreement",
            value=agreed.share,
            unit="share",
            n=agreed.n,
            interval=agreed.interval,
            why_null="" if agreed.n else "no task was rated",
            note=same,
        ),
        Figure(
            id="rubric.kappa",
            value=agreed.kappa,
            unit="ratio",
            n=agreed.n,
            why_null=kappa,
            interval_missing="few tasks: see the interval of the agreement",
        ),
        Figure(id="rubric.severe", value=found.severe, unit="count", n=agreed.n, note="at least one rater"),
        Figure(id="rubric.tasks", value=agreed.n, unit="count"),
    ]
    raters, file = ", ".join(found.raters), f"{NAME}/answers.json"
    return [msgspec.structs.replace(one, file=file, command=command, attested_by=raters) for one in made]


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.0f} %"
