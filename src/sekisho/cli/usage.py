"""`sekisho usage`."""

import csv
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import quantities
from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.keys import with_store
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.ops.home import Home
    from sekisho.store import Group, KeyRecord, Store, UsageSummary

GROUPS = ("key", "model", "user", "day")
COUNTS = ("requests", "completed", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


def register(app: typer.Typer) -> None:
    epilog = example("sekisho usage --month 2026-11 --by key,model", ja="利用状況を表示します。")
    app.command("usage", epilog=epilog)(usage)


def usage(
    month: Annotated[str | None, typer.Option("--month", help="As in 2026-11, UTC; default: this month.")] = None,
    by: Annotated[str, typer.Option("--by", help="With commas: key, model, user, day.")] = "key",
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on standard output.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was used: requests, tokens and cost, as the server counted them."""
    out, place = Output(as_json=as_json), at_home(home)
    if as_csv and as_json:
        raise CommandFailed("--csv and --json cannot be together", exit_code=USAGE)
    groups = _groups(by)
    name, since, until = quantities.month(month, time.time())
    settings = settings_of(place)

    async def work(store: "Store") -> "tuple[list[UsageSummary], list[KeyRecord]]":
        await _bring_in(store, place)
        return await store.usage_summary(since, until, by=groups), await store.list_keys(include_revoked=True)

    sums, keys = with_store(place, settings, work)
    names = {record.id: record.name for record in keys}
    rows = [_row(summary, groups, names) for summary in sums]
    out.json({"month": name, "by": list(groups), "currency": settings.gateway.currency, "rows": rows})
    if as_csv:
        _write_csv(rows, groups, settings.gateway.currency)
    elif not rows:
        out.say("usage_none", month=name)
    else:
        _write_table(out, rows, groups, settings.gateway.currency, name)


async def _bring_in(store: "Store", place: "Home") -> None:
    """What a killed server left in its spool is counted now; the spool of a running one is its own."""
    from sekisho.store import UsageSpool

    spool = UsageSpool(place.spool)
    try:
        if spool.recover():
            await spool.drain(store)
    finally:
        spool.close()


def _groups(by: str) -> "tuple[Group, ...]":
    chosen = quantities.names(by)
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown or not chosen:
        wrong = f"--by: {unknown[0]!r} is not a group" if unknown else "--by: nothing to group by"
        raise CommandFailed(wrong, hint=f"groups are {', '.join(GROUPS)}", exit_code=USAGE)
    return tuple(dict.fromkeys(chosen))  # type: ignore[arg-type]  # checked against GROUPS above


def _row(summary: "UsageSummary", groups: "tuple[Group, ...]", names: dict[str, str]) -> dict[str, Any]:
    values = plain(summary)
    row: dict[str, Any] = {}
    for group in groups:
        if group == "key":
            row["key_id"] = summary.key_id
            row["key"] = names.get(summary.key_id or "", summary.key_id)
        else:
            row[group] = values[group]
    return {**row, **{n: values[n] for n in (*COUNTS, "estimated", "unmeasured", "cost_micros")}}


def _write_csv(rows: list[dict[str, Any]], groups: "tuple[Group, ...]", currency: str) -> None:
    columns = [*(["key", "key_id"] if "key" in groups else []), *(g for g in groups if g != "key"), *COUNTS]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*columns, "estimated", "unmeasured", f"cost_{currency.lower()}"])
    for row in rows:
        cells = [_plain_cell(row[column]) for column in columns]
        writer.writerow([*cells, row["estimated"], row["unmeasured"], f"{row['cost_micros'] / 1e6:.6f}"])


def _plain_cell(value: Any) -> Any:
    """A user's name comes from outside; a spreadsheet must not run it as a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _write_table(
    out: Output, rows: list[dict[str, Any]], groups: "tuple[Group, ...]", currency: str, month: str
) -> None:
    columns = out.columns(*groups, "requests", "input_tokens", "output_tokens", "cached_tokens")
    counts = ("requests", "input_tokens", "output_tokens", "cached_tokens")
    cells = [
        (*(row[g] for g in groups), *(f"{row[c]:,}" for c in counts), f"{row['cost_micros'] / 1e6:,.4f}")
        for row in rows
    ]
    out.table([*columns, out.text("cost", currency=currency)], cells, title=out.text("usage_title", month=month))
    estimated, unmeasured = (sum(row[n] for row in rows) for n in ("estimated", "unmeasured"))
    if estimated or unmeasured:
        out.say("usage_estimated", estimated=estimated, unmeasured=unmeasured)
