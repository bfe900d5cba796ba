"""How fast an answer was written, from the moments at which its pieces came.

A piece a token, each at its own moment: MLPerf's definitions, (n − 1) / (last − first) and (total − first) / (n − 1).
What stands between may hold text back (a guard, a buffering proxy): then several pieces come at one moment, those at
the first one were written before it, and those at the last one are a held rest that was let go. Both would make the
speed several times too high: they are not counted, and where nothing else is left there is no speed.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import median_low

import msgspec

BURST_MS = 5.0
"""What comes within so short a time, or in fewer than three moments, is one burst that the network cut in parts; how
long the answer waited before says nothing of it."""
FASTEST_TOKENS_PER_MS = 5.0
"""No engine writes one answer faster: a longer burst through a slow network."""
_FEW_TOKENS = 8


class Pace(msgspec.Struct, frozen=True):
    """`tok_per_s`: decode speed; `tpot_ms`: time per output token after the first. None: the arrivals do not show it.
    `moments`: how many different ones there were; 1: the whole answer came in one piece."""

    tok_per_s: float | None
    tpot_ms: float | None
    moments: int


def pace(pieces_ms: Sequence[float], tokens: int | None, total_ms: float) -> Pace:
    """`pieces_ms` as they came, after the start; `tokens` as the server counted them, None where it did not."""
    moments = sorted(Counter(pieces_ms).items())
    if tokens is None or tokens < 2 or len(moments) < 2:
        return Pace(None, None, len(moments))
    (first_ms, at_first), (last_ms, at_last) = moments[0], moments[-1]
    a_piece = tokens / len(pieces_ms)
    burst_ms = max(BURST_MS, tokens / FASTEST_TOKENS_PER_MS)
    if tokens >= _FEW_TOKENS and (len(moments) < 3 or last_ms - first_ms < burst_ms):
        return Pace(None, None, len(moments))
    if at_first == 1 and at_last == 1 and a_piece < 2:
        speed = (tokens - 1) / (last_ms - first_ms) * 1e3
        return Pace(speed, (total_ms - first_ms) / (tokens - 1), len(moments))
    between = _between(moments)
    if between is None:
        return Pace(None, None, len(moments))
    pieces, window_ms = between
    speed = a_piece * pieces / window_ms * 1e3
    return Pace(speed, 1e3 / speed, len(moments))


def pauses_ms(pieces_ms: Sequence[float]) -> list[float]:
    """What a reader waited between one arrival and the next; pieces of one moment make no pause."""
    moments = sorted(set(pieces_ms))
    return [later - earlier for earlier, later in pairwise(moments)]


def _between(moments: list[tuple[float, int]]) -> tuple[int, float] | None:
    """Pieces after the first moment, and the time they took, without a held rest at the end."""
    kept = moments[:-1] if moments[-1][1] > median_low([count for _, count in moments]) else moments
    if len(kept) < 2 or (len(moments) == 2 and max(count for _, count in moments) > 1):
        return None
    return sum(count for _, count in kept[1:]), kept[-1][0] - kept[0][0]
