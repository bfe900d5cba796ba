"""What the database keeps of a conversation is unreadable for whoever has only the database: JSON in a sealed envelope.

An envelope is an object, `{"sealed": "…"}`, so that the store can still write a state beside it
(`store.response_rows.fail_stale`): what stands beside wins.
"""

from typing import Any

import msgspec

from sekisho.core.errors import NotFound
from sekisho.gateway.seal import Sealer

_FIELD = "sealed"


def close(sealer: Sealer, owner: str, value: Any) -> bytes:
    return msgspec.json.encode({_FIELD: sealer.seal(msgspec.json.encode(value).decode(), owner)})


def read(sealer: Sealer, owner: str, body: bytes) -> Any:
    """What `close` was given; a value that was stored in the open comes as it is. Raises NotFound where this server's
    key did not seal it for this owner."""
    value = msgspec.json.decode(body)
    if not isinstance(value, dict) or not isinstance(value.get(_FIELD), str):
        return value
    text = sealer.unseal(value.pop(_FIELD), owner)
    if text is None:
        raise NotFound("What was stored here was sealed with another key of the server.")
    inner = msgspec.json.decode(text)
    return {**inner, **value} if isinstance(inner, dict) else inner
