"""Which address a measurement is about, and with which key: options that `gate`, `continuity` and others share."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import settings_of
from sekisho.cli.temporary_key import LASTS_S, temporary_key

if TYPE_CHECKING:
    from sekisho.cli.output import Output
    from sekisho.evaluate.client.target import Key, Place, Target
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

PLACES = ("engine", "gateway", "public")

UrlOption = Annotated[
    str | None, typer.Option("--url", help="Address to measure; default: this machine's running server.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", help="env:NAME or file:PATH; default: SEKISHO_API_KEY, else a key for this run alone."),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model to ask; default: the server's default.")]
PlaceOption = Annotated[
    str | None,
    typer.Option("--place", help="engine, gateway or public: which of the server's addresses, or what --url is."),
]


@contextmanager
def aimed(
    out: "Output",
    place: "Home",
    purpose: str,
    *,
    url: str | None = None,
    key: str | None = None,
    model: str | None = None,
    at: str | None = None,
    lasts_s: float = LASTS_S,
    must_answer: bool = True,
) -> "Iterator[Target]":
    """The target that the options name. On the server's own machine a key is made for the body where none is named.

    `must_answer` False: an address elsewhere that lists no models is a target as well, with an empty model. Not inside
    a running loop. Raises CommandFailed, SettingsError, SekishoError.
    """
    from sekisho.evaluate.client.target import Target, read_key

    if at not in (None, *PLACES):
        raise CommandFailed(f"--place: {at!r} is none", hint=f"one of {', '.join(PLACES)}", exit_code=USAGE)
    given = read_key(key)
    if url is not None and not is_ours(place, url):
        yield _elsewhere(out, url, given, model, at, must_answer)
        return
    settings = settings_of(place)
    chosen = _model_of(settings, model)
    address = _running_url(place)
    if at == "engine":
        yield _engine(place, chosen)
        return
    target = _ours(address, settings, chosen, at, given)
    if given is not None:
        yield target
        return
    with temporary_key(place, settings, purpose, lasts_s=lasts_s) as made:
        yield Target(target.place, target.url, target.model, made)


def is_ours(place: "Home", url: str) -> bool:
    from sekisho.evaluate.client.target import Target
    from sekisho.ops.home import running

    state = running(place)
    if state is None:
        return False
    target, ours = Target("gateway", url, ""), Target("gateway", state.url, "")
    same_host = target.host == ours.host or (_is_loopback(target) and _is_loopback(ours))
    return same_host and (target.port, target.tls, target.base_path) == (ours.port, ours.tls, ours.base_path)


def _is_loopback(target: "Target") -> bool:
    try:
        return ipaddress.ip_address(target.host).is_loopback
    except ValueError:
        return target.host == "localhost"


def _running_url(place: "Home") -> str:
    from sekisho.ops.home import running

    state = running(place)
    if state is None:
        raise CommandFailed("no server runs from this home", hint="sekisho up, or --url ADDRESS", exit_code=ABSENT)
    return state.url


def _model_of(settings: "Settings", model: str | None) -> str:
    names = tuple(m.name for m in settings.models if not m.embeddings) or tuple(m.name for m in settings.models)
    if model is not None and settings.model(model) is None:
        raise CommandFailed(f"{model}: no such model", hint=f"models: {', '.join(names)}", exit_code=USAGE)
    return model or settings.default_model or names[0]


def _engine(place: "Home", model: str) -> "Target":
    import asyncio

    from sekisho.evaluate.client.target import Key, Target
    from sekisho.ops.engine_door import engine_door

    door = asyncio.run(engine_door(place, model))
    return Target("engine", door.url, model, Key(door.key.reveal()))


def _ours(address: str, settings: "Settings", model: str, at: str | None, key: "Key | None") -> "Target":
    from sekisho.evaluate.client.target import Target

    if at != "public":
        return Target("gateway", address, model, key)
    if settings.gateway.public_url is None:
        hint = "set gateway.public_url, or name it: --place public --url ADDRESS"
        raise CommandFailed("this server has no public address", hint=hint, exit_code=USAGE)
    return Target("public", settings.gateway.public_url, model, key)


def _elsewhere(
    out: "Output", url: str, key: "Key | None", model: str | None, at: str | None, must_answer: bool
) -> "Target":
    import asyncio

    from sekisho.evaluate.behaviour.gate import listed_models
    from sekisho.evaluate.client.target import Target

    found: Place = "public"
    if at == "engine":
        found = "engine"
    elif at == "gateway":
        found = "gateway"
    target = Target(found, url, model or "", key)
    if key is not None and not target.tls and not _is_loopback(target):
        out.warn(out.text("gate_key_in_clear", url=target.url))
    if model is not None:
        return target
    names = asyncio.run(listed_models(target))
    if not names and must_answer:
        hint = f"sekisho gate --url {target.url} says why; --model names a model that is not listed"
        raise CommandFailed(f"{target.url} lists no models", hint=hint, exit_code=ABSENT)
    return target.with_model(names[0] if names else "")
