"""Counts of finished requests since the agent began, for Prometheus: they only rise."""

from bisect import bisect_left
from typing import Final

import msgspec

from sekisho.control.base import Sample
from sekisho.control.feed import Batch
from sekisho.core.clock import Clock

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram(msgspec.Struct, frozen=True):
    """How many values lie in each of `SECONDS`' buckets and, last, beyond them; and their sum."""

    counts: tuple[int, ...]
    sum_s: float


class ModelTotals(msgspec.Struct, frozen=True):
    """Of one model. `by_status`: finished requests by `ok`, `cancelled` or the error's code."""

    model: str
    by_status: dict[str, int]
    input_tokens: int
    output_tokens: int
    duration: Histogram
    first_token: Histogram


class Totals:
    """Requests that ended before the agent began are not counted: an agent that starts again would count them twice.
    `missed`: those that the gateway forgot before they were fetched; they are in no other number."""

    def __init__(self, clock: Clock) -> None:
        self.missed = 0
        self._clock = clock
        self._began_s = clock.monotonic()
        self._models: dict[str, _Counting] = {}

    def take(self, batch: Batch) -> None:
        """What the feed told."""
        self.missed += batch.missed
        lived_s = self._clock.monotonic() - self._began_s
        for sample, age_s in zip(batch.samples, batch.ages_s, strict=True):
            if age_s <= lived_s:
                self._models.setdefault(sample.model, _Counting()).add(sample)

    def counted(self) -> tuple[ModelTotals, ...]:
        """By the models' names."""
        return tuple(counting.totals(model) for model, counting in sorted(self._models.items()))


class _Counting:
    def __init__(self) -> None:
        self._by_status: dict[str, int] = {}
        self._input_tokens = self._output_tokens = 0
        self._duration = _Buckets()
        self._first_token = _Buckets()

    def add(self, sample: Sample) -> None:
        self._by_status[sample.status] = self._by_status.get(sample.status, 0) + 1
        self._input_tokens += sample.input_tokens
        self._output_tokens += sample.output_tokens
        if sample.status == "ok":
            self._duration.add(sample.duration_ms / 1e3)
        if sample.first_token_ms is not None:
            self._first_token.add(sample.first_token_ms / 1e3)

    def totals(self, model: str) -> ModelTotals:
        return ModelTotals(
            model,
            dict(self._by_status),
            self._input_tokens,
            self._output_tokens,
            self._duration.histogram(),
            self._first_token.histogram(),
        )


class _Buckets:
    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum_s = 0.0

    def add(self, value_s: float) -> None:
        self._counts[bisect_left(SECONDS, value_s)] += 1
        self._sum_s += value_s

    def histogram(self) -> Histogram:
        return Histogram(tuple(self._counts), self._sum_s)
