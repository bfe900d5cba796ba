"""Fields of a policy on the command line: `kv.mode=dynamic` and back."""

import json
from typing import Any

from sekisho.cli.failure import USAGE, CommandFailed


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def assigned(field: str, value: Any) -> str:
    """As `nested` reads it back."""
    return f"{field}={value if isinstance(value, str) else json.dumps(value)}"


def short(value: Any) -> str:
    return "—" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nested(settings: list[str]) -> dict[str, Any]:
    """`kv.mode=dynamic` as the interface takes it; a value is JSON where it reads as such, else text."""
    body: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise CommandFailed(f"{setting!r} is no FIELD=VALUE", hint="as in kv.recent_window=128", exit_code=USAGE)
        inner = body
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise CommandFailed(f"{setting!r}: {part} has a value already", exit_code=USAGE)
        inner[parts[-1]] = _value(text.strip())
    return body


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
