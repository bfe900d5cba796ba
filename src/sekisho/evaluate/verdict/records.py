"""Stability and security from the server's own records (SPEC G21): what they say between two moments, as figures.

`stability.jsonl` tells of stops, the usage table and the book of who was answered, `denials.jsonl` of who was turned
away, and a scan looks for keys in plain text.
"""

import asyncio
import datetime
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from sekisho.audit import OutcomeRecord, Query, Reader
from sekisho.core.errors import BookUnavailable
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.verdict.secret_scan import Scan, scan_home
from sekisho.evaluate.verdict.stability import Calendar, Stability, evaluate
from sekisho.ops.denials import NOT_A_KEY, read_denials
from sekisho.ops.home import Home, running
from sekisho.ops.stability_log import Moment, read_history
from sekisho.ops.stability_log import now as this_moment
from sekisho.store import KeyRecord, Store, UsageRecord, UsageSpool

MOST_LISTED = 100
REVOKED_LATE_S = 5.0  # the gateway looks for revoked keys every second
COMMAND = "sekisho scorecard records"


class Intruder(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was answered and whose key was none, or none any more. `source`: where that is recorded."""

    request_id: str
    key_id: str
    at: float
    why: Literal["no_key", "unknown_key", "revoked_key", "expired_key"]
    source: Literal["usage", "book"]


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who was answered. `looked_at`: answered requests of the usage table, `in_book` those of the book (None: it could
    not be read, `book_problem` says why). `intruders` holds the first `MOST_LISTED`. `denied`: who was turned away, by
    code; None where nobody counted in this time, `denied_since` is when counting began."""

    looked_at: int
    in_book: int | None
    book_problem: str
    successes: int
    intruders: tuple[Intruder, ...]
    denied: dict[str, int] | None
    denied_since: float | None


class Records(msgspec.Struct, frozen=True, kw_only=True):
    """`records.json`. Times are seconds since 1970."""

    since: float
    until: float
    stability: Stability
    access: Access
    scan: Scan


async def collect(
    home: Home,
    store: Store,
    *,
    since: float,
    calendar: Calendar | None = None,
    book: Reader | None = None,
    extra: Iterable[Path] = (),
    now: Moment | None = None,
    progress: Progress = silent,
) -> Records:
    """Everything since then. `extra`: more files and folders to scan. Raises StoreUnavailable, OSError, ValueError for
    an unknown time zone. May take minutes where there are gigabytes of logs."""
    moment = now or this_moment()
    history = await asyncio.to_thread(read_history, home)
    lives = running(home) is not None
    if not lives:
        await _bring_in(home, store)
    keys = {record.id: record for record in await store.list_keys(include_revoked=True)}
    access = await _access(home, store, keys, book, since, moment.at)
    known = await store.load_keys()
    return Records(
        since=since,
        until=moment.at,
        stability=evaluate(history, since=since, now=moment, calendar=calendar, running=lives),
        access=access,
        scan=await asyncio.to_thread(scan_home, home, known, tuple(extra), progress),
    )


def figures(records: Records, command: str = COMMAND, file: str = "records.json") -> tuple[Figure, ...]:
    """The figures of `stability` and `security`."""
    found = (*_stability(records.stability), *_security(records))
    return tuple(msgspec.structs.replace(figure, command=command, file=file) for figure in found)


# --- who was answered -----------------------------------------------------------------------------------------------


async def _bring_in(home: Home, store: Store) -> None:
    """What a killed server left in its spool is counted now; the spool of a running one is its own."""
    spool = UsageSpool(home.spool)
    try:
        if spool.recover():
            await spool.drain(store)
    finally:
        spool.close()


async def _access(
    home: Home, store: Store, keys: Mapping[str, KeyRecord], book: Reader | None, since: float, until: float
) -> Access:
    looked_at, found = await _in_usage(store.usage_rows(since, until), keys)
    in_book: int | None = None
    problem = "the recovery key of the book was not given" if book is None else ""
    if book is not None:
        try:
            in_book, more = await asyncio.to_thread(_in_book, book, keys, since, until)
            told = {intruder.request_id for intruder in found}
            found += [intruder for intruder in more if intruder.request_id not in told]
        except BookUnavailable as error:
            problem = error.message
    denials = await asyncio.to_thread(read_denials, home)
    counting = denials.counting_since
    return Access(
        looked_at=looked_at,
        in_book=in_book,
        book_problem=problem,
        successes=len(found),
        intruders=tuple(found[:MOST_LISTED]),
        denied=None if counting is None or counting >= until else denials.between(since, until),
        denied_since=counting,
    )


async def _in_usage(rows: AsyncIterable[UsageRecord], keys: Mapping[str, KeyRecord]) -> tuple[int, list[Intruder]]:
    looked_at = 0
    found: list[Intruder] = []
    async for row in rows:
        if row.http_status >= 400:
            continue
        looked_at += 1
        why = unknown(row.key_id, row.started_at, keys)
        if why is not None:
            found.append(
                Intruder(request_id=row.request_id, key_id=row.key_id, at=row.started_at, why=why, source="usage")
            )
    return looked_at, found


def _in_book(book: Reader, keys: Mapping[str, KeyRecord], since: float, until: float) -> tuple[int, list[Intruder]]:
    looked_at = 0
    found: list[Intruder] = []
    for outcome, ended_at in _outcomes(book, since, until):
        looked_at += 1
        started_at = ended_at - (outcome.total_ms or 0.0) / 1e3
        why = unknown(outcome.key_id, started_at, keys)
        if why is not None:
            request, key = outcome.request_id, outcome.key_id
            found.append(Intruder(request_id=request, key_id=key, at=started_at, why=why, source="book"))
    return looked_at, found


def _outcomes(book: Reader, since: float, until: float) -> Iterator[tuple[OutcomeRecord, float]]:
    """Those whose answer began to leave, with when they ended."""
    for entry in book.search(Query(kind="outcome", since=_iso(since), until=_iso(until))):
        outcome = entry.record
        if isinstance(outcome, OutcomeRecord) and (outcome.status == "completed" or outcome.first_byte_ms is not None):
            yield outcome, datetime.datetime.fromisoformat(outcome.timestamp).timestamp()


def _iso(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(max(0.0, seconds), datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unknown(
    key_id: str, at: float, keys: Mapping[str, KeyRecord]
) -> Literal["no_key", "unknown_key", "revoked_key", "expired_key"] | None:
    """Why this key could not open the server at that time; None where it could."""
    record = keys.get(key_id)
    if record is None:
        return "unknown_key" if key_id else "no_key"
    if record.revoked_at is not None and at > record.revoked_at + REVOKED_LATE_S:
        return "revoked_key"
    if record.expires_at is not None and at > record.expires_at:
        return "expired_key"
    return None


# --- figures --------------------------------------------------------------------------------------------------------


def _stability(found: Stability) -> Iterator[Figure]:
    covered = len(found.covered)
    why = ""
    if found.recorded_since is None:
        why = "the server was not started in this time, or by a version that did not record it"
    elif found.lost_events:
        why = f"{found.lost_events} events could not be written or read: there may have been stops among them"
    if why and not found.stops:
        days_known = None if found.recorded_since is None else covered
        yield Figure(id="stability.days", value=days_known, unit="days", why_null="" if days_known is not None else why)
        yield Figure(id="stability.unplanned_stops", value=None, unit="count", n=covered, why_null=why)
        yield Figure(id="stability.longest_recovery_s", value=None, unit="s", n=covered, why_null=why)
        return
    days = ", ".join(found.covered)
    yield Figure(id="stability.days", value=covered, unit="days", n=covered, note=days)
    yield Figure(id="stability.unplanned_stops", value=len(found.stops), unit="count", n=covered)
    open_still = sum(stop.mended_at is None for stop in found.stops)
    note = f"{open_still} not mended yet" if open_still else "" if found.stops else "nothing stopped"
    longest_s = round(found.longest_recovery_s, 3)
    yield Figure(id="stability.longest_recovery_s", value=longest_s, unit="s", n=covered, note=note)
    morning_s = found.longest_morning_s
    if morning_s is not None:
        count = len(found.mornings)
        yield Figure(id="stability.longest_morning_s", value=round(morning_s, 3), unit="s", n=count)


def _security(records: Records) -> Iterator[Figure]:
    scan, access = records.scan, records.access
    why = f"{len(scan.unreadable)} files could not be read" if scan.unreadable and not scan.count else ""
    yield Figure(
        id="security.plaintext_keys_in_logs",
        value=None if why else scan.count,
        unit="count",
        n=scan.files,
        why_null=why,
        note=f"{scan.definite} open this server, {scan.suspicious} look like keys" if scan.count else "",
    )
    attempts = None if access.denied is None else sum(access.denied.get(code, 0) for code in NOT_A_KEY)
    counted = ", ".join(f"{code} {count}" for code, count in sorted((access.denied or {}).items()))
    if attempts is not None and access.denied_since is not None and access.denied_since > records.since:
        counted = "; ".join(filter(None, (counted, f"counted since {_iso(access.denied_since)}")))
    yield Figure(
        id="security.unauthenticated_attempts",
        value=attempts,
        unit="count",
        why_null="" if attempts is not None else "nobody counted in this time",
        note=counted,
    )
    yield Figure(
        id="security.unauthenticated_successes",
        value=access.successes,
        unit="count",
        n=max(access.looked_at, access.in_book or 0),
        note=f"the book was not read: {access.book_problem}" if access.book_problem else "",
    )
