"""The feed for the control agent: who may read it, and that it tells the requests that were booked."""

import asyncio
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_harness import FAKE, PATIENCE_S, UNGUARDED, Launch, LiveGateway, chat, eventually
from kept_port import kept_port

from sekisho.control.feed import Feed
from sekisho.control.feed_answer import PATH
from sekisho.control.window import Window
from sekisho.core.clock import ManualClock
from sekisho.engines import llama_worker, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.gateway.samples import SampleLog
from sekisho.ops.home import Home
from sekisho.serve import Plan, Worker
from sekisho.settings import Settings
from sekisho.store import UsageRecord

KEY = "the-key-of-the-workers"


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch, launch: Launch) -> Launch:
    """`launch` for gateways that have the workers' key."""
    monkeypatch.setenv(worker_process.KEY_ENV, KEY)
    return launch


def feed(live: LiveGateway, key: str = KEY, **query: Any) -> httpx.Response:
    return httpx.get(live.url + PATH, params=query, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE_S)


def told(live: LiveGateway, count: int, **query: Any) -> dict[str, Any]:
    """The feed's answer, once it has `count` samples."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer: dict[str, Any] = feed(live, **query).raise_for_status().json()
        if len(answer["samples"]) >= count:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)


def record(**changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "request_id": "r", "key_id": "k", "model": "m", "protocol": "chat", "started_at": 1.0, "duration_ms": 1500.0,
        "status": "completed", "http_status": 200, "ttft_ms": 200.0, "input_tokens": 7, "output_tokens": 5,
    }  # fmt: skip
    return UsageRecord(**{**values, **changes})


# --- who may read it -------------------------------------------------------------------------------------------------


def test_without_a_worker_key_there_is_no_feed(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that has no key for its own processes answers as for any address that does not exist."""
    monkeypatch.delenv(worker_process.KEY_ENV, raising=False)
    answer = feed(live)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")


def test_only_the_worker_key_opens_it(keyed: Launch) -> None:
    """A key of the team with every scope, the worker key as `x-api-key`, a part of it, and none at all are refused."""
    live = keyed()
    refused: list[dict[str, str]] = [
        {"authorization": f"Bearer {live.key}"},
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer \xff"},
        {},
    ]
    for headers in refused:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        assert live.fetch(PATH, headers=raw).status_code == 401, headers
    assert feed(live).status_code == 200


def test_a_question_that_makes_no_sense_names_its_parameter(keyed: Launch) -> None:
    """Numbers that are none, negative, or beyond the longest wait are the caller's error."""
    live = keyed()
    for name, value in (("after", "x"), ("after", "-1"), ("wait_s", "31"), ("wait_s", "nan"), ("wait_s", "")):
        answer = feed(live, **{name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name), value


# --- what it tells ---------------------------------------------------------------------------------------------------


def test_samples_are_the_requests_that_were_booked(keyed: Launch) -> None:
    """Time, tokens and end of each are those of its usage row; a first token has a time only where it was streamed."""
    live = keyed()
    client = live.client()
    began = time.time()
    client.post("/v1/chat/completions", json=chat("one two three"))
    client.post("/v1/chat/completions", json=chat("a b", stream=True))
    client.post("/v1/chat/completions", json=chat("status:503"))
    client.post("/v1/embeddings", json={"model": "fake", "input": "five words are in here"})
    answer = told(live, 4)
    rows = sorted(live.usage(4), key=lambda row: row.started_at)
    for sample, row in zip(answer["samples"], rows, strict=True):
        assert sample["duration_ms"] == row.duration_ms
        assert sample["first_token_ms"] == row.ttft_ms
        assert (sample["input_tokens"], sample["output_tokens"]) == (row.input_tokens or 0, row.output_tokens or 0)
        assert began <= sample["ended_at"] <= time.time()
    assert [sample["status"] for sample in answer["samples"]] == ["ok", "ok", rows[2].error_code, "ok"]
    assert [sample["first_token_ms"] is None for sample in answer["samples"]] == [True, False, True, True]
    assert [sample["number"] for sample in answer["samples"]] == [1, 2, 3, 4]
    assert answer["last"] == 4
    assert [sample["model"] for sample in answer["samples"]] == ["fake"] * 4
    assert answer["ages_s"] == sorted(answer["ages_s"], reverse=True)
    assert answer["ages_s"][0] <= answer["lived_s"]


def test_a_client_that_leaves_is_a_sample_too(keyed: Launch) -> None:
    """A stream that its reader breaks off counts as cancelled, with the tokens that had come."""
    live = keyed()
    with live.client().stream("POST", "/v1/chat/completions", json=chat("stall:2 a b c", stream=True)) as answer:
        assert next(line for line in answer.iter_lines() if '"content":" b"' in line)
    (sample,) = told(live, 1)["samples"]
    assert (sample["status"], sample["output_tokens"]) == ("cancelled", 2)


def test_only_what_is_new_is_told(keyed: Launch) -> None:
    """After a number come later ones; with another gateway's `start`, or a number that was never given, all come."""
    live = keyed()
    for _ in range(3):
        live.client().post("/v1/chat/completions", json=chat("hello"))
    answer = told(live, 3)
    later = told(live, 1, after=2, start=answer["start"])
    assert [sample["number"] for sample in later["samples"]] == [3]
    assert feed(live, after=3, start=answer["start"]).json()["samples"] == []
    assert len(told(live, 3, after=2, start="feed_of_another")["samples"]) == 3
    assert len(told(live, 3, after=99)["samples"]) == 3


def test_who_waits_is_told_of_the_next_request(keyed: Launch) -> None:
    """An answer that is waited for comes with the sample, long before the wait would be over."""
    live = keyed()
    live.client().post("/v1/chat/completions", json=chat("first"))
    told(live, 1)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(feed(live, after=1, wait_s=29)))
    waiting.start()
    live.client().post("/v1/chat/completions", json=chat("second one"))
    waiting.join(25)
    (answer,) = answers
    assert [sample["output_tokens"] for sample in answer.json()["samples"]] == [2]


def test_a_gateway_that_drains_lets_nobody_wait(keyed: Launch) -> None:
    """An agent's question never holds up a stop: it is answered though nothing came."""
    live = keyed()
    live.in_loop(live.gateway.begin_drain)
    answer = httpx.get(live.url + PATH, params={"wait_s": 30}, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
    assert answer.json()["samples"] == []


def test_the_models_stand_as_they_are_now(keyed: Launch) -> None:
    """Who runs, who waits, how many may; and why a model is down."""
    lame = ModelConfig(name="lame", engine="openai_http", url="http://127.0.0.1:9/v1", upstream_model="x")
    live = keyed(ModelConfig(name="fake", engine="fake", slots=1), lame)
    client = live.client()

    def stand() -> dict[str, Any]:
        return {each["model"]: each for each in feed(live).json()["models"]}

    with client.stream("POST", "/v1/chat/completions", json=chat("stall:1 a b", stream=True)) as first:
        words = (line for line in first.iter_lines() if '"content":"a"' in line)  # kept: its end would end the stream
        assert next(words)
        assert eventually(lambda: stand()["lame"]["state"] != "starting")
        models = stand()
    assert models["fake"]["engine"] == "fake"
    assert (models["fake"]["state"], models["fake"]["running"], models["fake"]["slots"]) == ("ready", 1, 1)
    assert models["fake"]["waiting"] == 0
    assert models["fake"]["kv"] is None
    assert models["lame"]["state"] == "down"
    assert models["lame"]["reason"]


async def test_an_agent_reads_on_through_a_restart_of_the_gateway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The agent's own client before two real gateways, one after the other at the same address: each request is told
    once, the time in which nobody answers has a reason, and the window counts all of them."""
    monkeypatch.setenv(worker_process.KEY_ENV, KEY)
    home, port = Home(tmp_path / "home").create(), kept_port()
    plan = Plan(Settings(gateway=GatewayConfig(port=port), models=(FAKE,), guard=UNGUARDED), {})
    agent = Feed(f"http://127.0.0.1:{port}", KEY, wait_s=0.1, pause=lambda _: asyncio.sleep(0.01))
    window, batches = Window(600.0), agent.batches()
    tokens: list[int] = []
    reasons: list[str | None] = []
    key = None
    for words in (("one two", "three"), ("four five six", "seven")):
        live = await asyncio.to_thread(lambda key=key: LiveGateway(home, plan, key).start())
        key = live.key
        for text in words:
            await asyncio.to_thread(live.client().post, "/v1/chat/completions", json=chat(text))
        seen = len(tokens) + 2
        while len(tokens) < seen:
            batch = await anext(batches)
            window.take(batch)
            tokens += [sample.output_tokens for sample in batch.samples]
        await asyncio.to_thread(live.stop)
        while agent.reason is None:
            reasons.append((await anext(batches)).reason)
    await batches.aclose()
    await agent.close()
    assert tokens == [2, 1, 3, 1]
    assert (window.figures("fake").requests, window.figures().output_tokens) == (4, 7)
    assert reasons[-1]
    assert reasons[-1].startswith("the gateway does not answer")


# --- what the engine tells of its own surprise -----------------------------------------------------------------------


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch, launch: Launch, tmp_path: Path) -> Iterator[LiveGateway]:
    """A gateway before llama.cpp with the built-in model."""
    monkeypatch.setenv(worker_process.KEY_ENV, KEY)
    config, port = ModelConfig(name="mini", path="builtin", slots=1, context=512), kept_port()
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(llama_worker.argv(config, port), env=dict(os.environ), stdout=out, stderr=out)
    try:
        yield launch(config, workers={"mini": Worker(f"http://127.0.0.1:{port}/v1", str(log))})
    finally:
        worker.kill()
        worker.wait(30)


def test_the_mean_nll_is_that_of_the_tokens_that_the_engine_told(mini: LiveGateway) -> None:
    """Where a client asks for logprobs the sample has minus their mean, streamed or not; else it has none."""
    asked = {**chat("Say hello."), "model": "mini", "max_tokens": 12, "temperature": 0}
    client = mini.client()
    whole = client.post("/v1/chat/completions", json={**asked, "logprobs": True}).raise_for_status().json()
    client.post("/v1/chat/completions", json={**asked, "logprobs": True, "stream": True}).raise_for_status()
    client.post("/v1/chat/completions", json=asked).raise_for_status()
    logprobs = [each["logprob"] for each in whole["choices"][0]["logprobs"]["content"]]
    first, second, third = (sample["mean_nll"] for sample in told(mini, 3)["samples"])
    assert first == pytest.approx(-statistics.fmean(logprobs), rel=1e-6)
    assert second == pytest.approx(first, rel=0.05)
    assert first > 0
    assert third is None


# --- the log of samples by itself ------------------------------------------------------------------------------------


def test_what_no_engine_answered_is_no_sample() -> None:
    """A refusal of the guard and a person's answer have no tokens, and would make any engine look quick."""
    log = SampleLog(ManualClock())
    log.add(record(input_tokens=0, output_tokens=0))
    assert log.page(0).samples == ()
    log.add(record(status="failed", error_code="engine_failed", input_tokens=None, output_tokens=None))
    log.add(record(status="failed", error_code=None, input_tokens=None, output_tokens=3))
    assert [(each.status, each.output_tokens) for each in log.page(0).samples] == [("engine_failed", 0), ("failed", 3)]


def test_the_oldest_give_way_and_their_numbers_show_it() -> None:
    """The log keeps the newest; the first number that is left tells how many are gone."""
    log = SampleLog(ManualClock(), kept=10)
    for _ in range(25):
        log.add(record())
    assert [sample.number for sample in log.page(3).samples] == list(range(16, 26))
    assert [sample.number for sample in log.page(20).samples] == list(range(21, 26))
    assert [sample.number for sample in log.page(0, limit=4).samples] == [16, 17, 18, 19]
    assert log.page(0, limit=4).last == 25


def test_an_age_is_no_matter_of_the_wall_clock() -> None:
    """A clock that is set back or forward between a request's end and the question changes no age."""
    clock = ManualClock()
    log = SampleLog(clock)
    log.add(record())
    clock.advance(2.0)
    clock.jump(-7200.0)
    assert log.page(0).ages_s == (2.0,)
    assert log.lived_s == 2.0


async def test_a_sample_wakes_all_who_wait_for_it_and_nobody_else() -> None:
    """All who have not seen it go on; who waits for a later one still waits, until the end."""
    log = SampleLog(ManualClock())
    log.add(record())
    waiting = [asyncio.create_task(log.news(1, 60)) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert [each.done() for each in waiting] == [False, False]
    log.add(record())
    later = asyncio.create_task(log.news(2, 60))
    await asyncio.gather(*waiting)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not later.done()
    log.end()
    await later
    await log.news(2, 60)  # nobody waits after the end


async def test_a_wait_without_news_ends() -> None:
    """The time that was asked for, and no error."""
    log = SampleLog(ManualClock())
    await log.news(0, 0.01)
    assert log.last == 0
