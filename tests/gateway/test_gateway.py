"""The gateway over real HTTP, on the fake engine: who gets in, what is metered, and the rest of its face."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import FAKE, Launch, LiveGateway, chat, error, eventually

from sekisho import serve
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import Price
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings
from sekisho.store import KeySpec, UsageRecord, UsageSpool

# --- who gets in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?x=1"])
def test_a_key_opens_by_bearer_and_by_x_api_key(live: LiveGateway, path: str) -> None:
    """Both headers work, on a path with a trailing slash or a query too; nothing else does."""
    assert live.fetch(path, headers=live.headers()).status_code == 200
    assert live.fetch(path, headers={"x-api-key": live.key}).status_code == 200
    assert live.fetch(path, headers={"x-api-key": "", **live.headers()}).status_code == 200
    for headers in ({}, {"authorization": live.key}, {"authorization": "Bearer"}, {"cookie": live.key}):
        refused = live.fetch(path, headers=headers)
        assert (refused.status_code, error(refused)["code"]) == (401, "missing_api_key")
        assert refused.headers["www-authenticate"].startswith("Bearer")
    wrong = live.fetch(path, headers={"x-api-key": live.key + "x"})
    assert (wrong.status_code, error(wrong)["code"]) == (401, "invalid_api_key")


def test_every_route_but_the_public_ones_wants_a_key(live: LiveGateway) -> None:
    """No route of the table answers a caller without a key, whatever the method."""
    for route in live.gateway.router.routes:
        if route.path == "/metrics" or not route.public:
            path = route.path.replace("{response_id}", "resp_1").replace("{model}", "fake")
            assert live.fetch(path, route.method).status_code == 401, route


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
    assert behind.fetch("/v1/models", headers=spoofed).status_code == 403


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
    assert eventually(lambda: again.client(secret).post("/v1/chat/completions", json=chat("x")).status_code == 429)
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
    allowed = live.fetch("/v1/chat/completions", "OPTIONS", headers={"origin": "https://chat.example.com", **ask})
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example.com"
    other = live.fetch("/v1/chat/completions", "OPTIONS", headers={"origin": "https://evil.example", **ask})
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
    assert closed.fetch("/metrics").status_code == 403


def test_a_model_may_have_slashes_in_its_name(launch: Launch) -> None:
    """As models of the hub do: escaped, which is how OpenAI's SDK writes it, or as it is."""
    live = launch(ModelConfig(name="org/name", engine="fake"))
    for written in ("org/name", "org%2Fname"):
        assert live.client().get(f"/v1/models/{written}").json()["id"] == "org/name"
    assert error(live.client().get("/v1/models/org/other"))["code"] == "model_not_found"


def test_health_tells_details_only_to_a_key(live: LiveGateway) -> None:
    """Without a key only the status; with one the models and their queues."""
    assert live.fetch("/healthz").json() == {"status": "ok"}
    assert live.fetch("/readyz").json() == {"status": "ready"}
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
