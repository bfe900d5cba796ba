"""The load generator, against a real server process that misbehaves when told to."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter, sleep

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_port import KeptPort

from sekisho.evaluate.client.asking import Question
from sekisho.evaluate.client.exchange import Connections, Limits
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.speed import load
from sekisho.evaluate.speed.pace import pace, pauses_ms
from sekisho.evaluate.speed.samples import Cell, Request, Sample, Timed

TOKENS = 64


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Target, int]]:
    """Its address and its process."""
    command = [sys.executable, "-m", "sekisho.engines.fake_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Target("engine", process.stdout.readline().strip(), "fake"), process.pid
        process.terminate()


@pytest.fixture
def target(server: tuple[Target, int]) -> Target:
    return server[0]


def written(texts: list[str], model: str = "fake", tokens: int = TOKENS) -> list[Request]:
    requests = []
    for index, text in enumerate(texts):
        question = Question(api="chat", said=(("user", text),), max_tokens=tokens, stream=True)
        requests.append(Request(index, "p", "en", question.body(model)))
    return requests


def closed(parallel: int = 1, requests: int = 1) -> Cell:
    return Cell(place="engine", loop="closed", tokens=TOKENS, requests=requests, parallel=parallel)


def opened(rate: float, requests: int) -> Cell:
    return Cell(place="engine", loop="open", tokens=TOKENS, requests=requests, rate=rate, arrivals="constant")


async def taken(
    target: Target, texts: list[str], parallel: int = 2, options: load.Options | None = None
) -> list[Sample]:
    async with Connections(target) as connections:
        cell = closed(parallel, len(texts))
        return (await load.run(cell, connections, written(texts), options or load.Options())).samples


async def until(holds: Callable[[], bool]) -> None:
    deadline_s = perf_counter() + 60
    while perf_counter() < deadline_s:
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


async def active(target: Target, holds: Callable[[int], bool]) -> None:
    """Waits until the server tells such a number of requests under way."""
    async with Connections(target) as connections:
        deadline_s = perf_counter() + 60
        while perf_counter() < deadline_s:
            exchange = await connections.exchange("GET", "/fake/stats")
            if holds(msgspec.json.decode(exchange.body)["active"]):
                return
            await asyncio.sleep(0.01)
    raise AssertionError("the server never was so busy, or so idle")


async def test_askers_share_the_requests_and_never_are_more(target: Target) -> None:
    """In a closed loop each request is asked once, and no more are under way than there are askers."""
    samples = await taken(target, ["tokens:5 pace:0.002"] * 24, parallel=3)
    assert [each.index for each in samples] == list(range(24))
    assert all(each.ok and each.late_ms == 0 for each in samples)
    edges = sorted(
        edge for each in samples for edge in ((each.scheduled_ms, 1), (each.scheduled_ms + each.total_ms, -1))
    )
    under_way, most = 0, 0
    for _, step in edges:
        under_way += step
        most = max(most, under_way)
    assert most == 3
    assert sum(each.connect_ms is not None for each in samples) == 3


async def test_one_in_fifty_failing_is_seen(target: Target) -> None:
    """A failure is a sample of its own, with the server's status and words, and spoils no other."""
    texts = ["tokens:4"] * 50
    texts[17] = "status:500"
    samples = await taken(target, texts, parallel=4)
    failed = [each for each in samples if not each.ok]
    assert [(each.index, each.http, each.faults) for each in failed] == [(17, 500, ("server_error",))]
    assert "asked to answer 500" in failed[0].detail
    assert failed[0].completion_tokens is None
    assert {each.completion_tokens for each in samples if each.ok} == {4}


async def test_a_slow_first_token_counts_until_the_token(target: Target) -> None:
    """TTFT ends with the first content, not with the first byte, and the end comes after it."""

    async def late_content(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: wait\n\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        delta = b'{"id":"c","model":"fake","choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]'
        usage = b',"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
        writer.write(b"data: " + delta + usage + b"\n\ndata: [DONE]\n\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(late_content, "127.0.0.1", 0) as slow:
        there = Target("engine", f"127.0.0.1:{slow.sockets[0].getsockname()[1]}", "fake")
        late = (await taken(there, ["hello"]))[0]
    assert late.ok
    assert late.ttfb_ms is not None
    assert late.ttft_ms is not None
    assert late.ttfb_ms < late.ttft_ms <= late.total_ms
    whole = (await taken(target, ["delay:0.05 tokens:3"]))[0]
    assert whole.ok
    assert whole.ttft_ms is not None
    assert whole.ttft_ms <= whole.total_ms


async def test_events_cut_at_any_byte_are_pieces_all_the_same(target: Target) -> None:
    """Split SSE has as many pieces as tokens, CRLF and comments make none."""
    texts = [f"tokens:6 split:{size} crlf:1 comments:1" for size in (1, 2, 3, 7)]
    for each in await taken(target, texts):
        assert each.ok
        assert (each.pieces, each.completion_tokens) == (6, 6)


async def test_a_cut_stream_is_no_success(target: Target) -> None:
    """A stream that breaks off is `cut`, with what came of it."""
    cut, whole = await taken(target, ["tokens:9 crash:4", "tokens:9"], parallel=1)
    assert (cut.ok, cut.faults[0], cut.pieces, cut.tok_s) == (False, "cut", 4, None)
    assert cut.ttft_ms is not None
    assert whole.ok


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """A process is stopped from the first line of the block to its last."""
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline_s = perf_counter() + 60
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            assert perf_counter() < deadline_s, "it never stood still"
            sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def within(timed: list[Timed], from_s: float, to_s: float) -> list[Timed]:
    return [each for each in timed if from_s < each.scheduled_s < to_s]


@pytest.mark.skipif(sys.platform == "win32", reason="a process is stopped by a signal")
async def test_only_an_open_loop_sees_how_many_a_frozen_server_keeps_waiting(server: tuple[Target, int]) -> None:
    """While a server stands still, a closed loop asks once for each asker, and an open loop asks on: each of those
    waits, counted from the moment at which it should have left, until the server lives again."""
    target, pid = server
    options = load.Options()
    asked: list[Timed] = []
    async with Connections(target) as connections:
        requests = written(["tokens:2 pace:0.01"] * 60)
        running = asyncio.ensure_future(load.closed_loop(connections, requests, 2, options, asked.append))
        await until(lambda: len(asked) >= 3)
        with standing_still(pid):
            stopped_s = perf_counter()
            await asyncio.sleep(0.3)
            resumed_s = perf_counter()
        await running
    assert len(asked) == 60
    assert len(within(asked, stopped_s, resumed_s)) <= 2

    asked = []
    async with Connections(target) as connections:
        requests, moments_s = written(["tokens:2"] * 60), load.departures(60, 200.0, "constant", 0)
        with standing_still(pid):
            stopped_s = perf_counter()
            running = asyncio.ensure_future(load.open_loop(connections, requests, moments_s, options, asked.append))
            await until(lambda: len(connections._all) >= 40)
            assert asked == []
            resumed_s = perf_counter()
        await running
    waiting = within(asked, stopped_s, resumed_s)
    assert len(asked) == 60
    assert len(waiting) >= 40
    assert all(each.exchange.trouble is None for each in asked)
    assert all(each.exchange.ended_s > resumed_s for each in waiting)


async def test_the_generators_own_lateness_is_told_and_counted(target: Target) -> None:
    """A request that leaves late is late by what the sample says, and its times are counted from when it was due."""
    options = load.Options(most_under_way=1)
    texts = ["tokens:2 delay:0.05"] * 6
    async with Connections(target) as connections:
        moments_s = load.departures(6, 1000.0, "constant", 0)
        samples = (await load.run(opened(1000.0, 6), connections, written(texts), options, moments_s)).samples
    for each in samples:
        assert each.started_ms - each.scheduled_ms == pytest.approx(each.late_ms, abs=0.002)
        assert each.ttfb_ms is not None
        assert each.late_ms < each.ttfb_ms < each.total_ms
    late = [each.late_ms for each in samples]
    assert late == sorted(late)
    # One at a time: nobody left before the one before had its answer.
    for before, after in pairwise(samples):
        assert after.started_ms >= before.scheduled_ms + before.total_ms - 0.01


@given(st.integers(1, 200), st.floats(0.1, 1000), st.integers(0, 9))
def test_departures_are_drawn_beforehand(count: int, rate: float, seed: int) -> None:
    """As many as asked for, in order, within the time that the rate gives them; the same seed draws the same."""
    poisson = load.departures(count, rate, "poisson", seed)
    assert poisson == load.departures(count, rate, "poisson", seed)
    assert list(poisson) == sorted(poisson)
    assert len(poisson) == count
    assert 0 <= poisson[0] <= poisson[-1] <= count / rate
    even = load.departures(count, rate, "constant", seed)
    assert all(moment == pytest.approx(index / rate) for index, moment in enumerate(even))


def test_poisson_departures_come_in_bursts() -> None:
    """Their gaps vary as those of independent arrivals do: about as much as their mean."""
    moments = load.departures(5000, 100.0, "poisson", 1)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread / mean == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("loop", ["closed", "open"])
async def test_cancelling_ends_at_once(target: Target, loop: str) -> None:
    """Ctrl-C in the middle leaves no request at the server, no thread, and the collector as it was."""
    texts = ["tokens:3 stall:1"] * 8
    async with Connections(target) as connections:
        cell = closed(4, 8) if loop == "closed" else opened(5.0, 8)
        moments_s = (0.0, 0.0, 0.0, *(60.0,) * 5)
        running = asyncio.ensure_future(load.run(cell, connections, written(texts), load.Options(), moments_s))
        await active(target, lambda count: count >= 3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await active(target, lambda count: count == 0)
    assert not [thread for thread in threading.enumerate() if thread.name == "metronome"]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


async def test_a_cell_that_nobody_answers_is_given_up() -> None:
    """After some requests in a row without an answer the rest is not asked, in both loops."""
    count = 10_000  # 50 s of an open loop: no busy machine is held up so long
    requests, options = written(["x"] * count), load.Options(give_up_after=3)
    with KeptPort() as port:
        async with Connections(Target("engine", f"127.0.0.1:{port}", "fake")) as connections:
            closed_ones = await load.run(closed(1, count), connections, requests, options)
            moments_s = load.departures(count, 200.0, "constant", 0)
            open_ones = await load.run(opened(200.0, count), connections, requests, options, moments_s)
    assert [each.faults for each in closed_ones.samples] == [("not_connected",)] * 3
    assert 3 <= len(open_ones.samples) < count


async def test_a_silent_server_is_given_up_by_its_limit() -> None:
    """A request that gets no byte ends by the limit, as `no_answer`."""
    taken_in: list[asyncio.StreamWriter] = []

    def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken_in.append(writer)

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        there = Target("engine", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "fake")
        async with Connections(there, Limits(silence_s=0.2)) as connections:
            measured = await load.run(closed(2, 9), connections, written(["x"] * 9), load.Options(give_up_after=2))
        for writer in taken_in:
            writer.close()
    assert {each.faults for each in measured.samples} == {("no_answer",)}
    assert len(measured.samples) < 9


async def test_unread_answers_fit_into_the_memory_they_are_given(target: Target) -> None:
    """Beyond the limit answers are read as they end, which their samples say; what is read is the same."""
    texts = ["tokens:20"] * 12
    late = await taken(target, texts, parallel=1)
    some = await taken(target, texts, parallel=1, options=load.Options(kept_bytes=20_000))
    assert not any(each.read_early for each in late)
    assert not all(each.read_early for each in some)
    assert [each.read_early for each in some] == sorted(each.read_early for each in some)
    assert some[-1].read_early
    assert [(each.ok, each.pieces, each.completion_tokens) for each in some] == [(True, 20, 20)] * 12
    assert [(each.ok, each.pieces, each.completion_tokens) for each in late] == [(True, 20, 20)] * 12


async def test_nothing_is_collected_while_it_is_measured(target: Target) -> None:
    """The garbage collector rests during a cell, and works again after it."""
    during: list[bool] = []
    async with Connections(target) as connections:
        await load.run(
            closed(1, 2),
            connections,
            written(["tokens:2"] * 2),
            load.Options(),
            (),
            lambda _: during.append(gc.isenabled()),
        )
    assert during == [False, False]
    assert gc.isenabled()


async def test_a_key_that_a_server_repeats_is_not_kept() -> None:
    """The server's words about an error are kept without the key that they may hold."""
    secret = "sk-sekisho-0123456789abcdefghij"

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        sent = head.partition("Bearer ")[2].partition("\r\n")[0]
        body = f'{{"error":{{"message":"{sent} is not allowed here"}}}}'
        writer.write(f"HTTP/1.1 401 No\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(chatty, "127.0.0.1", 0) as server:
        there = Target("engine", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "fake", Key(secret))
        (each,) = await taken(there, ["x"])
    assert each.faults == ("unauthorized",)
    assert each.detail.endswith("is not allowed here")
    assert secret not in msgspec.json.encode(each).decode()


@given(st.integers(2, 300), st.floats(0.1, 500), st.floats(0, 5000))
def test_a_token_a_piece_has_the_pace_that_mlperf_defines(tokens: int, every_ms: float, first_ms: float) -> None:
    """(n − 1) / (last − first), and (total − first) / (n − 1)."""
    pieces = [first_ms + number * every_ms for number in range(tokens)]
    total = pieces[-1] + 1.0
    seen = pace(pieces, tokens, total)
    assert seen.moments == len(set(pieces))
    if seen.tok_per_s is not None:
        assert seen.tok_per_s == pytest.approx((tokens - 1) / (pieces[-1] - pieces[0]) * 1e3)
        assert seen.tpot_ms == pytest.approx((total - pieces[0]) / (tokens - 1))
    else:
        assert len(set(pieces)) < 3 or pieces[-1] - pieces[0] < max(5.0, tokens / 5)


@given(st.integers(300, 1200), st.floats(0.5, 80), st.integers(10, 60), st.integers(5, 30))
def test_held_back_text_does_not_make_a_model_faster(tokens: int, every_ms: float, held: int, step: int) -> None:
    """A guard lets tokens go some steps late and all of the rest at the end: the pace is that of the model, while
    counting all tokens would make it faster by what was held."""
    written_ms = [100.0 + number * every_ms for number in range(tokens)]
    pieces: list[float] = []
    for number in range(step, tokens, step):
        pieces += [written_ms[number]] * (max(0, number - held) - len(pieces))
    pieces += [written_ms[-1]] * (tokens - len(pieces))
    seen = pace(pieces, tokens, pieces[-1])
    true = 1e3 / every_ms
    assert seen.tok_per_s == pytest.approx(true, rel=0.2)
    naive = (tokens - 1) / (pieces[-1] - pieces[0]) * 1e3
    assert abs(naive - true) > abs((seen.tok_per_s or 0.0) - true)


def test_a_long_wait_before_an_answer_does_not_hide_its_pace() -> None:
    """After half a minute in a queue, an answer that is written in half a second has the pace at which it came."""
    pieces = [30_000 + number / 450 * 1e3 for number in range(256)]
    assert pace(pieces, 256, pieces[-1]).tok_per_s == pytest.approx(450)


def test_what_came_at_once_has_no_pace() -> None:
    """One piece, one moment, one burst that the network cut in parts, or no usage: no speed rather than a wrong one."""
    assert pace([5.0] * 40, 40, 5.1).tok_per_s is None
    assert pace([], None, 5.0) == pace([], 10, 5.0)
    assert pace([1.0, 2.0, 3.0], None, 3.0).tok_per_s is None
    assert pace([1.0], 1, 3.0).tpot_ms is None
    burst = [50.0] * 10 + [50.05] * 10 + [50.1] * 24
    assert pace(burst, 44, 50.1).tok_per_s is None
    assert pace([100.0] * 20 + [200.0] * 30, 50, 200.0).tok_per_s is None
    slow_network = [30_000 + number * 0.02 for number in range(1024)]
    assert pace(slow_network, 1024, slow_network[-1]).tok_per_s is None
    assert pauses_ms([1.0, 1.0, 4.0, 6.0, 6.0]) == [3.0, 2.0]
