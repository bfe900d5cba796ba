"""The benchmark: its plans, its prompts, its figures and its files."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import Message, Text, Turn
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.speed import prompts
from sekisho.evaluate.speed.bench import Bench, CellRun, ends_of, requests_of, run_bench, run_cell
from sekisho.evaluate.speed.bench_figures import cell_figures, summarise
from sekisho.evaluate.speed.bench_gap import explain, gap_figures, gaps
from sekisho.evaluate.speed.bench_plan import PLANS, Grid, OpenLoop, Plan, Size, closed_cells, open_cells, open_rate
from sekisho.evaluate.speed.bench_tables import (
    COLUMNS,
    SEED_COLUMNS,
    SERIES,
    read_csv,
    read_json,
    series,
    summary,
    write_csv,
    write_json,
)
from sekisho.evaluate.speed.samples import Cell, Sample
from sekisho.guard.assembly import build_judge
from sekisho.guard.config import GuardConfig
from sekisho.ops.children_file import ChildrenFile, ChildStatus
from sekisho.ops.home import Home

PLACES: tuple[Place, ...] = ("engine", "gateway", "public")


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    command = [sys.executable, "-m", "sekisho.engines.fake_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Target("engine", process.stdout.readline().strip(), "fake")
        process.terminate()


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


def test_the_seed_plan_has_the_seeds_numbers() -> None:
    """10 warm-ups of 128 tokens, 30 requests of 256 and 10 of 1024 for 1, 2 and 3 in parallel, and nothing else."""
    cells = closed_cells(PLANS["seed"], ("engine",))
    counts: Counter[tuple[str, int, int]] = Counter()
    for cell in cells:
        counts[cell.loop, cell.parallel, cell.tokens] += cell.requests
    assert counts.pop(("warmup", 3, 128)) == 10
    assert counts == {("closed", p, t): n for p in (1, 2, 3) for t, n in ((256, 30), (1024, 10))}
    assert PLANS["seed"].open is None


def test_full_and_quick_have_enough_for_an_interval_where_they_say_so() -> None:
    """80 requests a cell in full, 80 in the short cells of quick, and in their open loops."""
    assert {size.requests for size in PLANS["full"].sizes} == {80}
    assert PLANS["quick"].sizes[0].requests == 80
    for name in ("full", "quick"):
        plan = PLANS[name]  # type: ignore[index]
        assert sum(cell.requests for cell in open_cells(plan, ("gateway",), 5.0)) == 80


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True),
    st.integers(1, 90),
    st.integers(1, 5),
    st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True),
)
def test_every_place_gets_the_same_and_in_turns(
    parallels: list[int], requests: int, blocks: int, places: list[Place]
) -> None:
    """Each place has the same cells with the same requests, cut into blocks without gap or overlap; neighbours in time
    are neighbours in kind, and the order of the places turns round from block to block."""
    plan = Plan(parallels=tuple(parallels), sizes=(Size(64, requests),), blocks=blocks)
    cells = [cell for cell in closed_cells(plan, places) if cell.loop == "closed"]
    by_place = {place: [cell for cell in cells if cell.place == place] for place in places}
    assert len({tuple((c.parallel, c.first, c.requests) for c in mine) for mine in by_place.values()}) == 1
    for mine in by_place.values():
        for parallel in parallels:
            spans = [range(c.first, c.first + c.requests) for c in mine if c.parallel == parallel]
            assert [index for span in spans for index in span] == list(range(requests))
    rounds = [cells[start : start + len(places)] for start in range(0, len(cells), len(places))]
    orders = [[cell.place for cell in each] for each in rounds]
    assert all(set(order) == set(places) for order in orders)
    forwards = sum(order == sorted(order, key=PLACES.index) for order in orders)
    assert len(places) == 1 or abs(2 * forwards - len(orders)) <= 1
    assert len({cell.key for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    "wrong",
    [
        {"parallels": (0,)},
        {"sizes": (Size(0, 1),)},
        {"blocks": 0},
        {"warmups": -1},
        {"languages": ()},
        {"parallels": ()},
        {"open": OpenLoop(rate=0.0)},
        {"open": OpenLoop(share=-1.0)},
        {"grid": Grid((0,))},
        {"api": "responses", "ignore_eos": True},
    ],
)
def test_a_plan_that_cannot_be_done_is_refused(wrong: dict[str, Any]) -> None:
    """What makes no sense is said before anything is measured."""
    with pytest.raises(InvalidRequest):
        Plan(**wrong)


def test_the_guard_lets_every_prompt_pass() -> None:
    """With and without their marks and notes, or a benchmark would measure refusals."""
    judge = build_judge(GuardConfig(), Path("no such folder"))
    stopped = []
    for prompt in prompts.prompts().prompts:
        for text in (prompt.text, *(prompts.marked(prompt, 7, "gateway", number) for number in range(12))):
            notes = prompts.notes(prompt.language, 2000, 7, text)
            said = (Message("system", (Text(notes),)), Message("user", (Text(text),)))
            if judge.judge(Turn("t", "chat", "m", messages=said)).decision != "allow":
                stopped.append(text)
    assert stopped == []


def test_prompts_alternate_between_the_languages() -> None:
    """Japanese and English in turns, each with all its prompts in turns; one language alone if that is asked for."""
    picked = [prompts.pick(index) for index in range(48)]
    assert [each.language for each in picked] == ["ja", "en"] * 24
    assert len({each.id for each in picked}) == len(prompts.prompts().prompts) == 24
    assert {prompts.pick(index, ("en",)).language for index in range(9)} == {"en"}


def test_a_unique_prompt_is_new_at_every_place_and_request() -> None:
    """`unique`: no two requests of a whole benchmark begin alike. `same`: the places are asked the same."""
    plan = PLANS["full"]
    cells = (*closed_cells(plan, PLACES), *open_cells(plan, PLACES, 5.0))

    def beginnings(plan: Plan) -> list[str]:
        bodies = [request.body for cell in cells for request in requests_of(cell, plan, "m")]
        return [msgspec.json.decode(body)["messages"][0]["content"].partition("\n")[0] for body in bodies]

    unique = beginnings(plan)
    assert len(set(unique)) == len(unique) == sum(cell.requests for cell in cells)
    same = beginnings(msgspec.structs.replace(plan, cache="same"))
    assert set(same) == {each.text for each in prompts.prompts().prompts}


def test_what_is_sent_is_what_the_plan_says() -> None:
    """A stream with its usage, the tokens of the cell, the plan's temperature and seed; responses leave no state."""
    cell = Cell(place="engine", loop="closed", tokens=256, requests=1)
    body = msgspec.json.decode(requests_of(cell, Plan(ignore_eos=True, temperature=0.5), "m")[0].body)
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["stream"], body["max_tokens"]) == ("m", True, 256)
    assert (body["temperature"], body["seed"], body["ignore_eos"]) == (0.5, 7, True)
    plain = msgspec.json.decode(requests_of(cell, Plan(temperature=None), "m")[0].body)
    assert not {"temperature", "ignore_eos"} & plain.keys()
    body = msgspec.json.decode(requests_of(cell, Plan(api="responses"), "m")[0].body)
    assert (body["max_output_tokens"], body["store"], body["stream"]) == (256, False, True)
    assert "seed" not in body


async def small(server: Target, plan: Plan) -> tuple[Bench, dict[Place, Target]]:
    places: dict[Place, Target] = {
        "engine": server,
        "gateway": Target("gateway", f"{server.url}/", server.model),
    }
    return await run_bench(plan, places, lambda cell: run_cell(cell, plan, places[cell.place])), places


async def test_a_benchmark_of_a_real_server(server: Target) -> None:
    """Every cell of every place is measured, the open loop at a rate that the closed one gave, and each figure has a
    value or says why not; warm-ups are apart."""
    plan = Plan(
        parallels=(1, 2), sizes=(Size(64, 80),), warmups=4, warmup_tokens=8, open=OpenLoop(requests=10, tokens=64)
    )
    told: list[tuple[str, int, int]] = []
    places: dict[Place, Target] = {"engine": server, "gateway": Target("gateway", server.url, server.model)}
    bench = await run_bench(
        plan,
        places,
        lambda cell: run_cell(cell, plan, places[cell.place]),
        lambda what, done, total: told.append((what, done, total)),
    )
    assert len(bench.samples) == 2 * (2 * 80 + 10)
    assert sum(len(run.samples) for run in bench.runs if run.cell.loop == "warmup") == 2 * 4
    assert told[-1] == ("bench", len(bench.runs), len(bench.runs))
    assert all(done < total == len(bench.runs) for _, done, total in told[:-1])
    rate = open_rate(plan, bench.samples)
    assert rate is not None
    assert {run.cell.rate for run in bench.runs if run.cell.loop == "open"} == {rate}
    figures = Figures(tuple(summarise(bench, command="sekisho bench")))
    for place in places:
        for level in ("closed.p1", "closed.p2", f"open.r{rate:g}"):
            success = figures.get(f"bench.{place}.{level}.t64.success_rate")
            assert success is not None
            assert success.value == 1.0
            assert success.interval is not None
            assert success.interval.method == "wilson"
    short = figures.get("bench.engine.closed.p1.t64.ttft_p95_s")
    few = figures.get(f"bench.engine.open.r{rate:g}.t64.ttft_p95_s")
    assert short is not None
    assert few is not None
    assert short.interval is not None
    assert few.interval is None
    assert "80" in few.interval_missing
    for figure in figures.all:
        assert (figure.value is None) == bool(figure.why_null), figure.id
        assert figure.command == "sekisho bench"
        told = figure.interval is not None or figure.interval_missing or figure.value is None
        assert told or figure.unit == "count", figure.id
    assert figures.get(f"bench.gateway.open.r{rate:g}.t64.late_p95_ms") is not None
    assert figures.get("bench.gateway.closed.p1.t64.late_p95_ms") is None


async def test_a_stored_cell_gives_the_same_figures(server: Target) -> None:
    """A cell is a value that can be stored: measured cells, read back, are not asked for again and tell the same."""
    plan = Plan(parallels=(1,), sizes=(Size(16, 6),), warmups=1, warmup_tokens=4, open=OpenLoop(requests=4, tokens=16))
    first, places = await small(server, plan)
    stored = {run.cell.key: msgspec.json.encode(run) for run in first.runs}

    async def again(cell: Cell) -> CellRun:
        return msgspec.json.decode(stored[cell.key], type=CellRun)

    second = await run_bench(plan, places, again)
    assert second == first
    assert summarise(second) == summarise(first)
    assert read_json(write_json(first)) == first


@pytest.mark.slow
async def test_a_grid_has_prompts_of_the_length_it_says(server: Target) -> None:
    """The prompt's tokens, as this server counts them, are near what the grid asks for, for each parallelism."""
    plan = Plan(parallels=(), sizes=(), warmups=0, blocks=1, languages=("en",), grid=Grid((120, 480), (1, 2), 32, 6))
    bench, _ = await small(server, plan)
    found = {(each.prompt_wanted, each.parallel) for each in bench.samples}
    assert found == {(tokens, parallel) for tokens in (120, 480) for parallel in (1, 2)}
    for each in bench.samples:
        assert each.ok, each.detail
        assert each.prompt_tokens == pytest.approx(each.prompt_wanted, rel=0.15)
    ids = {figure.id for figure in summarise(bench)}
    assert "grid.engine.p2.i480.t32.ttft_p50_s" in ids
    assert not any(each.startswith("bench.engine.closed") for each in ids)


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


async def test_crashes_are_counted_or_null(server: Target, tmp_path: Path) -> None:
    """What ended by itself while a place was measured is counted there; a place that cannot be seen says so."""
    home = Home(tmp_path).create()
    assert ends_of(home) is None
    plan = Plan(parallels=(1,), sizes=(Size(8, 2),), warmups=0, blocks=1)
    (cell,) = closed_cells(plan, ("engine",))

    def children(*statuses: ChildStatus) -> None:
        (home.run / "children.json").write_bytes(msgspec.json.encode(ChildrenFile("r", 1, None, list(statuses))))

    def crash(*_: object) -> None:
        children(ChildStatus("engine", "running", restarts=3), ChildStatus("gateway", "waiting"))

    children(ChildStatus("engine", "running", restarts=2), ChildStatus("gateway", "running"))
    run = await run_cell(cell, plan, server, progress=crash, ends=lambda: ends_of(home))
    hidden = msgspec.structs.replace(run, cell=msgspec.structs.replace(cell, place="public"), crashes=None)
    figures = Figures(tuple(summarise(Bench(plan, (run, hidden)))))
    seen, unseen = figures.get("bench.engine.crashes"), figures.get("bench.public.crashes")
    assert seen is not None
    assert unseen is not None
    assert (seen.value, seen.unit) == (2, "count")
    assert unseen.value is None
    assert unseen.why_null


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
