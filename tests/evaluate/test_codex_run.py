"""The real Codex CLI at work, and programs in its place that end as it may."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import LiveGateway
from lying_server import LyingServer

from sekisho.core.errors import NotFound
from sekisho.engines.config import ModelConfig
from sekisho.evaluate.behaviour import codex_run
from sekisho.evaluate.behaviour.codex_run import CodexPlan, environment, find_codex, is_cut, run_codex
from sekisho.evaluate.behaviour.session_tasks import SESSION_TASKS
from sekisho.evaluate.client.target import Key, Target

KEY = "sk-lying-0123456789"


def through(live: LiveGateway) -> Target:
    return Target("gateway", live.url, "fake", Key(live.key))


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
            f"{erring('in-process app-server event stream lagged; dropped 7 events')}\n{SAID}\n{COMPLETED}",
            "ok",
            id="its own queue was full",
        ),
        pytest.param(
            erring("stream disconnected before completion: error sending request") + "\nsys.exit(1)",
            "connection",
            id="nobody there",
        ),
    ],
)
async def test_how_codex_ended(tmp_path: Path, body: str, outcome: str) -> None:
    """By its events and its exit code; what it tried again counts as well."""
    (result,) = await run_codex(program(tmp_path, body), TARGET, CodexPlan(tasks=1))
    assert (result.task, result.outcome) == ("ja-01", outcome)
    assert KEY not in result.detail


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        pytest.param("", "cut", id="silent"),
        pytest.param(
            erring("Reconnecting... waiting for network (Connection failed: error sending request)"),
            "connection",
            id="waits for the network",
        ),
        pytest.param("child = os.fork() or os.fork()", "cut", id="with children"),
    ],
)
async def test_how_codex_hung(tmp_path: Path, body: str, outcome: str) -> None:
    """By what it had said when its time was over; its time begins here when it hangs, however long its start took."""
    hangs = tmp_path / "hangs"
    script = program(tmp_path, f"{body}\nsys.stdout.flush()\nopen({str(hangs)!r}, 'w').close()\ntime.sleep(600)")

    async def started(process: Any) -> None:
        while not hangs.exists():  # noqa: ASYNC110  # a file, not an event
            await asyncio.sleep(0.01)

    (result,) = await run_codex(script, TARGET, CodexPlan(tasks=1, timeout_s=0.3), started=started)
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
    assert "--ephemeral" not in found["argv"], "without a session Codex may lose the answer that it got"
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
    async with asyncio.timeout(60):
        while any(map(alive, map(int, pids.read_text().split()))):  # noqa: ASYNC110  # killed, and not all ours to wait for
            await asyncio.sleep(0.01)


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
    assert made == {"codex.tasks": 2, "codex.connection_failures": 0, "codex.cuts": 0, "codex.completed": 1.0}
    (wrong,) = await run_codex(
        CODEX, Target("gateway", live.url, "fake", Key("k" * 20)), CodexPlan(tasks=1, timeout_s=120)
    )
    assert wrong.outcome == "connection"
    async with LyingServer() as server:
        target = server.target("closed_in_the_middle")
        (cut,) = await run_codex(CODEX, target, CodexPlan(tasks=1, timeout_s=120))
    assert cut.outcome == "cut"
