"""The month's spending and the way of a usage record into the store.

A record is in the spool (and so survives kill -9) before the last byte of its answer leaves; the spool is emptied
into the store behind. Spending in memory = what the store knew when it was last read with an empty spool, plus every
record since.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from sekisho.core.clock import Clock
from sekisho.core.errors import StoreUnavailable
from sekisho.gateway.config import Price
from sekisho.gateway.limits import Spending
from sekisho.gateway.samples import SampleLog
from sekisho.gateway.trouble import unexpected
from sekisho.store import Store, UsageRecord, UsageSpool

log = logging.getLogger("sekisho.gateway.ledger")

DRAIN_S = 0.2
_RESYNC_S = 5.0


def month_of(unix_s: float) -> str:
    """`2026-11`, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m")


def cost_micros(price: Price | None, input_tokens: int, output_tokens: int) -> int:
    """Millionths of the currency, rounded half up. Prices are per million tokens, so tokens x price is micros."""
    if price is None:
        return 0
    return int(input_tokens * price.input_per_million + output_tokens * price.output_per_million + 0.5)


class Ledger:
    """Owns the spool. `record` is synchronous and quick; `run` is the background task."""

    def __init__(
        self, spool: UsageSpool, store: Callable[[], Store | None], clock: Clock, prices: Mapping[str, Price]
    ) -> None:
        self._spool = spool
        self._store = store
        self._clock = clock
        self._prices = prices
        self._month = month_of(clock.now())
        self._next_month_check_s = 0.0
        self._spending: dict[str, Spending] = {}
        self.samples = SampleLog(clock)
        self._appended = 0
        self._synced_at_s = float("-inf")
        self._stopping = asyncio.Event()

    def price(self, model: str, input_tokens: int, output_tokens: int) -> int:
        return cost_micros(self._prices.get(model), input_tokens, output_tokens)

    def spending(self, key_id: str) -> Spending:
        """This month's spending of a key, live."""
        if self._clock.monotonic() >= self._next_month_check_s:
            self._turn_month()
        found = self._spending.get(key_id)
        if found is None:
            found = self._spending[key_id] = Spending()
        return found

    def record(self, record: UsageRecord, mean_nll: float | None = None) -> None:
        """Makes a record durable and counts it. Raises StoreUnavailable when it cannot be written. `mean_nll`: nats per
        generated token, for the control agent's sample."""
        self._spool.append(record)
        self._appended += 1
        spending = self.spending(record.key_id)
        spending.tokens += (record.input_tokens or 0) + (record.output_tokens or 0)
        spending.cost_micros += record.cost_micros
        self.samples.add(record, mean_nll)

    async def run(self) -> None:
        """Empties the spool into the store until `stop`, and then once more. Trouble is logged once and tried again.

        Not to be cancelled: a transaction that is cut off holds the database's lock until it is noticed.
        """
        failing = False
        while True:
            last = self._stopping.is_set()
            try:
                await self.drain()
            except StoreUnavailable as error:
                if not failing:
                    log.error("usage stays in the spool: %s (%s)", error.message, error.id)
                failing = True
            except Exception as error:  # noqa: BLE001  # usage is worth more trials than any error
                if not failing:
                    unexpected("ledger", error)
                failing = True
            else:
                failing = False
            if last:
                return
            try:
                async with asyncio.timeout(DRAIN_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Lets `run` empty the spool a last time and return."""
        self._stopping.set()

    async def drain(self) -> None:
        """One round: spool to store; and where nothing came meanwhile, reads the spending anew."""
        store = self._store()
        if store is None:
            raise StoreUnavailable("The store is not open.")
        before = self._appended
        moved = await self._spool.drain(store)
        due = self._clock.monotonic() - self._synced_at_s >= _RESYNC_S
        if not (moved or due):
            return
        month = self._month
        spent = await store.spent(month)
        if self._appended == before and self._month == month:
            for key_id, row in spent.items():
                self._spending[key_id] = Spending(row.input_tokens + row.output_tokens, row.cost_micros)
            self._synced_at_s = self._clock.monotonic()

    def _turn_month(self) -> None:
        self._next_month_check_s = self._clock.monotonic() + 1.0
        month = month_of(self._clock.now())
        if month != self._month:
            self._month = month
            self._spending.clear()
            self._synced_at_s = float("-inf")
