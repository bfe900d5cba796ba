"""What is printed for a client is valid in its own format, names the right address, and holds no key."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.ops.clients import CLIENTS, Setup, curl_line, guide

names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn")), min_size=1, max_size=30)
SETUP = Setup("http://127.0.0.1:7010", "sekisho-mini", ("sekisho-mini", "big"))


@pytest.mark.parametrize("client", sorted(CLIENTS))
def test_each_names_address_model_and_key_variable(client: str) -> None:
    """Every client's text has the server's address, the model and the variable of the key."""
    text = "\n".join(block.text for block in guide(client, SETUP).blocks)
    assert "http://127.0.0.1:7010/v1" in text
    assert "sekisho-mini" in text
    assert "SEKISHO_KEY" in text
    assert "sk-" not in text


@settings(deadline=None)
@given(names, st.lists(names, max_size=3))
def test_any_model_name_is_valid_in_every_format(model: str, others: list[str]) -> None:
    """TOML and YAML read the very names back, whatever stands in them."""
    setup = Setup("https://llm.example.com/", model, (model, *others))
    codex = tomllib.loads(guide("codex", setup).blocks[0].text)
    assert codex["model"] == model
    provider = codex["model_providers"][codex["model_provider"]]
    assert provider["wire_api"] == "responses"
    assert provider["base_url"] == "https://llm.example.com/v1"
    assert provider["env_key"] == "SEKISHO_KEY"
    continued = yaml.safe_load(guide("vscode", setup).blocks[0].text)
    assert [entry["model"] for entry in continued["models"]] == [model, *others]
    assert continued["models"][0]["apiKey"] == "${{ secrets.SEKISHO_KEY }}"


@settings(deadline=None)
@given(names)
def test_powershell_text_stays_text(model: str) -> None:
    """A quote in a name cannot end the string: in single quotes, every inner one is doubled."""
    text = guide("powershell", Setup("http://127.0.0.1:7010", model)).blocks[1].text
    quoted = re.search(r"model = '((?:[^']|'')*)'; messages", text)
    assert quoted is not None
    assert quoted[1].replace("''", "'") == model
    assert text.count("{") == text.count("}") + model.count("{") - model.count("}")


@settings(deadline=None)
@given(names, st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30))
def test_curl_line_is_one_line_of_shell(model: str, question: str) -> None:
    """A shell splits the line into the same words whatever the model and the question are."""
    line = curl_line(Setup("http://127.0.0.1:7010", model), question)
    assert "\n" not in line
    words = shlex.split(line)
    assert words[0] == "curl"
    body = json.loads(words[-1])
    assert body["model"] == model
    assert body["messages"][0]["content"] == question


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """A server that keeps what was asked."""
    seen: list[tuple[str, Any]] = []

    async def completions(request: web.Request) -> web.Response:
        seen.append((request.headers["Authorization"], await request.json()))
        return web.json_response({"choices": [{"message": {"content": "hello"}}]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    await runner.cleanup()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("block", [1, 2])
async def test_curl_lines_run(echo: tuple[str, list[tuple[str, Any]]], block: int) -> None:
    """The printed lines, pasted into a shell with the key in the environment, reach the server as a chat request."""
    import asyncio

    url, seen = echo
    line = guide("curl", Setup(url, "it's a 関所")).blocks[block].text
    done = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", line], capture_output=True, env={"SEKISHO_KEY": "sk-test", "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert b"hello" in done.stdout
    header, body = seen[0]
    assert header == "Bearer sk-test"
    assert body["model"] == "it's a 関所"
    assert body.get("stream", False) is (block == 2)


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="PowerShell is not installed")
async def test_powershell_lines_run(echo: tuple[str, list[tuple[str, Any]]]) -> None:
    """The PowerShell lines reach the server and print the answer."""
    import asyncio
    import os

    url, seen = echo
    script = guide("powershell", Setup(url, "it's a 関所")).blocks[1].text
    done = await asyncio.to_thread(
        subprocess.run,
        ["pwsh", "-NoProfile", "-Command", script],
        capture_output=True,
        env={**os.environ, "SEKISHO_KEY": "sk-test"},
    )
    assert done.stdout.strip() == b"hello"
    assert seen[0][1]["model"] == "it's a 関所"
