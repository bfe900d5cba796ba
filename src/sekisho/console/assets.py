"""The pages' files, read from the package once, and the headers that every one of them is sent with."""

import hashlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec

_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# `require-trusted-types-for` makes the browser itself refuse innerHTML: a model's answer can never become markup.
SECURITY_HEADERS: dict[str, str] = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Asset(msgspec.Struct, frozen=True):
    """One file, ready to be sent. `etag` is strong and comes with its quotes."""

    body: bytes
    content_type: str
    etag: str


def asset(path: str) -> Asset | None:
    """The file of that name (`index.html`, `chat.css`, …), or None. Names are looked up, never opened as paths."""
    return _all().get(path)


@cache
def _all() -> dict[str, Asset]:
    return {entry.name: _read(entry) for entry in files(__package__).joinpath("page").iterdir() if entry.is_file()}


def _read(entry: Traversable) -> Asset:
    body = entry.read_bytes()
    suffix = entry.name[entry.name.rindex(".") :]
    return Asset(body, _CONTENT_TYPES[suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
