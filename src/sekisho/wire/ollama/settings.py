"""How chat and generate requests name sampling, format and thinking: the part that both decode alike."""

import binascii
from typing import Any

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import Image, OutputFormat, ReasoningRequest, Sampling
from sekisho.wire.ollama.schema import Common, Options

_EFFORTS = ("low", "medium", "high", "max")
_PASSED_ON = ("typical_p", "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta")
_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
_HEAD_LENGTH = 16  # base64 letters: enough for every signature, whole groups of four


def sampling_of(request: Common) -> Sampling:
    options = request.options or Options()
    limit = _whole(options.num_predict, "num_predict")
    seed = _whole(options.seed, "seed")
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    return Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=_whole(options.top_k, "top_k"),
        min_p=options.min_p,
        max_tokens=limit if limit is not None and limit > 0 else None,  # -1 and -2 mean: no limit of its own
        stop=tuple(word for word in stop if word),
        seed=seed if seed is not None and seed >= 0 else None,  # -1 means: a new one each time
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repeat_penalty=options.repeat_penalty,
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs if request.logprobs else None,
    )


def extra_of(request: Common) -> dict[str, Any]:
    if request.options is None:
        return {}
    given = {name: getattr(request.options, name) for name in _PASSED_ON}
    for name in ("repeat_last_n", "mirostat"):
        given[name] = _whole(given[name], name)
    return {name: value for name, value in given.items() if value is not None}


def format_of(request: Common) -> OutputFormat:
    if not request.format:
        return OutputFormat()
    if isinstance(request.format, dict):
        return OutputFormat("json_schema", schema=request.format)
    if request.format == "json":
        return OutputFormat("json_object")
    raise InvalidRequest("'format' must be \"json\" or a JSON schema.", param="format")


def reasoning_of(request: Common) -> ReasoningRequest:
    think = request.think
    if not isinstance(think, str):
        return ReasoningRequest(enabled=think)
    if think not in _EFFORTS:
        raise InvalidRequest(f"'think' must be true, false or one of {', '.join(_EFFORTS)}.", param="think")
    return ReasoningRequest(think, enabled=True)


def images_of(images: list[str] | None, at: str) -> list[Image]:
    """Ollama's images are bare base64; what they show is read from their first bytes."""
    return [_image(data, f"{at}[{position}]") for position, data in enumerate(images or ())]


def _image(data: str, at: str) -> Image:
    if data.startswith("data:image/"):
        return Image(data)
    try:
        head = binascii.a2b_base64(data[:_HEAD_LENGTH].encode(), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidRequest(f"'{at}' is not base64.", param=at) from None
    for signature, media_type in _SIGNATURES.items():
        if head.startswith(signature):
            return Image(f"data:{media_type};base64,{data}")
    raise InvalidRequest(f"'{at}' is not a PNG, JPEG, GIF, WebP or BMP image.", param=at)


def _whole(value: float | None, name: str) -> int | None:
    if value is None:
        return None
    if not -(2**63) <= value < 2**63:
        raise InvalidRequest(f"'options.{name}' is out of range.", param=f"options.{name}")
    if value != int(value):
        raise InvalidRequest(f"'options.{name}' must be a whole number.", param=f"options.{name}", code="invalid_type")
    return int(value)
