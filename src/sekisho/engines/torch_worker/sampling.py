"""From logits to a token. Every request draws from its own generator, so what else runs does not matter to it."""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

_COLDEST: Final = 1e-6  # below it the best token is the only one, and dividing would overflow
_FIRST_LOOK: Final = 1024  # of the best tokens: nearly always enough for `top_p`, and much less than a sort of all


@dataclass(frozen=True)
class SamplingDefaults:
    """What the model's own generation settings say where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class SamplingSettings:
    """`temperature` 0 takes the best token. `top_k` 0: all. `seed` None: another text each time.

    In this order: penalties and `logit_bias`, temperature, `top_k`, `top_p`, `min_p`. The repetition penalty counts the
    prompt (Keskar et al. 2019), the other two only what was said (OpenAI's definition).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)


class Sampler:
    """One request's choices. Tell it each token with `saw` before the next `choose`."""

    def __init__(self, settings: SamplingSettings, prompt: list[int]) -> None:
        self.settings = settings
        self._random = random.Random(settings.seed)
        self._said: Counter[int] = Counter()
        self._seen = set(prompt) if settings.repetition_penalty != 1 else set()
        bias = settings.logit_bias
        self._bias = (torch.tensor(list(bias)), torch.tensor(list(bias.values()))) if bias else None

    @property
    def takes_best(self) -> bool:
        """Whether the answer is simply the largest logit, which can be looked for in all rows at once."""
        settings = self.settings
        return settings.temperature == 0 and not settings.logit_bias and not self._penalises

    @property
    def _penalises(self) -> bool:
        settings = self.settings
        return bool(settings.presence_penalty or settings.frequency_penalty or settings.repetition_penalty != 1)

    def saw(self, token: int) -> None:
        if self._penalises:
            self._said[token] += 1
            self._seen.add(token)

    def choose(self, logits: Tensor) -> int:
        """(vocabulary,) float32 on the CPU, left as they are."""
        adjusted = self._adjusted(logits)
        temperature = self.settings.temperature
        if temperature < _COLDEST:
            return int(adjusted.argmax())
        scaled = (adjusted - adjusted.max()) / temperature
        probabilities = self._filtered(scaled)
        # In the vocabulary's order: tokens of nearly the same probability cannot change places, as in a sorted list.
        total = probabilities.cumsum(0)
        drawn = torch.tensor(self._random.random() * float(total[-1]), dtype=total.dtype)
        token = int(torch.searchsorted(total, drawn, right=True))
        return token if token < total.shape[0] else int(probabilities.nonzero()[-1])

    def _adjusted(self, logits: Tensor) -> Tensor:
        settings = self.settings
        if not self._penalises and not settings.logit_bias:
            return logits
        adjusted = logits.clone()
        if self._seen and settings.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._seen))
            old = adjusted[seen]
            penalty = settings.repetition_penalty
            adjusted[seen] = torch.where(old > 0, old / penalty, old * penalty)
        if self._said:
            said = torch.tensor(list(self._said))
            counts = torch.tensor(list(self._said.values()), dtype=adjusted.dtype)
            adjusted[said] -= settings.frequency_penalty * counts + settings.presence_penalty
        if self._bias is not None:
            adjusted.index_add_(0, *self._bias)
        return adjusted

    def _filtered(self, scaled: Tensor) -> Tensor:
        """Probabilities, (vocabulary,) float64, zero for what may not be said; they need not add up to 1."""
        settings = self.settings
        if 0 < settings.top_k < scaled.shape[0]:
            least = scaled.topk(settings.top_k).values[-1]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        probabilities = torch.softmax(scaled.double(), 0)
        if settings.top_p < 1:
            least = _least_of(probabilities, settings.top_p)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        if settings.min_p > 0:
            least = settings.min_p * probabilities.max()
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        return probabilities


def _least_of(probabilities: Tensor, share: float) -> Tensor:
    """The smallest probability among the fewest tokens that together have `share`."""
    best = probabilities.topk(min(_FIRST_LOOK, probabilities.shape[0])).values
    if float(best.sum()) < share:
        best = probabilities.sort(descending=True).values
    enough = int((best.cumsum(0) < share).sum())
    return best[min(enough, best.shape[0] - 1)]


@dataclass(frozen=True)
class Alternatives:
    """Natural logarithms of probabilities, as the model has them, before any of the request's settings."""

    chosen: float
    best: list[tuple[int, float]]


def alternatives(logits: Tensor, token: int, count: int) -> Alternatives:
    """(vocabulary,) logits; `count` of the best."""
    logprobs = torch.log_softmax(logits.double(), 0)
    values, ids = logprobs.topk(min(count, logprobs.shape[0]))
    return Alternatives(float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))
