"""The supervisor's door: real workers, a real supervisor, and a gateway that speaks the orders' form."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from control_door_harness import KEY, GatewayDouble, Stage, lives, until

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.ops import engine_traffic, process_tree
from sekisho.ops.children_file import read_children
from sekisho.ops.control_door import DoorClient, DoorFailed
from sekisho.ops.engine_door import answers
from sekisho.ops.engine_swap import Placed, SwapReport

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are killed by signals of POSIX")

NO_ROOM = {"reserve_bytes": 2**60}


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayDouble]:
    double = await GatewayDouble().start()
    yield double
    await double.stop()


@pytest.fixture
async def stage(tmp_path: Path, gateway: GatewayDouble) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, gateway)
    await stage.supervisor.start()
    await stage.door.start()
    while not await answers(gateway.where):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.02)
    yield stage
    await stage.door.close()
    await stage.supervisor.stop()


@pytest.mark.parametrize("limits", [{}, NO_ROOM], ids=["side by side", "one after other"])
async def test_a_swap_leaves_one_worker_of_the_same_name(stage: Stage, limits: dict[str, Any]) -> None:
    """The new process is `engine-m`, the old one is gone, both wrote to one log, and plan and gateway know the same
    address."""
    old = stage.pid
    report = await stage.client.swap("m", {"slots": 8}, limits)
    assert (report.outcome, report.was["slots"], report.now["slots"]) == ("moved", 4, 8)
    assert report.how == ("one_after_other" if limits else "side_by_side")
    assert stage.names() == ["engine-m"]
    assert not lives(old)
    assert lives(stage.pid)
    (move,) = stage.gateway.moves
    assert (move.model, move.config.slots) == ("m", 8)
    assert stage.gateway.placed[-1] == ("m", Placed(move.config, move.url), False)
    assert report.url == move.url
    await until(lambda: (stage.home / "engine-m.log").read_text().count("worker good begins") == 2)
    (record,) = (read_children(stage.home) or pytest.fail("no children.json")).children
    assert (record.name, record.pid) == ("engine-m", stage.pid)
    assert [child.name for child in await stage.client.children()] == ["engine-m"]
    assert (await stage.client.swaps()).ended == (report,)
    assert (await stage.client.swap("m", {"slots": 8})).outcome == "unchanged"
    assert (await stage.client.swap("m", {"slots": 2})).now["slots"] == 2


async def test_turns_are_held_and_let_go_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after other: held before anything is stopped, again and again while it lasts, and let go at the end; every
    order has a higher number than the one before."""
    monkeypatch.setattr(engine_traffic, "_RENEW_S", 0.01)
    url = stage.gateway.where
    stage.gateway.calls[url] = 1
    swap = asyncio.create_task(stage.client.swap("m", {"slots": 8}, NO_ROOM))
    await until(lambda: len(stage.gateway.holds) > 2)
    stage.gateway.calls[url] = 0
    report = await swap
    assert report.held_requests == 2
    assert [hold.for_s > 0 for hold in stage.gateway.holds[-2:]] == [True, False]
    numbers = [order.number for order in stage.gateway.holds]
    assert numbers == sorted(set(numbers))
    assert [held for _, _, held in stage.gateway.placed] == [True, True, False]
    told = len(stage.gateway.holds)
    await asyncio.sleep(0.1)
    assert len(stage.gateway.holds) == told, "a hold that has ended is renewed"


@pytest.mark.parametrize("limits", [{}, NO_ROOM], ids=["side by side", "one after other"])
@pytest.mark.parametrize(("kind", "code", "words"), [("bad", 78, "error: no such model"), ("dies", 3, "boom")])
async def test_a_worker_that_cannot_start_changes_nothing(
    stage: Stage, kind: str, code: int, words: str, limits: dict[str, Any]
) -> None:
    """The report has its last words; the old settings serve, side by side even the old process."""
    old, url = stage.pid, stage.gateway.where
    report = await stage.client.swap("m", {"path": kind}, limits)
    assert (report.outcome, report.now) == ("failed", report.was)
    assert f"ended with {code}" in report.why
    assert report.log_tail[-1] == words
    assert stage.names() == ["engine-m"]
    assert lives(stage.pid)
    assert (stage.pid == old) == (not limits)
    assert (stage.gateway.where, stage.gateway.held) == (url, False)
    assert (await stage.client.swap("m", {"slots": 8})).outcome == "moved", "the next exchange works"


async def test_a_worker_that_is_never_ready_has_a_limit(stage: Stage) -> None:
    """It is stopped, and the old one serves on."""
    old = stage.pid
    swap = asyncio.create_task(stage.client.swap("m", {"path": "never"}))
    await until(lambda: "never begins" in (stage.home / "engine-m.log").read_text())
    assert not swap.done()
    stage.clock.advance(61)
    report = await swap
    assert report.outcome == "failed"
    assert "not ready within 60 s" in report.why
    assert report.log_tail == ("worker never begins",)
    assert (stage.pid, stage.names()) == (old, ["engine-m"])


async def test_kill_9_of_a_new_worker_that_is_not_ready(stage: Stage) -> None:
    """The exchange has failed, and the old process serves on."""
    old = stage.pid
    swap = asyncio.create_task(stage.client.swap("m", {"path": "never"}))
    await until(stage.beside)
    new = stage.beside()
    assert new is not None
    os.kill(new, signal.SIGKILL)
    report = await swap
    assert (report.outcome, stage.pid) == ("failed", old)
    assert "-9" in report.why


async def test_kill_9_of_the_old_worker_while_its_turns_end(stage: Stage) -> None:
    """The new one has the model already; the old one is ended for good, however often it was started again."""
    url = stage.gateway.where
    stage.gateway.calls[url] = 1
    swap = asyncio.create_task(stage.client.swap("m", {"slots": 8}))
    await until(lambda: "engine-m~former" in stage.names())
    old, new = stage.supervisor.status("engine-m~former").pid, stage.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    await until(lambda: stage.supervisor.status("engine-m~former").restarts == 1)
    stage.gateway.calls[url] = 0
    assert (await swap).outcome == "moved"
    assert (stage.names(), stage.pid) == (["engine-m"], new)


async def test_kill_9_of_the_new_worker_after_the_move(stage: Stage) -> None:
    """It is the model's worker by then: the supervisor starts it again at its address, and the exchange goes on."""
    url = stage.gateway.where
    stage.gateway.calls[url] = 1
    swap = asyncio.create_task(stage.client.swap("m", {"slots": 8}))
    await until(lambda: "engine-m~former" in stage.names() and stage.gateway.moves)
    new = stage.pid
    assert new is not None
    os.kill(new, signal.SIGKILL)
    await until(lambda: stage.pid not in (new, None))
    stage.gateway.calls[url] = 0
    assert (await swap).outcome == "moved"
    assert stage.supervisor.status("engine-m").restarts == 1


async def test_kill_9_of_the_old_worker_while_the_new_one_loads(stage: Stage) -> None:
    """The supervisor brings it back as ever, and the exchange is not disturbed."""
    old = stage.pid
    assert old is not None
    swap = asyncio.create_task(stage.client.swap("m", {"path": "never"}))
    await until(stage.beside)
    os.kill(old, signal.SIGKILL)
    await until(lambda: stage.pid not in (old, None))
    stage.clock.advance(61)
    assert (await swap).outcome == "failed"
    assert stage.names() == ["engine-m"]


async def test_a_gateway_that_is_down_is_told_again(stage: Stage) -> None:
    """The order is repeated, each time with a number of its own, until a living gateway has obeyed; the plan was
    written before the first try."""
    stage.gateway.silent = 3
    report = await stage.client.swap("m", {"slots": 8})
    assert report.outcome == "moved"
    (move,) = stage.gateway.moves
    assert move.number > 3
    assert stage.gateway.placed[0][1].url == move.url


async def test_a_gateway_that_refuses_keeps_the_old_worker(stage: Stage) -> None:
    """What it said stands in the report; the plan is the old one again."""
    old, url = stage.pid, stage.gateway.where
    stage.gateway.refusing = True
    report = await stage.client.swap("m", {"slots": 8})
    assert report.outcome == "failed"
    assert "config: no" in report.why
    assert stage.gateway.placed[-1] == ("m", Placed(stage.config, url), False)
    assert (stage.pid, stage.names()) == (old, ["engine-m"])


async def test_one_exchange_of_a_model_at_a_time(stage: Stage) -> None:
    """A second one is told which step the first is at; when its caller leaves, the first goes on."""
    url = stage.gateway.where
    stage.gateway.calls[url] = 1
    first = asyncio.create_task(stage.client.swap("m", {"slots": 8}))
    await until(lambda: any(run.step == "draining" for run in stage.board.swaps().running))
    with pytest.raises(DoorFailed, match="draining") as told:
        await stage.client.swap("m", {"slots": 2})
    assert told.value.busy
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    (running,) = (await stage.client.swaps()).running
    assert (running.model, running.how) == ("m", "side_by_side")
    stage.gateway.calls[url] = 0
    await until(lambda: not stage.board.swaps().running)
    (report,) = (await stage.client.swaps()).ended
    assert (report.outcome, report.drained_requests) == ("moved", 1)


async def test_turns_that_do_not_end_keep_the_old_process(stage: Stage) -> None:
    """The report comes at the limit and says so; another exchange has to wait until they have ended."""
    url, old = stage.gateway.where, stage.pid
    stage.gateway.calls[url] = 2
    report = await stage.client.swap("m", {"slots": 8}, {"drain_timeout_s": 0})
    assert (report.outcome, report.left_requests) == ("moved", 2)
    assert lives(old)
    with pytest.raises(DoorFailed):
        await stage.client.swap("m", {"slots": 2})
    stage.gateway.calls[url] = 0
    await until(lambda: not stage.board.swaps().running)
    assert not lives(old)


async def test_a_stop_in_the_middle_leaves_nobody(tmp_path: Path, gateway: GatewayDouble) -> None:
    """The server is stopped while two workers run: both end, and whoever waits for the report is told."""
    stage = Stage(tmp_path, gateway)
    await stage.supervisor.start()
    await stage.door.start()
    gateway.calls[gateway.where] = 1
    swap = asyncio.create_task(stage.client.swap("m", {"slots": 8}))
    await until(lambda: "engine-m~former" in stage.names())
    pids = [child.pid for child in stage.supervisor.statuses()]
    await stage.door.close()
    await stage.supervisor.stop()
    with pytest.raises(DoorFailed):
        await swap
    assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize(
    ("model", "changes", "limits", "param"),
    [
        ("m", {"slot": 8}, {}, "slot"),
        ("m", {"slots": "many"}, {}, "slots"),
        ("m", {"slots": 0}, {}, "slots"),
        ("m", {"kv": {"mode": "magic"}}, {}, "kv.mode"),
        ("m", {"slots": 8}, {"patience": 1}, "limits"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_field(
    stage: Stage, model: str, changes: dict[str, Any], limits: dict[str, Any], param: str
) -> None:
    """Nothing was begun."""
    with pytest.raises(InvalidRequest) as told:
        await stage.client.swap(model, changes, limits)
    assert told.value.param == param
    assert stage.board.swaps().ended == ()


async def test_a_model_that_is_none_of_ours(stage: Stage) -> None:
    """The message names those that are."""
    with pytest.raises(NotFound, match="Engines of its own: m"):
        await stage.client.swap("another", {"slots": 8})


async def test_the_door_opens_with_its_key_only(stage: Stage) -> None:
    """Another key, or none, is told nothing; nor is somebody who finds no door."""
    for key in ("wrong", "", "wörker"):
        client = DoorClient(stage.client._url, key)
        for call in (client.children(), client.swaps(), client.swap("m", {"slots": 8})):
            with pytest.raises(DoorFailed, match="key"):
                await call
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and listens to nobody
        with pytest.raises(DoorFailed, match="does not answer"):
            await DoorClient(f"http://127.0.0.1:{nobody.getsockname()[1]}", KEY).children()


async def test_who_comes_before_the_door_is_open_waits(tmp_path: Path, gateway: GatewayDouble) -> None:
    """The address is in the plan from the beginning; a call that came early is answered once the door is there."""
    stage = Stage(tmp_path, gateway)
    early = asyncio.create_task(stage.client.children())
    await asyncio.sleep(0.05)
    assert not early.done()
    await stage.door.start()
    assert [child.name for child in await early] == ["engine-m"]
    await stage.door.close()


async def test_the_workers_are_in_no_process_list_twice(stage: Stage) -> None:
    """Every process of the exchange belongs to the supervisor's run, so that the next supervisor finds it."""
    swap: asyncio.Task[SwapReport] = asyncio.create_task(stage.client.swap("m", {"path": "never"}))
    await until(stage.beside)
    written = read_children(stage.home)
    assert written is not None
    assert {child.name: child.pid for child in written.children} == {
        "engine-m": stage.pid,
        "engine-m~next": stage.beside(),
    }
    assert all(child.birth == process_tree.birth(child.pid or 0) for child in written.children)
    os.kill(stage.beside() or 0, signal.SIGKILL)
    assert (await swap).outcome == "failed"
