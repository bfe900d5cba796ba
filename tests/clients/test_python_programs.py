"""Python programs of others against a real gateway: LangChain, LiteLLM, Inspect."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import LiveGateway
from python_environment import python_environment

pytestmark = [pytest.mark.client, pytest.mark.timeout(1800)]

PROGRAMS = Path(__file__).parent / "programs"
RUN_TIMEOUT_S = 300


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def told(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_langchain(live: LiveGateway, tmp_path: Path) -> None:
    """Chat, streaming, a tool round trip, typed output and usage, over chat completions and over responses."""
    programs = python_environment("langchain-venv", "langchain-openai")
    script = [str(programs / "python"), str(PROGRAMS / "langchain_client.py"), f"{live.url}/v1", live.key]
    *chats, embedding = told(run(script, tmp_path))
    expected = {"whole": "hello there", "streamed": "hello there", "tool": "result: sunny in 京都", "typed": True}
    assert chats == [{**expected, "tokens": 4}] * 2
    assert embedding == {"embedding": 16}


def test_litellm(live: LiveGateway, tmp_path: Path) -> None:
    """Six of its providers, which together speak all of our protocols, chat, stream and call tools."""
    programs = python_environment("litellm-venv", "litellm", "mcp")
    script = [str(programs / "python"), str(PROGRAMS / "litellm_client.py"), live.url, live.key]
    answers = told(run(script, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True"))
    expected = {"whole": "hello there", "streamed": "hello there", "tokens": 4, "tool": "result: sunny"}
    assert [answer.pop("model") for answer in answers] == [
        "openai/fake",
        "openai/responses/fake",
        "hosted_vllm/fake",
        "lm_studio/fake",
        "anthropic/fake",
        "ollama_chat/fake",
    ]
    assert answers == [{**expected, "arguments": {"city": "Kyoto"}}] * 6


@pytest.mark.parametrize("responses", [False, True])
def test_inspect(live: LiveGateway, tmp_path: Path, responses: bool) -> None:
    """An evaluation scores full marks over either API, a tool round trip and thinking among its samples."""
    programs = python_environment("inspect-venv", "inspect-ai", "openai")
    (tmp_path / "task.py").write_text((PROGRAMS / "inspect_task.py").read_text())
    command = [str(programs / "inspect"), "eval", "task.py", "--model", "openai-api/ours/fake", "--display", "plain"]
    command += ["-M", "responses_api=true"] if responses else []
    output = run(command, tmp_path, OURS_API_KEY=live.key, OURS_BASE_URL=f"{live.url}/v1", INSPECT_LOG_FORMAT="json")
    (log,) = (tmp_path / "logs").glob("*.json")
    found = json.loads(log.read_text())
    assert found["status"] == "success", output[-2000:]
    scores = found["results"]["scores"][0]["metrics"]
    assert scores["accuracy"]["value"] == 1.0
