"""What it costs: what the server's own accounts say of the recorded days, and what a million tokens cost on hardware
that is paid by the hour."""

from collections.abc import Sequence

import msgspec

from sekisho.evaluate.figures import Figure
from sekisho.evaluate.speed.bench import Bench
from sekisho.evaluate.speed.bench_plan import PLACES, output_per_s
from sekisho.evaluate.speed.samples import Sample
from sekisho.store import Store

ACCOUNTS_FILE = "accounts.json"


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests that began between the two (seconds since 1970). `amount_micros` None: no model has a price."""

    since: float
    until: float
    requests: int
    tokens: int
    unmeasured: int
    amount_micros: int | None
    currency: str


async def collect(store: Store, since: float, until: float, currency: str, has_prices: bool) -> Accounts:
    """Raises StoreUnavailable."""
    sums = await store.usage_summary(since, until, ())
    return Accounts(
        since=since,
        until=until,
        requests=sum(each.requests for each in sums),
        tokens=sum(each.input_tokens + each.output_tokens for each in sums),
        unmeasured=sum(each.unmeasured for each in sums),
        amount_micros=sum(each.cost_micros for each in sums) if has_prices else None,
        currency=currency,
    )


def account_figures(accounts: Accounts) -> tuple[Figure, ...]:
    """`cost.tokens`, `cost.amount`."""
    command = "sekisho usage --by day"
    priced = accounts.amount_micros is not None
    return (
        Figure(
            id="cost.tokens",
            value=accounts.tokens,
            unit="count",
            n=accounts.requests,
            command=command,
            file=ACCOUNTS_FILE,
            note=f"{accounts.unmeasured} requests told no tokens" if accounts.unmeasured else "",
        ),
        Figure(
            id="cost.amount",
            value=None if accounts.amount_micros is None else accounts.amount_micros / 1e6,
            unit="currency",
            n=accounts.requests,
            command=command,
            file=ACCOUNTS_FILE,
            why_null="" if priced else "no model has a price: gateway.prices",
            note=accounts.currency if priced else "",
        ),
    )


def hourly_figure(bench: Bench, hourly_price: float | None, command: str) -> Figure:
    """`cost.per_million`: a million output tokens at the outermost place, with the most askers of the closed loop, on
    hardware that costs `hourly_price` an hour and does nothing else."""
    closed = [each for each in bench.samples if each.loop == "closed" and each.prompt_wanted is None]
    cell = _busiest(closed)
    speed = output_per_s(cell)
    why = "no price by the hour was told: --hourly-price" if hourly_price is None else ""
    if speed is None:
        why = why or "no request told its tokens"
    value = None if why or speed is None or hourly_price is None else hourly_price / (speed * 3600) * 1e6
    where = f"{cell[0].place}, {cell[0].parallel} in parallel, {speed:.3g} tokens/s" if cell and speed else ""
    return Figure(
        id="cost.per_million",
        value=value,
        unit="currency",
        n=len(cell),
        why_null=why,
        command=command,
        file="bench.csv",
        note=where,
    )


def _busiest(closed: Sequence[Sample]) -> list[Sample]:
    """The cell with the most askers at the outermost place; of several sizes the one with the most requests."""
    if not closed:
        return []
    place = max((each.place for each in closed), key=PLACES.index)
    there = [each for each in closed if each.place == place]
    most = max(each.parallel for each in there)
    cells: dict[str, list[Sample]] = {}
    for each in there:
        if each.parallel == most:
            cells.setdefault(each.cell, []).append(each)
    return max(cells.values(), key=len)
