"""What a tuner is to reach. Scores are logarithms of ratios to the baseline."""

from math import log
from typing import Final

import msgspec

from sekisho.control.measured import LESS_IS_BETTER, FigureName, Measured, log_gain

_SHORTFALL_WEIGHT: Final = 10.0
"""What is missing to a goal weighs so much more than what is gained beyond it."""


class Goal(msgspec.Struct, frozen=True):
    """A figure that is to be reached: `value` in its own unit, or `times` the baseline's. For times and bytes less is
    better, and the goal is reached at or below it."""

    figure: FigureName
    value: float | None = None
    times: float | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.value, self.times) if each is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(f"a goal for {self.figure} is either a value or a multiple, above zero")

    def shortfall(self, measured: Measured, baseline: Measured) -> float | None:
        """How far it is missed, as a logarithm; 0 where it is reached, None where that was not measured."""
        reached, before = getattr(measured, self.figure), getattr(baseline, self.figure)
        wanted = self.value if self.value is not None else before * (self.times or 0) if before else None
        if not reached or not wanted:
            return None
        missing = log(reached / wanted) if self.figure in LESS_IS_BETTER else log(wanted / reached)
        return missing if missing > 1e-9 else 0.0


class Target(msgspec.Struct, frozen=True):
    """`improve`: what is to become better, once all `goals` are reached."""

    improve: FigureName
    goals: tuple[Goal, ...] = ()

    def score(self, measured: Measured, baseline: Measured) -> float | None:
        """Above 0: better than the baseline, by so much on the log scale. None: a figure is missing."""
        gain = log_gain(self.improve, baseline, measured)
        mine = [goal.shortfall(measured, baseline) for goal in self.goals]
        theirs = [goal.shortfall(baseline, baseline) for goal in self.goals]
        if gain is None or None in mine:
            return None
        return gain + _SHORTFALL_WEIGHT * (sum(each or 0.0 for each in theirs) - sum(each or 0.0 for each in mine))

    def missing(self, measured: Measured) -> tuple[FigureName, ...]:
        """The figures without which there is no score."""
        names = dict.fromkeys([self.improve, *(goal.figure for goal in self.goals)])
        return tuple(name for name in names if not getattr(measured, name))

    def missed(self, measured: Measured, baseline: Measured) -> tuple[Goal, ...]:
        """The goals that are not reached."""
        return tuple(goal for goal in self.goals if goal.shortfall(measured, baseline) != 0.0)
