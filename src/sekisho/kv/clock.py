"""Where a cache's time goes, on the host's clock: on an accelerator, the time to ask for the work, not to do it."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

Purpose = Literal["packing", "planning", "attention"]


class Clock:
    """Seconds by purpose; a purpose that was never measured is not there. Not for several threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, purpose: Purpose) -> Iterator[None]:
        """Counts what runs inside, also where it fails."""
        began = perf_counter()
        try:
            yield
        finally:
            self.seconds[purpose] = self.seconds.get(purpose, 0.0) + perf_counter() - began
