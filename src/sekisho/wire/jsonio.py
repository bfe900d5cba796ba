"""Strict JSON in and out. Whatever is wrong with a body becomes an `InvalidRequest` that names the parameter."""

import json
import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec

from sekisho.core.errors import InvalidRequest

T = TypeVar("T")

_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_FIELD = re.compile(r"Object (?:contains unknown|missing required) field `(?P<field>[^`]*)`")
_EXPECTED = re.compile(r"Expected `(?P<expected>[^`]+)`(?:, got `(?P<got>[^`]+)`)?$")
_NAMES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_MAX_NAME = 64
_BOM = b"\xef\xbb\xbf"


def load_object(body: bytes) -> dict[str, Any]:
    """Any JSON object. Raises `InvalidRequest` for broken JSON, NaN, bad UTF-8, too deep nesting, or another type."""
    return load(body, dict[str, Any])


def load(body: bytes, type: type[T]) -> T:
    """A body of the given shape (a msgspec struct or any annotated type). Raises `InvalidRequest`, whose `param` is
    the path of what was wrong, as in `messages[0].content`; codes: `invalid_json`, `invalid_type`, `invalid_value`,
    `missing_required_parameter`, `unknown_parameter`."""
    try:
        decoded: T = _decoder(cast(Hashable, type)).decode(body.removeprefix(_BOM))
        return decoded
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {_plain(str(error).removeprefix('JSON is malformed: '))}.",
            code="invalid_json",
        ) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None


def convert(value: Any, type: type[T], at: str = "") -> T:
    """As `load`, for a value that is already parsed and stands at path `at` of the body."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), at) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", param=at or None, code="invalid_json") from None


def dump(value: Any) -> bytes:
    """JSON bytes. Unlike plain msgspec this also writes whole numbers beyond 64 bits, which a client's schema may
    hold. Raises `InvalidRequest` where the value is nested too deeply to be written."""
    try:
        try:
            return msgspec.json.encode(value)
        except OverflowError:
            plain = msgspec.to_builtins(value, builtin_types=(int,))
            return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="invalid_json") from None


@lru_cache(maxsize=256)
def _decoder(type: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast(Any, type))


def _invalid(text: str, prefix: str = "") -> InvalidRequest:
    found = _AT.search(text)
    path = prefix
    if found:
        path += found["path"].replace("[...]", "")
        text = text[: found.start()]
    path = path.lstrip(".")
    if field := _FIELD.match(text):
        name = _name(field["field"])
        path = f"{path}.{name}" if path else name
        if "unknown" in text:
            return InvalidRequest(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")
        return InvalidRequest(f"Missing parameter: '{path}'.", param=path, code="missing_required_parameter")
    place = f"'{path}'" if path else "the body"
    if expected := _EXPECTED.match(text):
        words = f"Invalid type for {place}: expected {_words(expected['expected'])}"
        words += f", got {_words(expected['got'])}." if expected["got"] else "."
        return InvalidRequest(words, param=path or None, code="invalid_type")
    return InvalidRequest(f"Invalid value for {place}: {_plain(text)}.", param=path or None)


def _name(key: str) -> str:
    """A key of the caller's own making, fit for a message and a log line."""
    printable = "".join(character if character.isprintable() else "?" for character in key[:_MAX_NAME])
    return printable if len(key) <= _MAX_NAME else printable + "…"


def _words(types: str) -> str:
    return " or ".join(_NAMES.get(name, name) for name in types.split(" | "))


def _plain(text: str) -> str:
    text = text.replace("`", "'").rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
