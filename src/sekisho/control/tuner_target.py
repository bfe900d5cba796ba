"""What a tuner is to reach and what it may not cross. Scores are logarithms of ratios to the baseline."""

from collections.abc import Sequence
from math import exp, log
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

    def __str__(self) -> str:
        bound = "at most" if self.figure in LESS_IS_BETTER else "at least"
        return f"{self.figure} {bound} " + (f"{self.value:g}" if self.value else f"{self.times:g} x the baseline")


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

    def missing(self, measured: Measured) -> list[str]:
        """The figures without which there is no score."""
        names = dict.fromkeys([self.improve, *(goal.figure for goal in self.goals)])
        return [name for name in names if not getattr(measured, name)]

    def missed(self, measured: Measured, baseline: Measured) -> tuple[str, ...]:
        """The goals that are not reached, in words."""
        return tuple(str(goal) for goal in self.goals if goal.shortfall(measured, baseline) != 0.0)


class Limits(msgspec.Struct, frozen=True):
    """`max_delta_ppl`: a policy whose loss was not measured is over it. `max_prefill_slowdown`: reading a prompt may
    take so many times as long as under the baseline. `memory_bytes`: of the engine's process. None: no such limit."""

    max_delta_ppl: float = 0.5
    max_prefill_slowdown: float | None = 1.2
    memory_bytes: int | None = None

    def crossed(self, measured: Measured) -> str | None:
        """Of the limits that have no noise: which one is crossed, in words."""
        if measured.delta_ppl is None:
            return "; ".join(("quality was not measured", *measured.notes))
        if not measured.delta_ppl <= self.max_delta_ppl:
            return f"quality: perplexity rises by {measured.delta_ppl:.3g}, more than {self.max_delta_ppl:g}"
        if self.memory_bytes is None:
            return None
        if measured.memory_bytes is None:
            return "memory was not measured"
        if measured.memory_bytes > self.memory_bytes:
            return f"memory: {measured.memory_bytes} bytes, more than {self.memory_bytes}"
        return None

    def prefill_crossed(self, slowdowns: Sequence[float | None], margin: float = 0.0) -> str | None:
        """`slowdowns`: log of prefill time over that of the baseline. Crossed where their mean is beyond the limit by
        more than `margin`, or where it was not measured at all."""
        if self.max_prefill_slowdown is None:
            return None
        known = [each for each in slowdowns if each is not None]
        if not known:
            return "prefill was not measured"
        slower = sum(known) / len(known)
        if slower - margin <= log(self.max_prefill_slowdown) + 1e-9:
            return None
        return f"prefill: {exp(slower):.2f} times as long, more than {self.max_prefill_slowdown:g}"


class Budget(msgspec.Struct, frozen=True):
    """`measurements` and `seconds` are never exceeded, measured by the longest measurement so far of that effort.
    `efforts`: of one rung after another. `rounds`: measurements of each candidate in a rung. `confirm_blocks`: pairs
    kept for comparing the winner with the baseline afresh; 6 are needed for an interval."""

    measurements: int
    seconds: float
    efforts: tuple[float, ...] = (1.0, 2.0, 4.0)
    rounds: int = 2
    confirm_blocks: int = 6

    def __post_init__(self) -> None:
        if not self.efforts or min(self.efforts) <= 0 or self.rounds < 2 or self.confirm_blocks < 1:
            raise ValueError("a budget has efforts above zero, at least two rounds and a block to confirm with")
        if self.measurements < self.least:
            raise ValueError(f"a budget of {self.measurements} measurements is too small: at least {self.least}")

    @property
    def confirmation(self) -> int:
        return 2 * self.confirm_blocks

    @property
    def least(self) -> int:
        """One candidate and the baseline in one rung, and the confirmation."""
        return 2 * self.rounds + self.confirmation
