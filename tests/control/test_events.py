"""What happens, as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from sekisho.control.api.events import EventBus


async def read(stream: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await anext(stream) for _ in range(count)]


def test_an_event_is_one_record_of_the_standard() -> None:
    """Id, kind and one line of JSON, closed by an empty line, whatever the data holds."""
    bus = EventBus()
    bus.publish("decision", 12.5, {"why": "line\nbreak\r\n\n"})
    record = bus._recent[0].encoded()
    lines = record.decode().split("\n")
    assert lines[:2] == ["id: 1", "event: decision"]
    assert json.loads(lines[2].removeprefix("data: ")) == {"at": 12.5, "data": {"why": "line\nbreak\r\n\n"}}
    assert lines[3:] == ["", ""]


async def test_every_reader_gets_every_event_in_order() -> None:
    """From the moment it came."""
    bus = EventBus()
    bus.publish("policy", 0.0, 0)
    streams = [bus.stream(), bus.stream()]
    tasks = [asyncio.create_task(read(stream, 3)) for stream in streams]
    await asyncio.sleep(0)
    for number in range(3):
        bus.publish("policy", 0.0, number)
    for task in tasks:
        assert [json.loads(r.split(b"data: ")[1])["data"] for r in await task] == [0, 1, 2]
    for stream in streams:
        await stream.aclose()
    assert bus.readers == 0


async def test_who_comes_back_gets_what_it_missed() -> None:
    """By the id of the last event it saw."""
    bus = EventBus()
    for number in range(5):
        bus.publish("metrics", 0.0, number)
    async with contextlib.aclosing(bus.stream(after=3)) as stream:
        assert [json.loads(r.split(b"data: ")[1])["data"] for r in await read(stream, 2)] == [3, 4]


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    """And holds nobody up: publishing does not wait."""
    bus = EventBus()
    async with contextlib.aclosing(bus.stream()) as stream:
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        bus.publish("metrics", 0.0, "first")
        await task
        for number in range(300):
            bus.publish("metrics", 0.0, number)
        assert await anext(stream) == b'event: lost\ndata: {"count":44}\n\n'
        assert json.loads((await anext(stream)).split(b"data: ")[1])["data"] == 44


async def test_silence_is_broken_by_a_comment() -> None:
    """So that a proxy between does not close what is only quiet."""
    async with contextlib.aclosing(EventBus().stream(keepalive_s=0.0)) as stream:
        assert await anext(stream) == b": nothing new\n\n"
