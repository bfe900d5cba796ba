"""Sampling as an engine wants to read it."""

from typing import Any

from sekisho.core.turn import Sampling


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """The fields that were set, under the names that llama.cpp, vLLM and OpenAI use. The repeat penalty goes out
    under both of its names; an engine passes over the one it does not know."""
    values: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repeat_penalty,
        "repetition_penalty": sampling.repeat_penalty,
        "logit_bias": sampling.logit_bias or None,
        "n": sampling.n if sampling.n > 1 else None,
        "ignore_eos": sampling.ignore_eos or None,
    }
    return {name: value for name, value in values.items() if value is not None}
