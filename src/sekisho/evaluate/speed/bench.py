"""The benchmark: the cells of a plan at each place, one after another, and what the way to that place takes by itself.

A cell is a value in and a value out, so that it can be a durable step: what `run_cell` gives can be stored and read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sekisho.evaluate.client.asking import Question, ask
from sekisho.evaluate.client.exchange import Connections, Exchange, Limits
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.speed import load, prompts
from sekisho.evaluate.speed.bench_plan import Plan, closed_cells, open_cells, open_rate
from sekisho.evaluate.speed.samples import Cell, Language, Request, Sample
from sekisho.ops.children_file import read_children
from sekisho.ops.home import Home

ROUND_TRIPS = 5
_ENDED = ("waiting", "failing", "misconfigured")
_ROUND_TRIP_PATH = "/v1/models"
_PROBE_CHARACTERS = 600
_GUESSED_CHARACTERS: dict[Language, float] = {"ja": 1.5, "en": 4.0}


class CellRun(msgspec.Struct, frozen=True, kw_only=True):
    """One block of a cell, measured. `connects_ms`: opening a connection, with TLS where there is TLS.
    `round_trips_ms`: a request that needs no model, on an open connection. `lags_ms`: see `load.Measured`. `crashes`:
    processes of the server that ended meanwhile; None: they cannot be seen. Fewer samples than `cell.requests`: nobody
    answered any more."""

    cell: Cell
    samples: tuple[Sample, ...]
    connects_ms: tuple[float, ...] = ()
    round_trips_ms: tuple[float, ...] = ()
    lags_ms: tuple[float, ...] = ()
    crashes: int | None = None


class Bench(msgspec.Struct, frozen=True):
    """A whole benchmark, warm-ups and all."""

    plan: Plan
    runs: tuple[CellRun, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Without the warm-ups."""
        return tuple(each for run in self.runs if run.cell.loop != "warmup" for each in run.samples)


Runner = Callable[[Cell], Awaitable[CellRun]]


async def run_bench(plan: Plan, places: Mapping[Place, Target], run: Runner, progress: Progress = silent) -> Bench:
    """All cells in their order. `run` measures one: `run_cell`, or a step that has measured it before."""
    cells = closed_cells(plan, tuple(places))
    runs: list[CellRun] = []
    more = 0 if plan.open is None else len(open_cells(plan, tuple(places), 1.0))
    for cell in cells:
        progress(cell.key, len(runs), len(cells) + more)
        runs.append(await run(cell))
    rate = open_rate(plan, (each for done in runs for each in done.samples))
    for cell in open_cells(plan, tuple(places), rate):
        progress(cell.key, len(runs), len(cells) + more)
        runs.append(await run(cell))
    progress("bench", len(runs), len(runs))
    return Bench(plan, tuple(runs))


async def run_cell(
    cell: Cell,
    plan: Plan,
    target: Target,
    limits: Limits | None = None,
    progress: Progress = silent,
    ends: Callable[[], int | None] = lambda: None,
) -> CellRun:
    """Measures one block on connections of its own, opened before it begins. Cancelling ends at once.

    `ends`: how many of the server's processes have ended unplanned so far, where that can be seen: `ends_of`.
    """
    options = load.Options(api=plan.api, fresh=plan.fresh)
    before = ends()
    async with Connections(target, limits) as connections:
        connects_ms, round_trips_ms = await _way(connections, cell, plan)
        characters = {} if cell.prompt_tokens is None else await _characters(connections, cell, plan)
        requests = requests_of(cell, plan, target.model, characters)
        moments_s: tuple[float, ...] = ()
        if cell.rate is not None:
            moments_s = load.departures(len(requests), cell.rate, cell.arrivals, plan.seed + cell.block)
        measured = await load.run(
            cell, connections, requests, options, moments_s, lambda done: progress(cell.key, done, len(requests))
        )
    return CellRun(
        cell=cell,
        samples=tuple(measured.samples),
        connects_ms=connects_ms,
        round_trips_ms=round_trips_ms,
        lags_ms=_rounded(measured.lags_ms),
        crashes=_more_ends(before, ends()),
    )


def ends_of(home: Home) -> int | None:
    """How often processes of the server of this home have ended by themselves; None where none runs from it."""
    children = read_children(home.run)
    if children is None:
        return None
    return sum(child.restarts + (child.state in _ENDED) for child in children.children)


def _more_ends(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def requests_of(
    cell: Cell, plan: Plan, model: str, characters: Mapping[Language, int] | None = None
) -> tuple[Request, ...]:
    """The cell's requests, written out. `characters`: how many characters of notes stand before each prompt."""
    requests = []
    for index in range(cell.first, cell.first + cell.requests):
        prompt = prompts.pick(index, plan.languages)
        name = (cell.place, cell.id, index) if plan.cache == "unique" else ()
        text = prompts.marked(prompt, plan.seed, *name) if name else prompt.text
        said: tuple[tuple[str, str], ...] = (("user", text),)
        if characters:
            notes = prompts.notes(prompt.language, characters[prompt.language], plan.seed, *name)
            said = (("system", notes), *said) if notes else said
        question = Question(api=plan.api, said=said, max_tokens=cell.tokens, stream=True, more=_more(plan))
        requests.append(Request(index, prompt.id, prompt.language, question.body(model)))
    return tuple(requests)


def _more(plan: Plan) -> dict[str, Any]:
    more: dict[str, Any] = {} if plan.temperature is None else {"temperature": plan.temperature}
    if plan.api == "responses":
        return more | {"store": False}  # a benchmark leaves no state behind; the API has no seed
    more["seed"] = plan.seed
    if plan.ignore_eos:
        more["ignore_eos"] = True
    return more


async def _way(connections: Connections, cell: Cell, plan: Plan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What connecting and an empty round trip take, in ms. Leaves an open connection for each asker."""

    async def there_and_back(fresh: bool = False) -> Exchange:
        return await connections.exchange("GET", _ROUND_TRIP_PATH, fresh=fresh)

    opened = await asyncio.gather(*(there_and_back(plan.fresh) for _ in range(cell.parallel)))
    connects = [
        (each.connected_s - each.started_s) * 1e3 for each in opened if each.trouble is None and each.connected_s
    ]
    if not connects:
        return (), ()
    again = [await there_and_back() for _ in range(ROUND_TRIPS)]
    trips = [each.total_ms for each in again if each.trouble is None and each.connected_s is None]
    return _rounded(connects), _rounded(trips)


async def _characters(connections: Connections, cell: Cell, plan: Plan) -> dict[Language, int]:
    """How many characters of notes make a prompt of `cell.prompt_tokens` for this model: from two short requests in
    each language, or guessed where they are not answered."""
    assert cell.prompt_tokens is not None
    found: dict[Language, int] = {}
    for language in plan.languages:
        prompt = prompts.pick(plan.languages.index(language), plan.languages)
        user = ("user", prompts.marked(prompt, plan.seed, cell.key))
        notes = ("system", prompts.notes(language, _PROBE_CHARACTERS, plan.seed, cell.key))
        bare = await _prompt_tokens(connections, plan, (user,))
        long = await _prompt_tokens(connections, plan, (notes, user))
        per_token, base = _GUESSED_CHARACTERS[language], 0
        if bare is not None and long is not None and long > bare:
            per_token, base = _PROBE_CHARACTERS / (long - bare), bare
        found[language] = max(0, round((cell.prompt_tokens - base) * per_token))
    return found


async def _prompt_tokens(connections: Connections, plan: Plan, said: tuple[tuple[str, str], ...]) -> int | None:
    question = Question(api=plan.api, said=said, max_tokens=16, more=_more(plan))
    return (await ask(connections, question)).prompt_tokens


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in values)
