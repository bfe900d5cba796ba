"""The supervisor and a real engine worker together."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from sekisho.core.errors import ServiceError
from sekisho.core.events import Event, Failed, Finished
from sekisho.core.turn import Message, Text, Turn
from sekisho.engines.config import ModelConfig
from sekisho.engines.openai_http import OpenAiHttpEngine
from sekisho.ops.supervisor import ChildSpec, Supervisor

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")


def say(text: str, *, stream: bool = False) -> Turn:
    return Turn("turn_1", "chat", "m", messages=(Message("user", (Text(text),)),), stream=stream)


async def test_an_engine_that_is_killed_under_load_serves_again_without_a_hand(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    """kill -9 under twenty streams: each client is told with an id of its own, and soon the next turn is answered."""
    argv = (sys.executable, "-m", "sekisho.engines.fake_server", "--port", str(unused_tcp_port))
    engine = OpenAiHttpEngine(ModelConfig("m", engine="openai_http"), f"http://127.0.0.1:{unused_tcp_port}/v1")

    async def ready() -> None:
        async with asyncio.timeout(60):
            while (await engine.health()).state != "ready":  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    begun = asyncio.Semaphore(0)

    async def one() -> Event:
        events: list[Event] = []
        try:
            async for batch in engine.generate(say("a b stall:1", stream=True)):
                if not events:
                    begun.release()
                events += batch
            return events[-1]
        except ServiceError as error:
            return Failed(error.id, error.error_code, error.type, error.message)

    async with Supervisor(tmp_path, [ChildSpec("engine", argv, tmp_path / "engine.log")]) as supervisor:
        await ready()
        tasks = [asyncio.create_task(one()) for _ in range(20)]
        async with asyncio.timeout(60):
            for _ in tasks:
                await begun.acquire()
        pid = supervisor.status("engine").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*tasks)
        assert len({end.id for end in ends if isinstance(end, Failed)}) == 20
        await ready()
        events = [event async for batch in engine.generate(say("back")) for event in batch]
        assert isinstance(events[-1], Finished)
        assert supervisor.status("engine").restarts == 1
    await engine.close()
