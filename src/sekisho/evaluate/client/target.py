"""Where is measured, and with which key. A key comes from the environment, a file or a prompt, never from a command
line, and is shown nowhere."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

from sekisho.core.errors import InvalidRequest

Place = Literal["engine", "gateway", "public"]

DEFAULT_KEY_ENV = "SEKISHO_API_KEY"
_IN_PATHS = "/%:@!$&'()*+,;=~"
_KEY_FORM = re.compile(r"[A-Za-z0-9_-]{16,}")


class Key:
    """A secret that does not show itself: `str` and `repr` are masked to the last four characters."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise InvalidRequest("The key is empty or holds characters that no header can carry.")
        self._secret = secret

    def reveal(self) -> str:
        return self._secret

    def __str__(self) -> str:
        return f"****{self._secret[-4:]}" if len(self._secret) >= 16 else "****"

    __repr__ = __str__

    def __reduce__(self) -> str:
        raise TypeError("a key is not written down")


class Target:
    """One address of one model. `url` is kept without `/v1` and without a slash at its end; `key` None asks without.

    Raises InvalidRequest for an address that is none, or that carries a password.
    """

    def __init__(self, place: Place, url: str, model: str, key: Key | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port, host = parts.port, (parts.hostname or "").encode("idna").decode()
        except ValueError as error:
            raise InvalidRequest(f"{_shown(url)} is no address: {error}") from error
        if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
            raise InvalidRequest(f"{_shown(url)} is no http address: it looks like http://127.0.0.1:8080")
        if parts.username or parts.password:
            raise InvalidRequest("The address holds a password. Put it into a key: --key env:NAME or --key file:PATH.")
        if parts.query or parts.fragment:
            raise InvalidRequest(f"{url!r}: an address without ? and #")
        if port == 0:
            raise InvalidRequest(f"{url!r}: nobody can be reached at port 0")
        self.place: Place = place
        self.host, self.tls = host, parts.scheme == "https"
        self.port: int = port or (443 if self.tls else 80)
        self.base_path = quote(parts.path, safe=_IN_PATHS).rstrip("/").removesuffix("/v1").rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self.base_path}"
        self.model = model
        self.key = key

    def path(self, path: str) -> str:
        """`/v1/models` below this address' own path."""
        return f"{self.base_path}{path}"

    def without_key(self) -> "Target":
        return Target(self.place, self.url, self.model)

    def with_model(self, model: str) -> "Target":
        return Target(self.place, self.url, model, self.key)

    def __repr__(self) -> str:
        return f"Target({self.place} {self.url} {self.model} {self.key or 'no key'})"


def _shown(url: str) -> str:
    """What is no address may hold a password all the same."""
    return repr(url.rpartition("@")[2] if "@" in url else url)


def read_key(source: str | None, environment: Mapping[str, str] | None = None) -> Key | None:
    """`env:NAME` and `file:PATH`; None: SEKISHO_API_KEY where it is set, else no key. Raises InvalidRequest.

    A key itself is refused: command lines are seen by every user of a machine and kept in histories.
    """
    values = os.environ if environment is None else environment
    if source is None:
        found = values.get(DEFAULT_KEY_ENV, "").strip()
        return Key(found) if found else None
    kind, colon, rest = source.partition(":")
    if colon and kind == "env":
        found = values.get(rest, "").strip()
        if not found:
            raise InvalidRequest(f"The environment variable {rest} is not set. Set it to the key.")
        return Key(found)
    if colon and kind == "file":
        try:
            return Key(Path(rest).expanduser().read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"The key's file {rest} cannot be read: {error}") from error
    looks = " This looks like a key: make it invalid, others may have seen it." if _KEY_FORM.fullmatch(source) else ""
    raise InvalidRequest(f"A key is named, never typed into a command: env:NAME or file:PATH.{looks}")
