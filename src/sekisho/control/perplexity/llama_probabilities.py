"""Route b: the running llama.cpp worker itself, one request for each position: how likely was the token that came?

The request forces that token by `logit_bias` and asks for its probability, which llama.cpp takes from the logits before
any bias; so one probability is enough and not the whole vocabulary's. Slow: a request, and perhaps the whole prefix,
for each position. It takes a slot as any request does. For cross-checks of route a on a few positions.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.client import Client

ROUTE: Final = "llama_probabilities"
_BIAS: Final = 10_000.0  # more than any two logits are apart


class _Probability(msgspec.Struct):
    id: int
    logprob: float


class _Completion(msgspec.Struct):
    completion_probabilities: list[_Probability] = []


async def score(
    client: Client, tokens: Sequence[int], positions: Sequence[int], *, timeout_s: float = 120.0
) -> dict[int, float]:
    """Negative log-likelihood of `tokens[position]`, given those before it, for each position from 1 on. Raises
    `Unmeasured`."""
    return {at: await _one(client, list(tokens[:at]), tokens[at], timeout_s) for at in positions}


async def _one(client: Client, before: list[int], token: int, timeout_s: float) -> float:
    body = {
        "prompt": before,
        "n_predict": 1,
        "n_probs": 1,
        "temperature": 0,
        "logit_bias": [[token, _BIAS]],
        "cache_prompt": True,
        "ignore_eos": False,
    }
    answer = await client.ask("/completion", body, _Completion, timeout_s)
    if not answer.completion_probabilities:
        raise Unmeasured(f"llama.cpp told no probability of the token {token}: it may end an answer")
    told = answer.completion_probabilities[0]
    if told.id != token:
        raise Unmeasured(f"llama.cpp told of the token {told.id}, was asked for {token}")
    return -told.logprob


def spread(count: int, length: int) -> list[int]:
    """So many positions of a stretch, evenly from the first to the last that can be predicted."""
    last = length - 1
    if count < 2 or last < 2:
        return [last] if last > 0 else []
    return sorted({1 + round(step * (last - 1) / (count - 1)) for step in range(count)})
