"""Working sessions: what goes over the wire, and what a task is counted as when something goes wrong."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import LiveGateway
from good_answers import GOOD, Talk, dumped, framed, responses_events, responses_whole
from lies import LIES, PATIENT, limits_for
from lying_server import LyingServer

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.evaluate import codex_run
from sekisho.evaluate.codex_run import CodexPlan, environment, find_codex, is_cut, run_codex
from sekisho.evaluate.exchange import Limits
from sekisho.evaluate.session_tasks import SESSION_TASKS, SessionTask
from sekisho.evaluate.sessions import MOST_TOOL_ROUNDS, TOOLS, Mode, SessionPlan, SessionResult, figures, run
from sekisho.evaluate.target import Key, Target
from sekisho.guard.config import GuardConfig

MODES: list[Mode] = ["responses", "chat"]
KEY = "sk-lying-0123456789"


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
    assert all(figure.n == 20 and figure.unit == "count" and figure.command == "c" for figure in made.values())


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
    (result,) = await played(SessionPlan(mode=mode, tasks=1), lie.way, limits_for(way))
    if lie.fault.startswith("usage"):
        assert (result.outcome, result.faults, result.requests) == ("ok", (lie.fault,), 3)
        return
    others = {"refused": "refused", "empty_answer": "no_text"}
    expected = "cut" if lie.fault in CUTS else "connection" if lie.fault in CONNECTIONS else others.get(lie.fault)
    assert (result.outcome, result.requests) == (expected or "protocol", 1)
    assert lie.fault in result.faults
    counted = {figure.id.split(".")[-1]: figure for figure in figures([result], mode)}
    assert counted["cuts"].value == (expected == "cut")
    assert counted["connection_failures"].value == (expected == "connection")
    assert bool(counted["tasks"].note) == (expected not in ("cut", "connection"))


async def test_nobody_there_is_a_connection_failure_in_every_task() -> None:
    """All twenty are tried, and all fail."""
    async with LyingServer() as server:
        target = server.target("honest")
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


# --- the real Codex CLI, and programs that end as it may ---


def program(folder: Path, body: str) -> Path:
    """An executable Python script in place of Codex."""
    path = folder / "codex-script"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


TARGET = Target("gateway", "http://127.0.0.1:9", "m", Key(KEY))
COMPLETED = 'print(json.dumps({"type":"turn.completed"}))'
SAID = 'print(json.dumps({"type":"item.completed","item":{"type":"agent_message","text":"x"}}))'


def erring(text: str) -> str:
    return f"print(json.dumps({{'type': 'error', 'message': {text!r}}}))"


CUT_TEXT = "stream disconnected before completion: stream closed before response.completed"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        pytest.param(f"{SAID}\n{COMPLETED}", "ok", id="ok"),
        pytest.param(COMPLETED, "no_text", id="silent end"),
        pytest.param(f"{SAID}\n{COMPLETED}\nsys.exit(1)", "connection", id="bad exit"),
        pytest.param("sys.exit(2)", "connection", id="nothing"),
        pytest.param("print('not json'); print('[1]'); print('\\xff')", "connection", id="garbage"),
        pytest.param(erring(CUT_TEXT) + "\nsys.exit(1)", "cut", id="cut"),
        pytest.param(
            f"{erring(f'Reconnecting... 1/5 ({CUT_TEXT})')}\n{SAID}\n{COMPLETED}", "cut", id="cut, came through"
        ),
        pytest.param(
            f"{erring('Reconnecting... 2/5 (unexpected status 503 Service Unavailable: x)')}\n{SAID}\n{COMPLETED}",
            "connection",
            id="refused, came through",
        ),
        pytest.param(
            erring("stream disconnected before completion: error sending request") + "\nsys.exit(1)",
            "connection",
            id="nobody there",
        ),
        pytest.param("time.sleep(60)", "cut", id="hangs"),
        pytest.param(
            erring("Reconnecting... waiting for network (Connection failed: error sending request)")
            + "\nsys.stdout.flush(); time.sleep(60)",
            "connection",
            id="waits for the network",
        ),
        pytest.param("os.fork() or time.sleep(60)\nos.fork()\ntime.sleep(60)", "cut", id="hangs with children"),
    ],
)
async def test_how_codex_ended(tmp_path: Path, body: str, outcome: str) -> None:
    """By its events, its exit code and its time; what it tried again counts as well."""
    plan = CodexPlan(tasks=1, timeout_s=2.0)
    (result,) = await run_codex(program(tmp_path, body), TARGET, plan)
    assert (result.task, result.outcome) == ("ja-01", outcome)
    assert KEY not in result.detail


async def test_codex_gets_its_key_by_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its arguments nor its files hold the key, and no other secret of this process reaches it."""
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    seen = tmp_path / "seen.json"
    told = (
        "told = {'argv': sys.argv, 'env': dict(os.environ), 'home': os.listdir(os.environ['CODEX_HOME'])}\n"
        f"told['cwd'] = os.listdir('.')\njson.dump(told, open({str(seen)!r}, 'w'))"
    )
    script = program(tmp_path, f"{told}\n{SAID}\n{COMPLETED}")
    await run_codex(script, TARGET, CodexPlan(tasks=1))
    found = json.loads(seen.read_text())
    assert found["env"].pop("SEKISHO_API_KEY") == KEY
    assert KEY not in json.dumps(found)
    assert "hunter2" not in json.dumps(found)
    assert found["home"] == found["cwd"] == []
    assert found["argv"][-2:] == ["--", SESSION_TASKS[0].prompts[0]]
    assert found["argv"][found["argv"].index("-s") :][:2] == ["-s", "read-only"]
    assert not is_there(found["env"]["CODEX_HOME"])


async def test_a_run_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    """Cancelled, Codex and what it started are gone."""
    pids = tmp_path / "pids"
    body = f"child = os.fork()\nopen({str(pids)!r}, 'a').write(str(os.getpid()) + '\\n')\ntime.sleep(60)"
    begun = asyncio.Event()

    async def started(process: Any) -> None:
        while not pids.exists() or pids.read_text().count("\n") < 2:  # noqa: ASYNC110  # a file, not an event
            await asyncio.sleep(0.01)
        begun.set()

    task = asyncio.create_task(run_codex(program(tmp_path, body), TARGET, CodexPlan(tasks=1), started=started))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in map(int, pids.read_text().split()):
        assert not alive(pid)


def is_there(path: str) -> bool:
    return Path(path).exists()


def alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_where_codex_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, or on PATH, or nowhere; a name that is no program is told."""
    made = program(tmp_path, "")
    assert find_codex(made) == made
    with pytest.raises(NotFound):
        find_codex(tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_codex() is None
    made.rename(tmp_path / "codex")
    assert find_codex() == tmp_path / "codex"
    assert not is_cut("unexpected status 401 Unauthorized")


async def test_a_program_that_cannot_start_is_told(tmp_path: Path) -> None:
    """Not counted as a failure of the server."""
    broken = tmp_path / "broken"
    broken.write_text("#!/nowhere/python\n")
    broken.chmod(0o755)
    with pytest.raises(NotFound):
        await run_codex(broken, TARGET, CodexPlan(tasks=1))


def test_the_environment_keeps_what_is_needed(tmp_path: Path) -> None:
    """Proxies and certificates go along; without a key there is none."""
    outer = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy", "AWS_SECRET_ACCESS_KEY": "x", "SEKISHO_RUN": "mark"}
    made = environment(Target("engine", "http://127.0.0.1:9", "m"), tmp_path, outer)
    assert made == {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://proxy",
        "SEKISHO_RUN": "mark",
        **dict.fromkeys(("CODEX_HOME", "HOME", "USERPROFILE"), str(tmp_path)),
    }
    assert os.environ.get("PATH") != "/bin"


CODEX = Path(__file__).parents[2] / "build" / "codex" / "node_modules" / ".bin" / "codex"


@pytest.mark.client
@pytest.mark.timeout(300)
@pytest.mark.skipif(not CODEX.exists(), reason="the Codex CLI is not in build/: make test-clients fetches it")
async def test_the_real_codex(gateway: Callable[..., LiveGateway]) -> None:
    """Two tasks through a real gateway are done; a server that cuts each stream is found as such; one that wants
    another key is a connection failure."""
    roomy = ModelConfig(name="fake", engine="fake", slots=8, options={"context_words": 100_000})
    live = await asyncio.to_thread(gateway, roomy)
    good = await run_codex(CODEX, through(live), CodexPlan(tasks=2, timeout_s=120))
    assert [(result.outcome, result.detail) for result in good] == [("ok", "")] * 2
    made = {figure.id: figure.value for figure in codex_run.figures(good)}
    assert made == {"codex.tasks": 2, "codex.connection_failures": 0, "codex.cuts": 0}
    (wrong,) = await run_codex(
        CODEX, Target("gateway", live.url, "fake", Key("k" * 20)), CodexPlan(tasks=1, timeout_s=120)
    )
    assert wrong.outcome == "connection"
    async with LyingServer() as server:
        target = server.target("closed_in_the_middle")
        (cut,) = await run_codex(CODEX, target, CodexPlan(tasks=1, timeout_s=120))
    assert cut.outcome == "cut"
