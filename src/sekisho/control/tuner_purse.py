"""What a tuning may still spend: every measurement goes through here."""

import asyncio

from sekisho.control import tuner_reasons as reasons
from sekisho.control.comparison import OutOfBudget
from sekisho.control.measured import Measure, Measured, MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.control.tuner_limits import Budget
from sekisho.control.tuner_words import told
from sekisho.core.clock import Clock


class TimeUp(MeasurementFailed):
    def __init__(self, reason: reasons.TimeRanOut) -> None:
        super().__init__(told(reason))
        self.reason = reason


def fault_of(error: MeasurementFailed) -> str | reasons.TimeRanOut:
    return error.reason if isinstance(error, TimeUp) else str(error)


class Purse:
    """Counts measurements and seconds, and refuses what would not end within them."""

    def __init__(self, measure: Measure, budget: Budget, clock: Clock) -> None:
        self._measure, self._budget, self._clock = measure, budget, clock
        self._started_s = clock.monotonic()
        self._longest_s: dict[float, float] = {}
        self.spent = 0

    @property
    def seconds(self) -> float:
        return self._clock.monotonic() - self._started_s

    def affords(self, measurements: int, effort: float) -> bool:
        within_time = self.seconds + measurements * self._expected_s(effort) <= self._budget.seconds
        return within_time and self.spent + measurements <= self._budget.measurements

    def _expected_s(self, effort: float) -> float:
        """The longest so far at this effort; else by the rule of three from the nearest effort that was measured."""
        if not self._longest_s:
            return 0.0
        nearest = min(self._longest_s, key=lambda known: abs(known - effort))
        return self._longest_s[nearest] * max(1.0, effort / nearest)

    async def measured(self, policy: Policy, effort: float) -> Measured:
        """Raises MeasurementFailed and OutOfBudget."""
        if not self.affords(1, effort):
            raise OutOfBudget(f"the budget is spent: {self.spent} measurements, {self.seconds:.0f} s")
        self.spent += 1
        started_s = self._clock.monotonic()
        left_s = self._budget.seconds - self.seconds
        try:
            async with asyncio.timeout(left_s) as limit:
                return await self._measure(policy, effort)
        except TimeoutError as error:
            if limit.expired():
                raise TimeUp(reasons.TimeRanOut(left_s)) from error
            raise MeasurementFailed(f"timed out: {error}") from error
        finally:
            took_s = self._clock.monotonic() - started_s
            self._longest_s[effort] = max(took_s, self._longest_s.get(effort, 0.0))
