"""Fits plain values into the settings' structs: names, types and the closest valid name for a mistyped one."""

import difflib
import re
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from sekisho.settings.document import Document, Path

SECRET_NAME = re.compile(
    r"^(?:key|token|bearer)$|(?:api|access|admin|secret|private)[-_]?key$|(?:auth|access|api|hf|bearer)[-_]?token$"
    r"|(?:secret|password|passwd|passphrase|credentials?)$",
    re.I,
)
SECRET_ADVICE = (
    "sekisho.yaml holds no secrets: put it into an environment variable and name that "
    "variable in `api_key_env`, or into a file of your own and name it in `api_key_file`"
)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"}


def fit(document: Document, value: Any, kind: Any, path: Path = ()) -> Any:
    """The value as `kind`. A problem is noted in the document and answered with `msgspec.UNSET`."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(document, value, kind, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType) and value is not None:
        blocks = [one for one in arguments if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        if blocks:
            return _struct(document, value, blocks[0], path)
    if origin is tuple:
        return _sequence(document, value, arguments[0], path)
    if origin is dict:
        return _table(document, value, arguments[1], path)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        document.problem(path, f"expected {expectation(kind)}, got {_described(value, path)}", _leaf_hint(value, kind))
        return msgspec.UNSET


def _struct(document: Document, value: Any, kind: type[msgspec.Struct], path: Path) -> Any:
    if value is None and path:
        value = {}  # `gateway:` with every line under it commented out
    if not isinstance(value, dict):
        document.problem(path, f"expected a block of settings, got {_described(value, path)}")
        return msgspec.UNSET
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    hints = get_type_hints(kind)
    result: dict[str, Any] = {}
    broken = False
    for key, inner in value.items():
        if key not in fields:
            _unknown(document, key, list(fields), (*path, key))
            broken = True
            continue
        result[key] = fit(document, inner, hints[key], (*path, key))
    for name, field in fields.items():
        if field.required and name not in result:
            document.problem(path, f"`{name}` is missing")
            broken = True
    broken = broken or any(item is msgspec.UNSET for item in result.values())
    if broken:
        return msgspec.UNSET
    try:
        return kind(**result)
    except ValueError as error:  # what a struct checks of itself
        document.problem(path, str(error))
        return msgspec.UNSET


def _unknown(document: Document, key: str, valid: list[str], path: Path) -> None:
    if SECRET_NAME.search(key):
        document.problem(path, "looks like a secret", SECRET_ADVICE, at_key=True)
        return
    document.problem(path, "unknown setting", closest(key, valid), at_key=True)


def _sequence(document: Document, value: Any, kind: Any, path: Path) -> Any:
    if not isinstance(value, list):
        document.problem(path, f"expected a list, got {_described(value, path)}", "begin each entry with `- `")
        return msgspec.UNSET
    items = tuple(fit(document, item, kind, (*path, index)) for index, item in enumerate(value))
    return msgspec.UNSET if any(item is msgspec.UNSET for item in items) else items


def _table(document: Document, value: Any, kind: Any, path: Path) -> Any:
    if not isinstance(value, dict):
        document.problem(path, f"expected `name: value` lines, got {_described(value, path)}")
        return msgspec.UNSET
    result = {key: fit(document, item, kind, (*path, key)) for key, item in value.items()}
    return msgspec.UNSET if any(item is msgspec.UNSET for item in result.values()) else result


def closest(name: str, valid: list[str]) -> str:
    """A hint: the nearest valid name, or all of them."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"valid here: {', '.join(sorted(valid))}"


def expectation(kind: Any) -> str:
    """What a type asks for, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(expectation(choice) for choice in arguments)
    return "`name: value` lines" if origin is dict else _WORDS.get(kind, str(kind))


def _described(value: Any, path: Path) -> str:
    if isinstance(value, dict):
        return "a block of settings"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if path and isinstance(path[-1], str) and SECRET_NAME.search(path[-1]):
        return "a value that is not shown"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the text {value!r}" if isinstance(value, str) else f"the number {value!r}"


def _leaf_hint(value: Any, kind: Any) -> str | None:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal and isinstance(value, str):
        near = difflib.get_close_matches(value, [str(choice) for choice in arguments], n=1, cutoff=0.6)
        return f"did you mean `{near[0]}`?" if near else None
    takes_text = kind is str or str in arguments
    if takes_text and not isinstance(value, (dict, list)) and value is not None:
        return "put it in quotes"
    if isinstance(value, str) and not takes_text:
        return "write it without quotes"
    return None
