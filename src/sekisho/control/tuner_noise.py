"""How far figures scatter when nothing was changed, and how far apart two means must be to be told apart."""

from collections.abc import Sequence
from math import inf, sqrt
from typing import Final

import msgspec

_T_95: Final = (inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Noise(msgspec.Struct, frozen=True):
    """Standard deviation of one value, from so many degrees of freedom. None: nothing was repeated."""

    sd: float | None
    freedom: int

    def margin(self, first: int, second: int | None = None) -> float:
        """Means of so many values differ by more only by a chance of 5 % (Student's t). Without `second`, one mean from
        a fixed number. Infinite where nothing was repeated."""
        if self.sd is None:
            return inf
        # Within 1 % of the true quantile beyond the table.
        quantile = _T_95[self.freedom] if self.freedom < len(_T_95) else 1.96 + 2.7 / self.freedom
        return quantile * self.sd * sqrt(1 / first + (1 / second if second else 0.0))


def between_rounds(rows: Sequence[Sequence[float]]) -> Noise:
    """Rows: candidates; columns: rounds. What all candidates share in a round (the machine's mood, the baseline that
    they are compared with) is taken out, for it does not blur which of them is better."""
    count = len(rows[0]) if rows else 0
    freedom = (len(rows) - 1) * (count - 1)
    if len(rows) < 2 or count < 2:
        return Noise(None, 0)
    means = [sum(row) / count for row in rows]
    all_over = sum(means) / len(rows)
    shared = [sum(row[place] for row in rows) / len(rows) - all_over for place in range(count)]
    squares = sum(
        (value - mean - shift) ** 2
        for row, mean in zip(rows, means, strict=True)
        for value, shift in zip(row, shared, strict=True)
    )
    return Noise(sqrt(squares / freedom), freedom)


def within(rows: Sequence[Sequence[float]]) -> Noise:
    """The pooled scatter of each row about its own mean."""
    freedom = sum(len(row) - 1 for row in rows if row)
    if freedom < 1:
        return Noise(None, 0)
    squares = sum((value - sum(row) / len(row)) ** 2 for row in rows if row for value in row)
    return Noise(sqrt(squares / freedom), freedom)
