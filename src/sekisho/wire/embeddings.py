"""OpenAI's `/v1/embeddings`, both sides."""

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sekisho.core.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from sekisho.core.events import Usage
from sekisho.core.turn import EmbedRequest
from sekisho.wire import jsonio
from sekisho.wire.completions import read_prompts
from sekisho.wire.openai_error import error_body

__all__ = ["decode", "decode_vectors", "encode_request", "encode_result", "error_body"]

_MAX_INPUTS = 2048


class EmbeddingBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    user: str | None = None


def decode(body: bytes, request_id: str) -> EmbedRequest:
    """Raises `InvalidRequest`, naming the parameter."""
    request = jsonio.load(body, EmbeddingBody)
    inputs = read_prompts(request.input, "input")
    if len(inputs) > _MAX_INPUTS:
        raise InvalidRequest(f"'input' holds more than {_MAX_INPUTS} entries.", param="input")
    for number, one in enumerate(inputs):
        if one == "":
            param = "input" if isinstance(request.input, str) else f"input[{number}]"
            raise InvalidRequest(f"'{param}' is empty.", param=param)
    return EmbedRequest(
        request_id, request.model, inputs, request.dimensions, request.encoding_format or "float", user=request.user
    )


def encode_result(request: EmbedRequest, vectors: Sequence[Sequence[float]], usage: Usage) -> bytes:
    """The list object, in the order of the inputs; base64 is of little-endian 32-bit floats."""
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        written: Any = vector
        if request.encoding == "base64":
            written = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": written})
    counts = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": request.model, "usage": counts})


def encode_request(request: EmbedRequest, *, model: str) -> bytes:
    """The body for an engine's `/embeddings`. Floats are always asked for; the client's encoding is ours to do."""
    inputs: Any = request.inputs[0] if len(request.inputs) == 1 else request.inputs
    body: dict[str, Any] = {"model": model, "input": inputs, "encoding_format": "float"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return jsonio.dump(body)


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Vector]
    usage: _Counts | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def decode_vectors(body: bytes, request: EmbedRequest) -> tuple[list[list[float]], Usage | None]:
    """An engine's vectors in the order of the inputs, and its count where it told one. Raises `EngineFailed` for an
    answer that is not whole, `UnsupportedParameter` where the engine passed over `dimensions`."""
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFailed("The engine's embeddings cannot be read.") from error
    vectors = [one for _, one in sorted(enumerate(answer.data), key=_place)]
    places = [index if one.index is None else one.index for index, one in enumerate(vectors)]
    if places != list(range(len(request.inputs))):
        raise EngineFailed("The engine did not give one embedding for each input.")
    if request.dimensions is not None and any(len(one.embedding) != request.dimensions for one in vectors):
        raise UnsupportedParameter("The model cannot give embeddings of this size.", param="dimensions")
    counts = answer.usage
    usage = None if counts is None or counts.prompt_tokens is None else Usage(max(counts.prompt_tokens, 0), 0)
    return [one.embedding for one in vectors], usage


def _place(numbered: tuple[int, _Vector]) -> int:
    position, vector = numbered
    return position if vector.index is None else vector.index
