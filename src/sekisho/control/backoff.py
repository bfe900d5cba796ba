"""How long to wait before the same thing is tried again."""

import math
import random
from typing import Final

JITTER: Final = (0.1, 0.3)
LONGEST_S: Final = 366 * 86_400.0


class Backoff:
    """Delays that grow by `factor` from `initial_s` to `limit_s`, each with 10 to 30 % of itself on top.

    Not full jitter (0 to the whole delay): that spreads a crowd of clients, but may repeat a change of policy at once,
    and one agent is no crowd. The share keeps several agents of one site apart. The addition is not fed back into the
    next delay, so that none exceeds 1.3 x `limit_s`. Raises ValueError for figures that make no back-off.
    """

    def __init__(self, initial_s: float, limit_s: float, factor: float, chance: random.Random) -> None:
        if not 0 < initial_s <= limit_s <= LONGEST_S:
            raise ValueError(f"0 < initial_s <= limit_s <= a year must hold, not {initial_s:g} and {limit_s:g}")
        if not 1 <= factor < math.inf:
            raise ValueError(f"factor must be at least 1 and finite, is {factor:g}")
        self.initial_s, self.limit_s, self.factor = initial_s, limit_s, factor
        self._chance = chance
        self._next_s = initial_s
        self.attempts = 0

    def next_s(self) -> float:
        """The delay after one more attempt."""
        delay_s = self._next_s
        self._next_s = min(delay_s * self.factor, self.limit_s)
        self.attempts += 1
        return delay_s + self._chance.uniform(*JITTER) * delay_s

    def reset(self) -> None:
        """It went well: the next delay is the first one again."""
        self._next_s = self.initial_s
        self.attempts = 0
