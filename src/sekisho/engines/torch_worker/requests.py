"""Bodies of requests, and what of them the model's thread needs. Raises `Refused`, which names the field."""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.sampling import SamplingDefaults, SamplingSettings

MOST_STOPS: Final = 64
MOST_LOGPROBS: Final = 20
_NO_GRAMMAR: Final = "this engine cannot hold an answer to a schema or a grammar: use the engine llama_cpp for that"


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Body(msgspec.Struct, kw_only=True):
    """What chat and raw completions share. Fields of other engines are passed over, those that would change what is
    said (grammars) are refused."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    grammar: Any = None
    json_schema: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


class ChatBody(Body, kw_only=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Body, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """One of `messages` and `prompt`."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    input: str | list[Any]
    dimensions: int | None = None


@dataclass(frozen=True)
class Ask:
    """One answer that is wanted. `logprobs`: how many alternatives are told beside each token; None: nothing is."""

    prompt: list[int]
    sampling: SamplingSettings
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_end: bool
    logprobs: int | None


Shape = TypeVar("Shape", bound=msgspec.Struct)


def read(body: bytes, shape: type[Shape]) -> Shape:
    """The body as `shape`, types checked."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is one
        raise Refused(f"the body cannot be read: {error}") from None


def ask(body: Body, prompt: list[int], logprobs: int | None, vocabulary: int, defaults: SamplingDefaults) -> Ask:
    """Checks what types cannot say."""
    if body.n not in (None, 1):
        raise Refused("one choice a request: ask again for another", param="n")
    _refuse_grammars(body)
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if most is not None and most < 1:
        raise Refused(f"must be at least 1, is {most}", param="max_tokens")
    if logprobs is not None and not 0 <= logprobs <= MOST_LOGPROBS:
        raise Refused(f"top_logprobs must be 0 to {MOST_LOGPROBS}, is {logprobs}", param="top_logprobs")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > MOST_STOPS:
        raise Refused(f"at most {MOST_STOPS} strings, are {len(stop)}", param="stop")
    return Ask(
        prompt=prompt,
        sampling=_sampling(body, vocabulary, defaults),
        max_tokens=most,
        stop=tuple(each for each in stop if each),
        ignore_end=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _refuse_grammars(body: Body) -> None:
    if body.response_format is not None and body.response_format.get("type", "text") != "text":
        raise Refused(_NO_GRAMMAR, param="response_format", code="unsupported_parameter")
    names = [name for name in body.__struct_fields__ if name.startswith("guided_")]
    for name in ("grammar", "json_schema", "structured_outputs", *names):
        if getattr(body, name) is not None:
            raise Refused(_NO_GRAMMAR, param=name, code="unsupported_parameter")


def _sampling(body: Body, vocabulary: int, defaults: SamplingDefaults) -> SamplingSettings:
    repetition = body.repetition_penalty if body.repetition_penalty is not None else body.repeat_penalty
    settings = SamplingSettings(
        temperature=_within("temperature", body.temperature, defaults.temperature, 0, 100),
        top_p=_within("top_p", body.top_p, defaults.top_p, 0, 1),
        top_k=max(0, body.top_k if body.top_k is not None else defaults.top_k),
        min_p=_within("min_p", body.min_p, 0.0, 0, 1),
        seed=body.seed if body.seed is None or body.seed >= 0 else None,
        presence_penalty=_within("presence_penalty", body.presence_penalty, 0.0, -2, 2),
        frequency_penalty=_within("frequency_penalty", body.frequency_penalty, 0.0, -2, 2),
        repetition_penalty=_within("repetition_penalty", repetition, 1.0, 0.01, 100),
        logit_bias=_bias(body.logit_bias or {}, vocabulary),
    )
    if settings.top_p == 0:
        raise Refused("must be above 0", param="top_p")
    return settings


def _within(name: str, value: float | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if not math.isfinite(value) or not low <= value <= high:
        raise Refused(f"{name} must be between {low:g} and {high:g}, is {value:g}", param=name)
    return value


def _bias(given: dict[str, float], vocabulary: int) -> dict[int, float]:
    bias = {}
    for name, value in given.items():
        if len(name) > 9 or not name.isascii() or not name.isdecimal() or int(name) >= vocabulary:
            raise Refused(f"{name[:20]!r} is no token: they go from 0 to {vocabulary - 1}", param="logit_bias")
        bias[int(name)] = _within("logit_bias", value, 0.0, -100, 100)
    return bias
