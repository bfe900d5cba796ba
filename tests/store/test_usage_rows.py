import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from sekisho.core.errors import InvalidRequest
from sekisho.store import Spent, Store, UsageRecord, UsageSummary
from sekisho.store.usage import month_of

START = 1_790_000_000.0
NOVEMBER = 1_793_491_200.0  # 2026-11-01 00:00 UTC

Make = Callable[..., UsageRecord]


async def every_row(store: Store) -> list[UsageRecord]:
    return [record async for record in store.usage_rows(0, 1e12)]


async def test_a_record_comes_back_as_it_went_in(store: Store, usage: Make) -> None:
    """Every field survives the database."""
    full = usage(
        "r1",
        user="太郎 'quoted' \"twice\" \\",
        ttft_ms=1.25,
        cached_tokens=3,
        reasoning_tokens=2,
        estimated=True,
        status="failed",
        error_id="err_1",
        error_code="engine_failed",
        http_status=502,
        started_at=START + 0.123456,
        duration_ms=0.1,
    )
    bare = usage("r2", input_tokens=None, output_tokens=None, started_at=START + 1)
    assert await store.append_usage([full, bare]) == 2
    rows = await every_row(store)
    assert rows[1] == bare
    assert rows[0].started_at == pytest.approx(
        full.started_at, abs=1e-6
    )  # SQLite reads decimals to the last bit but one
    for name in set(UsageRecord.__struct_fields__) - {"started_at", "duration_ms"}:
        assert getattr(rows[0], name) == getattr(full, name)


async def test_a_request_counts_once_however_often_it_is_told(store: Store, usage: Make) -> None:
    """Told again, in the same batch or later, even with other figures, a request changes neither rows nor months."""
    assert await store.append_usage([usage("r1"), usage("r1", input_tokens=99)]) == 1
    before = (await every_row(store), await store.spent("2026-09"))
    assert await store.append_usage([usage("r1", input_tokens=50), usage("r1")]) == 0
    assert await store.append_usage([]) == 0
    assert (await every_row(store), await store.spent("2026-09")) == before
    assert before[1] == {"key_1": Spent(requests=1, input_tokens=7, output_tokens=5, cost_micros=3)}


async def test_months_are_utc_and_apart(store: Store, usage: Make) -> None:
    """The last moment of October and the first of November are billed to their own months."""
    await store.append_usage(
        [usage("r1", started_at=NOVEMBER - 0.001), usage("r2", started_at=NOVEMBER), usage("r3", started_at=NOVEMBER)]
    )
    assert (await store.spent("2026-10"))["key_1"].requests == 1
    assert (await store.spent("2026-11"))["key_1"].requests == 2
    assert await store.spent("2026-12") == {}


async def test_writers_that_bring_the_same_records_at_once_bill_them_once(store: Store, usage: Make) -> None:
    """Overlapping batches in any order, side by side: no deadlock, no double count."""
    batches = [[usage(f"r{n}", key_id=f"key_{n % 3}") for n in range(start, start + 60)] for start in (0, 20, 40, 0)]
    batches[1].reverse()
    new = await asyncio.gather(*(store.append_usage(batch) for batch in batches))
    assert sum(new) == 100
    spent = await store.spent("2026-09")
    assert sum(row.requests for row in spent.values()) == 100
    assert len(await every_row(store)) == 100


RECORDS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from(["key_1", "key_2"]),
        st.floats(NOVEMBER - 90_000, NOVEMBER + 90_000),
        st.none() | st.integers(0, 10**9),
        st.integers(0, 10**9),
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, cut=st.integers(0, 25))
async def test_the_months_equal_a_recount_of_the_rows(store: Store, usage: Make, records: list, cut: int) -> None:
    """Whatever is appended in whatever batches, the roll-up is the sum of the rows, and so is the summary."""
    async with store._write() as connection:
        await connection.execute(text("DELETE FROM usage"))
        await connection.execute(text("DELETE FROM usage_months"))
    made = [
        usage(f"r{number}", key_id=key, started_at=moment, input_tokens=tokens, cost_micros=cost)
        for number, key, moment, tokens, cost in records
    ]
    await store.append_usage(made[:cut])
    await store.append_usage(made[cut:])
    rows = await every_row(store)
    assert Counter(row.request_id for row in rows) == Counter({row.request_id for row in made})
    recount: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        sums = recount.setdefault((month_of(row.started_at), row.key_id), [0, 0, 0, 0])
        for place, value in enumerate((1, row.input_tokens or 0, row.output_tokens or 0, row.cost_micros)):
            sums[place] += value
    for month in ("2026-10", "2026-11"):
        expected = {key: Spent(*sums) for (when, key), sums in recount.items() if when == month}
        assert await store.spent(month) == expected
    summed = await store.usage_summary(0, 1e12, by=())
    assert sum(row.cost_micros for row in summed) == sum(row.cost_micros for row in rows)


async def test_rows_come_in_order_over_pages_within_the_bounds(store: Store, usage: Make) -> None:
    """More rows than a page holds, many with the same time: each once, in order, `since` in and `until` out."""
    made = [usage(f"r{n:05}", started_at=START + n // 100, key_id=f"key_{n % 2}") for n in range(1250)]
    await store.append_usage(made)
    assert [row.request_id for row in await every_row(store)] == [row.request_id for row in made]
    part = [row async for row in store.usage_rows(START + 2, START + 4, key_id="key_1")]
    assert [row.request_id for row in part] == [row.request_id for row in made[200:400] if row.key_id == "key_1"]


async def test_a_reader_that_stops_or_dawdles_holds_no_connection(store: Store, usage: Make) -> None:
    """Twenty half-read iterators and a writer get along: between pages no connection is held."""
    await store.append_usage([usage(f"r{n}") for n in range(3)])
    readers = [store.usage_rows(0, 1e12) for _ in range(20)]
    for reader in readers:
        await anext(reader)
    assert await asyncio.wait_for(store.append_usage([usage("late")]), 60) == 1
    for reader in readers:
        await reader.aclose()


async def test_summaries_group_by_what_is_asked(store: Store, usage: Make) -> None:
    """Sums per group; fields that are not grouped by are None; unknown counts are counted as such, not as zero."""
    await store.append_usage(
        [
            usage("r1", user="taro", cached_tokens=1),
            usage("r2", user="hana", status="failed", input_tokens=None, output_tokens=None, estimated=False),
            usage("r3", key_id="key_2", started_at=START + 86_400, estimated=True, reasoning_tokens=4),
        ]
    )
    by_key = await store.usage_summary(0, 1e12)
    assert by_key == [
        UsageSummary(
            key_id="key_1",
            requests=2,
            completed=1,
            input_tokens=7,
            output_tokens=5,
            cached_tokens=1,
            reasoning_tokens=0,
            cost_micros=6,
            estimated=0,
            unmeasured=1,
        ),
        UsageSummary(
            key_id="key_2",
            requests=1,
            completed=1,
            input_tokens=7,
            output_tokens=5,
            cached_tokens=0,
            reasoning_tokens=4,
            cost_micros=3,
            estimated=1,
            unmeasured=0,
        ),
    ]
    by_all = await store.usage_summary(0, 1e12, by=("user", "day", "model", "key"))
    assert {(row.key_id, row.model, row.day, row.user) for row in by_all} == {
        ("key_1", "mini", "2026-09-21", "taro"),
        ("key_1", "mini", "2026-09-21", "hana"),
        ("key_2", "mini", "2026-09-22", None),
    }
    assert await store.usage_summary(START + 1, START + 2, by=()) == []
    with pytest.raises(InvalidRequest, match="key, model, day, user"):
        await store.usage_summary(0, 1, by=("planet",))  # type: ignore[arg-type]


HOSTILE_TEXT = st.text(max_size=40) | st.sampled_from(["\0", "\ud800", "x" * 2000, "\U0010ffff\ufffe", "$.a'\";--"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.tuples(*[HOSTILE_TEXT] * 4),
    numbers=st.tuples(*[st.integers()] * 4),
    moments=st.tuples(*[st.floats()] * 3),
)
async def test_no_record_is_refused(store: Store, usage: Make, texts: tuple, numbers: tuple, moments: tuple) -> None:
    """Whatever a client or an engine put into a record, it can be stored, so it never blocks those behind it."""
    record = usage(
        "hostile" + texts[0],
        user=texts[1],
        model=texts[2],
        error_code=texts[3],
        input_tokens=numbers[0],
        output_tokens=numbers[1],
        cached_tokens=numbers[2],
        http_status=numbers[3],
        started_at=moments[0],
        duration_ms=moments[1],
        ttft_ms=moments[2],
    )
    await store.append_usage([record])
    assert await store.append_usage([record]) == 0
