"""The benchmark: its plans, its prompts, runs of a real server, and crashes meanwhile."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import Message, Text, Turn
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.speed import prompts
from sekisho.evaluate.speed.bench import Bench, CellRun, ends_of, requests_of, run_bench, run_cell
from sekisho.evaluate.speed.bench_figures import summarise
from sekisho.evaluate.speed.bench_plan import PLANS, Grid, OpenLoop, Plan, Size, closed_cells, open_cells, open_rate
from sekisho.evaluate.speed.bench_tables import read_json, write_json
from sekisho.evaluate.speed.samples import Cell
from sekisho.guard.assembly import build_judge
from sekisho.guard.config import GuardConfig
from sekisho.ops.children_file import ChildrenFile, ChildStatus
from sekisho.ops.home import Home

pytestmark = pytest.mark.usefixtures("uncollected")

PLACES: tuple[Place, ...] = ("engine", "gateway", "public")


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    command = [sys.executable, "-m", "sekisho.engines.fake_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Target("engine", process.stdout.readline().strip(), "fake")
        process.terminate()


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
