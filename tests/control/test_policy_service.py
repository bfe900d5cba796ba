"""Changes that meet each other, changes that no engine takes, and a disk that takes none."""

import asyncio
from pathlib import Path
from typing import Any

from agent_harness import PERSON, ValueEngine, make_agent, serving

from sekisho.control.base import ActuatorFailed, Applied
from sekisho.control.policy import Policy
from sekisho.control.policy_book import PolicyBook
from sekisho.core.clock import ManualClock


async def test_nobody_waits_for_the_swap_of_another_engine(tmp_path: Path) -> None:
    """While one engine loads, a dry run answers, the other engine is changed, and only the same one waits."""
    slow, quick = ValueEngine("slow"), ValueEngine("quick")
    agent, _ = make_agent(tmp_path, slow, quick)
    slow.gate = asyncio.Event()
    async with serving(agent) as live:
        loading = asyncio.create_task(live.post("/v1/policy", {"model": "slow", "engine": {"slots": 8}}))
        await slow.begun.wait()
        for body in ({"kv": {"evict": True}}, {"model": "slow", "kv": {"evict": True}}):
            assert (await live.post("/v1/policy?dry_run=true", body))["dry_run"] is True
        assert (await live.post("/v1/policy", {"model": "quick", "engine": {"slots": 2}}))["outcome"] == "applied"
        waiting = asyncio.create_task(live.post("/v1/policy", {"model": "slow", "engine": {"slots": 9}}))
        common = asyncio.create_task(live.post("/v1/policy", {"kv": {"recent_window": 99}}))
        await live.get("/v1/policy")
        assert not loading.done()
        assert not waiting.done()
        assert not common.done()
        slow.gate.set()
        assert [each["outcome"] for each in await asyncio.gather(loading, waiting, common)] == ["applied"] * 3
        assert (slow.policy.engine.slots, quick.policy.engine.slots) == (9, 2)
        assert slow.policy.kv.recent_window == quick.policy.kv.recent_window == 99


async def test_a_change_that_fails_takes_back_itself_alone(tmp_path: Path) -> None:
    """What was set for another engine while this one loaded stays."""
    slow, quick = ValueEngine("slow"), ValueEngine("quick")
    agent, _ = make_agent(tmp_path, slow, quick)
    slow.gate = asyncio.Event()
    async with serving(agent) as live:
        loading = asyncio.create_task(live.ask("POST", "/v1/policy", {"model": "slow", "engine": {"slots": 8}}))
        await slow.begun.wait()
        await live.post("/v1/policy", {"model": "quick", "engine": {"slots": 2}})
        slow.broken = "slow: out of memory"
        slow.gate.set()
        status, answer, _ = await loading
        assert (status, answer["outcome"], answer["policy"]["engine"]["slots"]) == (503, "failed", None)
        assert (await live.get("/v1/policy?model=quick"))["engine"]["slots"] == 2
        await live.post("/v1/policy/rollback", {})
        assert (await live.get("/v1/policy?model=quick"))["engine"]["slots"] is None


async def test_a_step_back_that_no_engine_takes_is_taken_back(tmp_path: Path) -> None:
    """503 with the reason, and policy and engine agree."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"kv": {"recent_window": 32}})
        await live.post("/v1/policy", {"kv": {"recent_window": 128}})
        engine.broken = "mini: cannot"
        status, answer, _ = await live.ask("POST", "/v1/policy/rollback", {"version": 1})
        assert (status, answer["outcome"], answer["applied"][0]["reason"]) == (503, "failed", "mini: cannot")
        assert (await live.get("/v1/policy"))["kv"]["recent_window"] == engine.policy.kv.recent_window == 128
        status, answer, _ = await live.ask("POST", "/v1/baseline", {"enabled": True})
        assert (status, answer["outcome"], answer["policy"]["kv"]["mode"]) == (503, "failed", "configured")
        engine.broken = None
        assert (await live.post("/v1/baseline", {"enabled": False}))["outcome"] == "nothing"


async def test_one_step_back_does_not_lead_to_what_failed(tmp_path: Path) -> None:
    """A version that the agent took back was never in force."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    async with serving(agent) as live:
        await live.post("/v1/policy", {"kv": {"recent_window": 32}})
        engine.broken = "mini: cannot"
        assert (await live.ask("POST", "/v1/policy", {"kv": {"recent_window": 128}}))[0] == 503
        engine.broken = None
        answer = await live.post("/v1/policy/rollback", {})
        assert answer["policy"]["kv"]["recent_window"] == 64
        status, answer, _ = await live.ask("POST", "/v1/policy/rollback", {})
        assert (status, answer["policy"]["kv"]["recent_window"]) == (200, 32)


async def test_there_is_no_step_back_from_the_beginning(tmp_path: Path) -> None:
    """400, and it says so."""
    agent, _ = make_agent(tmp_path)
    async with serving(agent) as live:
        status, answer, _ = await live.ask("POST", "/v1/policy/rollback", {})
        assert (status, "nothing was in force before" in answer["error"]["details"]) == (400, True)


async def test_a_disk_that_is_full_is_told_as_such(tmp_path: Path) -> None:
    """507 and the reason; nothing has changed."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)
    agent.policies.book.close()
    async with serving(agent) as live:
        for path, body in (("/v1/policy", {"kv": {"evict": True}}), ("/v1/baseline", {"enabled": True})):
            status, answer, _ = await live.ask("POST", path, body)
            assert (status, answer["error"]["message"]) == (507, "The policy could not be written")
            assert "policy.jsonl" in answer["error"]["details"]
        assert (engine.applied, agent.policies.book.version) == (0, 0)


async def test_a_change_that_cannot_be_taken_back_is_a_decision_all_the_same(tmp_path: Path) -> None:
    """Its reason says that what no engine took stays in force."""
    engine = ValueEngine()
    agent, _ = make_agent(tmp_path, engine)

    async def apply(policy: Policy) -> tuple[Applied, ...]:
        agent.policies.book.close()
        raise ActuatorFailed("mini: cannot")

    engine.apply = apply  # type: ignore[method-assign]
    async with serving(agent) as live:
        status, answer, _ = await live.ask("POST", "/v1/policy", {"kv": {"recent_window": 128}})
        assert (status, answer["outcome"], answer["policy"]["kv"]["recent_window"]) == (503, "failed", 128)
        (decision,) = (await live.get("/v1/decisions"))["decisions"]
        assert decision["outcome"] == "failed"
        assert "could not be put in force again" in decision["why"]


async def test_a_persons_common_change_reaches_every_model(tmp_path: Path) -> None:
    """What the agent had set for one model in the same section is dropped, in the dry run as well; what a person had
    set for it, and other sections, stay."""
    engine, other = ValueEngine("m"), ValueEngine("n")
    agent, _ = make_agent(tmp_path, engine, other)
    change = agent.policies.change
    await change({"kv": {"evict": True}, "quality": {"min_accept_rate": 0.1}}, PERSON, by="api", model="m")
    await change({"kv": {"mode": "disabled"}, "engine": {"slots": 3}}, PERSON, by="agent quality", model="m")
    await change({"quality": {"max_delta_ppl": 0.3}}, PERSON, by="api")
    assert engine.policy.kv.mode == "disabled"
    await change({"kv": {"recent_window": 99}}, PERSON, by="agent")
    assert engine.policy.kv.mode == "disabled"
    planned = await change({"kv": {"mode": "dynamic"}}, PERSON, by="api", dry_run=True)
    assert {each.model: each.value for each in planned.applied if each.field == "kv.mode"} == dict.fromkeys(
        "mn", "dynamic"
    )
    await change({"kv": {"mode": "dynamic"}}, PERSON, by="api")
    assert (engine.policy.kv.mode, engine.policy.kv.evict, engine.policy.engine.slots) == ("dynamic", True, 3)
    assert engine.policy.quality.min_accept_rate == 0.1
    await agent.close()


def test_whether_a_person_has_set_a_policy_survives_a_restart(tmp_path: Path) -> None:
    """The agent's own changes do not count."""
    told: list[Any] = []
    for by in ("agent", "agent quality", "api"):
        with PolicyBook(tmp_path, ManualClock()) as book:
            book.change({"kv": {"recent_window": 100 + len(told)}}, by=by, why="because")
            told.append(book.set_by_person)
    with PolicyBook(tmp_path, ManualClock()) as book:
        assert [*told, book.set_by_person] == [False, False, True, True]


async def test_memory_is_unsettled_while_engines_are_exchanged_and_a_minute_after(tmp_path: Path) -> None:
    """And so it is around a measurement; a change that an engine takes while it runs takes no memory."""
    engine = ValueEngine()
    agent, clock = make_agent(tmp_path, engine)
    policies = agent.policies
    await policies.change({"kv": {"recent_window": 99}}, PERSON, by="api")
    assert not policies.unsettled
    engine.gate, engine.begun = asyncio.Event(), asyncio.Event()
    swap = asyncio.create_task(policies.change({"engine": {"slots": 8}}, PERSON, by="api"))
    await engine.begun.wait()
    clock.advance(300)
    assert policies.unsettled
    engine.gate.set()
    await swap
    for passed_s, unsettled in ((59, True), (2, False)):
        clock.advance(passed_s)
        assert policies.unsettled is unsettled
    with policies.measuring():
        clock.advance(300)
        assert policies.unsettled
    for passed_s, unsettled in ((59, True), (2, False)):
        clock.advance(passed_s)
        assert policies.unsettled is unsettled
    await agent.close()
