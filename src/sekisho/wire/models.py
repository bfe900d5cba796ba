"""OpenAI's model objects. `context_length` is ours; clients that do not know it pass over it."""

from collections.abc import Iterable
from typing import Any

import msgspec

OWNER = "sekisho"


class ModelView(msgspec.Struct, frozen=True):
    """A model as a client may see it. `created`: seconds since 1970."""

    id: str
    created: int
    owned_by: str = OWNER
    context_length: int | None = None


def encode_model(model: ModelView) -> bytes:
    """`GET /v1/models/{id}`."""
    return msgspec.json.encode(_object(model))


def encode_list(models: Iterable[ModelView]) -> bytes:
    """`GET /v1/models`."""
    return msgspec.json.encode({"object": "list", "data": [_object(model) for model in models]})


def _object(model: ModelView) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    }
    if model.context_length is not None:
        told["context_length"] = model.context_length
    return told
