"""Asks a server many questions and keeps what comes back, with the moments; nothing is read while it is measured.

closed loop   so many askers, each asks again when it is answered: a server that stands still is asked less
open loop     requests leave at moments that are drawn beforehand, and every time is counted from those: a server that
              stands still keeps all of them waiting
"""

import asyncio
import gc
import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import msgspec

from sekisho.evaluate.client.answer_apis import Api
from sekisho.evaluate.client.asking import PATHS
from sekisho.evaluate.client.exchange import Connections, Exchange
from sekisho.evaluate.speed.samples import Arrivals, Cell, Request, Sample, Timed, sample

KEPT_BYTES: Final = 256 << 20
"""How much of unread answers is kept in a cell: some 500,000 pieces. Beyond it, answers are read as they end, which
takes time from the measuring; their samples say so."""
MOST_UNDER_WAY: Final = 1024
"""Open loop: later requests wait here for a free place; their waiting counts, and shows as lateness too."""
GIVE_UP_AFTER: Final = 5
"""After so many requests in a row that nothing answered, the rest of a cell is not asked."""
BEAT_S: Final = 0.01
_LEAD_S: Final = 0.05  # the first request of an open loop is due so long after the beginning
_NOBODY: Final = ("not_connected", "no_answer", "silent", "trickled")

Ended = Callable[[Timed], None]


class Options(msgspec.Struct, frozen=True):
    """`fresh`: each request on a connection of its own, as `curl` does; else on kept ones, as client libraries do."""

    api: Api = "chat"
    fresh: bool = False
    kept_bytes: int = KEPT_BYTES
    most_under_way: int = MOST_UNDER_WAY
    give_up_after: int = GIVE_UP_AFTER


class Measured(msgspec.Struct, frozen=True):
    """Samples by index; fewer than requests where nobody answered any more. `lags_ms`: how late this program itself was
    served by the machine, looked at every `BEAT_S`; so much the moments of a sample may be late, too."""

    samples: list[Sample]
    lags_ms: list[float]


async def run(
    cell: Cell,
    connections: Connections,
    requests: Sequence[Request],
    options: Options,
    moments_s: Sequence[float] = (),
    ended: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Sends `requests` as the cell says and reads their answers when the last one has come.

    `moments_s`: when each one leaves, after the beginning (open loop only). `ended` is told how many have ended: it
    must be cheap. Cancelling ends at once, and closes the connections of what is under way.
    """
    keeper = _Keeper(cell, connections, options, ended)
    lags_ms: list[float] = []
    beats = (perf_counter() + number * BEAT_S for number in itertools.count(1))
    with quiet(), _Metronome(beats, lambda _, due_s: lags_ms.append((perf_counter() - due_s) * 1e3)):
        if cell.loop == "open":
            await open_loop(connections, requests, moments_s, options, keeper.keep)
        else:
            await closed_loop(connections, requests, cell.parallel, options, keeper.keep)
    return Measured(await keeper.read(), lags_ms)


class _Keeper:
    """Keeps exchanges until the cell has ended, as long as they fit into the memory."""

    def __init__(self, cell: Cell, connections: Connections, options: Options, ended: Callable[[int], None]) -> None:
        self._cell, self._target, self._options, self._ended = cell, connections.target, options, ended
        self._zero_s = perf_counter()
        self._timed: list[Timed] = []
        self._samples: list[Sample] = []
        self._size = 0
        self._count = 0

    def keep(self, timed: Timed) -> None:
        size = timed.size
        if self._size + size > self._options.kept_bytes:
            self._samples.append(self._read(timed, early=True))
        else:
            self._size += size
            self._timed.append(timed)
        self._count += 1
        self._ended(self._count)

    async def read(self) -> list[Sample]:
        for timed in self._timed:
            self._samples.append(self._read(timed, early=False))
            await asyncio.sleep(0)  # a reader of megabytes must not hold up a Ctrl-C
        return sorted(self._samples, key=lambda each: each.index)

    def _read(self, timed: Timed, *, early: bool) -> Sample:
        return sample(self._cell, timed, self._target, self._options.api, self._zero_s, early=early)


@contextmanager
def quiet() -> Iterator[None]:
    """The collector rests, so that its pauses are not measured. What a cell leaves behind is collected after it."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


class _Patience:
    """Ends a cell that nobody answers any more, or it would wait out the time limit of each request."""

    def __init__(self, most: int) -> None:
        self._most, self._in_a_row = most, 0

    @property
    def is_over(self) -> bool:
        return self._in_a_row >= self._most

    def see(self, exchange: Exchange) -> None:
        self._in_a_row = self._in_a_row + 1 if exchange.trouble in _NOBODY else 0


async def closed_loop(
    connections: Connections, requests: Sequence[Request], parallel: int, options: Options, ended: Ended
) -> None:
    """`parallel` askers share the requests."""
    waiting = iter(requests)
    patience = _Patience(options.give_up_after)

    async def asker() -> None:
        for request in waiting:
            if patience.is_over:
                return
            exchange = await _send(connections, request, options)
            patience.see(exchange)
            ended(Timed(request, exchange.started_s, exchange))

    async with asyncio.TaskGroup() as group:
        for _ in range(parallel):
            group.create_task(asker())


async def open_loop(
    connections: Connections,
    requests: Sequence[Request],
    moments_s: Sequence[float],
    options: Options,
    ended: Ended,
) -> None:
    """Request i leaves at `moments_s[i]`. The moments come from a thread of their own: an event loop's timers are only
    as fine as a millisecond."""
    patience = _Patience(options.give_up_after)
    free = asyncio.Semaphore(options.most_under_way)
    all_left = asyncio.Event()
    due_s = [perf_counter() + _LEAD_S + moment_s for moment_s in moments_s]

    async def send(index: int) -> None:
        async with free:
            if patience.is_over:
                return
            exchange = await _send(connections, requests[index], options)
        patience.see(exchange)
        ended(Timed(requests[index], due_s[index], exchange))

    async with asyncio.TaskGroup() as group:

        def leave(index: int, _: float) -> None:
            if all_left.is_set():
                return
            group.create_task(send(index))
            if index == len(due_s) - 1 or patience.is_over:
                all_left.set()

        try:
            with _Metronome(due_s, leave):
                if due_s:
                    await all_left.wait()
        finally:
            all_left.set()  # what the metronome has told the loop meanwhile comes too late


class _Metronome:
    """Calls `beat(i, due_s)` in the running loop at each moment, from a thread that sleeps until then."""

    def __init__(self, due_s: Iterable[float], beat: Callable[[int, float], object]) -> None:
        self._due_s, self._beat, self._loop = due_s, beat, asyncio.get_running_loop()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metronome", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        for index, due_s in enumerate(self._due_s):
            while (left_s := due_s - perf_counter()) > 0:
                if self._stop.wait(left_s):
                    return
            if self._stop.is_set():
                return
            self._loop.call_soon_threadsafe(self._beat, index, due_s)


async def _send(connections: Connections, request: Request, options: Options) -> Exchange:
    return await connections.exchange("POST", PATHS[options.api], request.body, fresh=options.fresh)


def departures(count: int, rate: float, arrivals: Arrivals, seed: int) -> tuple[float, ...]:
    """When `count` requests leave, in seconds, within `count / rate`: at even distances, or as a Poisson process that
    has so many in that time (independent and uniform, sorted). The same seed, the same moments."""
    if arrivals == "constant":
        return tuple(index / rate for index in range(count))
    chance = random.Random(seed)
    return tuple(sorted(chance.uniform(0, count / rate) for _ in range(count)))
