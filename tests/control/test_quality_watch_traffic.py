"""The quality loop and the traffic: which run waits for it, which is broken off, which is not."""

import asyncio
from itertools import pairwise
from pathlib import Path

from quality_harness import Scene

from sekisho.control.base import EngineState, Signals
from sekisho.control.perplexity.measure import Target
from sekisho.engines.config import ModelConfig


async def test_traffic_comes_first(tmp_path: Path) -> None:
    """Nothing is measured while somebody is served, until it has waited for two hours."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q8_0", value_type="q8_0")
    for _ in range(100):
        await scene.look(busy=True)
    assert scene.measured == []
    for _ in range(30):
        await scene.look(busy=True)
    assert scene.measured
    await scene.agent.close()


async def begun(scene: Scene) -> None:
    """A run is due, begins in a quiet moment and does not end."""
    await scene.set(key_type="q8_0", value_type="q8_0")
    scene.gate = asyncio.Event()
    await scene.look()
    await asyncio.sleep(0)
    assert scene.measured == ["light"]


async def test_a_scheduled_run_gives_way_to_traffic(tmp_path: Path) -> None:
    """Requests at two looks, and it is broken off: the record says why, nothing is judged, and it stays due: again
    after a quarter of an hour."""
    scene = Scene(tmp_path)
    await begun(scene)
    await scene.look_closer(busy=False, seconds=60)
    await scene.look_closer(busy=True, seconds=10)
    (record,) = scene.records()
    assert (record["ended"], record["compared"], record["verdict"]) == ("broken_off", None, None)
    assert record["reason"] == "broken off for the traffic (mini: 2 run, 1 wait)"
    assert scene.watch.view_of("mini").reason == record["reason"]
    assert not [each for each in scene.decisions() if each["rule"].startswith("quality")]
    scene.gate = None
    for _ in range(14):
        await scene.look()
    assert scene.measured == ["light"]
    await scene.look()
    assert scene.measured == ["light"] * 2
    assert [each["ended"] for each in scene.records()] == ["broken_off", "measured"]
    assert scene.watch.view_of("mini").delta_ppl == 0.2
    await scene.agent.close()


async def test_one_request_at_one_look_is_no_traffic(tmp_path: Path) -> None:
    """It may have been over a moment later."""
    scene = Scene(tmp_path)
    await begun(scene)
    for _ in range(10):
        await scene.look_closer(busy=True, seconds=5)
        await scene.look_closer(busy=False, seconds=5)
    assert scene.gate is not None
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["measured"]
    await scene.agent.close()


async def test_a_run_that_a_person_asks_for_is_never_broken_off(tmp_path: Path) -> None:
    """Nor is it begun later for the traffic."""
    scene = Scene(tmp_path)
    scene.gate = asyncio.Event()
    asked = asyncio.create_task(scene.watch.measure("mini", "full"))
    await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=600)
    assert not asked.done()
    scene.gate.set()
    assert (await asked)["ended"] == "measured"
    await scene.agent.close()


async def test_the_fourth_try_of_a_run_goes_to_its_end(tmp_path: Path) -> None:
    """Three were broken off, after pauses of a quarter, a half and a whole hour."""
    scene = Scene(tmp_path)
    await begun(scene)
    began = [scene.clock.now()]
    while len(scene.measured) < 4:
        await scene.look_closer(busy=True, seconds=10)
        while len(scene.measured) == len(began):
            await scene.look()
            await asyncio.sleep(0)
        began.append(scene.clock.now())
    assert [round((later - earlier) / 900) for earlier, later in pairwise(began)] == [1, 2, 4]
    await scene.look_closer(busy=True, seconds=600)
    assert scene.gate is not None
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["broken_off"] * 3 + ["measured"]
    await scene.agent.close()


async def test_a_run_that_traffic_has_put_off_for_long_is_not_broken_off_by_it(tmp_path: Path) -> None:
    """It began in spite of it."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q8_0", value_type="q8_0")
    scene.gate = asyncio.Event()
    while not scene.measured:
        await scene.look(busy=True)
        await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=60)
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["measured"]
    await scene.agent.close()


async def test_what_a_verdict_asked_for_is_still_wanted_after_a_break(tmp_path: Path) -> None:
    """The confirmation of a step does not wait for the schedule."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    await scene.look()
    scene.gate = asyncio.Event()
    await scene.look()
    await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=10)
    scene.gate = None
    for _ in range(16):
        await scene.look()
    assert scene.kind == "q8_0"
    await scene.agent.close()


async def test_an_engine_that_counts_the_measurement_says_nothing_about_traffic(tmp_path: Path) -> None:
    """vLLM tells its own prompt as running; another engine beside it does count."""
    scene = Scene(tmp_path)
    target = Target(ModelConfig(name="mini", engine="openai_http", url="http://127.0.0.1:9/v1", kv_type_k="q8_0"))
    scene.watch._targets = {"mini": lambda: target}
    await begun(scene)
    await scene.look_closer(busy=True, seconds=60)
    assert scene.records() == []
    other = EngineState("other", "value", "ready", running=1)
    for _ in range(2):
        scene.clock.advance(5)
        await scene.watch.give_way(Signals(scene.clock.now(), scene.clock.monotonic(), (other,)))
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["broken_off"]
    await scene.agent.close()
