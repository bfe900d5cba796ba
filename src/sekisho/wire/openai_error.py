"""OpenAI's error shape, shared by chat, completions, responses, embeddings and models."""

from typing import Any

import msgspec

from sekisho.core.events import Failed
from sekisho.wire.base import ErrorView


def error_body(error: ErrorView) -> bytes:
    """`{"error": {"message", "type", "param", "code", "id"}}`. Clients may find a null `param`, never a missing one."""
    return msgspec.json.encode({"error": error_object(error)})


def error_object(error: ErrorView | Failed) -> dict[str, Any]:
    """The inner object, for an error that travels inside another frame."""
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param if isinstance(error, ErrorView) else None,
        "code": error.code,
        "id": error.id,
    }


def failed_body(failed: Failed) -> bytes:
    """The same body for a turn that broke while it ran."""
    return msgspec.json.encode({"error": error_object(failed)})
