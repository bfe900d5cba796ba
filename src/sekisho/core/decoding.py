"""JSON from a disk or a network: whatever is wrong with the bytes ends in one error."""

from typing import TypeVar

import msgspec

T = TypeVar("T")


class Undecodable(ValueError):
    """These bytes are no JSON of the shape that was asked for. Its text says why and where."""


def decoded(body: bytes, shape: type[T]) -> T:
    """Raises Undecodable: for what is no JSON, has another shape, is no UTF-8 (which msgspec tells by another error
    than the rest), or is nested too deeply."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from error
