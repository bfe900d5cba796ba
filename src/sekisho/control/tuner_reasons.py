"""Why the tuner dropped a candidate, and why it ended as it did: values, which `tuner_words` puts into words.

`kind` tells them apart in JSON. `fault` and `notes` are the words of an engine or of a measurement, as they came.
"""

import re

import msgspec

from sekisho.control.measured import FigureName
from sekisho.control.tuner_target import Goal


def _kind(name: str) -> str:
    """`MemoryOverLimit` is `memory_over_limit`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Reason(msgspec.Struct, frozen=True, tag_field="kind", tag=_kind):
    """Scores are logarithms of ratios to the baseline. Candidates are named as in the report."""


# --- a limit is crossed ---------------------------------------------------------------------------------------------


class QualityNotMeasured(Reason, frozen=True):
    notes: tuple[str, ...] = ()


class QualityOverLimit(Reason, frozen=True):
    """Perplexity less that at 16 bits, and what it may be."""

    delta_ppl: float
    max_delta_ppl: float


class MemoryNotMeasured(Reason, frozen=True):
    pass


class MemoryOverLimit(Reason, frozen=True):
    memory_bytes: int
    max_memory_bytes: int


class PrefillNotMeasured(Reason, frozen=True):
    pass


class PrefillOverLimit(Reason, frozen=True):
    """Both are multiples of the baseline's time."""

    slowdown: float
    max_slowdown: float


Crossed = (
    QualityNotMeasured | QualityOverLimit | MemoryNotMeasured | MemoryOverLimit | PrefillNotMeasured | PrefillOverLimit
)

# --- a candidate is dropped -----------------------------------------------------------------------------------------


class TimeRanOut(Reason, frozen=True):
    """A measurement's fault: when it began, the budget had so many seconds left."""

    left_s: float


class NotMeasured(Reason, frozen=True):
    fault: str | TimeRanOut


class FiguresNotMeasured(Reason, frozen=True):
    """Those without which there is no score."""

    figures: tuple[FigureName, ...]


class NoBudgetLeft(Reason, frozen=True):
    """A rung could not take all: it ranked behind those that went on."""


class Worse(Reason, frozen=True):
    """Beyond the noise: `noise_margin` is how far behind it might be by chance."""

    than: str
    score_behind: float
    noise_margin: float


class NeverBesideBaseline(Reason, frozen=True):
    """It has no score: in no whole round were both measured."""


class NotBetter(Reason, frozen=True):
    """Than the baseline."""


class Outranked(Reason, frozen=True):
    """By the winner, at the end; its lead may be noise."""

    by: str
    score_behind: float


class NotCompared(Reason, frozen=True):
    """No block of the comparison with the baseline was whole."""

    fault: str


class CrossedAgain(Reason, frozen=True):
    """In the comparison with the baseline, after the search."""

    limit: Crossed


Dropped = (
    Crossed
    | NotMeasured
    | FiguresNotMeasured
    | NoBudgetLeft
    | Worse
    | NeverBesideBaseline
    | NotBetter
    | Outranked
    | NotCompared
    | CrossedAgain
)

# --- a tuning ends --------------------------------------------------------------------------------------------------


class BaselineNotMeasured(Reason, frozen=True):
    fault: str | TimeRanOut


class BudgetEnded(Reason, frozen=True):
    """Before a candidate was measured beside the baseline."""


class Stopped(Reason, frozen=True):
    """By a person, after so many measurements."""

    measurements: int


class NoneBetter(Reason, frozen=True):
    """Than the baseline, within the limits."""


class TooFewPairs(Reason, frozen=True):
    """For an interval. Pairs are of the best candidate and the baseline, measured afresh."""

    best: str
    pairs: int
    needed_pairs: int


class LeadMayBeNoise(Reason, frozen=True):
    """`times`: the figure's ratio to the baseline's."""

    best: str
    figure: FigureName
    times: float
    pairs: int


class Better(Reason, frozen=True):
    """`reached`: goals that the winner reaches and the baseline does not. `nearer`: such as it misses too, but by less;
    where there are any, it won by them, and `figure` may have become worse."""

    winner: str
    figure: FigureName
    times: float
    pairs: int
    reached: tuple[Goal, ...] = ()
    nearer: tuple[Goal, ...] = ()


Why = BaselineNotMeasured | BudgetEnded | Stopped | NoneBetter | TooFewPairs | LeadMayBeNoise | Better
