"""What a tuner may not cross, and what it may spend."""

from collections.abc import Sequence
from math import exp, log

import msgspec

from sekisho.control import tuner_reasons as reasons
from sekisho.control.measured import Measured
from sekisho.control.tuner_reasons import Crossed


class Limits(msgspec.Struct, frozen=True):
    """`max_delta_ppl`: a policy whose loss was not measured is over it. `max_prefill_slowdown`: reading a prompt may
    take so many times as long as under the baseline. `memory_bytes`: of the engine's process. None: no such limit."""

    max_delta_ppl: float = 0.5
    max_prefill_slowdown: float | None = 1.2
    memory_bytes: int | None = None

    def crossed(self, measured: Measured) -> Crossed | None:
        """Of the limits that have no noise: how one is crossed."""
        if measured.delta_ppl is None:
            return reasons.QualityNotMeasured(measured.notes)
        if not measured.delta_ppl <= self.max_delta_ppl:
            return reasons.QualityOverLimit(measured.delta_ppl, self.max_delta_ppl)
        if self.memory_bytes is None:
            return None
        if measured.memory_bytes is None:
            return reasons.MemoryNotMeasured()
        if measured.memory_bytes > self.memory_bytes:
            return reasons.MemoryOverLimit(measured.memory_bytes, self.memory_bytes)
        return None

    def prefill_crossed(self, slowdowns: Sequence[float | None], margin: float = 0.0) -> Crossed | None:
        """`slowdowns`: log of prefill time over that of the baseline. Crossed where their mean is beyond the limit by
        more than `margin`, or where it was not measured at all."""
        if self.max_prefill_slowdown is None:
            return None
        known = [each for each in slowdowns if each is not None]
        if not known:
            return reasons.PrefillNotMeasured()
        slower = sum(known) / len(known)
        if slower - margin <= log(self.max_prefill_slowdown) + 1e-9:
            return None
        return reasons.PrefillOverLimit(exp(slower), self.max_prefill_slowdown)


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
