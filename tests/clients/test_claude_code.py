"""Claude Code, headless, against a real gateway's `/v1/messages`."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import LiveGateway
from npm_program import npm_program

from sekisho.core.turn import Reasoning, ToolCall, ToolResult
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.store import KeySpec

pytestmark = [pytest.mark.client, pytest.mark.timeout(900)]

TURN_TIMEOUT_S = 180
Claude = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def live(launch: Callable[..., LiveGateway]) -> LiveGateway:
    """A gateway whose fake model has room for the program's long prompt."""
    return launch(ModelConfig(name="fake", engine="fake", slots=8, options={"context_words": 100_000}))


@pytest.fixture(scope="module")
def engine(live: LiveGateway) -> FakeEngine:
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    return engine


@pytest.fixture
def claude(tmp_path: Path, live: LiveGateway) -> Claude:
    """`claude(prompt, *arguments)` runs one turn in an empty folder; its exit code and its events."""
    program = npm_program("@anthropic-ai/claude-code", "claude", "claude-code")
    folder = tmp_path / "work"
    folder.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC", "CLAUDE"))}

    def run(prompt: str, *arguments: str, key: str | None = None) -> tuple[int, list[dict[str, Any]]]:
        settings = {
            "HOME": str(tmp_path),
            "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
            "ANTHROPIC_BASE_URL": live.url,
            "ANTHROPIC_API_KEY": key or live.key,
            "ANTHROPIC_SMALL_FAST_MODEL": "fake",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        flags = ["--model", "fake", "--output-format", "stream-json", "--verbose"]
        done = subprocess.run(
            [str(program), "-p", prompt, *flags, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TURN_TIMEOUT_S,
            env=own | settings,
            check=False,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def test_a_plain_answer(claude: Claude) -> None:
    """The streamed answer is the result."""
    code, events = claude("tokens:50")
    last = events[-1]
    assert (code, last["type"], last["is_error"]) == (0, "result", False)
    assert last["result"].split()[-1] == "word50"
    assert last["usage"]["output_tokens"] == 50


def test_a_tool_round_trip(claude: Claude, engine: FakeEngine) -> None:
    """The program runs the command that the model called for, hands back its output, and shows the answer to it."""
    command = json.dumps({"command": "echo amber-$((40+2))", "description": "says a word"})
    code, events = claude(f"reason:hmm call:Bash {command}", "--allowedTools", "Bash")
    assert (code, events[-1]["is_error"]) == (0, False)
    assert events[-1]["result"].startswith("result: amber-42")
    parts = [part for message in engine.turns[-1].messages for part in message.parts]
    (call,) = [part for part in parts if isinstance(part, ToolCall)]
    (result,) = [part for part in parts if isinstance(part, ToolResult)]
    assert (call.name, call.id) == ("Bash", result.call_id)
    assert [part.text for part in parts if isinstance(part, Reasoning)] in (["hmm"], [])


def test_a_spent_budget_is_told(claude: Claude, live: LiveGateway) -> None:
    """The program ends with the server's own words about the budget."""
    _, poor = live.create_key(KeySpec(name="claude-poor", budget_tokens=1))
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    assert live.client(poor).post("/v1/chat/completions", json=body).status_code == 200
    code, events = claude("hello", key=poor)
    assert (code, events[-1]["is_error"], events[-1]["api_error_status"]) == (1, True, 429)
    assert "budget" in events[-1]["result"]


def test_an_engine_that_breaks_in_mid_stream_is_told(claude: Claude) -> None:
    """The program does not take half an answer for a whole one."""
    _, events = claude("crash:2 a b c")
    assert events[-1]["is_error"] is True
    assert "fake engine broke" in events[-1]["result"]
