"""The last seconds of finished requests: what the feed tells, kept for as long as the window is long."""

from collections import deque
from typing import Final

from sekisho.control.base import Sample
from sekisho.control.feed import Batch
from sekisho.control.figures import Figures, OnlineNll, figures
from sekisho.core.clock import Clock, SystemClock

NLL_REQUESTS: Final = 100
LONGEST_S: Final = 3600.0


class Window:
    """Keeps samples by the monotonic moment at which each ended (its arrival here, less its age as the gateway tells
    it), so that a jump of the wall clock neither empties the window nor freezes it.

        began ──────────── samples ──────────── blind (contact lost) ┄┄┄┄ now
    The part of [now - seconds, now] between `began` and `blind` was watched: rates are over that part.
    """

    def __init__(self, seconds: float = 60.0, clock: Clock | None = None) -> None:
        if not 1.0 <= seconds <= LONGEST_S:
            raise ValueError(f"the window must be 1 to {LONGEST_S:g} s long, is {seconds:g}")
        self.seconds = seconds
        self._clock = clock or SystemClock()
        self._began_s = self._clock.monotonic()
        self._blind_s: float | None = self._began_s
        self._reason: str | None = "the feed of requests has not answered yet"
        self._ended: deque[tuple[float, Sample]] = deque()
        self._nll: dict[str | None, deque[tuple[float, float]]] = {}

    def take(self, batch: Batch) -> None:
        """What the feed told, trouble included. While a gateway is away nothing is watched; once it is back (or a new
        one is), the time between counts as watched, in which requests ended as told, or none."""
        now_s = self._clock.monotonic()
        if batch.reason is not None:
            self._blind_s = now_s if self._blind_s is None else self._blind_s
            self._reason = batch.reason
            return
        self._blind_s = self._reason = None
        if batch.missed and batch.ages_s:
            self._began_s = max(self._began_s, now_s - batch.ages_s[0])
        elif batch.known_s is not None:
            self._began_s = min(self._began_s, now_s - batch.known_s)
        for sample, age_s in zip(batch.samples, batch.ages_s, strict=True):
            self.add(sample, age_s)

    def add(self, sample: Sample, age_s: float = 0.0) -> None:
        """One more request, by itself: the window is being watched. `age_s`: how long ago it ended."""
        self._blind_s = self._reason = None
        now_s = self._clock.monotonic()
        ended_s = now_s - max(0.0, age_s)
        self._ended.append((ended_s, sample))
        if sample.mean_nll is not None:
            for model in (sample.model, None):
                self._nll.setdefault(model, deque(maxlen=NLL_REQUESTS)).append((ended_s, sample.mean_nll))
        self._forget(now_s)

    def figures(self, model: str | None = None) -> Figures:
        """Of one model, or of all."""
        now_s = self._clock.monotonic()
        self._forget(now_s)
        since_s = now_s - self.seconds
        until_s = now_s if self._blind_s is None else self._blind_s
        return figures(
            (pair for pair in self._ended if pair[0] > since_s and (model is None or pair[1].model == model)),
            model=model,
            window_s=self.seconds,
            observed_s=max(0.0, until_s - max(self._began_s, since_s)),
            now_s=now_s,
            online_nll=self._online_nll(model, now_s),
            reason=self._reason,
        )

    def samples(self) -> tuple[Sample, ...]:
        """Requests that ended in the window, in the order in which they came."""
        since_s = self._clock.monotonic() - self.seconds
        return tuple(sample for ended_s, sample in self._ended if ended_s > since_s)

    def models(self) -> tuple[str, ...]:
        """Whose requests ended in the window, by name."""
        return tuple(sorted({sample.model for sample in self.samples()}))

    def _online_nll(self, model: str | None, now_s: float) -> OnlineNll:
        known = self._nll.get(model)
        if not known:
            return OnlineNll(reason="no request asked for logprobs, and the engines tell none by themselves")
        return OnlineNll(len(known), sum(mean for _, mean in known) / len(known), now_s - known[-1][0])

    def _forget(self, now_s: float) -> None:
        while self._ended and self._ended[0][0] <= now_s - self.seconds:
            self._ended.popleft()
