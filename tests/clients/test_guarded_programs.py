"""Coding agents in front of the default guard: their long instructions, lists of tools and the files that they read are
no harm. Every request of a session is allowed, and the answers too."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_harness import LiveGateway
from npm_program import npm_program

from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import OutcomeRecord, VerdictRecord
from sekisho.engines.config import ModelConfig
from sekisho.guard.config import GuardConfig

pytestmark = [pytest.mark.client, pytest.mark.timeout(600)]

TURN_TIMEOUT_S = 180
SOURCE = '''"""Accounts and their passwords."""

import hashlib
import hmac
import os
import subprocess


def hash_password(password: str, salt: bytes) -> bytes:
    """A salted hash: the password itself is never stored. Attackers try lists of stolen passwords."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)


def check(password: str, salt: bytes, stored: bytes) -> bool:
    return hmac.compare_digest(hash_password(password, salt), stored)


def kill_stale(pid: int) -> None:
    """Kills a worker that hangs, and its children; ignores one that is gone."""
    subprocess.run(["kill", "-9", str(pid)], check=False)


def delete_user(name: str) -> None:
    os.remove(f"/srv/users/{name}")  # TODO: inject a fake file system in tests
'''
PROMPTS = {
    "en": "Read accounts.py and fix the bug in the function that kills stale workers.",
    "ja": "accounts.py を読んで、停止したプロセスを kill する関数のバグを直してください。",
}


@pytest.fixture(scope="module")
def live(launch: Callable[..., LiveGateway]) -> LiveGateway:
    """A gateway with the default guard and a fake model with room for long prompts."""
    roomy = ModelConfig(name="fake", engine="fake", slots=8, options={"context_words": 100_000})
    return launch(roomy, guard=GuardConfig())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / "accounts.py").write_text(SOURCE)
    return work


def stopped(live: LiveGateway, after: int) -> list[tuple[str, ...]]:
    """What was not allowed among the book's records: decision, stage, and each finding's rule, place and source."""
    found = [entry.record for entry in Reader(live.home.audit, ReaderKeys.load(live.home.secrets)).entries()][after:]
    assert any(isinstance(record, VerdictRecord) for record in found), "nothing was asked"
    verdicts = [record for record in found if isinstance(record, VerdictRecord)]
    outcomes = [record.status for record in found if isinstance(record, OutcomeRecord)]
    told = [
        (record.decision, record.stage, *(f"{one.source} {one.rule} {one.where}" for one in record.findings))
        for record in verdicts
        if record.decision != "ALLOW"
    ]
    assert told or set(outcomes) <= {"completed", "cancelled"}, outcomes
    return told


def count(live: LiveGateway) -> int:
    return sum(1 for _ in Reader(live.home.audit, ReaderKeys.load(live.home.secrets)).entries())


@pytest.mark.parametrize("language", ["en", "ja"])
def test_codex_is_let_through(live: LiveGateway, folder: Path, tmp_path: Path, language: str) -> None:
    """It asks, runs a command that shows a source file, and sends that back."""
    program = npm_program("@openai/codex", "codex", "codex")
    before, home = count(live), tmp_path / "codex-home"
    home.mkdir()
    provider = f'{{name="gw",base_url="{live.url}/v1",env_key="GW_KEY",wire_api="responses"}}'
    flags = ["--ignore-user-config", "--skip-git-repo-check", "--json", "-m", "fake"]
    flags += ["-c", "model_provider=gw", "-c", f"model_providers.gw={provider}"]
    flags += ["-C", str(folder), "-s", "danger-full-access"]
    call = 'call:exec_command {"cmd":"cat accounts.py"}'
    done = subprocess.run(
        [str(program), "exec", *flags, f"{PROMPTS[language]} {call}"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TURN_TIMEOUT_S,
        env={**os.environ, "CODEX_HOME": str(home), "GW_KEY": live.key},
        check=False,
    )
    assert stopped(live, before) == []
    events = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    assert (done.returncode, events[-1]["type"]) == (0, "turn.completed"), done.stderr
    said = [event["item"]["text"] for event in events if event.get("item", {}).get("type") == "agent_message"]
    assert "hash_password" in said[-1]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_claude_code_is_let_through(live: LiveGateway, folder: Path, tmp_path: Path, language: str) -> None:
    """The same through `/v1/messages`."""
    program = npm_program("@anthropic-ai/claude-code", "claude", "claude-code")
    before = count(live)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "CLAUDE"))}
    settings = {
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
        "ANTHROPIC_BASE_URL": live.url,
        "ANTHROPIC_API_KEY": live.key,
        "ANTHROPIC_SMALL_FAST_MODEL": "fake",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    command = json.dumps({"command": "cat accounts.py", "description": "shows the file"})
    flags = ["--model", "fake", "--output-format", "stream-json", "--verbose", "--allowedTools", "Bash"]
    done = subprocess.run(
        [str(program), "-p", f"{PROMPTS[language]} call:Bash {command}", *flags],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TURN_TIMEOUT_S,
        env=own | settings,
        check=False,
    )
    assert stopped(live, before) == []
    last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][-1]
    assert (done.returncode, last["is_error"]) == (0, False), done.stderr
    assert "hash_password" in last["result"]
