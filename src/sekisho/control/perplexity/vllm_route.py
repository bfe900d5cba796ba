"""vLLM tells the logprob of each token of a prompt (`prompt_logprobs`), under the cache type that it was started with.

It computes such a prompt anew, past its prefix cache. One request a stretch; only one token is made.
Interface: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (completions, tokenizer), vLLM 0.10 on.
"""

from typing import Any, Final

import msgspec

from sekisho.control.perplexity.base import Scores, Stretch, Unmeasured
from sekisho.control.perplexity.client import Client
from sekisho.engines import stretches

ROUTE: Final = "vllm"


class _Tokens(msgspec.Struct):
    tokens: list[int]
    max_model_len: int | None = None


class _Logprob(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[str, _Logprob] | None] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


async def score(
    client: Client, model: str, body: str, stretch: int, *, only: int | None = None, timeout_s: float = 300.0
) -> Scores:
    """`timeout_s`: for one stretch. Raises `Unmeasured`."""
    told = await _tokenized(client, model, body, False, timeout_s)
    opening = (await _tokenized(client, model, "", True, timeout_s)).tokens[:1]
    length = stretch if told.max_model_len is None else min(stretch, told.max_model_len - 1)
    try:
        parts = stretches.cut(told.tokens, opening, length, only)
    except ValueError as error:
        raise Unmeasured(str(error)) from None
    return Scores([await _scored(client, model, part, timeout_s) for part in parts], {"stretch": length})


async def _tokenized(client: Client, model: str, text: str, special: bool, timeout_s: float) -> _Tokens:
    body = {"model": model, "prompt": text, "add_special_tokens": special}
    return await client.ask("/tokenize", body, _Tokens, timeout_s)


async def _scored(client: Client, model: str, part: list[int], timeout_s: float) -> Stretch:
    # With 0 each position holds the token that came; some versions take 0 for "none", so one more is asked for.
    body: dict[str, Any] = {"model": model, "prompt": part, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    answer = await client.ask("/v1/completions", body, _Completion, timeout_s)
    told = answer.choices[0].prompt_logprobs if answer.choices else None
    if told is None or len(told) != len(part):
        raise Unmeasured("this server tells no logprobs of a prompt: is it vLLM, and are they allowed?")
    nll = []
    for token, place in zip(part[1:], told[1:], strict=True):
        found = None if place is None else place.get(str(token))
        if found is None:
            raise Unmeasured(f"vLLM told nothing about the token {token} of the prompt")
        nll.append(-found.logprob)
    return Stretch(part, nll)
