"""What a benchmark does, fixed before it begins.

    seed    the numbers of the two-week evaluation: 10 warm-ups, then 30 requests of 256 tokens and 10 of 1024, for 1, 2
            and 3 in parallel, all in a closed loop
    full    80 requests a cell, which is what an interval on a 95th percentile needs, and an open loop
    quick   80 requests of 256 tokens, 10 of 1024, and an open loop: for a fast model

Cells of all places alternate, the order turned round from block to block (ABBA), so that what drifts meanwhile, drifts
for every place.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.client.answer_apis import Api
from sekisho.evaluate.client.target import Place
from sekisho.evaluate.speed.prompts import Cache
from sekisho.evaluate.speed.samples import Arrivals, Cell, Language, Sample, ok_of

PlanName = Literal["seed", "full", "quick"]
PLACES: tuple[Place, ...] = ("engine", "gateway", "public")
"""In the order of a request's way back."""


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`requests` of at most `tokens` tokens each, for every parallelism."""

    tokens: int
    requests: int


class OpenLoop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rate` None: `share` of what the slowest place carried with the most askers in a closed loop."""

    requests: int = 80
    tokens: int = 256
    rate: float | None = None
    share: float = 0.7
    arrivals: Arrivals = "poisson"


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Each length of prompt with each parallelism."""

    prompt_tokens: tuple[int, ...]
    parallels: tuple[int, ...] = (1, 2, 4)
    tokens: int = 128
    requests: int = 20


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`blocks`: in how many parts each cell is measured. `cache`: see `prompts`. `fresh`: each request on a connection
    of its own. `temperature` None: the server's own. `ignore_eos`: every answer as long as it may be; many servers
    refuse that. `seed`: of prompts' marks, sampling and departures. Raises InvalidRequest for what cannot be done."""

    name: str = "seed"
    api: Api = "chat"
    parallels: tuple[int, ...] = (1, 2, 3)
    sizes: tuple[Size, ...] = (Size(256, 30), Size(1024, 10))
    warmups: int = 10
    warmup_tokens: int = 128
    blocks: int = 2
    open: OpenLoop | None = None
    grid: Grid | None = None
    languages: tuple[Language, ...] = ("ja", "en")
    cache: Cache = "unique"
    fresh: bool = False
    temperature: float | None = 0.0
    ignore_eos: bool = False
    seed: int = 7

    def __post_init__(self) -> None:
        counts = [*self.parallels, self.blocks, *(n for size in self.sizes for n in (size.tokens, size.requests))]
        if self.open is not None:
            counts += [self.open.requests, self.open.tokens]
        if self.grid is not None:
            grid = self.grid
            counts += [*grid.prompt_tokens, *grid.parallels, grid.tokens, grid.requests]
        if min(counts, default=1) < 1 or self.warmups < 0 or self.warmup_tokens < 1:
            raise InvalidRequest("A benchmark's numbers (parallel, tokens, requests, blocks) are 1 or more.")
        if not self.languages or not (self.parallels or self.grid):
            raise InvalidRequest("A benchmark needs a language and a parallelism.")
        if self.open is not None and (self.open.share <= 0 or (self.open.rate is not None and self.open.rate <= 0)):
            raise InvalidRequest("The rate of an open loop is above 0 requests a second.")
        if self.ignore_eos and self.api == "responses":
            raise InvalidRequest("The Responses API has no ignore_eos: use the chat API for answers of a fixed length.")


PLANS: dict[PlanName, Plan] = {
    "seed": Plan(),
    "full": Plan(name="full", sizes=(Size(256, 80), Size(1024, 80)), open=OpenLoop()),
    "quick": Plan(name="quick", sizes=(Size(256, 80), Size(1024, 10)), open=OpenLoop()),
}


def closed_cells(plan: Plan, places: Sequence[Place]) -> tuple[Cell, ...]:
    """Warm-ups, the closed loops and the grid, in the order in which they are measured."""
    most = max((*plan.parallels, *(plan.grid.parallels if plan.grid else ())))
    cells: list[Cell] = []
    if plan.warmups:
        for place in _ordered(places):
            cell = Cell(place=place, loop="warmup", tokens=plan.warmup_tokens, requests=plan.warmups, parallel=most)
            cells.append(cell)
    turn = 0
    for size in plan.sizes:
        for parallel in plan.parallels:
            kind = Cell(place="engine", loop="closed", tokens=size.tokens, requests=size.requests, parallel=parallel)
            cells += _alternating(kind, plan, places, turn)
            turn += 1
    for prompt_tokens, parallel in _grid(plan.grid):
        assert plan.grid is not None
        kind = Cell(
            place="engine",
            loop="closed",
            tokens=plan.grid.tokens,
            requests=plan.grid.requests,
            parallel=parallel,
            prompt_tokens=prompt_tokens,
        )
        cells += _alternating(kind, plan, places, turn)
        turn += 1
    return tuple(cells)


def open_cells(plan: Plan, places: Sequence[Place], rate: float | None) -> tuple[Cell, ...]:
    """The open loop's cells, once its rate is known; none without a rate."""
    if plan.open is None or rate is None:
        return ()
    kind = Cell(
        place="engine",
        loop="open",
        tokens=plan.open.tokens,
        requests=plan.open.requests,
        rate=rate,
        arrivals=plan.open.arrivals,
    )
    return tuple(_alternating(kind, plan, places, 0))


def open_rate(plan: Plan, samples: Iterable[Sample]) -> float | None:
    """The given rate, or the share of what the slowest place carried; to two digits. None where nothing was carried."""
    if plan.open is None:
        return None
    if plan.open.rate is not None:
        return plan.open.rate
    most = max(plan.parallels, default=0)
    carried: dict[Place, list[Sample]] = {}
    for each in samples:
        alike = each.parallel == most and each.tokens == plan.open.tokens and each.prompt_wanted is None
        if each.loop == "closed" and alike:
            carried.setdefault(each.place, []).append(each)
    rates = [requests_per_s(of_place) for of_place in carried.values()]
    known = [rate for rate in rates if rate is not None]
    return float(f"{plan.open.share * min(known):.2g}") if known else None


def requests_per_s(samples: Sequence[Sample]) -> float | None:
    """Successes of one cell over the time that its blocks took. None without a success."""
    ok = len(ok_of(samples))
    seconds = sum(_duration_s([each for each in samples if each.block == block]) for block in _blocks(samples))
    return ok / seconds if ok and seconds > 0 else None


def output_per_s(samples: Sequence[Sample]) -> float | None:
    """Output tokens of one cell's successes over the time that its blocks took; None where no tokens were told."""
    tokens = sum(each.completion_tokens or 0 for each in ok_of(samples))
    seconds = sum(_duration_s([each for each in samples if each.block == block]) for block in _blocks(samples))
    return tokens / seconds if tokens and seconds > 0 else None


def _duration_s(block: Sequence[Sample]) -> float:
    begun = min(each.scheduled_ms for each in block)
    return (max(each.scheduled_ms + each.total_ms for each in block) - begun) / 1e3


def _blocks(samples: Sequence[Sample]) -> set[int]:
    return {each.block for each in samples}


def _grid(grid: Grid | None) -> Iterator[tuple[int, int]]:
    if grid is not None:
        yield from ((tokens, parallel) for tokens in grid.prompt_tokens for parallel in grid.parallels)


def _alternating(kind: Cell, plan: Plan, places: Sequence[Place], turn: int) -> Iterator[Cell]:
    """The blocks of one kind of cell at all places, the order turned round each time."""
    blocks = min(plan.blocks, kind.requests)
    first = 0
    for block in range(blocks):
        count = kind.requests // blocks + (block < kind.requests % blocks)
        for place in _ordered(places, turned=(turn + block) % 2 == 1):
            yield msgspec.structs.replace(kind, place=place, block=block, first=first, requests=count)
        first += count


def _ordered(places: Sequence[Place], *, turned: bool = False) -> list[Place]:
    return sorted(places, key=PLACES.index, reverse=turned)
