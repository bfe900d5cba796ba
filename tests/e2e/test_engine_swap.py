"""A model's worker is exchanged under the turns of a server that really runs (SPEC B5).

The turns are told by a grammar what to say, so that every character of every answer is known beforehand, whatever runs
beside it: a token that is lost, doubled or another stream's is seen.
"""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from e2e_harness import CHAT, Launch, Sekisho, chat, eventually, lives

from sekisho.engines import builtin
from sekisho.ops import engine_door
from sekisho.ops.control_door import DoorClient
from sekisho.ops.engine_swap import SwapReport
from sekisho.ops.stability_log import read_history

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals and environments of other processes are read the POSIX way"),
    pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`"),
]
LONG = 250  # words: 1000 tokens, more seconds than a worker needs to start
NO_ROOM = {"reserve_bytes": 2**60}


def said(number: int, words: int) -> str:
    return f"{number}: " + " ".join(f"{word:03}" for word in range(words))


class Asking(threading.Thread):
    """A stream in a thread of its own. `frames` are those that came so far; `trouble` is what broke it."""

    def __init__(self, sekisho: Sekisho, number: int, words: int) -> None:
        super().__init__(daemon=True)
        self.expected = said(number, words)
        self.text = ""
        self.frames = 0
        self.finish = ""
        self.trouble = ""
        self._sekisho = sekisho
        self.start()

    def run(self) -> None:
        grammar = f'root ::= "{self.expected}"'
        body = chat("Count.", "small", stream=True, temperature=0, grammar=grammar)
        headers = {"authorization": f"Bearer {self._sekisho.key}"}
        try:
            with (
                httpx.Client(headers=headers, timeout=120.0) as client,
                client.stream("POST", self._sekisho.url + CHAT, json=body) as answer,
            ):
                if answer.status_code != 200:
                    self.trouble = f"{answer.status_code} {answer.read().decode()}"
                    return
                for line in answer.iter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.trouble = repr(error)

    def _take(self, line: str) -> None:
        if not line.startswith("data: {"):
            return
        frame = json.loads(line.removeprefix("data: "))
        if "error" in frame:
            self.trouble = line
            return
        for choice in frame["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.finish = choice["finish_reason"] or self.finish
        self.frames += 1

    def is_whole(self) -> None:
        self.join(120)
        assert not self.is_alive(), "a client hangs"
        assert (self.trouble, self.finish, self.text) == ("", "stop", self.expected)


class NewTurns(threading.Thread):
    """Asks one short turn after the other, from the first moment to the last."""

    def __init__(self, sekisho: Sekisho) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.troubles: list[str] = []
        self._sekisho = sekisho
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            asking = Asking(self._sekisho, 900, 2)
            asking.join(120)
            if asking.text == asking.expected and not asking.trouble:
                self.answered += 1
            else:
                self.troubles.append(f"{asking.trouble} {asking.text}")

    def end(self) -> None:
        self._ended.set()
        self.join(120)
        assert self.troubles == []
        assert self.answered


class Exchange(threading.Thread):
    """One exchange in a thread of its own."""

    def __init__(self, sekisho: Sekisho, changes: dict[str, Any], limits: dict[str, Any] | None = None) -> None:
        super().__init__(daemon=True)
        self.door = door(sekisho)
        self._work = (changes, limits)
        self._report: SwapReport | None = None
        self.start()

    def run(self) -> None:
        changes, limits = self._work
        self._report = asyncio.run(self.door.swap("small", changes, limits))

    def step(self) -> str:
        running = asyncio.run(self.door.swaps()).running
        return running[0].step if running else "ended"

    def report(self) -> SwapReport:
        self.join(120)
        assert self._report is not None, "no report came"
        return self._report


def plan(sekisho: Sekisho) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((sekisho.home.run / "plan.json").read_bytes())
    return told


def door(sekisho: Sekisho) -> DoorClient:
    """As the control agent finds it."""
    key = engine_door.worker_key(sekisho.home, None).reveal()
    return DoorClient(eventually(lambda: plan(sekisho).get("door")), key)


def slots_of_worker(sekisho: Sekisho) -> int:
    """How many the worker itself says that it has, as soon as it is there."""

    def ready() -> engine_door.EngineDoor | None:
        found = asyncio.run(engine_door.engine_door(sekisho.home, "small"))
        return found if found.ready else None

    found = eventually(ready, 60)
    headers = {"authorization": f"Bearer {found.key.reveal()}"}
    slots = httpx.get(found.url.removesuffix("/v1") + "/slots", headers=headers, timeout=60).json()
    return len(slots)


def begun(askings: list[Asking]) -> None:
    assert eventually(lambda: all(asking.frames >= 3 or asking.trouble for asking in askings), 60)


def is_alone(sekisho: Sekisho, slots: int) -> None:
    """One worker, of which plan, children and the side door know the same, with so many slots; it answers."""
    assert [child.name for child in sekisho.children()] == ["gateway", "engine-small"]
    assert slots_of_worker(sekisho) == slots
    (model,) = plan(sekisho)["settings"]["models"]
    assert (model["slots"], plan(sekisho)["held"]) == (slots, [])
    asking = Asking(sekisho, 901, 3)
    asking.is_whole()


@pytest.fixture
def sekisho(launch: Launch) -> Iterator[Callable[..., Sekisho]]:
    def start(slots: int) -> Sekisho:
        models = f"  - {{name: small, path: builtin, context: 2048, slots: {slots}, threads: 1}}\n"
        made: Sekisho = launch(models)
        made.up()
        return made

    return start


def exchange_under_streams(sekisho: Sekisho, streams: int, words: int, limits: dict[str, Any]) -> SwapReport:
    """Exchanges slots and cache types under so many open streams and a run of new turns; every answer is whole."""
    old = sekisho.child("engine-small").pid
    assert old
    askings = [Asking(sekisho, number, words) for number in range(streams)]
    begun(askings)
    coming = NewTurns(sekisho)
    exchange = Exchange(sekisho, {"slots": streams + 4, "kv_type_k": "q8_0", "kv_type_v": "q8_0"}, limits)
    report = exchange.report()
    coming.end()
    for asking in askings:
        asking.is_whole()
    assert report.outcome == "moved", report.why
    assert eventually(lambda: not lives(old))
    assert sekisho.child("engine-small").pid != old
    is_alone(sekisho, streams + 4)
    return report


@pytest.mark.slow
def test_a_worker_is_exchanged_under_open_streams(sekisho: Callable[..., Sekisho]) -> None:
    """Four streams and many new turns: no error, no character lost; the stability log has no incident, the usage has a
    row for each turn."""
    server = sekisho(4)
    report = exchange_under_streams(server, 4, LONG, {})
    assert report.how == "side_by_side"
    assert report.drained_requests > 0
    assert [event.kind for event in read_history(server.home).events] == ["up", "ready"]
    assert eventually(lambda: len(server.usage()) >= 5)
    assert {row.status for row in server.usage()} == {"completed"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("limits", [{}, NO_ROOM], ids=["side by side", "one after other"])
def test_no_token_of_20_streams_is_lost(sekisho: Callable[..., Sekisho], limits: dict[str, Any]) -> None:
    """20 open streams, and new turns all the while, with room for two workers and without."""
    report = exchange_under_streams(sekisho(20), 20, 200, limits)
    assert report.how == ("one_after_other" if limits else "side_by_side")
    assert report.drained_requests >= 1


@pytest.mark.slow
def test_without_room_turns_wait_and_none_fails(sekisho: Callable[..., Sekisho]) -> None:
    """The old worker is gone before the new one starts; who asked meanwhile waited and was answered. And back again."""
    server = sekisho(4)
    report = exchange_under_streams(server, 4, 20, NO_ROOM)
    assert report.how == "one_after_other"
    back = Exchange(server, {"slots": 4}, NO_ROOM).report()
    assert (back.outcome, back.now["slots"]) == ("moved", 4)
    is_alone(server, 4)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, NO_ROOM], ids=["side by side", "one after other"])
def test_a_worker_that_cannot_start_disturbs_nobody(sekisho: Callable[..., Sekisho], limits: dict[str, Any]) -> None:
    """A file that is no GGUF is refused before anything is touched; a chat template that is not there ends the new
    worker, whose last words are in the report. Running and new turns are answered by the old settings."""
    server = sekisho(4)
    old = server.child("engine-small").pid
    askings = [Asking(server, number, 20) for number in range(3)]
    begun(askings)
    coming = NewTurns(server)
    no_model = Exchange(server, {"path": "/etc/hostname"}, limits).report()
    no_template = Exchange(server, {"chat_template": "/no/such/template"}, limits).report()
    coming.end()
    for asking in askings:
        asking.is_whole()
    assert (no_model.outcome, no_model.how) == ("failed", None)
    assert "not a GGUF file" in no_model.why
    assert (no_template.outcome, no_template.how) == ("failed", "one_after_other" if limits else "side_by_side")
    assert "template" in no_template.log_tail[-1]
    assert "ended with 78" in no_template.why
    is_alone(server, 4)
    assert (server.child("engine-small").pid == old) == (not limits)


def kill_gateway(sekisho: Sekisho) -> None:
    pid = sekisho.child("gateway").pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: sekisho.child("gateway").pid not in (pid, None))


@pytest.mark.slow
@pytest.mark.parametrize("step", ["starting", "draining"])
def test_kill_9_of_the_gateway_does_not_stop_an_exchange(sekisho: Callable[..., Sekisho], step: str) -> None:
    """Its streams break as they must; the gateway that comes back sends turns where the plan says, the exchange comes
    to its end, and nothing of the old worker is left."""
    server = sekisho(4)
    old = server.child("engine-small").pid
    assert old
    askings = [Asking(server, number, LONG) for number in range(4)]
    begun(askings)
    exchange = Exchange(server, {"slots": 6})
    assert eventually(lambda: exchange.step() in (step, "ended"))
    kill_gateway(server)
    report = exchange.report()
    assert report.outcome == "moved", report.why
    for asking in askings:
        asking.join(60)
        assert asking.trouble or asking.text == asking.expected
    assert eventually(server.ready)
    assert eventually(lambda: not lives(old))
    is_alone(server, 6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("limits", [{}, NO_ROOM], ids=["side by side", "one after other"])
@pytest.mark.parametrize("whom", ["gateway", "engine-small", "engine-small~next", "engine-small~former"])
def test_kill_9_of_anybody_at_any_moment(sekisho: Callable[..., Sekisho], whom: str, limits: dict[str, Any]) -> None:
    """Ten exchanges, in each a kill -9 at another moment: afterwards there is one worker, the plan, the children and
    the gateway know it, and a turn is answered in full."""
    server = sekisho(4)
    for number in range(10):
        before = plan(server)["settings"]["models"][0]["slots"]
        wanted = 5 if before == 4 else 4
        exchange = Exchange(server, {"slots": wanted}, limits)
        time.sleep(number * 0.08)
        pid = next((child.pid for child in server.children() if child.name == whom), None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it was just being stopped
                os.kill(pid, signal.SIGKILL)
        report = exchange.report()
        assert report.outcome in ("moved", "failed")
        assert eventually(server.ready, 60)
        assert eventually(lambda: all(child.state == "running" for child in server.children()), 60)
        is_alone(server, wanted if report.outcome == "moved" else before)
        if number % 4 == 3:  # a fifth death within a minute would be waited for
            server.json("down")
            server.up()


def test_the_door_is_in_the_plan_and_its_key_is_not(sekisho: Callable[..., Sekisho]) -> None:
    """Who may read the home finds the address; the key is in the environment of the server's own processes only."""
    server = sekisho(2)
    key = engine_door.worker_key(server.home, None).reveal()
    assert plan(server)["door"].startswith("http://127.0.0.1:")
    for file in server.home.path.rglob("*"):
        try:
            assert not file.is_file() or key.encode() not in file.read_bytes(), file
        except FileNotFoundError:  # a passing one, as a database makes them
            assert not file.exists()

    def told() -> Any:
        return msgspec.json.decode(msgspec.json.encode(asyncio.run(door(server).children())))

    def kept() -> Any:
        return json.loads(server.home.children_file.read_bytes())["children"]

    assert [child["name"] for child in told()] == ["gateway", "engine-small"]
    assert eventually(lambda: told() == kept()), (told(), kept())
