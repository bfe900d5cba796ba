"""Who may come into the agent, and what every answer has."""

import itertools
from pathlib import Path

import pytest
from agent_harness import make_agent, serving

from sekisho.control.api.routes import ROUTES
from sekisho.control.config import ControlConfig

CHANGES = [path for path, handlers in ROUTES.items() if "POST" in handlers]
READS = [path for path, handlers in ROUTES.items() if "GET" in handlers and path != "/v1/events"]


@pytest.mark.parametrize("token", [None, "", "wrong", "é", "a token of this tes"])
async def test_nothing_changes_without_the_token(tmp_path: Path, token: str | None) -> None:
    """Every POST; the version of the policy stays."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        for path in CHANGES:
            status, answer, _ = await live.ask("POST", path, {"kv": {"mode": "disabled"}}, token=token)
            assert status == 401, path
            assert answer["error"]["code"] == 401
            assert "X-Inferos-Token" in answer["error"]["details"]
        assert (await live.get("/v1/policy"))["version"] == 0


async def test_a_wrong_token_does_not_read_either(tmp_path: Path) -> None:
    """Who shows one means it."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        assert (await live.ask("GET", "/v1/health", token="wrong"))[0] == 401


async def test_reading_needs_no_token_from_this_machine(tmp_path: Path) -> None:
    """Every GET answers."""
    agent, _ = make_agent(tmp_path)
    await agent._middle()
    async with serving(agent) as live:
        for path in READS:
            assert (await live.ask("GET", path, token=None))[0] == 200, path


@pytest.mark.parametrize("host", ["evil.example.com", "evil.example.com:7031", "127.0.0.1.nip.io", "", "[::2]:7031"])
async def test_a_name_that_points_here_is_not_enough(tmp_path: Path, host: str) -> None:
    """DNS rebinding: a page whose own name was bent to 127.0.0.1 reads nothing, with a token or without."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        for method, token in itertools.product(("GET", "POST"), (None, "a token of this test")):
            status, answer, _ = await live.ask(method, "/v1/policy", token=token, headers={"Host": host})
            assert status == 403
            assert answer["error"]["message"] == "Wrong host"


async def test_pages_of_other_origins_get_nothing(tmp_path: Path) -> None:
    """Not even a preflight, unless the settings list them; then exactly they."""
    agent, _ = make_agent(tmp_path)
    friend = "https://dash.example.com"
    async with serving(agent, (friend,)) as live:
        for origin in ("https://evil.example.com", "null", friend + ".evil.com", "http://localhost:9"):
            for method in ("GET", "OPTIONS"):
                status, _, headers = await live.ask(method, "/v1/policy", token=None, headers={"Origin": origin})
                assert status == 403, (origin, method)
                assert "Access-Control-Allow-Origin" not in headers
        asked = {"Origin": friend, "Access-Control-Request-Method": "POST"}
        status, _, headers = await live.ask("OPTIONS", "/v1/policy", token=None, headers=asked)
        assert (status, headers["Access-Control-Allow-Origin"]) == (204, friend)
        assert "X-Inferos-Token" in headers["Access-Control-Allow-Headers"]
        status, _, headers = await live.ask("GET", "/v1/policy", token=None, headers={"Origin": friend})
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, friend)


@pytest.mark.parametrize("path", ["/v1/health", "/nowhere", "/v1/policy?dry_run=perhaps"])
async def test_every_answer_has_the_security_headers(tmp_path: Path, path: str) -> None:
    """Errors too."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        _, _, headers = await live.ask("GET", path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/policy", b"{", 400),
        ("POST", "/v1/policy", b"[]", 400),
        ("POST", "/v1/policy", b'{"kv": {"mode": "caf\xe9"}}', 400),
        ("POST", "/v1/policy", b'{"a":' * 5_000, 400),
        ("POST", "/v1/policy", b"{}", 400),
        ("POST", "/v1/policy", b" " * 300_000, 413),
        ("POST", "/v1/baseline", b'{"enabled": 1}', 400),
        ("POST", "/v1/baseline", b'{"on": true}', 400),
        ("POST", "/v1/policy/rollback", b'{"version": 99}', 400),
        ("POST", "/v1/policy/rollback", b'{"version": true}', 400),
        ("POST", "/v1/config", b'{"port": 1}', 400),
        ("POST", "/v1/config", b'{"loops": {"fast_s": 0}}', 400),
        ("POST", "/v1/config", b'{"act": ["everything"]}', 400),
        ("POST", "/v1/config", b'{"act": "balance"}', 400),
        ("POST", "/v1/config", b'{"quality": {"full_at": "25:99"}}', 400),
        ("POST", "/v1/config", b'{"quality": {"enabled": false}}', 400),
        ("POST", "/v1/quality", b'{"kind": "deep"}', 400),
        ("GET", "/v1/history?limit=many", None, 400),
        ("GET", "/v1/history?kind=../secrets", None, 400),
        ("GET", "/v1/metrics?model=none", None, 400),
        ("GET", "/nowhere", None, 404),
        ("PUT", "/v1/policy", b"{}", 405),
    ],
)
async def test_every_error_has_one_shape(
    tmp_path: Path, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Code, message, details and an id that is in the header as well."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        got, answer, headers = await live.ask(method, path, body)
        assert got == status, answer
        error = answer["error"]
        assert set(error) == {"code", "message", "details", "id"}
        assert error["code"] == status
        assert error["id"] == headers["X-Error-Id"]


async def test_a_fault_of_ours_is_told_without_its_insides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with an id; the traceback is in the log under the same id."""
    agent, _ = make_agent(tmp_path)

    def broken() -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(agent, "health", broken)
    async with serving(agent) as live:
        status, answer, _ = await live.ask("GET", "/v1/health")
        assert status == 500
        assert "/secret/path" not in str(answer)
        assert any(answer["error"]["id"] in record.getMessage() for record in caplog.records)


async def test_the_webhooks_address_is_not_for_everybody(tmp_path: Path) -> None:
    """Every local user may read the settings, and whoever has that address can post there."""
    agent, _ = make_agent(tmp_path, config=ControlConfig(webhook_url="https://hooks.example.com/T0/secret"))
    async with serving(agent) as live:
        assert (await live.get("/v1/config"))["webhook_url"] == "(hidden)"
        changed = await live.post("/v1/config", {"act": []})
        assert (changed["webhook_url"], changed["act"]) == ("(hidden)", [])
        assert agent.config.webhook_url == "https://hooks.example.com/T0/secret"
