"""The gateway over real HTTP, on the fake engine: who gets in, what is metered, what happens when things go away."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from gateway_harness import FAKE, Launch, LiveGateway, chat

from sekisho import serve
from sekisho.core.errors import EngineUnavailable
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import Price
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings
from sekisho.store import KeySpec, UsageRecord, UsageSpool


def eventually(fact: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether a fact comes true; generous, because a loaded machine is slow and not wrong."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def error(response: httpx.Response) -> dict[str, Any]:
    """The OpenAI-shaped error of an answer."""
    told: dict[str, Any] = response.json()["error"]
    assert told["id"].startswith("err_")
    assert response.headers["x-error-id"] == told["id"]
    return told


# --- who gets in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?x=1"])
def test_a_key_opens_by_bearer_and_by_x_api_key(live: LiveGateway, path: str) -> None:
    """Both headers work, on a path with a trailing slash or a query too; nothing else does."""
    assert httpx.get(live.url + path, headers=live.headers()).status_code == 200
    assert httpx.get(live.url + path, headers={"x-api-key": live.key}).status_code == 200
    assert httpx.get(live.url + path, headers={"x-api-key": "", **live.headers()}).status_code == 200
    for headers in ({}, {"authorization": live.key}, {"authorization": "Bearer"}, {"cookie": live.key}):
        refused = httpx.get(live.url + path, headers=headers)
        assert (refused.status_code, error(refused)["code"]) == (401, "missing_api_key")
        assert refused.headers["www-authenticate"].startswith("Bearer")
    wrong = httpx.get(live.url + path, headers={"x-api-key": live.key + "x"})
    assert (wrong.status_code, error(wrong)["code"]) == (401, "invalid_api_key")


def test_every_route_but_the_public_ones_wants_a_key(live: LiveGateway) -> None:
    """No route of the table answers a caller without a key, whatever the method."""
    for route in live.gateway.router.routes:
        if route.path == "/metrics" or not route.public:
            path = route.path.replace("{response_id}", "resp_1").replace("{model}", "fake")
            assert httpx.request(route.method, live.url + path).status_code == 401, route


def test_new_rotated_and_revoked_keys_count_at_once(live: LiveGateway) -> None:
    """A key made while the server runs works on its first use; a rotated or revoked one stops within moments."""
    record, secret = live.create_key(KeySpec(name="late"))
    assert live.client(secret).get("/v1/models").status_code == 200
    _, second = live.in_store(lambda store: store.rotate_key(record.id))
    assert live.client(second).get("/v1/models").status_code == 200
    assert eventually(lambda: live.client(secret).get("/v1/models").status_code == 401)
    live.in_store(lambda store: store.revoke_key(record.id))
    assert eventually(lambda: live.client(second).get("/v1/models").status_code == 401)


def test_scopes_models_and_networks_are_enforced(launch: Launch) -> None:
    """403 for a missing scope, a model that the key may not use and a foreign network; 404 for no such model."""
    live = launch(FAKE, ModelConfig(name="other", engine="fake"))
    _, narrow = live.create_key(KeySpec(name="narrow", scopes=frozenset({"chat"}), models=frozenset({"fake"})))
    _, foreign = live.create_key(KeySpec(name="foreign", networks=("10.0.0.0/8",)))
    client = live.client(narrow)
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake"]
    assert client.post("/v1/chat/completions", json=chat("hi")).status_code == 200
    other = client.post("/v1/chat/completions", json=chat("hi", model="other"))
    assert (other.status_code, error(other)["code"]) == (403, "model_not_allowed")
    none = client.post("/v1/chat/completions", json=chat("hi", model="none"))
    assert (none.status_code, error(none)["code"], error(none)["param"]) == (404, "model_not_found", "model")
    scope = client.post("/v1/embeddings", json={"model": "fake", "input": "x"})
    assert (scope.status_code, error(scope)["code"]) == (403, "scope_missing")
    outside = live.client(foreign).get("/v1/models")
    assert (outside.status_code, error(outside)["code"]) == (403, "network_not_allowed")


def test_forwarded_addresses_count_only_from_a_trusted_proxy(launch: Launch) -> None:
    """X-Forwarded-For opens nothing by itself; from a trusted proxy its last foreign hop is the caller."""
    plain, behind = launch(), launch(FAKE, trusted_proxies=("127.0.0.0/8",), allow_networks=("192.0.2.0/24",))
    for live, expected in ((plain, 403), (behind, 200)):
        _, secret = live.create_key(KeySpec(name="office", networks=("192.0.2.0/24",)))
        client = live.client(secret, headers={"x-forwarded-for": "192.0.2.7", **live.headers(secret)})
        assert client.get("/v1/models").status_code == expected
    spoofed = {"x-forwarded-for": "192.0.2.7, 198.51.100.1", **behind.headers()}
    assert httpx.get(f"{behind.url}/v1/models", headers=spoofed).status_code == 403


# --- what is metered ------------------------------------------------------------------------------------------------


def test_requests_a_minute_and_parallel_requests(live: LiveGateway) -> None:
    """The third request of a key with rpm 2 is 429 with Retry-After and the limit headers; so is a second parallel."""
    _, slow = live.create_key(KeySpec(name="slow", rpm=2))
    client = live.client(slow)
    first = client.post("/v1/chat/completions", json=chat("hi"))
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert client.post("/v1/chat/completions", json=chat("hi")).status_code == 200
    third = client.post("/v1/chat/completions", json=chat("hi"))
    assert (third.status_code, error(third)["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(third.headers["retry-after"]) <= 60
    _, single = live.create_key(KeySpec(name="single", parallel=1))
    client = live.client(single)
    with client.stream("POST", "/v1/chat/completions", json=chat("stall:1 a b", stream=True)):
        second = client.post("/v1/chat/completions", json=chat("hi"))
        assert (second.status_code, error(second)["code"]) == (429, "parallel_limit_exceeded")
    assert eventually(lambda: client.post("/v1/chat/completions", json=chat("hi")).status_code == 200)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat("hello there")),
        ("/v1/responses", {"model": "fake", "input": "hello there"}),
        ("/v1/messages", {"model": "fake", "max_tokens": 9, "messages": [{"role": "user", "content": "hello there"}]}),
        ("/api/chat", {"model": "fake", "messages": [{"role": "user", "content": "hello there"}]}),
    ],
)
def test_a_spent_budget_is_429_insufficient_quota(live: LiveGateway, path: str, body: dict[str, Any]) -> None:
    """2 tokens in and 2 out: a budget of 4 lets one request through, in every protocol, and then no other."""
    _, secret = live.create_key(KeySpec(name="poor", budget_tokens=4))
    client = live.client(secret)
    assert client.post(path, json=body).status_code == 200
    refused = client.post(path, json=body)
    assert refused.status_code == 429
    assert "budget" in refused.text
    if path.startswith(("/v1/c", "/v1/r")):
        assert (error(refused)["code"], error(refused)["type"]) == ("insufficient_quota", "insufficient_quota")


def test_spending_survives_a_restart(launch: Launch) -> None:
    """What a key spent before the server was stopped still counts after it."""
    live = launch()
    _, secret = live.create_key(KeySpec(name="poor", budget_tokens=4))
    assert live.client(secret).post("/v1/chat/completions", json=chat("hello there")).status_code == 200
    live.stop()
    again = LiveGateway(live.home, live.plan, live.key).start()
    assert eventually(lambda: again.client(secret).post("/v1/chat/completions", json=chat("x")).status_code == 429, 20)
    again.stop()


def test_usage_and_cost_are_exact(launch: Launch) -> None:
    """100 requests from 20 threads give 100 rows whose tokens are the engine's own, and the cost of the price list."""
    live = launch(FAKE, prices={"fake": Price(input_per_million=3.0, output_per_million=5.0)})

    def ask(number: int) -> None:
        stream = number % 2 == 0
        body = chat(f"tokens:{number + 1} a b", stream=stream, user=f"u{number % 3}")
        assert live.client().post("/v1/chat/completions", json=body).status_code == 200

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(ask, range(100)))
    rows = live.usage(100)
    assert sorted(row.output_tokens for row in rows) == list(range(1, 101))
    assert {row.status for row in rows} == {"completed"}
    assert {row.user for row in rows} == {"u0", "u1", "u2"}
    assert all(row.cost_micros == int(row.input_tokens * 3 + row.output_tokens * 5 + 0.5) for row in rows)
    assert all((row.ttft_ms is None) == (row.output_tokens % 2 == 0) for row in rows), "only streams see a first token"


async def test_a_budget_holds_from_the_first_request_on(tmp_path: Path) -> None:
    """Usage that a killed process left in its spool counts before the first request is admitted."""
    home = Home(tmp_path).create()
    dead = UsageSpool(home.spool)
    dead.append(
        UsageRecord(
            request_id="r",
            key_id="key_a",
            model="fake",
            protocol="chat",
            started_at=time.time(),
            duration_ms=1.0,
            status="completed",
            http_status=200,
            input_tokens=7,
            output_tokens=5,
        )
    )
    dead.close()
    gateway = serve.build_gateway(home, Plan(Settings(models=(FAKE,)), {}))
    await gateway.start()
    try:
        assert gateway.ledger.spending("key_a").tokens == 12
    finally:
        await gateway.stop()


# --- things go away -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot(launch: Launch, stream: bool) -> None:
    """Streaming or not, the engine's only slot is free again when the client is gone, and the usage says cancelled."""
    live = launch(ModelConfig(name="fake", engine="fake", slots=1))
    with pytest.raises(httpx.ReadTimeout):
        live.client(timeout=0.5).post("/v1/chat/completions", json=chat("stall:1 a b", stream=stream))
    queue = live.gateway.roster.entries["fake"].queue
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
    with pytest.raises(httpx.ReadTimeout):
        live.client(timeout=0.5).post(path, json=body)
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
        late = pool.submit(live.client(timeout=10).post, path, json=body)
        assert reached.wait(10)
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


def test_a_silent_engine_is_bridged_by_keep_alives(launch: Launch) -> None:
    """While the engine thinks, each protocol's keep-alive comes, typed and numbered for the Responses API."""
    live = launch(FAKE, keepalive_s=0.1)
    text = live.client().post("/v1/chat/completions", json=chat("delay:0.5 a", stream=True)).text
    assert text.count(": keep-alive") >= 2
    assert text.endswith("[DONE]\n\n")
    body = {"model": "fake", "input": "delay:0.5 a", "stream": True}
    events = [
        json.loads(line[6:])
        for line in live.client().post("/v1/responses", json=body).text.splitlines()
        if line.startswith("data: ")
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert sum(event["type"] == "keepalive" for event in events) >= 2
    assert events[-1]["type"] == "response.completed"


def test_draining_lets_running_streams_end_and_refuses_new_ones(launch: Launch) -> None:
    """On SIGTERM a running stream ends by itself within the drain time; a new request gets 503 with Retry-After."""
    live = launch(FAKE, drain_timeout_s=20.0)
    client = live.client()
    with client.stream("POST", "/v1/chat/completions", json=chat("tokens:5 pace:0.2", stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        live.in_loop(live.gateway.begin_drain)
        late = live.client().post("/v1/chat/completions", json=chat("hi"))
        assert (late.status_code, error(late)["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
        assert httpx.get(f"{live.url}/readyz").status_code == 503
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
    assert waiting.result(20).status_code == 200


# --- the rest of the face -------------------------------------------------------------------------------------------


def test_unknown_paths_and_methods(live: LiveGateway) -> None:
    """404 and 405 in the error shape, with Allow; HEAD works where GET does."""
    assert error(live.client().get("/nope"))["code"] == "unknown_path"
    wrong = live.client().get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert live.client().head("/v1/models").status_code == 200


def test_browsers_of_allowed_origins_may_call(launch: Launch) -> None:
    """A preflight of a listed origin passes without a key; another origin gets nothing."""
    live = launch(FAKE, cors_origins=("https://chat.example.com",))
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = httpx.options(f"{live.url}/v1/chat/completions", headers={"origin": "https://chat.example.com", **ask})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
    other = httpx.options(f"{live.url}/v1/chat/completions", headers={"origin": "https://evil.example", **ask})
    assert other.status_code == 403
    answer = live.client().get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_metrics_want_a_scope_and_tell_what_happened(live: LiveGateway) -> None:
    """Prometheus' text with the tokens by model and key; a key without `control` or `admin` gets 403."""
    _, plain = live.create_key(KeySpec(name="plain"))
    assert live.client(plain).get("/metrics").status_code == 403
    assert live.client(plain).post("/v1/chat/completions", json=chat("a b c")).status_code == 200
    text = live.client().get("/metrics").text
    assert 'sekisho_tokens_total{key="plain",kind="output",model="fake"} 3.0' in text
    assert 'sekisho_engine_ready{model="fake"} 1.0' in text


def test_networks_count_for_metrics_and_details_too(launch: Launch) -> None:
    """A key that may not be used from here opens neither /metrics nor the details of /readyz; `metrics_public` opens
    it to the networks that may use the server, and to nobody else."""
    live = launch()
    _, foreign = live.create_key(KeySpec(name="foreign", scopes=frozenset({"control"}), networks=("10.0.0.0/8",)))
    client = live.client(foreign)
    assert client.get("/v1/models").status_code == 403
    assert client.get("/metrics").status_code == 403
    assert client.get("/readyz").json() == {"status": "ready"}
    closed = launch(FAKE, allow_networks=("10.0.0.0/8",), metrics_public=True)
    assert httpx.get(f"{closed.url}/metrics").status_code == 403


def test_a_model_may_have_slashes_in_its_name(launch: Launch) -> None:
    """As models of the hub do: escaped, which is how OpenAI's SDK writes it, or as it is."""
    live = launch(ModelConfig(name="org/name", engine="fake"))
    for written in ("org/name", "org%2Fname"):
        assert live.client().get(f"/v1/models/{written}").json()["id"] == "org/name"
    assert error(live.client().get("/v1/models/org/other"))["code"] == "model_not_found"


def test_health_tells_details_only_to_a_key(live: LiveGateway) -> None:
    """Without a key only the status; with one the models and their queues."""
    assert httpx.get(f"{live.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{live.url}/readyz").json() == {"status": "ready"}
    assert live.client().get("/readyz").json()["models"]["fake"]["state"] == "ready"


def test_a_request_id_of_the_client_comes_back_only_if_it_is_harmless(live: LiveGateway) -> None:
    """A plain id is echoed; one that could break a header or a log is replaced."""
    assert live.client().get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert live.client().get("/healthz", headers={"x-request-id": "a b\t;"}).headers["x-request-id"].startswith("req_")


def test_a_programmers_error_is_500_with_an_id_and_leaves_its_record(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback reaches the client, the log has it under the id, and the usage says failed."""
    monkeypatch.setattr(live.gateway.roster, "run", lambda turn: 1 / 0)
    answer = live.client().post("/v1/chat/completions", json=chat("hi"))
    assert (answer.status_code, error(answer)["code"]) == (500, "internal_error")
    assert "ZeroDivision" not in answer.text
    assert [(row.status, row.http_status) for row in live.usage(1)] == [("failed", 500)]
