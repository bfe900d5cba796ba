"""`sekisho key create|list|revoke|rotate`."""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sekisho.cli import quantities
from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.ops.home import Home
    from sekisho.settings import Settings
    from sekisho.store import KeyRecord, Store

T = TypeVar("T")

app = typer.Typer(
    help="Make and manage keys: who may use which model, and how much.",
    epilog=example("sekisho key create --name taro", "sekisho key list", ja="キーを作り、管理します。"),
    no_args_is_help=True,
)

KeyArgument = Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="The key's name or its id (key_…).")]


@app.command(
    "create",
    epilog=example("sekisho key create --name taro --rpm 60 --budget 2M --expires 90d", ja="キーを作ります。"),
)
def create(
    name: Annotated[str, typer.Option("--name", help="Who or what uses the key; unique among live keys.")],
    models: Annotated[str | None, typer.Option("--models", help="Models with commas; default: all.")] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens per minute.")] = None,
    parallel: Annotated[int | None, typer.Option("--parallel", min=1, help="Requests at the same time.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", help="Per month: tokens (2M, 500k) or cost (20usd). May be repeated."),
    ] = None,
    scopes: Annotated[
        str, typer.Option("--scopes", help="With commas: chat, embeddings, admin, control, audit, reasoning.")
    ] = "chat,embeddings",
    allow_network: Annotated[
        list[str] | None, typer.Option("--allow-network", help="Network that may use it (CIDR). May be repeated.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="As in 30d, 12h, 2027-03-31.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown once: only its hash is kept."""
    from sekisho.store import KeySpec

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    limits = _budgets(budget or [], settings.gateway.currency)
    chosen = _chosen(models)
    _warn_unknown(out, chosen, settings)
    spec = KeySpec(
        name=name,
        scopes=frozenset(quantities.names(scopes)),
        models=chosen,
        rpm=rpm,
        tpm=tpm,
        parallel=parallel,
        budget_tokens=limits.get("tokens"),
        budget_cost_micros=limits.get("cost_micros"),
        networks=tuple(allow_network or ()),
        expires_at=None if expires is None else quantities.expiry(expires, time.time()),
    )
    record, secret = with_store(place, settings, lambda store: store.create_key(spec))
    out.json({"key": secret, **shown(record)})
    out.say("key_created", name=record.name, id=record.id)
    out.line(f"  {secret}", style="bold")


def _chosen(models: str | None) -> frozenset[str] | None:
    """The models of the key; None for all. An empty list (an unset variable of a script) must not open every model."""
    names = frozenset(quantities.names(models))
    if models is not None and not names:
        raise CommandFailed("--models: no model is named", hint="leave it out for all models", exit_code=USAGE)
    return names or None


def _budgets(texts: list[str], currency: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        kind, amount = quantities.budget(text, currency)
        if kind in found:
            raise CommandFailed(f"--budget: {text!r} is a second budget of the same kind", exit_code=USAGE)
        found[kind] = amount
    return found


def _warn_unknown(out: Output, chosen: frozenset[str] | None, settings: "Settings") -> None:
    for name in sorted(chosen or ()):
        if settings.model(name) is None:
            out.warn(f"{name}: no such model in the settings now")


@app.command("list", epilog=example("sekisho key list", ja="キーの一覧を表示します。"))
def listing(
    revoked: Annotated[bool, typer.Option("--all", help="Revoked keys too.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys. Only the last four characters of each are known."""
    from sekisho.store import mask

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    records = with_store(place, settings, lambda store: store.list_keys(include_revoked=revoked))
    out.json([shown(record) for record in records])
    if not records:
        out.say("key_none")
        return
    rows = [
        (
            record.name,
            record.id,
            mask(record.last4),
            ", ".join(sorted(record.scopes)),
            ", ".join(sorted(record.models)) if record.models is not None else "*",
            _limits(record, settings.gateway.currency),
            f"revoked {quantities.moment(record.revoked_at)}"
            if record.revoked_at
            else quantities.moment(record.expires_at),
        )
        for record in records
    ]
    out.table(out.columns("name", "id", "key", "scopes", "models", "limits", "expires"), rows, unbroken=3)


def _limits(record: "KeyRecord", currency: str) -> str | None:
    parts = [
        f"{value:,} {unit}"
        for value, unit in (
            (record.rpm, "req/min"),
            (record.tpm, "tok/min"),
            (record.parallel, "at once"),
            (record.budget_tokens, "tok/month"),
        )
        if value is not None
    ]
    if record.budget_cost_micros is not None:
        parts.append(f"{record.budget_cost_micros / 1e6:,.2f} {currency}/month")
    return ", ".join([*parts, *record.networks]) or None


@app.command("revoke", epilog=example("sekisho key revoke taro", ja="キーを失効させます。"))
def revoke(key: KeyArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop a key, for good."""
    out, place = Output(as_json=as_json), at_home(home)
    record = with_store(place, settings_of(place), lambda store: store.revoke_key(key))
    out.json(shown(record))
    out.say("key_revoked", name=record.name, id=record.id)


@app.command("rotate", epilog=example("sekisho key rotate taro --grace 2h", ja="キーを新しくします。"))
def rotate(
    key: KeyArgument,
    grace: Annotated[
        str, typer.Option("--grace", help="How long the old secret goes on working: 0, 15m, 2h, 7d.")
    ] = "0",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret; limits, budget and history stay. The new secret is shown once."""
    out, place = Output(as_json=as_json), at_home(home)
    grace_s = quantities.grace(grace)
    record, secret = with_store(place, settings_of(place), lambda store: store.rotate_key(key, grace_s=grace_s))
    until = time.time() + grace_s if grace_s else None
    out.json({"key": secret, "old_until": until, **shown(record)})
    out.say("key_rotated", name=record.name, id=record.id)
    out.line(f"  {secret}", style="bold")
    if until is None:
        out.say("key_old_stopped")
    else:
        out.say("key_old_until", until=quantities.moment(until))


def shown(record: "KeyRecord") -> dict[str, Any]:
    """The record as JSON types; lists in a fixed order."""
    values: dict[str, Any] = plain(record)
    for field in ("scopes", "models"):
        if values[field] is not None:
            values[field] = sorted(values[field])
    return values


def with_store(place: "Home", settings: "Settings", work: Callable[["Store"], Awaitable[T]]) -> T:
    """Opens the store that the server uses, does the work, closes it. Raises SekishoError."""
    import asyncio

    from sekisho.serve import database_url
    from sekisho.store import Store

    async def run() -> T:
        place.create()
        store = await Store.open(database_url(place, settings))
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())
