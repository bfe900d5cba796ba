"""`up`, `status` and `down` as programs of their own, with a real server behind them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sekisho.ops.home import Home, running


def program(home: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs `sekisho` as a user would, and waits."""
    names = ("DATABASE_URL", "SEKISHO_HOST", "SEKISHO_PORT", "LC_ALL", "LC_MESSAGES", "SEKISHO_LANG")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", "sekisho", *arguments],
        env={**clean, "SEKISHO_HOME": str(home), "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path, unused_tcp_port: int) -> Iterator[Path]:
    """A home whose only model is the fake engine; whatever serves from it is ended afterwards."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    text = f"gateway: {{port: {unused_tcp_port}, drain_timeout_s: 1}}\nmodels: [{{name: echo, engine: fake}}]\n"
    (path / "sekisho.yaml").write_text(text)
    yield path
    state = running(Home(path))
    if state is not None:
        os.kill(state.pid, signal.SIGTERM)
        psutil.Process(state.pid).wait(60)


def ask(url: str, key: str) -> Any:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}]}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.mark.slow
def test_up_status_down(home: Path) -> None:
    """Detached, it answers with the key that it told; a second `up` tells the same address without a new key;
    `status` shows it; `down` ends every process, and then nothing is noted as running."""
    first = program(home, "up", "--detach", "--json")
    assert first.returncode == 0, first.stdout + first.stderr
    told = json.loads(first.stdout)
    assert ask(told["url"], told["admin_key"])["choices"][0]["message"]["role"] == "assistant"
    again = program(home, "up", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["already_running"] is True
    assert json.loads(again.stdout)["url"] == told["url"]
    status = json.loads(program(home, "status", "--json").stdout)
    assert (status["ready"], status["pid"], status["url"]) == (True, told["pid"], told["url"])
    assert [child["name"] for child in status["children"]] == ["gateway", "agent"]
    assert "gateway" in program(home, "status").stdout
    logs = "".join(path.read_text() for path in (home / "logs").iterdir())
    assert told["admin_key"] not in logs
    family = [psutil.Process(told["pid"]), *psutil.Process(told["pid"]).children(recursive=True)]
    assert program(home, "down").returncode == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert running(Home(home)) is None


def test_up_in_the_foreground_prints_a_banner(home: Path, unused_tcp_port_factory: Callable[[], int]) -> None:
    """In the foreground it prints address, key, a line to paste and how to stop, and ends with 0 on Ctrl+C;
    --port and --model are for this run alone."""
    written = (home / "sekisho.yaml").read_text()
    (home / "sekisho.yaml").write_text(written.replace("}]", "}, {name: other, engine: fake}]"))
    port = unused_tcp_port_factory()
    environment = {**os.environ, "SEKISHO_HOME": str(home), "SEKISHO_LANG": "en", "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-m", "sekisho", "up", "--model", "other", "--port", str(port)]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Stop with"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    banner = "".join(lines)
    key = next(line for line in lines if line.startswith("  sk-sekisho-")).strip()
    assert f"export SEKISHO_KEY={key}\n" in banner
    assert f"curl -sS http://127.0.0.1:{port}/v1/chat/completions" in banner
    assert f"Chat page: http://127.0.0.1:{port}/\n" in banner
    assert "Models: other\n" in banner


def test_taken_port_is_told(home: Path, unused_tcp_port: int) -> None:
    """When the port is somebody else's, `up --detach` fails with 1, the reason, and the next port."""
    import socket

    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port is held for this test already
        holder.bind(("127.0.0.1", unused_tcp_port))
        holder.listen()
        failed = program(home, "up", "--detach")
    assert failed.returncode == 1
    assert f"--port {unused_tcp_port + 1}" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_open_host_is_warned_of_once(home: Path) -> None:
    """With `--detach`, too: beside the banner, or in the JSON answer, and not again in a log that is shown."""
    first = program(home, "up", "--detach", "--host", "0.0.0.0")
    assert first.returncode == 0, first.stderr
    assert (first.stdout + first.stderr + (home / "logs" / "up.log").read_text()).count("0.0.0.0") == 1


def test_an_unknown_host_is_told(home: Path) -> None:
    """`up` on an address that is not this machine's says so; another port would not help."""
    failed = program(home, "up", "--host", "no.such.host.invalid")
    assert failed.returncode == 1
    assert "--host 127.0.0.1" in failed.stderr
    assert "--port" not in failed.stderr


def test_an_emergency_reaches_the_server_that_runs(home: Path) -> None:
    """`up --guard off --test-mode` lets pass; `emergency on` holds everything, over that mode, until `off`; the book is
    read beside the server, and tells the verdict."""
    told = json.loads(program(home, "up", "--detach", "--guard", "off", "--test-mode", "--json").stdout)
    mode = json.loads(program(home, "guard", "mode", "--json").stdout)
    assert (mode["mode"], mode["from"], mode["test_mode"], mode["running"]) == ("off", "server", True, True)

    def ends_with(reason: str) -> None:
        deadline = time.monotonic() + 60
        while ask(told["url"], told["admin_key"])["choices"][0]["finish_reason"] != reason:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    ends_with("stop")
    assert program(home, "emergency", "on", "--reason", "a drill").returncode == 0
    ends_with("content_filter")
    mode = json.loads(program(home, "guard", "mode", "--json").stdout)
    assert (mode["mode"], mode["configured"], mode["from"]) == ("emergency", "off", "emergency")
    found = json.loads(program(home, "audit", "search", "--decision", "escalate", "--json").stdout)
    assert found[-1]["record"]["decided_by"] == "configuration"
    (ticket, *_) = json.loads(program(home, "escalation", "list", "--json").stdout)
    assert ticket["question"] == "hello"
    assert program(home, "emergency", "off").returncode == 0
    ends_with("stop")
    assert program(home, "audit", "verify").returncode == 0


def test_down_without_patience(home: Path) -> None:
    """`down` gives up with 1 when a process that is noted as ours does not end; it is never killed unasked."""
    from sekisho.ops.home import RunState, write_state

    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        place = Home(home).create()
        write_state(
            place, RunState(stubborn.pid, psutil.Process(stubborn.pid).create_time(), "http://127.0.0.1:1", "0")
        )
        began = time.monotonic()
        assert program(home, "down", "--timeout", "0.2").returncode == 1
        assert time.monotonic() > began
        assert stubborn.poll() is None
        place.state_file.unlink()
        stubborn.kill()
