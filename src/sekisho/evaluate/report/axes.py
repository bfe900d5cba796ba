"""Axes: from values to places on the drawing, and the ticks between. Linear and logarithmic."""

import math
from collections.abc import Iterable

import msgspec

LIMIT = 1e15
"""Values beyond are drawn there: further out, a double has no digits left for ticks."""
SMALLEST = 1e-9
"""Below it a logarithmic axis begins for nobody."""


class Axis(msgspec.Struct, frozen=True):
    """`low` < `high` in values; `start`, `end` on the drawing (start > end on a vertical axis)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, kept inside the axis: finite for any value but NaN, which raises ValueError."""
        if math.isnan(value):
            raise ValueError("not a number has no place on an axis")
        inside = min(max(value, self.low), self.high)
        low, high, here = (self._scaled(each) for each in (self.low, self.high, inside))
        return self.start + (self.end - self.start) * min(max((here - low) / (high - low), 0.0), 1.0)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round values inside the axis, at least two, with labels; an equal one is not repeated."""
        found = _log_ticks(self.low, self.high, count) if self.log else []
        step = 0.0
        if len(found) < 3:
            found, step = _linear_ticks(self.low, self.high, count)
        labels = [_tick_words(value, step) for value in found]
        return [(value, "" if i and labels[i] == labels[i - 1] else labels[i]) for i, value in enumerate(found)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def axis(values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
    """An axis over all finite values with a little room; `zero`: a linear one begins there. Without values: 0 to 1.
    A logarithmic one leaves out what is not above zero."""
    known = [min(max(value, -LIMIT), LIMIT) for value in values if math.isfinite(value)]
    if log:
        return _log_axis([max(value, SMALLEST) for value in known if value > 0], start, end)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.05
    if room <= max(abs(low), abs(high)) * 1e-9:  # all equal, as far as one can see
        room = max(abs(high) * 0.5, SMALLEST) if high or low else 0.5
    low = low if zero and low == 0 else low - room
    high = high if zero and high == 0 and low < 0 else high + room
    return Axis(low, high, start, end)


def _log_axis(known: list[float], start: float, end: float) -> Axis:
    low, high = (min(known), max(known)) if known else (0.1, 10.0)
    room = (high / low) ** 0.05
    if room < 1 + 1e-6:  # all equal, as far as one can see
        room = 1.5
    return Axis(low / room, high * room, start, end, log=True)


def _tick_words(value: float, step: float) -> str:
    """Short: 0.25, 10, 1,500, 2e9. As many decimals as `step` to the next tick needs; 0: as the value needs."""
    size = abs(value)
    if value == 0 or size < step * 1e-6:
        return "0"
    if 1e-4 <= size < 1e6:
        decimals = max(0, -math.floor(math.log10(step or size) + 1e-9))
        return f"{value:,.{min(decimals, 9)}f}".replace("-", "−")
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def _linear_ticks(low: float, high: float, count: int) -> tuple[list[float], float]:
    """Multiples of 1, 2 or 5 times a power of ten, and their distance; as near to `count` as gives two at least."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [step for nice in (10, 5, 2, 1, 0.5) if (step := nice * power) <= raw * 1.9]
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= (3 if count > 4 else 2):
            break
    return [min(max(n * step, low), high) for n in range(first, last + 1)], step


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there is room, or only every n-th power where there is none."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    step = max(1, (last - first) // (count + 1))
    powers = range(first, last + 1, step)
    return [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
