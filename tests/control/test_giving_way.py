"""A measurement gives way to traffic: a real one of llama.cpp, and work that ends, fails or is ended by others."""

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest

from sekisho.control.base import EngineState, Signals
from sekisho.control.giving_way import TRAFFIC_S, GaveWay, GivingWay
from sekisho.control.perplexity import measure, texts
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.measure import Job, Target
from sekisho.core.clock import SystemClock
from sekisho.engines.config import ModelConfig


def seen(at_s: float, *, model: str = "m", running: int | None = 0, waiting: int | None = None) -> Signals:
    return Signals(1e9, at_s, (EngineState(model, "llama_cpp", "ready", running=running, waiting=waiting),))


async def children() -> list[psutil.Process]:
    """Those of ours that measure, once there is one."""
    while True:
        if found := [each for each in psutil.Process().children() if _measures(each)]:
            return found
        await asyncio.sleep(0.01)


def _measures(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # another one that has ended, perhaps long ago
        return any("llama_child" in word for word in process.cmdline())
    return False


async def test_the_process_that_measures_ends_with_the_first_traffic(tmp_path: Path) -> None:
    """llama.cpp with the built-in model, a full run: its child is gone, and the reason names who was served."""
    target = Target(ModelConfig("m", path="builtin", threads=1, kv_type_k="q8_0", kv_type_v="q8_0"))
    giving = GivingWay()
    work = measure.compared(target, Job(texts.built_in(), "full"), SystemClock(), Baselines(tmp_path / "b.json"))
    run = asyncio.create_task(giving.run(work))
    (child,) = await children()
    giving.look(seen(0.0, running=2, waiting=1))
    giving.look(seen(TRAFFIC_S, running=2, waiting=1))
    with pytest.raises(GaveWay, match=r"m: 2 run, 1 wait"):
        await run
    assert not child.is_running()


async def test_only_requests_that_last_end_it() -> None:
    """Looks between which it was quiet, an engine that tells nothing and one whose requests are the work's own end
    nothing; what the work comes to comes through."""
    giving, gate = GivingWay(), asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return "done"

    run = asyncio.create_task(giving.run(work(), unseen="own"))
    await asyncio.sleep(0)
    told = (
        seen(0, running=1),
        seen(5, running=0),
        seen(10, waiting=1),
        seen(10 + TRAFFIC_S / 2, waiting=1),
        seen(20, running=None),
        seen(30, model="own", running=1),
        seen(60, model="own", running=1),
    )
    for signals in told:
        giving.look(signals)
        await asyncio.sleep(0)
    gate.set()
    assert await run == "done"


async def test_other_ends_stay_what_they_are() -> None:
    """The work's own time-out, and a task that is cancelled from outside, are no giving way; nor does traffic that was
    there before count for the next work."""
    giving = GivingWay()

    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await giving.run(late())
    run = asyncio.create_task(giving.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    giving.look(seen(0, running=1))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    giving.look(seen(100, running=1))
    run = asyncio.create_task(giving.run(asyncio.Event().wait()))
    await asyncio.sleep(0)
    giving.look(seen(200, running=1))
    await asyncio.sleep(0)
    assert not run.done()
    giving.look(seen(210, running=1))
    with pytest.raises(GaveWay):
        await run
