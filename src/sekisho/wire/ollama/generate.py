"""`/api/generate`: a prompt for the model's chat template, or a raw one, or a gap to fill before `suffix`."""

from collections.abc import Callable

from sekisho.core.errors import UnsupportedParameter
from sekisho.core.turn import Message, Text, Turn
from sekisho.wire import jsonio
from sekisho.wire.ollama import schema
from sekisho.wire.ollama.encoder import OllamaEncoder, error_body
from sekisho.wire.ollama.settings import extra_of, format_of, images_of, reasoning_of, sampling_of

__all__ = ["decode", "encoder", "error_body"]

_REFUSED = ("template", "context", "width", "height", "steps")


def decode(body: bytes, request_id: str) -> Turn:
    """Raises `RequestError` naming the parameter. Streams unless told otherwise.

    `raw` and `suffix` make a raw completion (`Turn.prompts`), where a system message and images have no place.
    """
    request = jsonio.load(body, schema.GenerateRequest)
    for name in _REFUSED:
        if getattr(request, name):
            raise UnsupportedParameter(f"This server does not support '{name}'.", param=name)
    plain = bool(request.raw or request.suffix)
    for name in ("system", "images"):
        if plain and getattr(request, name):
            raise UnsupportedParameter(f"'{name}' cannot go with 'raw' or 'suffix'.", param=name)
    asked = bool(request.prompt or request.suffix or request.images)
    return Turn(
        id=request_id,
        protocol="ollama_generate",
        model=request.model,
        messages=_messages(request) if asked and not plain else (),
        prompts=(request.prompt or "",) if asked and plain else (),
        suffix=request.suffix or None,
        sampling=sampling_of(request),
        format=format_of(request),
        reasoning=reasoning_of(request),
        stream=request.stream is not False,
        include_usage=True,
        extra=extra_of(request),
    )


def encoder(turn: Turn, created: int, clock: Callable[[], float] | None = None) -> OllamaEncoder:
    """`clock` tells seconds that never go back; without it the answer names no durations."""
    return OllamaEncoder(turn, created, clock)


def _messages(request: schema.GenerateRequest) -> tuple[Message, ...]:
    asked = Message("user", (Text(request.prompt or ""), *images_of(request.images, "images")))
    return (Message("system", (Text(request.system),)), asked) if request.system else (asked,)
