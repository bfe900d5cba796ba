"""An early sign: what the engine says of its own answers, mean nats per token, request by request. It depends on what
people ask, so that it never acts: it only asks for a light run."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

from sekisho.control.quality import Verdict

WINDOW: Final = 100  # requests
_SIGMAS: Final = 3.0
_LEAST_RISE_NATS: Final = 0.02


class EarlySign:
    """The first full window is the reference; each later one is compared with it. After a sign a window must fill anew
    before the next. `reset` after a change of policy or a full run."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._reference: tuple[float, float] | None = None  # mean, variance
        self._values: deque[float] = deque(maxlen=window)

    def reset(self) -> None:
        self._reference = None
        self._values.clear()

    def add(self, mean_nll: float) -> Verdict | None:
        """A sign, or None."""
        if not math.isfinite(mean_nll):
            return None
        self._values.append(mean_nll)
        if len(self._values) < self._window:
            return None
        if self._reference is None:
            self._reference = _moments(self._values)
            self._values.clear()
            return None
        (before, spread), (now, wide) = self._reference, _moments(self._values)
        limit = max(_LEAST_RISE_NATS, _SIGMAS * math.sqrt((spread + wide) / self._window))
        if now - before <= limit:
            return None
        self._values.clear()
        return Verdict(
            level="early_sign",
            rule="quality.early_sign",
            action="measure",
            why=f"answers of the last {self._window} requests are less likely than before: {now:.3f} nats per token, "
            f"were {before:.3f}; that may be the questions, so it is measured",
            value=now - before,
            limit=limit,
            signal="quality.mean_nll",
            want="light",
        )


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((each - mean) ** 2 for each in values) / max(1, len(values) - 1)
