"""Inputs to embed, and the answer with their vectors."""

from typing import Any

from sekisho.engines.torch_worker.prompts import Prompts
from sekisho.engines.torch_worker.refusal import Refused, too_long
from sekisho.engines.torch_worker.requests import EmbeddingsBody


def tokens(body: EmbeddingsBody, prompts: Prompts, context: int) -> list[list[int]]:
    """A text, a list of texts, token ids, or a list of lists of them. Raises `Refused`."""
    if body.dimensions is not None:
        raise Refused("the vectors have the model's own width", param="dimensions", code="unsupported_parameter")
    single = isinstance(body.input, str) or (bool(body.input) and isinstance(body.input[0], int))
    if not body.input or (not single and not all(isinstance(each, str | list) for each in body.input)):
        raise Refused("a text, a list of texts, or ids of tokens", param="input")
    inputs = [prompts.raw(each) for each in ([body.input] if single else body.input)]
    for each in inputs:
        if not each:
            raise Refused("an input has no tokens", param="input")
        if len(each) > context:
            raise too_long(f"an input has {len(each)} tokens, the context length is {context}")
    return inputs


def answer(vectors: list[list[float]], inputs: list[list[int]], model: str) -> dict[str, Any]:
    count = sum(map(len, inputs))
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "model": model, "data": data, "usage": usage}
