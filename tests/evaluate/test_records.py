"""What the server's own records say: who got in, who was turned away, and the figures of it all."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.audit import AuditConfig, Book, OutcomeRecord, Reader, ReaderKeys
from sekisho.core.clock import ManualClock, SystemClock
from sekisho.evaluate.figures import Figure, Figures
from sekisho.evaluate.verdict import records
from sekisho.evaluate.verdict.records import Records, collect, figures
from sekisho.evaluate.verdict.scorecard import score
from sekisho.evaluate.verdict.thresholds import built_in
from sekisho.ops import denials
from sekisho.ops.denials import DenialLog, read_denials
from sekisho.ops.home import Home
from sekisho.ops.stability_log import Moment, StabilityLog
from sekisho.store import KeySpec, Store, UsageRecord, UsageSpool

# --- who was answered -----------------------------------------------------------------------------------------------


NOW = 1_790_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def usage(request_id: str, key_id: str, started_at: float, status: int = 200) -> UsageRecord:
    return UsageRecord(
        request_id=request_id,
        key_id=key_id,
        model="m",
        protocol="chat",
        started_at=started_at,
        duration_ms=10.0,
        status="completed" if status == 200 else "failed",
        http_status=status,
    )


async def collected(home: Home, store: Store, clock: ManualClock, **options: Any) -> Records:
    now = Moment(clock.now() + 1.0, clock.monotonic(), "boot")
    return await collect(home, store, since=NOW - 86_400, now=now, **options)


async def test_who_was_answered_without_a_valid_key_is_found(home: Home) -> None:
    """No key, a key that never was, one revoked or expired before: each is named; the same keys in time are not."""
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    live, _ = await store.create_key(KeySpec(name="live"))
    gone, _ = await store.create_key(KeySpec(name="gone"))
    short, _ = await store.create_key(KeySpec(name="short", expires_at=NOW + 60))
    clock.advance(100)
    await store.revoke_key("gone")
    clock.advance(100)
    rows = [
        usage("r1", live.id, NOW + 150),
        usage("r2", gone.id, NOW + 99),
        usage("r3", gone.id, NOW + 101),  # the gateway looks once a second
        usage("r4", gone.id, NOW + 150),
        usage("r5", short.id, NOW + 59),
        usage("r6", short.id, NOW + 61),
        usage("r7", "key_nobody", NOW + 150),
        usage("r8", "", NOW + 150),
        usage("r9", "key_nobody", NOW + 150, status=401),
    ]
    await store.append_usage(rows)
    access = (await collected(home, store, clock)).access
    assert [(each.request_id, each.why) for each in access.intruders] == [
        ("r6", "expired_key"),
        ("r4", "revoked_key"),
        ("r7", "unknown_key"),
        ("r8", "no_key"),
    ]
    assert (access.looked_at, access.successes) == (8, 4)
    assert "not given" in access.book_problem
    await store.close()


async def test_the_book_is_asked_too(home: Home) -> None:
    """An outcome of the book whose request is in no usage row counts; one that is in both counts once."""
    clock = SystemClock()
    store = await Store.open(home.database)
    live, _ = await store.create_key(KeySpec(name="live"))
    now = clock.now()
    await store.append_usage([usage("both", "key_nobody", now - 1)])
    book = Book.open(home.audit, home.secrets, AuditConfig())
    for request_id, key_id, status in (
        ("both", "key_nobody", "completed"),
        ("only here", "", "completed"),
        ("fine", live.id, "completed"),
        ("never sent", "", "failed"),
    ):
        await book.append(OutcomeRecord(request_id=request_id, key_id=key_id, status=status, total_ms=5.0))
    book.close()
    reader = Reader(home.audit, ReaderKeys.load(home.secrets))
    found = (await collect(home, store, since=now - 60, book=reader)).access
    assert [(each.request_id, each.source) for each in found.intruders] == [("both", "usage"), ("only here", "book")]
    assert (found.looked_at, found.in_book, found.book_problem) == (1, 3, "")
    await store.close()


async def test_what_a_killed_server_left_in_its_spool_counts(home: Home) -> None:
    """Usage that never reached the table is brought in first."""
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    spool = UsageSpool(home.spool)
    spool.append(usage("spooled", "key_nobody", NOW))
    spool.close()
    assert (await collected(home, store, clock)).access.successes == 1
    await store.close()


async def test_who_was_turned_away_is_counted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """By code, over restarts, and None for a time in which nobody counted."""
    monkeypatch.setattr(denials, "FLUSH_S", 0.01)
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    assert (await collected(home, store, clock)).access.denied is None
    log = DenialLog(home, clock)
    keeping = asyncio.create_task(log.keep())
    for code in ("missing_api_key", "missing_api_key", "invalid_api_key", "scope_missing"):
        log.note(code)
    async with asyncio.timeout(60):
        while sum(read_denials(home).between(0, 1e11).values()) < 4:  # noqa: ASYNC110 - a file, no event to wait for
            await asyncio.sleep(0.01)
    keeping.cancel()
    again = DenialLog(home, clock)
    again.note("network_not_allowed")
    again.close()
    found = await collected(home, store, clock)
    by_id = {figure.id: figure for figure in figures(found)}
    assert found.access.denied == {
        "missing_api_key": 2,
        "invalid_api_key": 1,
        "scope_missing": 1,
        "network_not_allowed": 1,
    }
    assert by_id["security.unauthenticated_attempts"].value == 4, "a known key without a scope is none"
    await store.close()


def test_a_line_of_denials_that_is_no_utf8_costs_itself_alone(home: Home) -> None:
    """Those before and after it count."""
    good = b'{"kind":"count","at":5.0,"since":1.0,"counts":{"invalid_api_key":1}}\n'
    bad = b'{"kind":"count","at":5.0,"since":1.0,"counts":{"\xff":1}}\n'
    (home.path / denials.FILE_NAME).write_bytes(good + bad + good)
    assert read_denials(home).between(0, 1e11) == {"invalid_api_key": 2}


def test_denials_survive_a_full_disk_and_stay_bounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is kept and written later; codes from outside cannot fill the memory."""
    log = DenialLog(home, ManualClock(NOW))
    path = home.path / denials.FILE_NAME
    path.mkdir()  # no file can be written there
    log.note("missing_api_key")
    log.close()
    path.rmdir()
    log.note("missing_api_key")
    for number in range(1000):
        log.note(f"code {number}")
    log.close()
    counts = read_denials(home).between(0, 1e11)
    assert counts["missing_api_key"] == 2
    assert len(counts) <= 64
    monkeypatch.setattr(denials, "LARGEST_BYTES", 1000)
    for _ in range(40):
        log.note("invalid_api_key")
        log.close()
    assert all(each.stat().st_size < 2_500 for each in home.path.glob(f"{denials.FILE_NAME}*"))
    path.write_bytes(path.read_bytes() + b'{"kind":"count","at":17')
    assert read_denials(home).between(0, 1e11)["invalid_api_key"] > 1


# --- figures --------------------------------------------------------------------------------------------------------


def figure(found: Records, name: str) -> Figure | None:
    return Figures(figures(found)).get(name)


async def test_figures_of_a_server_that_ran(home: Home) -> None:
    """A home with records: days, stops and recovery have values; each names its command and its file."""
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    (home.logs / "gateway.log").write_text("all quiet\n")
    log = StabilityLog(home, clock, boot="boot")
    log.begin()
    log.ready()
    clock.advance(2 * 3600)
    log.goodbye(planned=True)
    log.close()
    found = await collected(home, store, clock)
    assert figure(found, "stability.unplanned_stops") is not None
    for each in figures(found):
        assert (each.command, each.file) == (records.COMMAND, "records.json")
        assert (each.value is None) == bool(each.why_null)
    names = {each.id: each.value for each in figures(found) if each.value is not None}
    assert names == {
        "stability.days": 1,
        "stability.unplanned_stops": 0,
        "stability.longest_recovery_s": 0.0,
        "security.plaintext_keys_in_logs": 0,
        "security.unauthenticated_successes": 0,
    }
    card = score(Figures(figures(found)), built_in().rules("cpu"))
    outcomes = {result.criterion.id: result.outcome for result in card.results}
    assert outcomes["unplanned_stops"] == outcomes["recovery"] == "open", "one day is not five"
    assert outcomes["keys_in_logs"] == "pass"
    assert outcomes["unauthenticated"] == "open", "nobody was answered, so nothing is known"
    again = msgspec.json.decode(msgspec.json.encode(found), type=Records)
    assert again == found
    await store.close()


async def test_without_records_nothing_is_claimed(home: Home) -> None:
    """A home that never served: no zero that nobody measured."""
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    found = await collected(home, store, clock)
    for name in ("stability.days", "stability.unplanned_stops", "stability.longest_recovery_s"):
        known = figure(found, name)
        assert known is not None
        assert known.value is None
        assert "not started" in known.why_null
    await store.close()


async def test_gaps_and_unreadable_files_leave_no_zero(home: Home) -> None:
    """Events that were lost, and a log that cannot be read to its end, may hide what is looked for."""
    clock = ManualClock(NOW)
    store = await Store.open(home.database, clock=clock)
    log = StabilityLog(home, clock, boot="boot")
    log._lost = 3
    log.begin()
    log.close()
    (home.logs / "a.log.1.gz").write_bytes(b"\x1f\x8bbroken")
    found = await collected(home, store, clock)
    stops, keys = figure(found, "stability.unplanned_stops"), figure(found, "security.plaintext_keys_in_logs")
    assert stops is not None
    assert keys is not None
    assert (stops.value, keys.value) == (None, None)
    assert "3 events" in stops.why_null
    assert "1 files could not be read" in keys.why_null
    await store.close()
