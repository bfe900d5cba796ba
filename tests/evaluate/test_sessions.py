"""Working sessions: what goes over the wire, and what a task is counted as when something goes wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from gateway_harness import LiveGateway
from good_answers import DONE, GOOD, Talk, chunk, dumped, framed, responses_events, responses_whole
from kept_port import KeptPort
from lies import LIES, PATIENT, limits_for
from lying_server import LyingServer

from sekisho.core.errors import InvalidRequest
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.evaluate.behaviour import codex_run
from sekisho.evaluate.behaviour.session_tasks import SESSION_TASKS, SessionTask
from sekisho.evaluate.behaviour.sessions import (
    MOST_TOOL_ROUNDS,
    OUTCOMES,
    SESSION_LIMITS,
    TOOLS,
    Mode,
    Outcome,
    SessionPlan,
    SessionResult,
    figures,
    run,
)
from sekisho.evaluate.client.exchange import Limits
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.statistics import share_interval
from sekisho.guard.config import GuardConfig

MODES: list[Mode] = ["responses", "chat"]


async def played(plan: SessionPlan, way: Any, limits: Limits = PATIENT, **options: Any) -> tuple[SessionResult, ...]:
    async with LyingServer() as server:
        server.ways["way"] = way
        return await run(server.target("way"), plan, limits=limits, **options)


class Listener:
    """Answers well and keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, talk: Talk) -> None:
        self.bodies.append(talk.body)
        await talk.send()


def test_the_tasks() -> None:
    """Twenty, half of them Japanese, each of several turns, with ids of their own."""
    assert len(SESSION_TASKS) == 20
    assert sum(task.language == "ja" for task in SESSION_TASKS) == 10
    assert len({task.id for task in SESSION_TASKS}) == 20
    assert all(len(task.prompts) == 3 and all(task.prompts) for task in SESSION_TASKS)


@pytest.mark.parametrize("mode", MODES)
async def test_a_good_server_gets_through_all_tasks(mode: Mode) -> None:
    """Sixty requests, three a task, and nothing to complain about."""
    results = await played(SessionPlan(mode=mode), GOOD["bytewise"])
    assert [result.task for result in results] == [task.id for task in SESSION_TASKS]
    assert {(result.outcome, result.requests, result.faults) for result in results} == {("ok", 3, ())}
    made = {figure.id: figure for figure in figures(results, mode, command="c")}
    names = ("tasks", "connection_failures", "cuts")
    assert [made[f"sessions.{mode}.{name}"].value for name in names] == [20, 0, 0]
    assert all(figure.n == 20 and figure.command == "c" for figure in made.values())
    assert all(made[f"sessions.{mode}.{name}"].unit == "count" for name in names)
    assert made[f"sessions.{mode}.completed"].value == 1.0


async def test_requests_have_codex_shape() -> None:
    """Two developer messages, tools with a namespace and a search, stream without store, the whole history with the
    server's items as they were finished, and never a previous response."""
    way = Listener()
    await played(SessionPlan(mode="responses", tasks=1), way)
    first, _, last = way.bodies
    for body in way.bodies:
        assert (body["stream"], body["store"], body["tool_choice"]) == (True, False, "auto")
        assert body["include"] == ["reasoning.encrypted_content"]
        assert not {"previous_response_id", "instructions", "max_output_tokens"} & set(body)
        assert [tool["type"] for tool in body["tools"]] == ["function", "function", "namespace", "web_search"]
    assert [item["role"] for item in first["input"]] == ["developer", "developer", "user"]
    assert [item["role"] for item in last["input"]] == ["developer"] * 2 + ["user", "assistant"] * 2 + ["user"]
    assert last["input"][3] == responses_whole()["output"][0]
    assert len({body["prompt_cache_key"] for body in way.bodies}) == 1


async def test_chat_pages_send_their_history() -> None:
    """A system message and all turns, streamed with usage."""
    way = Listener()
    await played(SessionPlan(mode="chat", tasks=1, max_tokens=16), way)
    assert [message["role"] for message in way.bodies[-1]["messages"]] == ["system", *["user", "assistant"] * 2, "user"]
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in way.bodies)
    assert {body["max_tokens"] for body in way.bodies} == {16}


@pytest.mark.parametrize("mode", MODES)
async def test_the_prompt_can_be_as_long_as_codex_s(mode: Mode) -> None:
    """Filled up, a request is as large as the real one; otherwise it fits a small model."""
    way = Listener()
    await played(SessionPlan(mode=mode, tasks=1, prompt_chars=39_000), way)
    assert len(dumped(way.bodies[0])) > 39_000
    small = Listener()
    await played(SessionPlan(mode=mode, tasks=1), small)
    assert len(dumped(small.bodies[0])) < 3_000


CUTS = {"no_answer", "silent", "trickled", "cut", "too_large", "empty_body", "no_end", "error_in_stream"}
CONNECTIONS = {"not_http", "redirect", "unauthorized", "forbidden", "not_found", "rate_limited"}
CONNECTIONS |= {"client_error", "server_error"}


@pytest.mark.parametrize(
    ("way", "mode"),
    [(name, mode) for name, lie in LIES.items() for mode in MODES if True in lie.streams and mode in lie.apis],
)
async def test_what_went_wrong_is_counted_as_what_it_is(way: str, mode: Mode) -> None:
    """What was not taken is a connection failure, what stopped coming is a cut, and the rest is neither; a task ends
    with its first request that goes wrong."""
    lie = LIES[way]
    (result,) = await played(SessionPlan(mode=mode, tasks=1, max_tokens=32), lie.way, limits_for(way))
    if lie.fault.startswith("usage"):
        assert (result.outcome, result.faults, result.requests) == ("ok", (lie.fault,), 3)
        return
    others = {"refused": "refused", "empty_answer": "no_text"}
    expected = "cut" if lie.fault in CUTS else "connection" if lie.fault in CONNECTIONS else others.get(lie.fault)
    assert (result.outcome, result.requests) == (expected or "protocol", 1)
    assert lie.fault in result.faults
    counted = {figure.id.split(".")[-1]: figure for figure in figures([result], mode)}
    assert counted["completed"].value == 0.0
    assert counted["cuts"].value == (expected == "cut")
    assert counted["connection_failures"].value == (expected == "connection")
    assert bool(counted["tasks"].note) == (expected not in ("cut", "connection"))


async def test_nobody_there_is_a_connection_failure_in_every_task() -> None:
    """All twenty are tried, and all fail."""
    with KeptPort() as port:
        target = Target("gateway", f"http://127.0.0.1:{port}", "fake", Key("sk-lying-0123456789"))
        results = await run(target, SessionPlan(mode="responses"), limits=PATIENT)
    assert {(result.outcome, result.requests) for result in results} == {("connection", 1)}
    assert len(results) == 20


async def test_a_failure_in_a_later_turn_is_found() -> None:
    """The second request's cut is the task's, with the number of requests."""

    async def way(talk: Talk) -> None:
        users = [item for item in talk.body["input"] if item.get("role") == "user"]
        await (GOOD["honest"] if len(users) == 1 else LIES["cut_in_the_middle"].way)(talk)

    results = await played(SessionPlan(mode="responses", tasks=4, parallel=2), way)
    assert {(result.outcome, result.requests) for result in results} == {("cut", 2)}


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome != "ok"])
@pytest.mark.parametrize("mode", MODES)
def test_the_share_that_completed_tells_every_failure(mode: Mode, outcome: Outcome) -> None:
    """Whatever went wrong, its task is not completed; the share is of all tasks and has its interval."""
    results = [SessionResult(task=str(n), outcome=outcome if n < 5 else "ok", requests=1) for n in range(20)]
    for prefix, made in ((f"sessions.{mode}", figures(results, mode)), ("codex", codex_run.figures(results))):
        share = next(figure for figure in made if figure.id == f"{prefix}.completed")
        assert (share.value, share.n, share.unit) == (0.75, 20, "share")
        assert share.interval == share_interval(15, 20)
    nothing = figures([], mode)[-1]
    assert (nothing.value, bool(nothing.why_null)) == (None, True)


@pytest.mark.parametrize("mode", MODES)
async def test_what_only_thought_up_to_our_limit_is_no_failure(mode: Mode) -> None:
    """A thinking model that our own limit cuts has done nothing wrong; without a limit of ours it has no text."""

    async def way(talk: Talk) -> None:
        thought = "hm " * 8
        if talk.api == "chat":
            usage = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
            events: list[Any] = [chunk({"reasoning_content": thought}), chunk({}, "length"), chunk(usage=usage), DONE]
        else:
            start, end = responses_events()[:2], responses_events()[-1]
            assert isinstance(end, dict)
            last = {**end["response"], "status": "incomplete", "output": []}
            more = {"type": "response.reasoning_text.delta", "delta": thought, "sequence_number": 10}
            events = [*start, more, {"type": "response.incomplete", "sequence_number": 11, "response": last}]
        await talk.chunks([framed(events)])

    (result,) = await played(SessionPlan(mode=mode, tasks=1, max_tokens=8), way)
    assert (result.outcome, result.requests, result.faults) == ("ok", 3, ("only_reasoning",))
    (result,) = await played(SessionPlan(mode=mode, tasks=1), way)
    assert result.outcome == "no_text"


def test_a_steady_answer_may_take_an_hour() -> None:
    """As Codex does, a session waits for the next event, and not for the end."""
    assert (SESSION_LIMITS.silence_s, SESSION_LIMITS.total_s) == (300.0, 3600.0)


async def test_text_without_a_finished_item_is_no_message_to_codex() -> None:
    """Deltas alone are not taken: the server breaks the rule that Codex goes by."""

    async def way(talk: Talk) -> None:
        events = [e for e in responses_events() if isinstance(e, dict) and e["type"] != "response.output_item.done"]
        await talk.chunks([framed(events)])

    (result,) = await played(SessionPlan(mode="responses", tasks=1), way)
    assert (result.outcome, result.faults) == ("protocol", ("item_not_done",))


def calling(name: str) -> list[Any]:
    """A stream that calls a tool and says nothing."""
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name, "arguments": "{}"}
    events = responses_events()
    start, end = events[:2], events[-1]
    assert isinstance(end, dict)
    told = [
        {"type": "response.function_call_arguments.delta", "delta": "{}", "item_id": "fc_1"},
        {"type": "response.output_item.done", "item": call, "output_index": 0},
        {**end, "response": {**end["response"], "output": [call]}},
    ]
    return [*start, *({**event, "sequence_number": 10 + number} for number, event in enumerate(told))]


async def test_a_tool_is_answered_and_the_turn_goes_on() -> None:
    """The call and its output come back in the history; the model's answer to it ends the turn."""
    bodies = []

    async def way(talk: Talk) -> None:
        bodies.append(talk.body)
        asked = talk.body["input"][-1]
        if asked.get("role") == "user":
            await talk.chunks([framed(calling("exec_command"))])
        else:
            await talk.send()

    (result,) = await played(SessionPlan(mode="responses", tasks=1), way)
    assert (result.outcome, result.requests) == ("ok", 6)
    call, output = bodies[1]["input"][-2:]
    assert (call["type"], output["type"]) == ("function_call", "function_call_output")
    assert call["call_id"] == output["call_id"]


async def test_a_model_that_only_calls_tools_ends() -> None:
    """After some rounds the next turn begins: no session runs for ever."""

    async def way(talk: Talk) -> None:
        await talk.chunks([framed(calling("exec_command"))])

    (result,) = await played(SessionPlan(mode="responses", tasks=1), way)
    assert (result.outcome, result.requests) == ("ok", 3 * (1 + MOST_TOOL_ROUNDS))


async def test_finished_tasks_are_not_played_again() -> None:
    """What the journal gives back is taken as it is."""
    kept = SessionResult(task="ja-01", outcome="cut", requests=2)
    keys: list[str] = []

    async def step(key: str, work: Callable[[], Awaitable[SessionResult]]) -> SessionResult:
        keys.append(key)
        return kept if key == "responses-ja-01" else await work()

    way = Listener()
    results = await played(SessionPlan(mode="responses", tasks=3), way, step=step)
    assert keys == ["responses-ja-01", "responses-en-01", "responses-ja-02"]
    assert (results[0], len(way.bodies)) == (kept, 6)


@pytest.mark.parametrize("wrong", [{"tasks": 0}, {"tasks": 21}, {"parallel": 0}, {"prompt_chars": -1}])
def test_plans_that_make_no_session(wrong: dict[str, int]) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(InvalidRequest):
        SessionPlan(mode="chat", **wrong)  # type: ignore[arg-type]


def through(live: LiveGateway) -> Target:
    return Target("gateway", live.url, "fake", Key(live.key))


@pytest.mark.parametrize("mode", MODES)
async def test_a_strict_guard_lets_the_tasks_pass(mode: Mode, gateway: Callable[..., LiveGateway]) -> None:
    """In `production`, where doubt goes to a person, no task of the twenty calls anybody, nor does any whole
    conversation of theirs."""
    live = await asyncio.to_thread(gateway, guard=GuardConfig(mode="production", test_mode=True, output=False))
    results = await run(through(live), SessionPlan(mode=mode, parallel=4), limits=Limits(silence_s=30, total_s=60))
    assert [(r.task, r.outcome, r.detail) for r in results if r.outcome != "ok"] == []


async def test_a_real_gateway_takes_codex_shape(gateway: Callable[..., LiveGateway]) -> None:
    """The engine is told both developer messages, the tools of the namespace under their joined names, and the tool's
    round trip; nothing is faulty."""
    live = await asyncio.to_thread(gateway, ModelConfig(name="fake", engine="fake", slots=8))
    task = SessionTask("t", "en", ('call:exec_command {"cmd":"true"}', "second"))
    (result,) = await run(through(live), SessionPlan(mode="responses", tasks=1), tasks=[task])
    assert (result.outcome, result.requests, result.faults) == ("ok", 3, ())
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    turn = engine.turns[-1]
    assert [message.role for message in turn.messages][:3] == ["developer", "developer", "user"]
    assert len(TOOLS) == 4
