"""A model's worker is exchanged under running turns: what the gateway does when the supervisor says so."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from gateway_harness import PATIENCE_S, Launch, LiveGateway, chat
from worker_double import WorkerDouble

from sekisho.engines.config import ModelConfig
from sekisho.engines.worker_process import KEY_ENV
from sekisho.ops.engine_orders import HOLD_PATH, MOVE_PATH, TRAFFIC_PATH
from sekisho.serve import Worker

KEY = {"authorization": "Bearer worker-key"}
CHAT = "/v1/chat/completions"
SMALL = ModelConfig(name="org/small", path="builtin", slots=2, embeddings=True)
MORE = msgspec.structs.replace(SMALL, slots=4)


def eventually(fact: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := fact()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@pytest.fixture
def workers() -> Iterator[tuple[WorkerDouble, WorkerDouble]]:
    pair = WorkerDouble("old"), WorkerDouble("new", words=5)
    yield pair
    for worker in pair:
        worker.close()


@pytest.fixture
def moving(launch: Launch, workers: tuple[WorkerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch) -> LiveGateway:
    """A gateway with one model, whose worker is the old one."""
    monkeypatch.setenv(KEY_ENV, "worker-key")
    worker = Worker(workers[0].url, "/nowhere/engine.log")
    return launch(SMALL, workers={SMALL.name: worker}, restart_wait_s=PATIENCE_S)


class Orders:
    """What the supervisor would say."""

    def __init__(self, live: LiveGateway) -> None:
        self.client = live.client(headers=KEY)
        self.number = 0

    def move(self, worker: WorkerDouble, config: ModelConfig = MORE, **fields: Any) -> httpx.Response:
        self.number += 1
        body = {"model": SMALL.name, "number": self.number, "url": worker.url, "config": msgspec.to_builtins(config)}
        return self.client.post(MOVE_PATH, json=body | fields)

    def hold(self, for_s: float, **fields: Any) -> httpx.Response:
        self.number += 1
        return self.client.post(HOLD_PATH, json={"model": SMALL.name, "number": self.number, "for_s": for_s} | fields)

    def traffic(self) -> dict[str, Any]:
        told: dict[str, Any] = self.client.get(TRAFFIC_PATH).json()[SMALL.name]
        return told


class Asking(threading.Thread):
    """A turn in a thread of its own."""

    def __init__(self, live: LiveGateway, stream: bool = True) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.status = 0
        self._client = live.client()
        self._body = chat("hi", stream=stream) | {"model": SMALL.name}
        self.start()

    def run(self) -> None:
        with self._client.stream("POST", CHAT, json=self._body) as answer:
            self.status = answer.status_code
            for piece in answer.iter_text():
                self.text += piece

    def words(self, name: str) -> int:
        return self.text.count(f'"{name} "')

    def ended(self) -> "Asking":
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self


def test_a_running_turn_ends_where_it_began(moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]) -> None:
    """Turns under way when the model moves come to their end on the old worker, whole; later ones run on the new one
    at once, with all its slots."""
    old, new = workers
    orders = Orders(moving)
    before = [Asking(moving), Asking(moving)]
    assert eventually(lambda: old.asked == 2)
    old.speak(2)
    assert eventually(lambda: sum(asking.words("old") for asking in before) == 2)
    state = orders.move(new).json()
    assert (state["url"], state["slots"], state["running"]) == (new.url, 4, 2)
    assert state["calls"] == {old.url: 2, new.url: 0}
    after = [Asking(moving) for _ in range(4)]
    assert eventually(lambda: new.asked == 4), "old turns take slots of the new worker"
    new.speak(20)
    for asking in after:
        assert asking.ended().words("new") == 5
    assert orders.traffic()["calls"] == {old.url: 2, new.url: 0}
    old.speak(4)
    for asking in before:
        assert (asking.ended().words("old"), asking.words("new"), asking.status) == (3, 0, 200)
        assert asking.text.endswith("data: [DONE]\n\n")
    assert eventually(lambda: orders.traffic()["calls"] == {new.url: 0})
    assert orders.traffic()["running"] == 0
    assert eventually(lambda: old.whole == 2)


def test_the_old_engine_is_closed_by_its_last_turn(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are kept until then, and no longer."""
    old, new = workers
    entry = moving.gateway.roster.entries[SMALL.name]
    closed: list[str] = []

    async def close() -> None:
        closed.append("old")

    monkeypatch.setattr(entry.engine, "close", close)
    asking = Asking(moving)
    assert eventually(lambda: old.asked == 1)
    Orders(moving).move(new)
    old.speak(2)
    assert eventually(lambda: asking.words("old") == 2)
    assert not closed
    old.speak(1)
    asking.ended()
    assert eventually(lambda: closed == ["old"])
    assert not entry.former


def test_the_model_is_told_as_the_new_worker_has_it(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]
) -> None:
    """Health and context are those of the new worker as soon as it has been asked."""
    client = moving.client()

    def told() -> Any:
        return client.get("/readyz").json()["models"][SMALL.name]["context_tokens"]

    assert told() == 1003
    Orders(moving).move(workers[1])
    assert eventually(lambda: told() == 1005)


def test_questions_go_to_the_new_worker(moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]) -> None:
    """Embeddings and token counts, too."""
    client = moving.client()
    ask = {"model": SMALL.name, "messages": [{"role": "user", "content": "hi"}]}

    def answers() -> tuple[Any, Any]:
        vector = client.post("/v1/embeddings", json={"model": SMALL.name, "input": "hi"}).json()["data"][0]["embedding"]
        return vector, client.post("/v1/messages/count_tokens", json=ask).json()["input_tokens"]

    assert answers() == ([3.0], 3)
    Orders(moving).move(workers[1])
    workers[0].close()
    assert answers() == ([5.0], 5)


def test_a_turn_whose_worker_is_gone_begins_on_the_new_one(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]
) -> None:
    """It waits for the old worker, which does not come back; when the model moves, it is asked again there."""
    old, new = workers
    old.close()
    new.speak(5)
    asking = Asking(moving)
    assert eventually(lambda: moving.gateway.roster.entries[SMALL.name].queue.running == 1)
    Orders(moving).move(new)
    assert (asking.ended().words("new"), asking.status) == (5, 200)


def test_held_turns_wait_and_go_on(moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]) -> None:
    """While they are held no turn reaches a worker; then all of them run, on the worker that is there by then."""
    old, new = workers
    orders = Orders(moving)
    assert orders.hold(60).json()["held"] is True
    waiting = [Asking(moving) for _ in range(3)]
    assert eventually(lambda: orders.traffic()["waiting"] == 3)
    old.close()
    assert orders.move(new).json()["held"] is True
    assert (old.asked, new.asked) == (0, 0)
    new.speak(15)
    told = orders.hold(0).json()
    assert (told["held"], told["waiting"]) == (False, 3)
    for asking in waiting:
        assert (asking.ended().words("new"), asking.status) == (5, 200)


def test_a_turn_that_lost_its_worker_waits_for_the_end_of_the_hold(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]
) -> None:
    """Its patience does not run out while the worker is exchanged, and nothing is sent to a worker meanwhile."""
    old, new = workers
    orders = Orders(moving)
    old.close()
    asking = Asking(moving)
    assert eventually(lambda: orders.traffic()["running"] == 1)
    orders.hold(60)
    assert eventually(lambda: orders.traffic()["calls"][old.url] == 0)
    orders.move(new)
    assert new.asked == 0
    new.speak(5)
    orders.hold(0)
    assert (asking.ended().words("new"), asking.status) == (5, 200)


def test_turns_outlast_an_exchange_that_takes_longer_than_they_may_wait(
    launch: Launch, workers: tuple[WorkerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they wait in the queue or have lost their worker: none is told that there is no room."""
    monkeypatch.setenv(KEY_ENV, "worker-key")
    worker = {SMALL.name: Worker(workers[0].url, "/nowhere/engine.log")}
    live = launch(SMALL, workers=worker, queue_timeout_s=0.05, restart_wait_s=PATIENCE_S)
    orders, (old, new) = Orders(live), workers
    old.close()
    lost = Asking(live)
    assert eventually(lambda: orders.traffic()["running"] == 1)
    orders.hold(60)
    assert eventually(lambda: orders.traffic()["calls"][old.url] == 0)
    waiting = Asking(live)
    assert eventually(lambda: orders.traffic()["waiting"] == 1)
    time.sleep(0.2)  # longer than a turn may wait
    orders.move(new)
    new.speak(10)
    orders.hold(0)
    for asking in (lost, waiting):
        assert (asking.ended().words("new"), asking.status) == (5, 200)


def test_a_hold_that_nobody_renews_ends(moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]) -> None:
    """A supervisor that hangs does not keep the turns for ever."""
    orders = Orders(moving)
    orders.hold(60)
    workers[0].speak(3)
    asking = Asking(moving)
    assert eventually(lambda: orders.traffic()["waiting"] == 1)
    orders.hold(0.01)
    assert asking.ended().status == 200
    assert orders.traffic()["held"] is False


def test_a_plan_that_holds_a_model_is_obeyed(
    launch: Launch, workers: tuple[WorkerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that is started while a worker is exchanged holds the turns from the beginning, with a limit."""
    monkeypatch.setenv(KEY_ENV, "worker-key")
    live = launch(SMALL, workers={SMALL.name: Worker(workers[0].url, "/x")}, held=(SMALL.name,))
    orders = Orders(live)
    assert orders.traffic()["held"] is True
    assert live.gateway.roster.entries[SMALL.name]._lease is not None
    workers[0].speak(3)
    asking = Asking(live)
    assert eventually(lambda: orders.traffic()["waiting"] == 1)
    orders.hold(0)
    assert asking.ended().status == 200


def test_orders_that_come_too_late_are_passed_over(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]
) -> None:
    """What was said before a later order changes nothing, and the same order twice moves once."""
    old, new = workers
    orders = Orders(moving)
    orders.number = 10
    assert orders.move(new).json()["url"] == new.url
    use = moving.gateway.roster.entries[SMALL.name].use
    assert orders.move(old, SMALL, number=11).json() | {"last_order": 11} == orders.traffic()
    assert orders.hold(60, number=5).json()["held"] is False
    orders.number = 20
    assert orders.move(new).json()["last_order"] == 21
    assert moving.gateway.roster.entries[SMALL.name].use is use


def test_only_the_workers_key_opens(moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble]) -> None:
    """No key, a person's key of any scope, and another key are refused; nothing has moved."""
    orders = Orders(moving)
    for headers in ({}, moving.headers(), {"authorization": "Bearer worker-keys"}):
        client = moving.client(headers=headers)
        assert client.get(TRAFFIC_PATH).status_code == 401
        assert client.post(MOVE_PATH, json={}).status_code == 401
        assert client.post(HOLD_PATH, json={}).status_code == 401
    assert orders.traffic()["url"] == workers[0].url


def test_networks_that_may_use_the_server_are_the_teams(
    launch: Launch, workers: tuple[WorkerDouble, WorkerDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor is on this machine, which the list of networks need not name; without its key the list holds."""
    monkeypatch.setenv(KEY_ENV, "worker-key")
    worker = {SMALL.name: Worker(workers[0].url, "/x")}
    live = launch(SMALL, workers=worker, allow_networks=("10.0.0.0/8",))
    assert Orders(live).move(workers[1]).status_code == 200
    assert live.client().get(TRAFFIC_PATH).status_code == 403


def test_a_gateway_without_workers_has_no_such_address(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment has no key nothing could be checked, so there is nothing."""
    monkeypatch.delenv(KEY_ENV, raising=False)
    client = live.client()
    assert [client.get(TRAFFIC_PATH).status_code, client.post(HOLD_PATH, json={}).status_code] == [404, 404]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"number": "one"}, 400),
        ({"url": "ftp://x"}, 400),
        ({"config": {"name": "org/small", "slot": 3}}, 400),
        ({"config": {"name": "another"}}, 400),
        ({"unknown": 1}, 400),
    ],
)
def test_an_order_that_cannot_be_is_refused_whole(
    moving: LiveGateway, workers: tuple[WorkerDouble, WorkerDouble], fields: dict[str, Any], status: int
) -> None:
    """It is said what is wrong with it, and the old worker keeps the turns."""
    orders = Orders(moving)
    refused = orders.move(workers[1], **fields)
    assert (refused.status_code, orders.traffic()["url"]) == (status, workers[0].url)
    assert orders.move(workers[1]).json()["url"] == workers[1].url
