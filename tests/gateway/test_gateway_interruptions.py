"""The gateway over real HTTP when clients leave, engines fail or fall silent, it drains, or too many come."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from gateway_harness import FAKE, PATIENCE_S, Launch, LiveGateway, chat, error, eventually

from sekisho.core.errors import EngineUnavailable
from sekisho.core.events import EventStream
from sekisho.core.turn import Turn
from sekisho.engines.config import ModelConfig
from sekisho.store import KeySpec

# --- things go away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot(launch: Launch, stream: bool) -> None:
    """Streaming or not, the engine's only slot is free again when the client is gone, and the usage says cancelled."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=1))
    queue = live.gateway.roster.entries["fake"].queue
    with live.asking("/v1/chat/completions", chat("stall:1 a b", stream=stream)) as connection:
        assert eventually(lambda: queue.running == 1)
        if stream:
            assert connection.getresponse().readline().startswith(b"data: ")
    assert eventually(lambda: queue.running == 0)
    assert live.client().post("/v1/chat/completions", json=chat("hi")).status_code == 200
    statuses = sorted(row.status for row in live.usage(2))
    assert statuses == ["cancelled", "completed"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "fake", "input": "x"}),
        ("/api/embed", {"model": "fake", "input": "x"}),
    ],
)
def test_a_client_that_leaves_frees_the_slot_of_its_embedding(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """An embedding is watched as a turn is: its slot is free when the client is gone, and the usage says cancelled."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=1))
    entry = live.gateway.roster.entries["fake"]

    async def stall(request: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(entry.engine, "embed", stall)
    with live.asking(path, body):
        assert eventually(lambda: entry.queue.running == 1)
    assert eventually(lambda: entry.queue.running == 0)
    assert live.usage(1)[0].status == "cancelled"


COUNT = {"model": "fake", "messages": [{"role": "user", "content": "one two"}]}


def test_a_count_that_is_a_run_of_the_engine_waits_and_is_limited_as_one(launch: Launch) -> None:
    """It takes its turn in the queue, stands in the key's window, and leaves no usage; other counts pass by both."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=1), queue_timeout_s=0.2)
    _, key = live.create_key(KeySpec(name="few", rpm=1))
    client = live.client(key)
    entry = live.gateway.roster.entries["fake"]
    with live.client().stream("POST", "/v1/chat/completions", json=chat("stall:1 a b", stream=True)) as stream:
        lines = stream.iter_lines()  # kept: the stream ends with its iterator
        next(lines)
        assert client.post("/v1/messages/count_tokens", json=COUNT).json() == {"input_tokens": 2}
        entry.engine.count_takes_slot = True  # type: ignore[misc]
        assert client.post("/v1/messages/count_tokens", json=COUNT).status_code == 503
        assert client.post("/v1/messages/count_tokens", json=COUNT).status_code == 429
    assert eventually(lambda: entry.queue.running == 0)
    assert live.client().post("/v1/messages/count_tokens", json=COUNT).json() == {"input_tokens": 2}
    assert entry.queue.running == 0
    assert len(live.usage(1)) == 1


QUESTIONS = [
    ("embed", "/v1/embeddings", {"model": "fake", "input": "x"}),
    ("count_tokens", "/v1/messages/count_tokens", COUNT),
]


@pytest.mark.parametrize(("question", "path", "body"), QUESTIONS)
def test_embeddings_and_counts_wait_for_an_engine_that_restarts(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch, question: str, path: str, body: dict[str, Any]
) -> None:
    """As a turn does, where the engine is a process of ours; an engine elsewhere is told as down at once."""
    entry = live.gateway.roster.entries["fake"]
    answer, asked = getattr(entry.engine, question), []

    async def restarting(request: Any) -> Any:
        asked.append(request)
        if len(asked) % 2:
            raise EngineUnavailable("it restarts")
        return await answer(request)

    monkeypatch.setattr(entry.engine, question, restarting)
    assert live.client().post(path, json=body).status_code == 503
    asked.clear()
    entry.config = msgspec.structs.replace(entry.config, engine="llama_cpp", path="builtin")
    assert live.client().post(path, json=body).status_code == 200
    assert len(asked) == 2


@pytest.mark.parametrize(("question", "path", "body"), QUESTIONS)
def test_an_embedding_or_a_count_that_outlasts_the_drain_is_told(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, question: str, path: str, body: dict[str, Any]
) -> None:
    """After the drain time it ends with a 503 that says so, as a turn does."""
    live = launch(FAKE, drain_timeout_s=0.2)
    reached = threading.Event()

    async def stall(request: object) -> Any:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(live.gateway.roster.entries["fake"].engine, question, stall)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(live.client().post, path, json=body)
        assert reached.wait(PATIENCE_S)
        live.in_loop(live.gateway.begin_drain)
        answer = late.result()
    assert answer.status_code == 503
    assert "shutting down" in answer.text


FAILURES = [
    ("/v1/chat/completions", chat("crash:1 a b c", stream=True), '"error"'),
    ("/v1/responses", {"model": "fake", "input": "crash:1 a b c", "stream": True}, "response.failed"),
    (
        "/v1/messages",
        {"model": "fake", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "crash:1 a b c"}]},
        "event: error",
    ),
    ("/api/chat", {"model": "fake", "messages": [{"role": "user", "content": "crash:1 a b c"}]}, '"error"'),
]


@pytest.mark.parametrize(("path", "body", "mark"), FAILURES)
def test_a_failure_in_mid_stream_is_told_with_its_id(
    live: LiveGateway, path: str, body: dict[str, Any], mark: str
) -> None:
    """Each protocol's own failure event, with the id that the usage record has; never a stream that looks whole."""
    text = live.client().post(path, json=body).text
    (row,) = live.usage(1)
    assert mark in text
    assert row.error_id in text
    assert "[DONE]" not in text
    assert (row.status, row.error_code) == ("failed", "engine_failed")


def test_a_failure_before_the_first_byte_has_its_status(live: LiveGateway) -> None:
    """An engine that fails at once gives a 5xx or 4xx, streaming or not, and not a 200 with an error in it."""
    for stream in (True, False):
        for status, expected in ((500, 502), (429, 503)):
            answer = live.client().post("/v1/chat/completions", json=chat(f"status:{status} a", stream=stream))
            assert answer.status_code in (expected, 429, 502, 503)
            assert error(answer)["code"] != "internal_error"


def test_a_silent_engine_is_bridged_by_keep_alives(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the engine thinks, each protocol's keep-alive comes, typed and numbered for the Responses API. It thinks
    until two of them have come."""
    live = launch(FAKE, keepalive_s=0.1)
    engine = live.gateway.roster.entries["fake"].engine
    generate, speaks = engine.generate, threading.Event()

    async def thinks(turn: Turn) -> EventStream:
        await asyncio.to_thread(speaks.wait, PATIENCE_S)
        async for batch in generate(turn):
            yield batch

    monkeypatch.setattr(engine, "generate", thinks)

    def lines(path: str, body: dict[str, Any], keepalive: str) -> list[str]:
        seen: list[str] = []
        speaks.clear()
        with live.client().stream("POST", path, json=body) as stream:
            for line in stream.iter_lines():
                seen.append(line)
                if sum(keepalive in each for each in seen) >= 2:
                    speaks.set()
        return seen

    said = lines("/v1/chat/completions", chat("a", stream=True), ": keep-alive")
    assert sum(line == ": keep-alive" for line in said) >= 2
    assert said[-2:] == ["data: [DONE]", ""]
    body = {"model": "fake", "input": "a", "stream": True}
    told = lines("/v1/responses", body, '"type":"keepalive"')
    events = [json.loads(line[6:]) for line in told if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert sum(event["type"] == "keepalive" for event in events) >= 2
    assert events[-1]["type"] == "response.completed"


def test_draining_lets_running_streams_end_and_refuses_new_ones(launch: Launch) -> None:
    """On SIGTERM a running stream ends by itself within the drain time; a new request gets 503 with Retry-After."""
    live = launch(FAKE, drain_timeout_s=PATIENCE_S)
    client = live.client()
    with client.stream("POST", "/v1/chat/completions", json=chat("tokens:5 pace:0.2", stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        live.in_loop(live.gateway.begin_drain)
        late = live.client().post("/v1/chat/completions", json=chat("hi"))
        assert (late.status_code, error(late)["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
        assert live.fetch("/readyz").status_code == 503
        assert "data: [DONE]" in list(lines)


def test_a_stream_that_outlasts_the_drain_is_told(launch: Launch) -> None:
    """After the drain time the stream ends with a failure that says so; its usage is recorded."""
    live = launch(FAKE, drain_timeout_s=0.2)
    with live.client().stream("POST", "/v1/chat/completions", json=chat("stall:1 a b", stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        live.in_loop(live.gateway.begin_drain)
        told = [line for line in lines if "error" in line]
    assert "shutting down" in told[0]
    assert live.usage(1)[0].error_code == "draining"


def test_two_hundred_clients_at_once(launch: Launch) -> None:
    """200 clients on 4 slots all get their whole answer; nobody hangs, nothing is lost."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=4), queue_limit=400)
    barrier = threading.Barrier(50)

    def ask(number: int) -> str:
        if number < 50:
            barrier.wait()
        return (
            live.client(timeout=60.0)
            .post("/v1/chat/completions", json=chat(f"hello {number}"))
            .json()["choices"][0]["message"]["content"]
        )

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, range(200))) == [f"hello {number}" for number in range(200)]
    assert len(live.usage(200)) == 200


def test_a_full_queue_is_503_with_retry_after(launch: Launch) -> None:
    """One running, one waiting, the third is told to come again."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=1), queue_limit=1)
    queue = live.gateway.roster.entries["fake"].queue
    with (
        ThreadPoolExecutor(1) as pool,
        live.client().stream("POST", "/v1/chat/completions", json=chat("stall:1 a b", stream=True)),
    ):
        waiting = pool.submit(live.client().post, "/v1/chat/completions", json=chat("hi"))
        assert eventually(lambda: queue.waiting == 1)
        refused = live.client().post("/v1/chat/completions", json=chat("hi"))
        assert (refused.status_code, error(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert not waiting.done()
    assert waiting.result(PATIENCE_S).status_code == 200
