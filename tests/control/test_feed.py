"""The agent's client of the feed: every sample once, whatever becomes of the gateway."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from samples_harness import sample

from sekisho.control.base import EngineState
from sekisho.control.feed import FIRST_PAUSE_S, LONGEST_PAUSE_S, Batch, Feed, Place, read
from sekisho.control.feed_answer import PATH, FeedAnswer

KEY = "the-key"


class Memory:
    """What one gateway process remembers: the newest `kept` of the requests that ended in it."""

    def __init__(self, start: str, kept: int = 10_000) -> None:
        self.start = start
        self.last = 0
        self._kept = kept

    def answer(self, place: Place, limit: int = 1000) -> FeedAnswer:
        after = place.after if place.start == self.start else 0
        first = max(after, self.last - self._kept) + 1
        numbers = range(first, min(self.last + 1, first + limit))
        samples = tuple(sample(number, model=self.start) for number in numbers)
        ages_s = tuple(float(self.last - number) for number in numbers)
        return FeedAnswer(self.start, float(self.last), self.last, samples, ages_s, ())


# --- reading ---------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(st.tuples(st.just("end"), st.integers(1, 30)), st.tuples(st.sampled_from(["ask", "restart"]), st.just(0)))
)


@given(STEPS, st.integers(1, 20), st.integers(1, 8))
def test_every_sample_comes_once_in_order_and_what_is_gone_is_counted(
    steps: list[tuple[str, int]], kept: int, limit: int
) -> None:
    """Whatever ends, is asked for, or starts anew in between: no number twice, none out of order, and each that does
    not come was forgotten by the gateway (and counted), or was never fetched from one that is gone."""
    memories, place = [Memory("g0", kept)], Place()
    told: dict[str, list[int]] = {}
    missed: dict[str, int] = {}
    first_known_s: float | None = None
    for kind, count in [*steps, *[("ask", 0)] * 50]:
        memory = memories[-1]
        if kind == "end":
            memory.last += count
        elif kind == "restart":
            memories.append(Memory(f"g{len(memories)}", kept))
        else:
            was = place
            place, batch = read(place, memory.answer(place, limit))
            assert batch.restarted == (was.start is not None and was.start != memory.start)
            told.setdefault(memory.start, []).extend(each.number for each in batch.samples)
            missed[memory.start] = missed.get(memory.start, 0) + batch.missed
            if was.start is None:
                first_known_s = batch.known_s
                missed[memory.start] += (batch.samples[0].number - 1) if batch.samples else 0
            else:
                assert batch.known_s is None
    for start, numbers in told.items():
        assert numbers == sorted(set(numbers))
        assert (numbers[-1] if numbers else 0) == len(numbers) + missed[start]
    assert (told[memories[-1].start] or [0])[-1] == memories[-1].last
    assert first_known_s is not None


def test_an_answer_that_comes_twice_is_told_once() -> None:
    """A gateway that sends what was fetched already adds nothing."""
    memory = Memory("g")
    memory.last = 5
    place, first = read(Place(), memory.answer(Place()))
    place, again = read(place, memory.answer(Place()))
    assert (len(first.samples), again.samples, again.missed) == (5, (), 0)
    assert place == Place("g", 5)


def test_what_is_known_begins_where_the_memory_does() -> None:
    """The first answer says for how long back all is told: since the gateway began, or since its oldest sample."""
    young, old = Memory("g"), Memory("h", kept=4)
    young.last = old.last = 9
    assert read(Place(), young.answer(Place()))[1].known_s == 9.0
    assert read(Place(), old.answer(Place()))[1].known_s == 3.0
    assert read(Place(), old.answer(Place()))[1].missed == 0


# --- asking ----------------------------------------------------------------------------------------------------------


Handler = Callable[[web.Request], "web.Response"]


@asynccontextmanager
async def serving(handler: Handler, port: int = 0, path: str = PATH) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        return handler(request)

    app = web.Application()
    app.router.add_get(path, handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def remembering(memory: Memory) -> Handler:
    """Answers as a gateway does."""

    def handle(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        place = Place(request.query.get("start"), int(request.query["after"]))
        return web.Response(body=msgspec.json.encode(memory.answer(place)))

    return handle


class Pauses:
    """Waits for nothing and remembers how long it should have."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        await asyncio.sleep(0)


async def first_batches(feed: Feed, count: int) -> list[Batch]:
    found: list[Batch] = []
    batches = feed.batches()
    try:
        async for batch in batches:
            found.append(batch)
            if len(found) == count:
                return found
    finally:
        await batches.aclose()
        await feed.close()
    raise AssertionError("the feed ended")


async def test_batches_come_one_after_the_other() -> None:
    """Samples, ages and models as the gateway tells them; while all is well there is no reason."""
    memory = Memory("g")
    memory.last = 3
    state = EngineState("m", "fake", "ready", None, 1, 2, 4)

    def handle(request: web.Request) -> web.Response:
        answer = msgspec.structs.replace(memory.answer(Place(None, int(request.query["after"]))), models=(state,))
        memory.last += 1
        return web.Response(body=msgspec.json.encode(answer))

    async with serving(handle) as url:
        feed = Feed(url, KEY, wait_s=0)
        assert feed.reason == "the gateway has not been asked yet"
        first, second = await first_batches(feed, 2)
    assert feed.reason is None
    assert [each.number for each in first.samples] == [1, 2, 3]
    assert first.models == (state,)
    assert first.known_s == 3.0
    assert second.known_s is None


async def test_it_waits_only_while_all_is_well() -> None:
    """The first question, and each after trouble, asks for no wait: coming back is seen at once."""
    asked: list[str] = []
    broken = iter([False, False, True, False, False])

    def handle(request: web.Request) -> web.Response:
        asked.append(request.query["wait_s"])
        return web.Response(status=500) if next(broken) else web.Response(body=msgspec.json.encode(answer))

    answer = Memory("g").answer(Place())
    async with serving(handle) as url:
        await first_batches(Feed(url, KEY, wait_s=20, pause=Pauses()), 5)
    assert asked == ["0", "20", "20", "0", "20"]


async def test_a_gateway_that_is_gone_is_told_and_asked_again_with_growing_pauses(unused_tcp_port: int) -> None:
    """Each try that fails is a batch with its reason; the pauses double up to their limit; the first answer afterwards
    has all that the new gateway knows, and the pauses begin anew."""
    pauses = Pauses()
    feed = Feed(f"http://127.0.0.1:{unused_tcp_port}", KEY, wait_s=0, pause=pauses, chance=random.Random(3))
    batches = feed.batches()
    memory = Memory("old")
    memory.last = 2
    async with serving(remembering(memory), unused_tcp_port):
        assert len((await anext(batches)).samples) == 2
    for _ in range(8):
        batch = await anext(batches)
        assert batch.samples == ()
        assert batch.reason is not None
        assert batch.reason.startswith("the gateway does not answer: ")
        assert feed.reason == batch.reason
    new = Memory("new")
    new.last = 1
    async with serving(remembering(new), unused_tcp_port):
        batch = await anext(batches)
    assert (batch.restarted, [each.model for each in batch.samples], feed.reason) == (True, ["new"], None)
    await anext(batches)
    await anext(batches)
    await batches.aclose()
    await feed.close()
    wholes_s = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number) for number in range(8)]
    assert len(pauses.asked_s) == 9
    for asked_s, whole_s in zip(pauses.asked_s, [*wholes_s, FIRST_PAUSE_S], strict=True):
        assert whole_s * 1.1 <= asked_s <= whole_s * 1.3


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", "another SEKISHO_WORKER_KEY"),
        (403, b"", "allow_networks"),
        (404, b"", "no feed"),
        (503, b"", "status 503"),
        (302, b"", "status 302"),
        (200, b"<html>", "another shape"),
        (200, b"\xff\xfe", "another shape"),
        (200, b'{"start": 1}', "another shape"),
        (200, b"[" * 100_000, "another shape"),
    ],
)
async def test_whatever_a_gateway_answers_nothing_is_raised(status: int, body: bytes, words: str) -> None:
    """A wrong key, an older gateway, a proxy's page, bytes of any kind: a reason in words, and the loop goes on."""

    def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere"})

    async with serving(handle) as url:
        found = await first_batches(Feed(url, KEY, wait_s=0, pause=Pauses()), 2)
    assert all(words in (batch.reason or "") for batch in found)


async def test_a_connection_that_is_cut_in_mid_answer_is_no_end() -> None:
    """A gateway killed while it answers: told, and asked again."""
    served = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(cut, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await first_batches(Feed(f"http://127.0.0.1:{port}", KEY, wait_s=0, pause=Pauses()), 3)
    assert served == 3
    assert all(batch.reason for batch in found)


async def test_the_key_goes_to_no_other_address() -> None:
    """An answer that points elsewhere is not followed."""
    seen: list[str | None] = []

    def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    async with serving(elsewhere, path="/trap") as trap:

        def handle(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{trap}/trap"})

        async with serving(handle) as url:
            (batch,) = await first_batches(Feed(url, KEY, wait_s=0, pause=Pauses()), 1)
    assert batch.reason == "the gateway answers with status 307"
    assert seen == []


def test_an_address_must_be_one() -> None:
    """A wrong setting is told at once and not retried for ever."""
    for url in ("", "127.0.0.1:7010", "ftp://127.0.0.1"):
        with pytest.raises(ValueError, match="not an http address"):
            Feed(url, KEY)
