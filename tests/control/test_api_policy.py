"""Changing the policy through the agent."""

import asyncio
from pathlib import Path

import aiohttp
import jsonschema
import pytest
from agent_harness import TOKEN, ValueEngine, make_agent, serving

from sekisho.control.base import EngineState
from sekisho.control.policy import Policy
from sekisho.control.policy_service import Cause

CAUSE = Cause("middle", "test", "none", "because")


async def test_a_partial_change_merges_and_is_in_force(tmp_path: Path) -> None:
    """What is not named stays; the answer says field by field what the engine did."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"kv": {"recent_window": 128}})
        answer = await live.post("/v1/policy", {"engine": {"slots": 8}, "why": "more people"})
        assert answer["outcome"] == "applied"
        assert answer["changed"] == {"engine.slots": [None, 8]}
        assert [(each["field"], each["effect"], each["done"]) for each in answer["applied"]] == [
            ("engine.slots", "swap", True)
        ]
        policy = await live.get("/v1/policy")
        assert (policy["kv"]["recent_window"], policy["engine"]["slots"], policy["version"]) == (128, 8, 2)
        assert (engine.policy.kv.recent_window, engine.policy.engine.slots) == (128, 8)
        versions = (await live.get("/v1/policy/versions"))["versions"]
        assert [(each["number"], each["by"], each["why"]) for each in versions][1] == (2, "api", "more people")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kv": {"recent_window": 15}}, "kv.recent_window"),
        ({"kv": {"recent_window": 64, "modus": "dynamic"}}, "kv.modus"),
        ({"io": {"dml_pool_bytes": "2 elephants"}}, "io.dml_pool_bytes"),
        ({"quality": {"max_delta_ppl": 3}}, "quality.max_delta_ppl"),
        ({"kv": {"level_thresholds": {"L1_int8": 0.1}}}, "kv.level_thresholds"),
        ({"model": "nobody", "kv": {"mode": "disabled"}}, "model"),
        ({"preset": "enormous"}, "preset"),
    ],
)
async def test_a_wrong_policy_is_refused_whole(tmp_path: Path, body: dict[str, object], field: str) -> None:
    """The field is named and nothing changes, not even what was right beside it."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    async with serving(agent) as live:
        status, answer, _ = await live.ask("POST", "/v1/policy", {**body, "engine": {"slots": 2}})
        assert status == 400
        assert answer["error"]["message"] == "Invalid policy configuration"
        assert field in answer["error"]["details"]
        assert (engine.applied, agent.policies.book.version) == (0, 0)


async def test_a_dry_run_touches_nothing_and_says_all(tmp_path: Path) -> None:
    """What would change on which engine, what is not possible there, and no version, decision or swap."""
    engines = (ValueEngine("a"), ValueEngine("b"))
    agent, _ = make_agent(tmp_path, *engines)
    async with serving(agent) as live:
        body = {"kv": {"mode": "disabled"}, "io": {"enable_iobinding": False}}
        answer = await live.post("/v1/policy?dry_run=true", body)
        assert answer["dry_run"] is True
        assert answer["outcome"] == "partly"
        told = {(each["model"], each["field"]): each["effect"] for each in answer["applied"]}
        for model in "ab":
            assert told[model, "kv.mode"] == "now"
            assert told[model, "io.enable_iobinding"] == "unsupported"
        assert [engine.applied for engine in engines] == [0, 0]
        assert (await live.get("/v1/policy"))["version"] == 0
        assert (await live.get("/v1/decisions"))["decisions"] == []


async def test_an_engine_that_takes_nothing_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    """503 with its reason, the policy before in force, and a decision that says `failed`."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"kv": {"recent_window": 32}})
        engine.broken = "mini (value): it is on fire; put it out"
        status, answer, _ = await live.ask("POST", "/v1/policy", {"kv": {"recent_window": 256}})
        assert status == 503
        assert answer["applied"][0]["reason"] == engine.broken
        assert (await live.get("/v1/policy"))["kv"]["recent_window"] == 32
        decisions = (await live.get("/v1/decisions"))["decisions"]
        assert [each["outcome"] for each in decisions] == ["applied", "failed"]


async def test_rolling_back_is_a_new_version(tmp_path: Path) -> None:
    """The old policy holds again, and the book still has all that was."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        for window in (32, 64 + 1, 128):
            await live.post("/v1/policy", {"kv": {"recent_window": window}})
        answer = await live.post("/v1/policy/rollback", {"version": 1})
        assert (answer["version"], answer["policy"]["kv"]["recent_window"]) == (4, 32)
        answer = await live.post("/v1/policy/rollback", {})
        assert answer["policy"]["kv"]["recent_window"] == 128


async def test_the_baseline_goes_on_and_off(tmp_path: Path) -> None:
    """16 bits, and then exactly what was in force before; twice the same changes nothing."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"kv": {"mode": "quality_optimized", "recent_window": 300}})
        before = (await live.get("/v1/policy"))["kv"]
        assert (await live.post("/v1/baseline", {"enabled": True}))["policy"]["kv"]["mode"] == "disabled"
        assert (await live.post("/v1/baseline", {"enabled": True}))["outcome"] == "nothing"
        assert (await live.post("/v1/baseline", {"enabled": False}))["policy"]["kv"] == before
        assert (await live.post("/v1/baseline", {"enabled": False}))["outcome"] == "nothing"


async def test_one_model_may_differ(tmp_path: Path) -> None:
    """A change for one engine stays there, and a common one goes on holding for what it does not name."""
    first, second = ValueEngine("a"), ValueEngine("b")
    agent, _ = make_agent(tmp_path, first, second)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"model": "a", "kv": {"recent_window": 200}})
        await live.post("/v1/policy", {"quality": {"max_delta_ppl": 0.1}, "kv": {"evict": True}})
        assert first.policy.kv.recent_window == 200
        assert second.policy.kv.recent_window == 64
        assert first.policy.kv.evict is second.policy.kv.evict is True
        assert (await live.get("/v1/policy?model=a"))["kv"]["recent_window"] == 200


async def test_an_engine_that_comes_back_gets_the_policy_again(tmp_path: Path) -> None:
    """A restarted worker has lost what it took while it ran; as long as nobody set a policy, it is left alone."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    await agent._middle()
    assert engine.applied == 0
    await agent.policies.change({"kv": {"recent_window": 99}}, CAUSE, by="test")
    down = EngineState("mini", "value", "down", "it died")
    ready, engine.state_now = engine.state_now, down
    await agent._middle()
    assert agent.health().status == "failing"
    engine.state_now = ready
    engine.policy = Policy()
    await agent._middle()
    assert engine.policy.kv.recent_window == 99
    await agent._middle()
    assert engine.applied == 2, "once, and not at every look"
    await agent.close()


async def test_an_engine_that_does_not_take_the_policy_back_is_asked_again(tmp_path: Path) -> None:
    """Less and less often, the health says so, and it ends once the engine has it."""
    engine = ValueEngine()
    agent, clock = make_agent(tmp_path, engine)
    await agent.policies.change({"kv": {"recent_window": 99}}, CAUSE, by="test")
    engine.policy, engine.broken = Policy(), "mini: busy"
    for _ in range(200):
        await agent._middle()
        clock.advance(5)
    assert "mini: not as the policy wants it, tried again: mini: busy" in agent.health().reasons
    tries = [each.record for each in agent.history.read("decisions") if each.record["rule"] == "engine_back"]
    assert 4 <= len(tries) <= 8
    engine.broken = None
    for _ in range(160):
        await agent._middle()
        clock.advance(5)
    assert engine.policy.kv.recent_window == 99
    assert agent.health().status == "healthy"
    assert engine.applied == 2, "once, and not at every look"
    await agent.close()


async def test_an_engine_that_hangs_is_down_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on with the others; the reason says what happened."""
    monkeypatch.setattr("sekisho.control.agent.STATE_DEADLINE_S", 0.01)
    hanging, fine = ValueEngine("hanging"), ValueEngine("fine")

    async def never() -> EngineState:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(hanging, "state", never)
    agent, _ = make_agent(tmp_path, hanging, fine)
    await agent._middle()
    states = {state.model: state for state in agent.signals().engines}
    assert states["hanging"].state == "down"
    assert "did not tell its state" in str(states["hanging"].reason)
    assert states["fine"].state == "ready"
    await agent.close()


async def test_history_and_versions_survive_a_restart(tmp_path: Path) -> None:
    """Decisions go on with the next number."""
    agent, _ = make_agent(tmp_path)
    await agent.policies.change({"kv": {"recent_window": 99}}, CAUSE, by="test")
    await agent._slow()
    await agent.close()
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        assert (await live.get("/v1/policy"))["kv"]["recent_window"] == 99
        await live.post("/v1/policy", {"kv": {"recent_window": 100}})
        numbers = [each["number"] for each in (await live.get("/v1/decisions"))["decisions"]]
        assert numbers == [1, 2]
        assert len((await live.get("/v1/history?kind=metrics"))["records"]) == 1


async def test_who_watches_sees_the_decision(tmp_path: Path) -> None:
    """As a server-sent event, while it happens."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live, aiohttp.ClientSession() as session:
        async with session.get(live.url + "/v1/events") as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            change = asyncio.create_task(live.post("/v1/policy", {"kv": {"recent_window": 99}}))
            seen = b""
            async for line in response.content:
                seen += line
                if b"recent_window" in line or line.startswith(b"data:"):
                    break
            await change
        assert b"event: decision" in seen


async def test_the_document_describes_what_is_answered(tmp_path: Path) -> None:
    """Every route, with the policy's bounds; the whole is OpenAPI 3.1 whose schemas are valid."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        document = await live.get("/openapi.json")
        window = document["components"]["schemas"]["KvSection"]["properties"]["recent_window"]
        assert (window["minimum"], window["maximum"]) == (16, 512)
        for name, schema in document["components"]["schemas"].items():
            jsonschema.Draft202012Validator.check_schema(schema)
            assert not str(schema).count("NotImplemented"), name
        assert document["paths"]["/v1/policy"]["post"]["security"] == [{"token": []}]
        assert "security" not in document["paths"]["/v1/policy"]["get"]
        status, page, _ = await live.ask("GET", "/", token=None)
        assert (status, "/v1/policy" in page, TOKEN in page) == (200, True, False)


async def test_its_own_settings_change_until_the_next_start(tmp_path: Path) -> None:
    """Periods at once; what is set in the file is not changed here."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        changed = await live.post("/v1/config", {"loops": {"middle_s": 2.5}, "act": ["quality"]})
        assert (changed["loops"]["middle_s"], changed["loops"]["fast_s"], changed["act"]) == (2.5, 1.0, ["quality"])
        assert (await live.get("/v1/health"))["loops"][1]["period_s"] == 2.5
