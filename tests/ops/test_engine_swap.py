"""The exchange of a worker, step by step, with every step failing."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.engine_swap import Limits, Placed, Swap, SwapReport, TrafficFailed, WorkerFailed
from sekisho.ops.swap_room import How

OLD = Placed(ModelConfig("m", path="a.gguf", slots=4), "http://old/v1")
NEW = ModelConfig("m", path="a.gguf", slots=8)
NEW_URL = "http://new/v1"
WAYS: tuple[How, ...] = ("side_by_side", "one_after_other")
STEPS = ("start", "ready", "note", "move", "hold", "release", "running", "pause", "drop")
# Each place where something can go wrong: who is asked, and at which of its calls.
BEFORE_THE_MOVE = {
    "side_by_side": [("start", 1), ("ready", 1), ("note", 1), ("move", 1)],
    "one_after_other": [
        *(("note", 1), ("hold", 1), ("running", 1), ("pause", 1)),
        *(("start", 1), ("ready", 1), ("note", 2), ("move", 1)),
    ],
}


class World:
    """Workers and traffic of one model, as simple as can be. `fails` names the calls that fail. Every word of the two
    protocols is checked against what the other side is doing: `cut` counts turns that lost their worker."""

    def __init__(self, fails: Callable[[str, int], bool] = lambda step, count: False) -> None:
        self.alive = {OLD.url: OLD.config}
        self.present: str | None = OLD.url
        self.beside: str | None = None
        self.paused = False
        self.plan, self.plan_held = OLD.url, False
        self.gateway, self.held, self.waiting = OLD.url, False, 0
        self.calls = {OLD.url: 0, NEW_URL: 0}
        self.cut = 0
        self.failing: WorkerFailed | None = None
        self.done: list[str] = []
        self.clock = ManualClock()
        self.ends_a_poll = 1
        self._fails = fails
        self._counts: dict[str, int] = {}

    def _step(self, name: str, error: Exception) -> None:
        self._counts[name] = self._counts.get(name, 0) + 1
        self.done.append(name)
        if self._fails(name, self._counts[name]):
            raise error

    def _stop(self, url: str) -> None:
        self.cut += self.calls[url]
        self.calls[url] = 0
        self.alive.pop(url, None)

    # --- Workers

    async def start(self, config: ModelConfig) -> str:
        self._step("start", WorkerFailed("it does not start", ("no such file",)))
        assert self.beside is None
        self.alive[NEW_URL], self.beside = config, NEW_URL
        return NEW_URL

    async def ready(self, *, present: bool = False) -> None:
        self._step("ready", WorkerFailed("it ended with 78", ("not a GGUF file",)))
        assert (self.present if present else self.beside) in self.alive

    def take_over(self) -> None:
        self._step("take_over", RuntimeError("names"))
        self.present, self.beside = self.beside, self.present

    def give_back(self) -> None:
        self.present, self.beside = self.beside, self.present

    def trouble(self) -> WorkerFailed | None:
        return self.failing if self.present == NEW_URL else None

    async def pause(self) -> None:
        self._step("pause", WorkerFailed("it does not stop"))
        assert self.present is not None
        assert self.held, "turns would come to a worker that is stopped"
        self.paused = True
        self._stop(self.present)

    def resume(self) -> None:
        self.paused = False
        assert self.present == OLD.url
        self.alive[OLD.url] = OLD.config

    async def drop(self) -> None:
        self._step("drop", WorkerFailed("it does not stop"))
        if self.beside is not None:
            self._stop(self.beside)
            self.beside = None

    # --- Traffic

    def note(self, placed: Placed, *, held: bool) -> None:
        self._step("note", OSError("no space left on device"))
        self.plan, self.plan_held = placed.url, held

    async def move(self, placed: Placed) -> None:
        assert self.plan == placed.url, "a gateway that starts now would go elsewhere"
        self._step("move", TrafficFailed("the gateway does not answer"))
        self.gateway = placed.url
        if not self.held:
            self.calls[placed.url] += 1

    async def hold(self, placed: Placed, held: bool) -> int:
        self._step("hold" if held else "release", TrafficFailed("the gateway does not answer"))
        told, self.waiting = self.waiting, 3 if held else 0
        self.held = held
        if not held:
            self.calls[self.gateway] += told
        return told

    async def running(self, url: str) -> int:
        self._step("running", TrafficFailed("the gateway does not answer"))
        told = self.calls[url]
        self.calls[url] = max(0, told - self.ends_a_poll)
        self.clock.advance(1)
        return told

    # --- the facts

    def swap(self, how: How, **limits: Any) -> Swap:
        here = Limits(poll_s=0, **limits)
        return Swap(OLD, NEW, how, "because", self, self, here, self.clock)

    async def run(self, how: How, **limits: Any) -> SwapReport:
        swap = self.swap(how, **limits)
        report = await swap.run()
        await swap.settle()
        assert swap.step == "ended"
        assert (swap.placed.url, swap.placed.config) == (self.present, self.alive[str(self.present)])
        return report

    def is_whole(self, url: str) -> None:
        """One worker, all roads lead there, nobody waits, nobody was cut off."""
        assert (self.present, self.beside, self.plan, self.gateway) == (url, None, url, url)
        assert set(self.alive) == {url}
        assert not self.held
        assert not self.plan_held
        assert self.cut == 0


def only(*places: tuple[str, int]) -> Callable[[str, int], bool]:
    return lambda step, count: (step, count) in places


@pytest.mark.parametrize("how", WAYS)
async def test_all_goes_well(how: How) -> None:
    """The new worker is the only one, with all turns; those that ran on the old one ended there."""
    world = World()
    world.calls[OLD.url] = 5
    report = await world.run(how)
    world.is_whole(NEW_URL)
    assert (report.outcome, report.how, report.why) == ("moved", how, "because")
    assert (report.was["slots"], report.now["slots"]) == (4, 8)
    assert (report.drained_requests, report.left_requests) == (5, 0)
    assert report.held_requests == (3 if how == "one_after_other" else 0)
    assert report.moved_at is not None
    assert report.started_at <= report.moved_at <= report.ended_at
    assert msgspec.json.decode(msgspec.json.encode(report), type=SwapReport) == report


async def test_side_by_side_the_old_one_serves_until_the_new_one_is_ready() -> None:
    """Nothing of the old worker is touched before the new one answers, and it is stopped last."""
    world = World()
    world.calls[OLD.url] = 1
    await world.run("side_by_side")
    assert world.done == ["start", "ready", "note", "take_over", "move", "running", "running", "drop"]


async def test_one_after_other_never_has_two() -> None:
    """The old worker is stopped, with nobody on it, before the new one is started, and turns wait all the while."""
    world = World()
    await world.run("one_after_other")
    steps = ["note", "hold", "running", "pause", "start", "ready", "note", "take_over", "move", "note", "release"]
    assert world.done == [*steps, "drop"]


@pytest.mark.parametrize(("how", "place"), [(how, place) for how in WAYS for place in BEFORE_THE_MOVE[how]])
async def test_whatever_fails_before_the_move_leaves_the_old_worker(how: How, place: tuple[str, int]) -> None:
    """The old worker has all turns, alone; the report says why."""
    world = World(only(place))
    world.calls[OLD.url] = 2
    if place[0] == "running":  # the gateway cannot be asked once: that is no failure yet
        assert (await world.run(how)).outcome == "moved"
        world.is_whole(NEW_URL)
        return
    report = await world.run(how)
    world.is_whole(OLD.url)
    assert (report.outcome, report.now, report.was) == ("failed", report.was, msgspec.to_builtins(OLD.config))
    assert report.why
    assert bool(report.log_tail) == (place[0] in ("start", "ready"))


@pytest.mark.parametrize("how", WAYS)
async def test_a_mistake_of_ours_goes_back_too(how: How) -> None:
    """An exception that nobody foresaw is told, and the old worker serves."""
    world = World(only(("take_over", 1)))
    report = await world.run(how)
    world.is_whole(OLD.url)
    assert report.outcome == "failed"
    assert "RuntimeError" in report.why


async def test_turns_that_do_not_end_are_told_and_keep_their_worker() -> None:
    """After the limit the report comes; the old worker stays until its last turn ends, then it goes."""
    world = World()
    world.calls[OLD.url], world.ends_a_poll = 2, 0
    swap = world.swap("side_by_side", drain_timeout_s=10)
    report = await swap.run()
    assert (report.outcome, report.left_requests, swap.step) == ("moved", 2, "draining")
    assert "after 10 s 2 turns still run" in report.why
    assert OLD.url in world.alive
    world.ends_a_poll = 1
    await swap.settle()
    world.is_whole(NEW_URL)


async def test_turns_that_do_not_end_let_the_waiting_ones_go_on() -> None:
    """One after other, whoever waits has a limit: then the exchange is given up, and nobody was cut off."""
    world = World()
    world.calls[OLD.url], world.ends_a_poll = 2, 0
    report = await world.run("one_after_other", hold_drain_timeout_s=10)
    world.is_whole(OLD.url)
    assert report.outcome == "failed"
    assert "2 turns still run after 10 s" in report.why
    assert report.held_requests == 3


async def test_a_gateway_that_cannot_be_asked_is_not_taken_for_an_idle_one() -> None:
    """One after other nothing is stopped while nobody knows whether turns run; side by side the old one stays."""
    world = World(lambda step, count: step == "running")
    swap = world.swap("one_after_other", hold_drain_timeout_s=0)
    assert "cannot be asked" in (await swap.run()).why
    world.is_whole(OLD.url)
    world = World(lambda step, count: step == "running" and count < 4)
    report = await world.run("side_by_side", drain_timeout_s=0)
    assert (report.outcome, report.left_requests) == ("moved", None)
    world.is_whole(NEW_URL)


async def test_a_new_worker_that_breaks_while_the_old_one_drains() -> None:
    """It is a crash loop: back to the old one, which is still there, and its turns with it."""
    world = World()
    world.calls[OLD.url] = 3
    world.failing = WorkerFailed("the new worker ended with -9 (failing)", ("boom",))
    report = await world.run("side_by_side")
    world.is_whole(OLD.url)
    assert (report.outcome, report.log_tail) == ("failed", ("boom",))


async def test_an_old_worker_that_does_not_come_back_is_told() -> None:
    """One after other: the new one fails, then the old one: both stand in the report, and turns go on all the same."""
    world = World(lambda step, count: step == "ready")
    report = await world.run("one_after_other")
    assert not world.held
    assert report.outcome == "failed"
    assert "the old worker does not answer yet" in report.why


@pytest.mark.parametrize("place", [("release", 1), ("drop", 1), ("note", 3)])
async def test_trouble_after_the_move_does_not_undo_it(place: tuple[str, int]) -> None:
    """The new worker has the turns by then; the report says what is left to do."""
    world = World(only(place))
    report = await world.run("one_after_other")
    assert (report.outcome, world.gateway, world.plan) == ("moved", NEW_URL, NEW_URL)
    assert len(report.why) > len("because")
    assert world.cut == 0


@given(
    st.sampled_from(WAYS),
    st.sets(st.tuples(st.sampled_from(STEPS), st.integers(1, 4))),
    st.integers(0, 3),
)
def test_whatever_fails_no_turn_is_cut_off(how: How, places: set[tuple[str, int]], calls: int) -> None:
    """With any steps failing, any number of times: an answer comes, the present worker lives, and no worker is stopped
    under a turn."""
    world = World(only(*places))
    world.calls[OLD.url] = calls

    async def run() -> SwapReport:
        swap = world.swap(how, drain_timeout_s=20, hold_drain_timeout_s=20)
        report = await swap.run()
        await swap.settle()
        return report

    report = asyncio.run(run())
    assert report.outcome in ("moved", "failed")
    assert world.present in world.alive
    assert world.alive[str(world.present)] == (NEW if report.outcome == "moved" else OLD.config)
    assert world.cut == 0 or ("move", 2) in places, "the gateway was not told, and that is in the report"
    assert world.held <= any(step == "release" for step, _ in places)
