"""Keys as values: what a key may do, its secret, and what makes a wish for a key valid. The rows are `key_rows`."""

import hashlib
import ipaddress
import math
import secrets

import msgspec

from sekisho.core.errors import InvalidRequest

SCOPES = frozenset({"chat", "embeddings", "admin", "control", "audit", "reasoning"})
SECRET_PREFIX = "sk-sekisho-"
_LARGEST = 2**53 - 1  # every JSON reader keeps integers exact up to here


class KeySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do. None means no limit; budgets are for one calendar month (UTC), cost in millionths."""

    name: str
    scopes: frozenset[str] = frozenset({"chat", "embeddings"})
    models: frozenset[str] | None = None
    rpm: int | None = None
    tpm: int | None = None
    parallel: int | None = None
    budget_tokens: int | None = None
    budget_cost_micros: int | None = None
    networks: tuple[str, ...] = ()
    expires_at: float | None = None


class KeyRecord(KeySpec, frozen=True, kw_only=True):
    """A key as stored. `revision` is the store's key revision at this key's last change.

    Looked up by secret, `expires_at` is when *this* secret stops: a rotated secret in its grace ends earlier.
    """

    id: str
    last4: str
    created_at: float
    revision: int
    revoked_at: float | None = None
    rotated_at: float | None = None


def new_secret() -> str:
    """`sk-sekisho-` and 43 URL-safe characters made of 32 random bytes."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. The secrets are random, so a slow or salted hash would add nothing. Takes any string."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def mask(secret_or_last4: str) -> str:
    """`sk-…abcd`. A string that is neither one of our secrets nor its last four characters shows nothing."""
    shown = secret_or_last4.startswith(SECRET_PREFIX) or len(secret_or_last4) == 4
    return f"sk-…{secret_or_last4[-4:]}" if shown else "sk-…"


def checked(spec: KeySpec, now: float) -> KeySpec:
    """The spec with its networks in canonical form. Raises InvalidRequest naming the parameter at fault."""
    _check_name(spec.name)
    if not spec.scopes or not spec.scopes <= SCOPES:
        unknown = sorted(spec.scopes - SCOPES)
        fault = f"unknown scope {unknown[0]!r}" if unknown else "a key needs at least one scope"
        raise InvalidRequest(f"{fault}; valid scopes are {', '.join(sorted(SCOPES))}", param="scopes")
    if spec.models is not None and not all(_plain(model) for model in spec.models or {""}):
        raise InvalidRequest("models must be names; leave the list out to allow every model", param="models")
    for param in ("rpm", "tpm", "parallel"):
        _check_count(param, getattr(spec, param), least=1)
    for param in ("budget_tokens", "budget_cost_micros"):
        _check_count(param, getattr(spec, param), least=0)
    if spec.expires_at is not None and not (math.isfinite(spec.expires_at) and spec.expires_at > now):
        raise InvalidRequest("expires_at must lie in the future", param="expires_at")
    return msgspec.structs.replace(spec, networks=tuple(_network(text) for text in spec.networks))


def _plain(text: str) -> bool:
    return bool(text) and len(text) <= 256 and text.isprintable() and text == text.strip()


def _check_name(name: str) -> None:
    if not _plain(name) or len(name) > 64:
        raise InvalidRequest("a key's name has 1 to 64 printable characters, no space at its ends", param="name")
    if name.startswith("key_"):
        raise InvalidRequest("a name must not start with key_, so that it is never taken for an id", param="name")


def _check_count(param: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if type(value) is not int or not least <= value <= _LARGEST:
        raise InvalidRequest(f"{param} must be a whole number from {least} up; leave it out for no limit", param=param)


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise InvalidRequest(f"not a network in CIDR form: {error}", param="networks") from error
