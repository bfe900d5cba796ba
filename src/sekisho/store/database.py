"""`Store`, the one door to the database. Any trouble with the database leaves it as StoreUnavailable."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from weakref import WeakValueDictionary

from sqlalchemy import delete, select

from sekisho.core.clock import Clock
from sekisho.store import escalation_rows, key_rows, response_rows, run_rows, usage_rows
from sekisho.store.backends import Backend, insert_into
from sekisho.store.connections import Connections, to_its_end
from sekisho.store.escalations import Channel, HumanVerdict, LinkToken, Notice, NoticeState, Ticket, TicketState
from sekisho.store.keys import KeyRecord, KeySpec
from sekisho.store.responses import ResponseRecord
from sekisho.store.runs import RunOwner, RunRecord, RunState, StepRecord
from sekisho.store.schema import meta
from sekisho.store.usage import Group, Spent, UsageRecord, UsageSummary


class Store(Connections):
    """Keys, usage, responses state, tickets, runs and small settings. Made by `open`; usable by many tasks of one
    event loop.

    A cancelled caller is let go at once, but what it had asked for is carried to its end. Every method that takes no
    `now` reads the clock handed to `open`. Besides StoreUnavailable the methods raise only the request errors that
    they name.
    """

    def __init__(self, backend: Backend, clock: Clock) -> None:
        super().__init__(backend, clock)
        self._response_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # Keys

    @to_its_end
    async def create_key(self, spec: KeySpec) -> tuple[KeyRecord, str]:
        """The new key and its secret, which is told only here. Raises InvalidRequest naming the parameter."""
        async with self._write() as connection:
            return await key_rows.create(connection, spec, self._clock.now())

    @to_its_end
    async def rotate_key(self, id_or_name: str, grace_s: float = 0) -> tuple[KeyRecord, str]:
        """A new secret; the old one stops now, or after `grace_s`. Raises NotFound, InvalidRequest."""
        async with self._write() as connection:
            return await key_rows.rotate(connection, id_or_name, grace_s, self._clock.now())

    @to_its_end
    async def revoke_key(self, id_or_name: str) -> KeyRecord:
        """Stops a key for good; its name is free again. Raises NotFound."""
        async with self._write() as connection:
            return await key_rows.revoke(connection, id_or_name, self._clock.now())

    @to_its_end
    async def list_keys(self, include_revoked: bool = False) -> list[KeyRecord]:
        """Oldest first; expired keys are in it."""
        async with self._read() as connection:
            return await key_rows.every(connection, include_revoked)

    @to_its_end
    async def find_key(self, secret_hash: str) -> KeyRecord | None:
        """The key that a secret opens now: not revoked, not expired."""
        async with self._read() as connection:
            return await key_rows.find(connection, secret_hash, self._clock.now())

    @to_its_end
    async def load_keys(self) -> dict[str, KeyRecord]:
        """Every secret's hash that opens a key now. Time goes on: compare `expires_at` at each use."""
        async with self._read() as connection:
            return await key_rows.load(connection, self._clock.now())

    @to_its_end
    async def keys_revision(self) -> int:
        """Grows with every change of keys; cheap enough to ask each second."""
        async with self._read() as connection:
            return await key_rows.revision(connection)

    # Usage

    @to_its_end
    async def append_usage(self, records: Iterable[UsageRecord], durable: bool = False) -> int:
        """Inserts each request_id once, ever; how many were new. The months grow in the same transaction.

        Once it returns, the rows survive the death of any process; with `durable`, a power failure too (PostgreSQL
        always promises that; SQLite then waits for the disk).
        """
        async with self._write(durable) as connection:
            return await usage_rows.append(connection, records)

    @to_its_end
    async def spent(self, month: str) -> dict[str, Spent]:
        """By key id, in one month ("2026-11", UTC). Keys that used nothing are absent."""
        async with self._read() as connection:
            return await usage_rows.spent(connection, month)

    async def usage_rows(
        self, since: float, until: float, key_id: str | None = None
    ) -> AsyncGenerator[UsageRecord, None]:
        """Records with since <= started_at < until, in that order, fetched by pages: no connection is held
        while the caller thinks."""
        last: UsageRecord | None = None
        while True:
            page = await self._usage_page(since, until, key_id, last)
            for record in page:
                yield record
            if len(page) < usage_rows.PAGE_ROWS:
                return
            last = page[-1]

    @to_its_end
    async def _usage_page(
        self, since: float, until: float, key_id: str | None, after: UsageRecord | None
    ) -> list[UsageRecord]:
        async with self._read() as connection:
            return await usage_rows.page(connection, since, until, key_id, after)

    @to_its_end
    async def usage_summary(self, since: float, until: float, by: Sequence[Group] = ("key",)) -> list[UsageSummary]:
        """Sums for since <= started_at < until, grouped by any of key, model, day, user. Raises InvalidRequest."""
        async with self._read() as connection:
            return await usage_rows.summary(connection, since, until, by)

    # Responses

    @to_its_end
    async def put_response(self, record: ResponseRecord) -> None:
        """Inserts or replaces. Raises NotFound when the id is another key's."""
        async with self._in_order(record.id), self._write() as connection:
            await response_rows.put(connection, record)

    @to_its_end
    async def get_response(self, response_id: str, key_id: str, now: float) -> ResponseRecord | None:
        """None for one that never was, is deleted, is expired, or is another key's."""
        async with self._read() as connection:
            return await response_rows.get(connection, response_id, key_id, now)

    @to_its_end
    async def delete_response(self, response_id: str, key_id: str) -> bool:
        """Whether there was one of this key's to delete. What was put before, by this process, is deleted with it even
        if it is still on its way: a deleted id stays deleted."""
        async with self._in_order(response_id), self._write() as connection:
            return await response_rows.remove(connection, response_id, key_id)

    @to_its_end
    async def response_chain(
        self, response_id: str, key_id: str, now: float, limit: int = 1000
    ) -> list[ResponseRecord]:
        """The response and all it follows from, oldest first.

        Raises NotFound naming the first id that is missing, expired or another key's; InvalidRequest beyond `limit`.
        """
        async with self._read() as connection:
            return await response_rows.chain(connection, response_id, key_id, now, limit)

    def _in_order(self, response_id: str) -> asyncio.Lock:
        """Changes of one response, in the order in which they were asked for: PostgreSQL takes many at once."""
        return self._response_locks.setdefault(response_id, asyncio.Lock())

    @to_its_end
    async def expire_responses(self, now: float) -> int:
        """Deletes what has expired; how many."""
        async with self._write() as connection:
            return await response_rows.expire(connection, now)

    @to_its_end
    async def fail_stale_responses(self, now: float, older_than_s: float = 0.0) -> int:
        """Marks responses that a dead process left unfinished as failed, in the row and in the object; how many.

        Where several servers share the database, pass more than the longest turn as `older_than_s`.
        """
        async with self._write() as connection:
            return await response_rows.fail_stale(connection, now, older_than_s)

    # Escalations. `now` is handed in: the desk decides by which clock a ticket ends.

    @to_its_end
    async def open_ticket(
        self, ticket: Ticket, notices: Sequence[Notice], now: float, limit: int | None = None
    ) -> Ticket:
        """Keeps the ticket and its notices together, synced to the disk. Where its behaviour is `ticket` and the key
        has the same request pending, that ticket comes back instead. Raises RateLimited where `limit` tickets of the
        key are pending."""
        async with self._write(durable=True) as connection:
            return await escalation_rows.open_ticket(connection, ticket, notices, now, limit)

    @to_its_end
    async def get_ticket(self, ticket_id: str) -> Ticket | None:
        async with self._read() as connection:
            return await escalation_rows.get(connection, ticket_id)

    @to_its_end
    async def list_tickets(
        self,
        state: TicketState | None = None,
        channels: Collection[Channel] | None = None,
        after: Ticket | None = None,
        limit: int = 100,
    ) -> list[Ticket]:
        """Newest first; `after` is the last ticket of the page before."""
        async with self._read() as connection:
            return await escalation_rows.page(connection, state, channels, after, limit)

    @to_its_end
    async def no_longer_pending(self, ticket_ids: Collection[str]) -> set[str]:
        """Those of the tickets that have ended; cheap enough to ask twice a second."""
        async with self._read() as connection:
            return await escalation_rows.no_longer_pending(connection, ticket_ids)

    @to_its_end
    async def decide_ticket(self, verdict: HumanVerdict, now: float) -> Ticket | None:
        """Decides a pending ticket whose time is not over; None when somebody was first, it is too late, or the link
        is used up. Of any number of simultaneous calls in any number of processes, one gets the ticket."""
        async with self._write(durable=True) as connection:
            decided = await escalation_rows.decide(connection, verdict, now)
            if decided is None:
                await connection.rollback()  # a link is spent only by the decision that it made
            return decided

    @to_its_end
    async def close_ticket(self, ticket_id: str, state: TicketState, now: float) -> Ticket | None:
        """Ends a pending ticket as `expired` or `abandoned`; None when it was not pending."""
        async with self._write(durable=True) as connection:
            return await escalation_rows.close(connection, ticket_id, state, now)

    @to_its_end
    async def expire_tickets(self, now: float) -> list[Ticket]:
        """Ends every pending ticket whose time is over."""
        async with self._read() as connection:
            if not await escalation_rows.overdue(connection, now):
                return []  # asked every second: no write where there is nothing to do
        async with self._write() as connection:
            return await escalation_rows.expire(connection, now)

    @to_its_end
    async def use_ticket(self, ticket_id: str, now: float) -> bool:
        """Takes the one passage that an approved ticket gives; False when it is taken."""
        async with self._write(durable=True) as connection:
            return await escalation_rows.use(connection, ticket_id, now)

    @to_its_end
    async def use_approval(self, request_hash: str, key_id: str, decided_after: float, now: float) -> Ticket | None:
        """The same for whichever approval of this request is left, decided after the moment given."""
        async with self._write(durable=True) as connection:
            return await escalation_rows.use_approval(connection, request_hash, key_id, decided_after, now)

    @to_its_end
    async def latest_decided(
        self, request_hash: str, key_id: str, state: TicketState, decided_after: float
    ) -> Ticket | None:
        async with self._read() as connection:
            return await escalation_rows.latest_decided(connection, request_hash, key_id, state, decided_after)

    @to_its_end
    async def pending_before(self, request_hash: str, key_id: str, created_before: float, now: float) -> list[Ticket]:
        """Pending tickets of this request and key that are older than `created_before`, oldest first."""
        async with self._read() as connection:
            return await escalation_rows.pending_before(connection, request_hash, key_id, created_before, now)

    @to_its_end
    async def untold_tickets(self, limit: int = 100) -> list[Ticket]:
        """Tickets with a change that the book does not know yet, oldest first."""
        async with self._read() as connection:
            return await escalation_rows.untold(connection, limit)

    @to_its_end
    async def ticket_told(self, ticket_id: str, version: int) -> None:
        """The book knows the ticket up to `version`."""
        async with self._write() as connection:
            await escalation_rows.told(connection, ticket_id, version)

    @to_its_end
    async def add_link_token(self, token: LinkToken) -> None:
        async with self._write() as connection:
            await escalation_rows.add_token(connection, token)

    @to_its_end
    async def find_link_token(self, token_hash: str) -> LinkToken | None:
        async with self._read() as connection:
            return await escalation_rows.token(connection, token_hash)

    @to_its_end
    async def claim_notices(self, now: float, lease_s: float, limit: int = 32) -> list[Notice]:
        """Due notices, `attempts` counted up, each for one claimer only until `lease_s` is over."""
        async with self._read() as connection:
            due = await escalation_rows.due_notices(connection, now, limit)
        if not due:
            return []
        async with self._write() as connection:
            return await escalation_rows.claim_notices(connection, due, now, lease_s)

    @to_its_end
    async def settle_notice(
        self, notice: Notice, state: NoticeState, next_attempt_at: float, error: str | None = None
    ) -> None:
        """What came of a claimed attempt; `pending` means: again at `next_attempt_at`."""
        async with self._write() as connection:
            await escalation_rows.settle_notice(connection, notice, state, next_attempt_at, error)

    @to_its_end
    async def ticket_notices(self, ticket_id: str) -> list[Notice]:
        async with self._read() as connection:
            return await escalation_rows.notices(connection, ticket_id)

    @to_its_end
    async def forget_tickets(self, created_before: float) -> int:
        """Deletes ended tickets that the book knows, with their notices and links; how many."""
        async with self._write() as connection:
            return await escalation_rows.forget(connection, created_before)

    # Runs. `evaluate/durable/journal.py` works on them; the last four are for whoever looks at them.

    @to_its_end
    async def create_run(self, run: RunRecord) -> RunRecord:
        """The run as it is stored: this one, or an earlier one of the same id."""
        async with self._write(durable=True) as connection:
            return await run_rows.create(connection, run)

    @to_its_end
    async def claim_run(self, run_id: str, owner: RunOwner, instead_of: str | None, folder: str) -> RunRecord | None:
        """Makes `owner` the owner if the token there is still `instead_of`; None when somebody was first. Whether the
        old owner lives is the caller's to know."""
        async with self._write(durable=True) as connection:
            return await run_rows.claim(connection, run_id, owner, instead_of, folder)

    @to_its_end
    async def run_seen(self, run_id: str, token: str) -> bool:
        """The owner says that it lives; False when it is the owner no more."""
        async with self._write() as connection:
            return await run_rows.seen(connection, run_id, token, self._clock.now())

    @to_its_end
    async def release_run(self, run_id: str, token: str, state: RunState, finished_at: float | None = None) -> bool:
        """The owner leaves the run in `state`; False when it is the owner no more."""
        async with self._write(durable=True) as connection:
            return await run_rows.release(connection, run_id, token, state, finished_at, self._clock.now())

    @to_its_end
    async def put_step(self, step: StepRecord, token: str) -> bool:
        """Inserts or replaces a step, synced to the disk; False, and nothing changes, when `token` is not that of the
        run's owner. May be called again."""
        async with self._write(durable=True) as connection:
            return await run_rows.put_step(connection, step, token, self._clock.now())

    @to_its_end
    async def get_run(self, run_id: str) -> RunRecord | None:
        async with self._read() as connection:
            return await run_rows.get(connection, run_id)

    @to_its_end
    async def list_runs(self, kind: str | None = None, limit: int = 100) -> list[RunRecord]:
        """Newest first."""
        async with self._read() as connection:
            return await run_rows.page(connection, kind, limit)

    @to_its_end
    async def run_steps(self, run_id: str) -> list[StepRecord]:
        """In the order in which they first began."""
        async with self._read() as connection:
            return await run_rows.steps(connection, run_id)

    @to_its_end
    async def forget_run(self, run_id: str) -> bool:
        """Deletes a run with its steps, not its folder; whether there was one. An owner that still works on it is told
        at its next write."""
        async with self._write(durable=True) as connection:
            return await run_rows.forget(connection, run_id)

    # Settings

    @to_its_end
    async def get_setting(self, name: str) -> str | None:
        async with self._read() as connection:
            value = (await connection.execute(select(meta.c.value).where(meta.c.name == name))).scalar_one_or_none()
            return None if value is None else str(value)

    @to_its_end
    async def set_setting(self, name: str, value: str | None) -> None:
        """None deletes it."""
        async with self._write() as connection:
            if value is None:
                await connection.execute(delete(meta).where(meta.c.name == name))
                return
            statement = insert_into(connection.dialect.name, meta)
            statement = statement.on_conflict_do_update(
                index_elements=["name"], set_={"value": statement.excluded.value}
            )
            await connection.execute(statement, {"name": name, "value": value})
