"""How sure a counted share is."""

from math import sqrt
from typing import Final

Z_95: Final = 1.959963984540054


def wilson(hits: int, count: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval without continuity correction (Wilson 1927). `count` > 0."""
    share = hits / count
    middle = share + z * z / (2 * count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    low = 0.0 if hits == 0 else (middle - half) / whole
    high = 1.0 if hits == count else (middle + half) / whole
    return low, high
