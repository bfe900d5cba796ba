"""One measured request as a value: read out of its exchange, after the measuring."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from sekisho.evaluate.client.answer import Answer, Expected
from sekisho.evaluate.client.answer_apis import Api, read
from sekisho.evaluate.client.exchange import Exchange
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.speed.pace import pace, pauses_ms
from sekisho.evaluate.statistics import percentile

Loop = Literal["warmup", "closed", "open"]
Arrivals = Literal["poisson", "constant"]
Language = Literal["ja", "en"]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """`requests` requests of one kind at one place. A measurement may have several blocks, so that what changes
    meanwhile changes it at every place: `block` counts them, and `first` is the index of the block's first request.

    `tokens`: the longest answer asked for. `closed` and `warmup`: `parallel` askers, each asks again when answered.
    `open`: `rate` requests a second by `arrivals`, whether or not answers come. `prompt_tokens`: how long the prompt
    is made; None: as long as it is.
    """

    place: Place
    loop: Loop
    tokens: int
    requests: int
    parallel: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    prompt_tokens: int | None = None
    block: int = 0
    first: int = 0

    @property
    def id(self) -> str:
        """The same for all blocks: `gateway.closed.p3.t256`, as in the figures' ids."""
        level = f"p{self.parallel}" if self.rate is None else f"r{self.rate:g}"
        prompt = "" if self.prompt_tokens is None else f"i{self.prompt_tokens}."
        return f"{self.place}.{self.loop}.{level}.{prompt}t{self.tokens}"

    @property
    def key(self) -> str:
        """One block's own name."""
        return f"{self.id}.b{self.block}"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Moments are ms after the block's beginning, all others ms after the request's scheduled start; to
    the microsecond. In a closed loop a request is scheduled when it starts, so `late_ms` is 0.

    `prompt_wanted`: how many tokens the prompt was made to have (grid); `prompt_tokens`: how many the server counted.
    `faults`: kinds, the failing ones too; `detail` explains the first one. `connect_ms` None: on a kept connection.
    `moments`: how many different moments of arrival the answer had. `tok_s`, `tpot_ms`: see `pace`. `itl_…_ms`: of the
    pauses between two arrivals. `read_early`: read while others were still measured, to keep within the memory.
    """

    cell: str
    place: Place
    loop: Loop
    block: int
    parallel: int
    rate: float | None
    tokens: int
    prompt_wanted: int | None
    index: int
    prompt: str
    language: Language
    scheduled_ms: float
    started_ms: float
    late_ms: float
    connect_ms: float | None
    http: int | None
    ok: bool
    faults: tuple[str, ...]
    detail: str
    finish: str | None
    ttfb_ms: float | None
    ttft_ms: float | None
    total_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    hidden_tokens: int
    pieces: int
    moments: int
    tok_s: float | None
    tpot_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    itl_max_ms: float | None
    bytes: int
    read_early: bool = False


class Request(msgspec.Struct, frozen=True):
    """One request, written out before the measuring begins."""

    index: int
    prompt: str
    language: Language
    body: bytes


class Timed(msgspec.Struct, frozen=True):
    """What came back, not read yet. `scheduled_s`: when the request should have left, by `perf_counter`."""

    request: Request
    scheduled_s: float
    exchange: Exchange

    @property
    def size(self) -> int:
        """About how many bytes of memory this holds."""
        return sum(_ARRIVAL_BYTES + len(data) for _, data in self.exchange.arrivals)


_ARRIVAL_BYTES = 140  # a tuple, a float and the head of a bytes object


def sample(cell: Cell, timed: Timed, target: Target, api: Api, zero_s: float, *, early: bool = False) -> Sample:
    """Reads an exchange. `zero_s`: the block's beginning. Never raises."""
    exchange, request = timed.exchange, timed.request
    answer = read(api, exchange, Expected((target.model,), stream=True, max_tokens=cell.tokens))
    late_ms = max(0.0, (exchange.started_s - timed.scheduled_s) * 1e3)
    tokens = None if answer.completion_tokens is None else answer.completion_tokens - answer.hidden_tokens
    seen = pace(answer.pieces_ms, tokens, answer.total_ms)
    pauses = pauses_ms(answer.pieces_ms)
    connected_s = exchange.connected_s
    return Sample(
        cell=cell.id,
        place=cell.place,
        loop=cell.loop,
        block=cell.block,
        parallel=cell.parallel,
        rate=cell.rate,
        tokens=cell.tokens,
        prompt_wanted=cell.prompt_tokens,
        index=request.index,
        prompt=request.prompt,
        language=request.language,
        scheduled_ms=round((timed.scheduled_s - zero_s) * 1e3, 3),
        started_ms=round((exchange.started_s - zero_s) * 1e3, 3),
        late_ms=round(late_ms, 3),
        connect_ms=None if connected_s is None else round((connected_s - exchange.started_s) * 1e3, 3),
        http=exchange.status,
        ok=answer.ok,
        faults=tuple(fault.kind for fault in answer.faults),
        detail=_detail(answer, target),
        finish=answer.finish,
        ttfb_ms=_later(answer.ttfb_ms, late_ms),
        ttft_ms=_later(answer.first_text_ms, late_ms),
        total_ms=round(answer.total_ms + late_ms, 3),
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        hidden_tokens=answer.hidden_tokens,
        pieces=len(answer.pieces_ms),
        moments=seen.moments,
        tok_s=_rounded(seen.tok_per_s, 6),
        tpot_ms=_rounded(seen.tpot_ms),
        itl_p50_ms=_rounded(percentile(pauses, 50)),
        itl_p95_ms=_rounded(percentile(pauses, 95)),
        itl_max_ms=_rounded(max(pauses, default=None)),
        bytes=sum(len(data) for _, data in exchange.arrivals),
        read_early=early,
    )


def ok_of(samples: Sequence[Sample]) -> list[Sample]:
    return [each for each in samples if each.ok]


def _detail(answer: Answer, target: Target) -> str:
    """The server's words may repeat the key that it was sent."""
    words = answer.faults[0].detail if answer.faults else ""
    return words if target.key is None else words.replace(target.key.reveal(), str(target.key))


def _later(ms: float | None, late_ms: float) -> float | None:
    return None if ms is None else round(ms + late_ms, 3)


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
