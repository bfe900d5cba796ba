"""What this server has, in Ollama's words: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

Clients read these as Go structs, so an unknown text is "", an unknown size 0 and an unknown time Go's zero time.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.wire import jsonio
from sekisho.wire.ollama import schema
from sekisho.wire.ollama.encoder import error_body, rfc3339

__all__ = ["API_VERSION", "OllamaModel", "decode_show", "error_body", "ps", "show", "tags", "version"]

API_VERSION = "0.12.11"
"""The Ollama release whose API these codecs speak. Clients refuse servers that name an older one than they need."""

_NO_TIME = "0001-01-01T00:00:00Z"


class OllamaModel(msgspec.Struct, frozen=True):
    """`modified_at` is seconds since 1970 UTC; `capabilities` are Ollama's words: completion, tools, vision,
    embedding, thinking, insert; `parameter_size` is as in "8.0B", `quantisation` as in "Q4_K_M"."""

    name: str
    modified_at: float | None = None
    size_bytes: int | None = None
    digest: str | None = None
    family: str | None = None
    parameter_size: str | None = None
    quantisation: str | None = None
    context_length: int | None = None
    capabilities: tuple[str, ...] = ("completion",)
    template: str | None = None
    license: str | None = None
    format: str | None = None


def decode_show(body: bytes) -> str:
    """The name of the model that is asked for. Raises `InvalidRequest`."""
    request = jsonio.load(body, schema.ShowRequest)
    name = request.model or request.name
    if not name:
        raise InvalidRequest("Missing parameter: 'model'.", param="model", code="missing_required_parameter")
    return name


def tags(models: Iterable[OllamaModel]) -> bytes:
    """`/api/tags`: the models that the caller's key may use."""
    return jsonio.dump({"models": [{**_named(model), "modified_at": _time(model.modified_at)} for model in models]})


def ps(models: Iterable[OllamaModel]) -> bytes:
    """`/api/ps`: the models that are loaded. They stay so; `expires_at` and `size_vram` are not known."""
    listed = []
    for model in models:
        entry = _named(model)
        if model.context_length is not None:
            entry["context_length"] = model.context_length
        listed.append(entry)
    return jsonio.dump({"models": listed})


def show(model: OllamaModel) -> bytes:
    """`/api/show`. `model_info` names the context length under the model's family, where clients look for it."""
    info: dict[str, Any] = {"general.basename": model.name}
    if model.family:
        info["general.architecture"] = model.family
        if model.context_length is not None:
            info[f"{model.family}.context_length"] = model.context_length
    answer: dict[str, Any] = {
        "modelfile": "",
        "parameters": "",
        "template": model.template or "",
        "details": _details(model),
        "model_info": info,
        "capabilities": list(model.capabilities),
        "modified_at": _time(model.modified_at),
    }
    if model.license:
        answer["license"] = model.license
    return jsonio.dump(answer)


def version(number: str = API_VERSION) -> bytes:
    """`/api/version`."""
    return jsonio.dump({"version": number})


def _named(model: OllamaModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size_bytes or 0,
        "digest": model.digest or "",
        "details": _details(model),
    }


def _details(model: OllamaModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": model.format or "",
        "family": model.family or "",
        "families": [model.family] if model.family else [],
        "parameter_size": model.parameter_size or "",
        "quantization_level": model.quantisation or "",
    }


def _time(epoch_s: float | None) -> str:
    return _NO_TIME if epoch_s is None else rfc3339(epoch_s)
