"""The last finished requests, for the control agent: one sample where a usage record is booked."""

import asyncio
from collections import deque
from itertools import islice
from typing import Final

import msgspec

from sekisho.control.base import Sample
from sekisho.core import ids
from sekisho.core.clock import Clock
from sekisho.store import UsageRecord

KEPT: Final = 4096
PAGE: Final = 1000


class Page(msgspec.Struct, frozen=True):
    """Samples in their order; `ages_s`: how long ago each ended, by a clock that cannot jump; `last`: the newest
    number that there is."""

    samples: tuple[Sample, ...]
    ages_s: tuple[float, ...]
    last: int


class SampleLog:
    """The newest `kept` samples of this process, numbered from 1. `start` names the process: where it differs, so does
    what a number means. Belongs to one event loop; `add` costs about two microseconds and never waits."""

    def __init__(self, clock: Clock, kept: int = KEPT) -> None:
        self.start = ids.new("feed")
        self.last = 0
        self._clock = clock
        self._began_s = clock.monotonic()
        self._kept: deque[tuple[float, Sample]] = deque(maxlen=kept)
        self._news = asyncio.Event()
        self._ended = False

    @property
    def lived_s(self) -> float:
        return self._clock.monotonic() - self._began_s

    def add(self, record: UsageRecord, mean_nll: float | None = None) -> None:
        """Makes a sample of a record. What the guard or a person answered is none: no engine was asked. Tokens that
        nobody counted are 0: without usage and deltas nothing came; the prompt of a broken turn is not known."""
        completed = record.status == "completed"
        if completed and record.input_tokens == 0 and record.output_tokens == 0:
            return
        self.last += 1
        sample = Sample(
            self.last,
            record.model,
            self._clock.now(),
            record.duration_ms,
            record.ttft_ms,
            record.input_tokens or 0,
            record.output_tokens or 0,
            "ok" if completed else "cancelled" if record.status == "cancelled" else record.error_code or record.status,
            mean_nll,
        )
        self._kept.append((self._clock.monotonic(), sample))
        self._news.set()

    def page(self, after: int, limit: int = PAGE) -> Page:
        """The oldest `limit` samples after a number. The first one's own number tells whether some between are gone;
        a number from beyond the end counts as 0."""
        if after > self.last:
            after = 0
        oldest = self.last - len(self._kept) + 1
        begin = max(0, after + 1 - oldest)
        found = list(islice(self._kept, begin, begin + limit))
        now_s = self._clock.monotonic()
        ages_s = tuple(max(0.0, now_s - ended_s) for ended_s, _ in found)
        return Page(tuple(sample for _, sample in found), ages_s, self.last)

    async def news(self, after: int, wait_s: float) -> None:
        """Waits until there is a sample after a number, `wait_s` are over, or `end` was called."""
        try:
            async with asyncio.timeout(wait_s):
                while self.last == after and not self._ended:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return

    def end(self) -> None:
        """Nobody waits any more, now or later: the server is going down."""
        self._ended = True
        self._news.set()
