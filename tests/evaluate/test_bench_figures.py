"""The benchmark's figures and files: rates, quantiles, the gap, the table, the summary."""

import re
from statistics import median
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.speed.bench import Bench, CellRun
from sekisho.evaluate.speed.bench_figures import cell_figures
from sekisho.evaluate.speed.bench_gap import explain, gap_figures, gaps
from sekisho.evaluate.speed.bench_plan import OpenLoop, Plan, open_cells, open_rate
from sekisho.evaluate.speed.bench_tables import (
    COLUMNS,
    SEED_COLUMNS,
    SERIES,
    read_csv,
    read_json,
    series,
    summary,
    write_csv,
)
from sekisho.evaluate.speed.samples import Cell, Sample


def made(**changes: Any) -> Sample:
    """A successful sample."""
    values: dict[str, Any] = {
        "cell": "engine.closed.p1.t256",
        "place": "engine",
        "loop": "closed",
        "block": 0,
        "parallel": 1,
        "rate": None,
        "tokens": 256,
        "prompt_wanted": None,
        "index": 0,
        "prompt": "ja-csv",
        "language": "ja",
        "scheduled_ms": 0.0,
        "started_ms": 0.0,
        "late_ms": 0.0,
        "connect_ms": None,
        "http": 200,
        "ok": True,
        "faults": (),
        "detail": "",
        "finish": "length",
        "ttfb_ms": 10.0,
        "ttft_ms": 20.0,
        "total_ms": 100.0,
        "prompt_tokens": 9,
        "completion_tokens": 40,
        "hidden_tokens": 0,
        "pieces": 40,
        "moments": 40,
        "tok_s": 500.0,
        "tpot_ms": 2.0,
        "itl_p50_ms": 2.0,
        "itl_p95_ms": 3.0,
        "itl_max_ms": 4.0,
        "bytes": 4000,
    }
    return Sample(**(values | changes))


def failed(**changes: Any) -> Sample:
    nothing = dict.fromkeys(("ttft_ms", "completion_tokens", "prompt_tokens", "tok_s", "tpot_ms"))
    return made(**({"ok": False, "http": 500, "faults": ("server_error",), "detail": "broke"} | nothing | changes))


def bench_of(*samples: Sample, plan: Plan | None = None) -> Bench:
    """A benchmark that gave these samples: a run for each cell and block."""
    runs = []
    for cell_id, block in dict.fromkeys((each.cell, each.block) for each in samples):
        mine = tuple(each for each in samples if (each.cell, each.block) == (cell_id, block))
        first = mine[0]
        cell = Cell(
            place=first.place,
            loop=first.loop,
            tokens=first.tokens,
            requests=len(mine),
            parallel=first.parallel,
            rate=first.rate,
            block=block,
        )
        assert cell.id == cell_id
        runs.append(CellRun(cell=cell, samples=mine, connects_ms=(1.0, 2.0), round_trips_ms=(0.5, 0.7)))
    return Bench(plan or Plan(), tuple(runs))


def test_one_in_fifty_failing_is_in_the_rate_and_in_nothing_else() -> None:
    """Failures count in the success rate, with their kind in words; the quantiles are over successes."""
    samples = [made(index=number, total_ms=100.0 + number) for number in range(100)]
    samples[10] = failed(index=10, total_ms=90_000.0)
    samples[60] = failed(index=60, total_ms=90_000.0, faults=("cut",))
    figures = Figures(tuple(cell_figures("c", samples, 100)))
    rate = figures.get("c.success_rate")
    assert rate is not None
    assert (rate.value, rate.n) == (0.98, 100)
    assert rate.interval is not None
    assert rate.interval.low < 0.98 < rate.interval.high
    assert rate.note == "1 server_error, 1 cut"
    slow = figures.get("c.total_p95_s")
    assert slow is not None
    assert slow.n == 98
    assert isinstance(slow.value, float)
    assert slow.value < 1


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=120), st.integers(0, 5))
def test_quantiles_are_of_successes_by_nearest_rank(total_ms: list[float], failures: int) -> None:
    """At least 95 % of the successes are at or below P95, and it is one of them; from 80 on it has an interval."""
    samples = [made(index=index, total_ms=ms) for index, ms in enumerate(total_ms)]
    samples += [failed(index=len(samples) + number) for number in range(failures)]
    figures = Figures(tuple(cell_figures("c", samples, len(samples))))
    p95 = figures.get("c.total_p95_s")
    assert p95 is not None
    assert isinstance(p95.value, float)
    assert p95.value in [ms / 1e3 for ms in total_ms]
    assert sum(ms / 1e3 <= p95.value for ms in total_ms) >= 0.95 * len(total_ms)
    assert (p95.interval is None) == (len(total_ms) < 80)
    if p95.interval is not None:
        assert p95.interval.low <= p95.value <= p95.interval.high


def test_nothing_measured_says_why() -> None:
    """Without a success every quantile is null and names what failed; what was not asked is told."""
    figures = Figures(tuple(cell_figures("c", [failed(index=number) for number in range(5)], 30)))
    rate = figures.get("c.success_rate")
    assert rate is not None
    assert (rate.value, rate.n) == (0.0, 30)
    assert "25 of 30 were not asked" in rate.note
    for what in ("ttft_p50_s", "tok_s_median", "requests_per_s"):
        figure = figures.get(f"c.{what}")
        assert figure is not None
        assert figure.value is None
        assert "5 server_error" in figure.why_null
    half = Figures(tuple(cell_figures("c", [made(index=number) for number in range(10)], 80))).get("c.success_rate")
    assert half is not None
    assert (half.value, half.n) == (0.125, 80)
    none = Figures(tuple(cell_figures("c", [], 30))).get("c.success_rate")
    assert none is not None
    assert none.value is None
    assert none.why_null


def test_whole_answers_have_no_speed_and_say_so() -> None:
    """Answers that came in one piece leave TTFT and total as they are, and speed null with that reason."""
    whole = {"moments": 1, "tok_s": None, "tpot_ms": None, "itl_p50_ms": None, "itl_p95_ms": None, "itl_max_ms": None}
    samples = [made(index=number, **whole) for number in range(9)]
    figures = Figures(tuple(cell_figures("c", samples, 9)))
    for what in ("tok_s_median", "tpot_p50_ms", "itl_p95_ms"):
        figure = figures.get(f"c.{what}")
        assert figure is not None
        assert figure.value is None
        assert "one piece" in figure.why_null
    ttft = figures.get("c.ttft_p50_s")
    assert ttft is not None
    assert ttft.value == 0.02
    some = Figures(tuple(cell_figures("c", [*samples, made(index=9)], 10))).get("c.tok_s_median")
    assert some is not None
    assert (some.value, some.n) == (500.0, 1)
    assert some.note == "not seen in 9 of 10 answers"


def test_the_open_loops_rate_is_a_share_of_what_the_slowest_place_carried() -> None:
    """70 % of the lowest throughput with the most askers; a given rate stays; nothing carried, no rate, no cells."""
    plan = Plan(parallels=(1, 2), open=OpenLoop())
    there = [
        made(cell=f"{place}.closed.p2.t256", place=place, parallel=2, index=number, scheduled_ms=number * gap)
        for place, gap in (("engine", 100.0), ("gateway", 200.0))
        for number in range(20)
    ]
    slow = 20 / (19 * 0.2 + 0.1)
    assert open_rate(plan, there) == float(f"{0.7 * slow:.2g}")
    assert open_rate(msgspec.structs.replace(plan, open=OpenLoop(rate=3.0)), there) == 3.0
    assert open_rate(plan, [failed(cell="engine.closed.p2.t256", parallel=2)]) is None
    assert open_cells(plan, ("engine",), None) == ()


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4), st.booleans()), min_size=1, max_size=40))
def test_the_gap_is_the_median_of_pairs(pairs: list[tuple[float, float, bool]]) -> None:
    """Each request at one place is held against the same request at the place before; a failed one leaves no pair."""
    samples = []
    for index, (one, other, ok) in enumerate(pairs):
        samples.append(made(index=index, ttft_ms=one))
        theirs = {"cell": "gateway.closed.p1.t256", "place": "gateway", "index": index, "tok_s": None}
        samples.append(made(**theirs, ttft_ms=other) if ok else failed(**theirs))
    figures = Figures(tuple(gap_figures(bench_of(*samples))))
    ttft = figures.get("bench.gap.gateway.ttft_p50_s")
    ratio = figures.get("bench.gap.gateway.tok_s_ratio")
    assert ttft is not None
    assert ratio is not None
    assert ratio.value is None
    assert ratio.why_null
    differences = sorted((other - one) / 1e3 for one, other, ok in pairs if ok)
    assert ttft.n == len(differences)
    if not differences:
        assert ttft.value is None
        assert ttft.why_null
        return
    assert isinstance(ttft.value, float)
    assert differences[0] <= ttft.value <= differences[-1]
    assert ttft.value <= median(differences) + 1e-9


def test_the_gap_is_explained_in_both_languages() -> None:
    """How many answers the guard held back whole, what an empty round trip takes, and what is waiting with more
    askers; a place without a place before it has no gap."""
    samples = []
    for index in range(8):
        for parallel, more in ((1, 10.0), (3, 40.0)):
            common = {"index": index, "parallel": parallel}
            samples.append(made(cell=f"engine.closed.p{parallel}.t256", **common))
            ours = {"cell": f"public.closed.p{parallel}.t256", "place": "public", "total_ms": 100.0 + 2 * more}
            samples.append(made(**common, **ours))
            ours = {"cell": f"gateway.closed.p{parallel}.t256", "place": "gateway", "total_ms": 100.0 + more}
            samples.append(made(**common, **ours, moments=1, tok_s=None))
    bench = bench_of(*samples)
    first, second = gaps(bench)
    assert [(each.before, each.place, each.cell) for each in (first, second)] == [
        ("engine", "gateway", "p1.t256"),
        ("gateway", "public", "p1.t256"),
    ]
    english, japanese = explain(first, bench, held_characters=167)
    assert "167 characters" in english
    assert "167 文字" in japanese
    assert "8 of 8 answers came in one piece here, 0 at the place before" in english
    assert "8 件のうち 8 件（手前では 0 件）" in japanese
    assert "+0.040 s against +0.010 s" in english
    assert "+0.040 秒" in japanese
    assert "judges" not in explain(second, bench)[0]
    assert gaps(bench_of(*(each for each in samples if each.place == "engine"))) == []
    assert {figure.n for figure in gap_figures(bench) if figure.id.endswith("total_p50_s")} == {8}


ms = st.floats(0, 1e7).map(lambda value: round(value, 3))
maybe_ms = st.none() | ms
counts = st.none() | st.integers(0, 1 << 20)
any_sample = st.builds(
    made,
    block=st.integers(0, 9),
    parallel=st.integers(1, 99),
    rate=st.none(),
    tokens=st.integers(1, 4096),
    prompt_wanted=counts.filter(lambda value: value != 0),
    index=st.integers(0, 10**6),
    language=st.sampled_from(["ja", "en"]),
    scheduled_ms=ms,
    started_ms=ms,
    late_ms=ms,
    connect_ms=maybe_ms,
    http=st.none() | st.integers(100, 599),
    ok=st.booleans(),
    faults=st.lists(st.sampled_from(["cut", "no_end", "usage_missing"]), unique=True).map(tuple),
    finish=st.none() | st.sampled_from(["stop", "length"]),
    ttfb_ms=maybe_ms,
    ttft_ms=maybe_ms,
    total_ms=ms,
    prompt_tokens=counts,
    completion_tokens=counts,
    tok_s=st.none() | st.floats(0.001, 1e6).map(lambda value: round(value, 6)),
    itl_p95_ms=maybe_ms,
    read_early=st.booleans(),
)


@given(st.lists(any_sample, max_size=8))
@settings(max_examples=60)
def test_the_table_reads_back(samples: list[Sample]) -> None:
    """What is written to the CSV is read back the same; its first columns are the two-week evaluation's."""
    text = write_csv(samples)
    assert tuple(text.splitlines()[0].split(",")) == COLUMNS
    assert COLUMNS[: len(SEED_COLUMNS)] == SEED_COLUMNS
    assert read_csv(text) == [msgspec.structs.replace(each, detail="") for each in samples]
    for line, each in zip(text.splitlines()[1:], samples, strict=True):
        parallel, tokens, index, http, total, ttfb, completion, speed = line.split(",")[:8]
        assert (int(parallel), int(tokens), int(index)) == (each.parallel, each.tokens, each.index)
        assert int(http) == (each.http or 0)
        assert float(total) == pytest.approx(each.total_ms / 1e3, abs=1e-6)
        assert (ttfb == "") == (each.ttfb_ms is None)
        assert (completion == "") == (each.completion_tokens is None)
        assert (speed == "") == (each.tok_s is None)


def test_an_open_loops_row_has_a_rate_and_no_parallelism() -> None:
    """Its column is empty, so that nobody adds it to the closed loop's."""
    each = made(cell="engine.open.r2.5.t256", loop="open", rate=2.5)
    text = write_csv([each])
    assert text.splitlines()[1].startswith(",256,")
    assert read_csv(text) == [each]


@pytest.mark.parametrize("broken", ["", "a,b\n1,2\n", "{columns}\n1,2,3\n", "{columns}\n" + "x," * (len(COLUMNS) - 1)])
def test_another_table_is_refused(broken: str) -> None:
    """A file that is no benchmark's is refused in words, with the line where it is one."""
    with pytest.raises(InvalidRequest):
        read_csv(broken.format(columns=",".join(COLUMNS)))
    for body in (b'{"plan": 1}', b'{"runs": [{"samples": [{"cell": "\xff"}]}]}'):
        with pytest.raises(InvalidRequest):
            read_json(body)


def test_the_summary_has_the_seeds_words() -> None:
    """A line a cell with the seed's names, its rounding and its nan."""
    samples = [made(index=number) for number in range(3)] + [failed(index=3)]
    samples += [failed(cell="engine.open.r2.t256", loop="open", rate=2.0)]
    one, other = summary(samples).splitlines()
    wanted = "parallel=1 tokens=256 reqs=4 success_rate=75.00% ok=3 fail=1 p95_ttfb=0.010s p95_total=0.100s"
    assert one == f"place=engine loop=closed {wanted} tokps_median=500.000"
    assert re.search(r"rate=2/s tokens=256 .* p95_ttfb=nans p95_total=nans tokps_median=nan$", other)


@given(st.lists(any_sample, min_size=1, max_size=30), st.sampled_from(SERIES))
@settings(max_examples=40)
def test_a_series_rises_to_one(samples: list[Sample], what: str) -> None:
    """The steps of a chart are in order, and end with all of the cell's successes that have the value."""
    steps = series(samples, samples[0].cell, what)
    assert list(steps) == sorted(steps)
    assert not steps or steps[-1][1] == 1.0
    assert series(samples, "no such cell", what) == ()
