"""`/api/embed` and the older `/api/embeddings`, which embeds one prompt.

A request without words asks only that the model be loaded: its `inputs` are empty, and the answer to it is
`encode(request, [], Usage(0, 0))` without asking an engine.
"""

from typing import Any

from sekisho.core.events import Usage
from sekisho.core.turn import EmbedRequest
from sekisho.wire import jsonio
from sekisho.wire.ollama import schema
from sekisho.wire.ollama.encoder import error_body

__all__ = ["decode", "decode_legacy", "encode", "error_body"]

_NS = 1_000_000_000


def decode(body: bytes, request_id: str) -> EmbedRequest:
    """`/api/embed`. Raises `RequestError` naming the parameter."""
    request = jsonio.load(body, schema.EmbedRequestParam)
    inputs = request.input or ()
    return EmbedRequest(
        id=request_id,
        model=request.model,
        inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs),
        dimensions=request.dimensions or None,
        protocol="ollama_embed",
        truncate=request.truncate,
    )


def decode_legacy(body: bytes, request_id: str) -> EmbedRequest:
    """`/api/embeddings`. Raises `RequestError` naming the parameter."""
    request = jsonio.load(body, schema.EmbeddingsRequestParam)
    return EmbedRequest(
        id=request_id,
        model=request.model,
        inputs=(request.prompt,) if request.prompt else (),
        protocol="ollama_embeddings",
    )


def encode(request: EmbedRequest, vectors: list[list[float]], usage: Usage, total_s: float | None = None) -> bytes:
    """One vector per input, in order. `total_s`, where the gateway measured it, becomes `total_duration`."""
    if request.protocol == "ollama_embeddings":
        return jsonio.dump({"embedding": vectors[0] if vectors else []})
    answer: dict[str, Any] = {"model": request.model, "embeddings": vectors}
    if total_s is not None:
        answer["total_duration"] = round(total_s * _NS)
    answer["prompt_eval_count"] = usage.input_tokens
    return jsonio.dump(answer)
