"""`sekisho agent`: what is told before it runs, the flags that become its policy, and what can be asked of it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sekisho.cli.agent_client import AgentClient
from sekisho.control.address import read_address, read_token
from sekisho.control.capabilities import KV_TYPES, Capabilities
from sekisho.control.grafana import dashboard
from sekisho.core.decoding import decoded


class Engine(BaseHTTPRequestHandler):
    """An address that lists one model, as OpenAI's interface does."""

    def do_GET(self) -> None:
        body = b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]}'
        known = self.path == "/v1/models"
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body) if known else 0))
        self.end_headers()
        self.wfile.write(body if known else b"")

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def engine() -> Any:
    server = HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def program(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sekisho", "agent", "--home", str(home), "--port", "0", *arguments]


def asked(*arguments: str, language: str = "en") -> "subprocess.CompletedProcess[str]":
    """Of the group's other commands."""
    environment = os.environ | {"SEKISHO_LANG": language, "COLUMNS": "240"}
    command = [sys.executable, "-m", "sekisho", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)


def test_flags_are_the_policy_from_the_start(engine: str, tmp_path: Path) -> None:
    """What has no counterpart says where it is set; the token is shown once and opens the door."""
    flags = ("--kv-quantization", "disabled", "--batch-size", "4", "--quality-threshold", "0.25", "--max-tokens", "99")
    command = program(tmp_path, "--engine", engine, *flags)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert "http://127.0.0.1:" in child.stdout.readline()
        url = read_address(tmp_path / "run")
        assert url is not None
        policy = AgentClient(url, read_token(tmp_path / "secrets")).get("/v1/policy", timeout_s=60)
    finally:
        child.terminate()
        _, errors = child.communicate(timeout=60)
    assert (policy["kv"]["mode"], policy["engine"]["slots"], policy["quality"]["max_delta_ppl"]) == (
        "disabled",
        4,
        0.25,
    )
    assert "--max-tokens 99 changes nothing here" in errors
    assert child.returncode == 0, errors


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--batch-size", "none"), 2, "--batch-size: must be a whole number"),
        (("capabilities",), 2, "stands before `capabilities`"),
        (("--kind", "vlm"), 2, "one of"),
        (("--key-env", "NO_SUCH_VARIABLE"), 2, "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_wrong_flags_are_named(engine: str, tmp_path: Path, flags: tuple[str, ...], code: int, words: str) -> None:
    """Before anything runs, with what is valid."""
    done = subprocess.run(program(tmp_path, "--engine", engine, *flags), capture_output=True, text=True, check=False)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_an_address_where_nobody_answers(unused_tcp_port: int, tmp_path: Path) -> None:
    """Says what was asked and what came."""
    url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    done = subprocess.run(program(tmp_path, "--engine", url), capture_output=True, text=True, check=False)
    assert (done.returncode, "no engine answers" in done.stderr) == (3, True), done.stderr


def test_without_an_engine_it_says_what_is_missing() -> None:
    """Exit code 2, and a line to type."""
    done = asked()
    assert (done.returncode, "--engine is missing" in done.stderr) == (2, True), done.stderr


def test_the_dashboard_is_printed_as_grafana_imports_it() -> None:
    """Nothing else stands beside it, and no agent is needed."""
    done = asked("grafana")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == dashboard()


def test_what_runs_here_is_shown_in_a_table(engine: str, tmp_path: Path) -> None:
    """Asked of a running agent, which tries it out: each KV type of llama.cpp with how far it is off, and what comes
    next; in Japanese, too, and as JSON."""
    home = ("--home", str(tmp_path))
    child = subprocess.Popen(program(tmp_path, "--engine", engine), stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        shown, japanese = asked("capabilities", *home), asked("capabilities", *home, language="ja")
        first = decoded((tmp_path / "control" / "capabilities.json").read_bytes(), Capabilities)
        again = json.loads(asked("capabilities", "--again", *home, "--json").stdout)
    finally:
        child.terminate()
        child.communicate(timeout=60)
    assert shown.returncode == japanese.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert all(any(line.startswith(f"llama.cpp {kind} ") for line in lines) for kind in KV_TYPES)
    assert any(line.startswith("llama.cpp q8_0") and "yes" in line.split() for line in lines)
    assert any(line.startswith("KV types of llama.cpp that run") and "q4_0 → " in line for line in lines)
    assert "llama.cpp で動く KV 型" in japanese.stdout
    assert {"q4_0", "q8_0", "f16"} <= set(again["fallback"]["kv_types"]) <= set(KV_TYPES)
    assert again["measured_at"] > first.measured_at


def test_an_agent_that_does_not_run_is_told(tmp_path: Path) -> None:
    """With exit code 3."""
    done = asked("capabilities", "--home", str(tmp_path))
    assert (done.returncode, "no agent runs" in done.stderr) == (3, True), done.stderr
