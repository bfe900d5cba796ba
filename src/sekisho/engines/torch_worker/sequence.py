"""One answer in the making: from the ids of its prompt to the pieces that are sent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.requests import Ask
from sekisho.engines.torch_worker.sampling import Sampler, alternatives
from sekisho.engines.torch_worker.text import Detokeniser, StopFinder

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class TokenLogprob:
    """`best`: alternatives with their logprobs."""

    token: str
    logprob: float
    best: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """The last thing that comes. `stop` is the stop string that was met."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    stop: str | None = None


News = Piece | End | Refused


class Sequence:
    """Lives in the runner's thread, `cancelled` and `deliver` apart. `most` tokens are said at the longest.

    `position`: how many tokens the cache holds. `last`: the newest token, which it does not hold yet.
    """

    def __init__(self, ask: Ask, most: int, decode: Decode, ends: frozenset[int]) -> None:
        self.ask = ask
        self.most = most
        self.cancelled = False
        self.cache: Any = None
        self.position = 0
        self.last = -1
        self.reserved_bytes = 0
        self.sampler = Sampler(ask.sampling, ask.prompt)
        self._decode, self._ends = decode, frozenset() if ask.ignore_end else ends
        self._detokeniser = Detokeniser(decode)
        self._stops = StopFinder(ask.stop)
        self._told: list[tuple[int, int, TokenLogprob]] = []  # first and last character, and what waits for them
        self._made = self._shown = 0  # characters
        self._count = 0
        self.end: End | None = None

    @property
    def tokens(self) -> int:
        """What it may come to in the cache: prompt and answer."""
        return len(self.ask.prompt) + self.most

    def takes_best(self) -> bool:
        return self.sampler.takes_best and self.ask.logprobs is None

    def choose(self, logits: Tensor) -> list[News]:
        """(vocabulary,) float32 logits on the CPU: picks a token and answers with what is to be sent."""
        token = self.sampler.choose(logits)
        noted = None
        if self.ask.logprobs is not None:
            found = alternatives(logits, token, self.ask.logprobs)
            best = [(self._decode([each]), value) for each, value in found.best]
            noted = TokenLogprob(self._decode([token]), found.chosen, best)
        return self.take(token, noted)

    def take(self, token: int, noted: TokenLogprob | None = None) -> list[News]:
        """The token was picked. Sets `end` with the last one."""
        self.last = token
        self._count += 1
        self.sampler.saw(token)
        if token in self._ends:
            return self._finish("stop")
        text = self._detokeniser.feed(token)
        shown = self._show(text, noted)
        if self._stops.found is not None:
            return [*shown, self._ended("stop")]
        if self._count >= self.most:
            return [*shown, *self._finish("length")]
        return shown

    def _show(self, text: str, noted: TokenLogprob | None) -> list[News]:
        if noted is not None:
            self._told.append((self._made, self._made + len(text), noted))
        self._made += len(text)
        return self._piece(self._stops.feed(text))

    def _piece(self, shown: str) -> list[News]:
        """Logprobs go out with the last character of their token, or with the last one before a stop string."""
        self._shown += len(shown)
        found = self._stops.found is not None
        due = [each for each in self._told if (each[0] < self._shown if found else each[1] <= self._shown)]
        self._told = self._told[len(due) :]
        return [Piece(shown, [noted for *_, noted in due])] if shown or due else []

    def _finish(self, reason: Literal["stop", "length"]) -> list[News]:
        shown = self._show(self._detokeniser.finish(), None)
        if self._stops.found is not None:
            return [*shown, self._ended("stop")]
        return [*shown, *self._piece(self._stops.finish()), self._ended(reason)]

    def _ended(self, reason: Literal["stop", "length"]) -> End:
        self.end = End(reason, len(self.ask.prompt), self._count, self._stops.found)
        return self.end
