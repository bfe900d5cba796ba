"""The Codex CLI, headless, against a real gateway: `codex exec` with a custom provider, as a user would set it up."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))  # a server as a person starts it

import httpx
import msgspec
import pytest
from e2e_harness import Sekisho, eventually
from gateway_harness import LiveGateway
from local_model import served, write_tiny_gguf
from npm_program import npm_program

from sekisho.core.turn import Reasoning, ToolCall, ToolResult, Turn
from sekisho.engines import builtin
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.ops.engine_door import engine_door, restart_engine
from sekisho.store import KeySpec

pytestmark = [pytest.mark.client, pytest.mark.timeout(900)]

TURN_TIMEOUT_S = 180
# Codex says this of every model that its vendor does not list, and of its own queue; neither is about the protocol.
NO_COMPLAINTS = ("Model metadata for", "in-process app-server event stream lagged")


class Run(msgspec.Struct, frozen=True):
    """What `codex exec --json` printed, and how it ended. `folder` is where it worked."""

    code: int
    events: list[dict[str, Any]]
    stderr: str
    folder: Path

    def items(self, kind: str) -> list[dict[str, Any]]:
        items = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in items if item["type"] == kind]

    def complaints(self) -> list[str]:
        """Everything that Codex calls an error."""
        told = [event["message"] for event in self.events if event["type"] == "error"]
        told += [item["message"] for item in self.items("error")]
        return [message for message in told if not message.startswith(NO_COMPLAINTS)]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def answer(self) -> str:
        """The one message of a turn that went through without a complaint."""
        assert (self.code, self.complaints()) == (0, []), self.stderr
        assert self.types()[-1] == "turn.completed"
        (message,) = self.items("agent_message")
        return str(message["text"])


Codex = Callable[..., Run]


@pytest.fixture(scope="module")
def live(launch: Callable[..., LiveGateway]) -> LiveGateway:
    """A gateway whose fake model has room for Codex's long prompt, and one whose context is too small for it."""
    roomy = ModelConfig(name="fake", engine="fake", slots=8, options={"context_words": 100_000})
    return launch(roomy, ModelConfig(name="small", engine="fake", options={"context_words": 100}))


@pytest.fixture(scope="module")
def engine(live: LiveGateway) -> FakeEngine:
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    return engine


@pytest.fixture
def codex(tmp_path: Path, live: LiveGateway) -> Codex:
    """`codex(prompt, *arguments)` runs one turn in an empty folder, in a new session or the last one: without any, it
    may drop the events of a quick answer for good. `settings` is the text of Codex's own settings file, instead of
    options on the command line."""
    program = npm_program("@openai/codex", "codex", "codex")
    home, folder = tmp_path / "codex-home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()

    def run(
        prompt: str,
        *arguments: str,
        key: str = "",
        model: str = "fake",
        server: LiveGateway | Sekisho = live,
        session: Literal["new", "last"] = "new",
        settings: str = "",
    ) -> Run:
        provider = f'{{name="gw",base_url="{server.url}/v1",env_key="GW_KEY",wire_api="responses"}}'
        flags = ["--skip-git-repo-check", "--json"]
        if settings:
            (home / "config.toml").write_text(settings)
        else:
            flags += ["--ignore-user-config", "-m", model, "-c", "model_provider=gw"]
            flags += ["-c", f"model_providers.gw={provider}"]
        flags += {
            "new": ["-C", str(folder), "-s", "danger-full-access"],
            "last": ["resume", "--last"],
        }[session]
        done = subprocess.run(
            [str(program), "exec", *flags, *arguments, prompt],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TURN_TIMEOUT_S,
            env={**os.environ, "CODEX_HOME": str(home), "GW_KEY": key or server.key, "SEKISHO_KEY": key or server.key},
            check=False,
        )
        events = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return Run(done.returncode, events, done.stderr, folder)

    return run


def parts(turn: Turn, kind: type) -> list[Any]:
    return [part for message in turn.messages for part in message.parts if isinstance(part, kind)]


def test_a_plain_answer(codex: Codex) -> None:
    """The answer streams in and the turn completes, with usage and without a complaint."""
    run = codex("hello from 京都")
    assert run.answer() == "hello from 京都"
    assert run.events[-1]["usage"]["output_tokens"] == 3


def test_a_long_answer(codex: Codex) -> None:
    """Two thousand pieces arrive in order and whole."""
    assert codex("tokens:2000").answer().split() == [f"word{number}" for number in range(1, 2001)]


def test_a_tool_round_trip(codex: Codex, engine: FakeEngine) -> None:
    """Codex runs the command that the model called for, sends its output back, and gets the answer to it."""
    before = len(engine.turns)
    run = codex('call:exec_command {"cmd":"echo amber-$((40+2)) | tee made.txt"}')
    assert "amber-42" in run.answer()
    (command,) = run.items("command_execution")
    assert (command["exit_code"], command["aggregated_output"]) == (0, "amber-42\n")
    assert (run.folder / "made.txt").read_text() == "amber-42\n"
    first, second = engine.turns[before:]
    (call,) = parts(second, ToolCall)
    (result,) = parts(second, ToolResult)
    assert (call.name, call.id, parts(first, ToolCall)) == ("exec_command", result.call_id, [])


def test_parallel_tools(codex: Codex, engine: FakeEngine) -> None:
    """Two commands called in one turn both run, and both outputs come back to their own call."""
    run = codex('call:exec_command {"cmd":"echo one > 1"} call:exec_command {"cmd":"echo two > 2"}')
    run.answer()
    assert [(run.folder / name).read_text() for name in "12"] == ["one\n", "two\n"]
    results = parts(engine.turns[-1], ToolResult)
    assert [result.call_id for result in results] == [call.id for call in parts(engine.turns[-1], ToolCall)]
    assert len(results) == 2


def test_a_namespaced_tool(codex: Codex, engine: FakeEngine) -> None:
    """Codex finds a nested tool by name and namespace: it answers for that tool, and not that it knows none such."""
    run = codex('call:multi_agent_v1.close_agent {"target":"nobody"}')
    assert "unsupported call" not in run.answer()
    (call,) = parts(engine.turns[-1], ToolCall)
    assert (call.name, call.namespace) == ("close_agent", "multi_agent_v1")


def test_reasoning_survives(codex: Codex, engine: FakeEngine) -> None:
    """What the model thought before its call, sealed on the way, is told to it again with the call's output."""
    codex('reason:hmm-so call:exec_command {"cmd":"true"}').answer()
    (thought,) = parts(engine.turns[-1], Reasoning)
    assert thought.text == "hmm-so"
    assert "hmm-so" not in (thought.sealed or "")


def test_a_resumed_session(codex: Codex, engine: FakeEngine) -> None:
    """Three runs of one session: the model is told everything in order, with the thinking of every turn; Codex puts
    instructions between the turns."""
    codex('reason:one call:exec_command {"cmd":"echo amber"}').answer()
    assert codex("second reason:two", session="last").answer() == "second"
    assert codex("third", session="last").answer() == "third"
    told = engine.turns[-1]
    assert [thought.text for thought in parts(told, Reasoning)] == ["one", "two"]
    assert len(parts(told, ToolCall)) == len(parts(told, ToolResult)) == 1
    roles = [message.role for message in told.messages]
    assert "developer" in roles[roles.index("assistant") :]
    assert roles[-3:] == ["user", "assistant", "user"]


def printed_settings(live: LiveGateway, model: str = "fake") -> str:
    """What `sekisho client codex` says to put into ~/.codex/config.toml."""
    home = live.home.path
    (home / "sekisho.yaml").write_text("models: [{name: fake, engine: fake}]\n")
    command = [sys.executable, "-m", "sekisho", "client", "codex", "--json", "--home", str(home)]
    done = subprocess.run([*command, "--url", live.url, "--model", model], capture_output=True, text=True, check=True)
    blocks = {block["where"]: block["text"] for block in json.loads(done.stdout)["blocks"]}
    return str(blocks["~/.codex/config.toml"])


def test_the_printed_settings(codex: Codex, live: LiveGateway) -> None:
    """What `sekisho client codex` prints is Codex's whole settings file, and with the key in its variable it works."""
    assert codex("hello from 京都", settings=printed_settings(live)).answer() == "hello from 京都"


def test_the_printed_settings_and_a_wrong_key(codex: Codex, live: LiveGateway) -> None:
    """The turn fails with our words and our id of the request."""
    run = codex("hello", settings=printed_settings(live), key="sk-sekisho-wrong")
    assert (run.code, run.types()[-1]) == (1, "turn.failed")
    assert "unknown, revoked or expired" in run.events[-1]["error"]["message"]
    assert "request id: req_" in run.events[-1]["error"]["message"]


def test_a_session_goes_on_after_an_engine_that_broke(codex: Codex, engine: FakeEngine) -> None:
    """Three turns, the second of which breaks in its middle: it fails by itself, and the third has the first in it, and
    no half answer."""
    assert codex("amber is the word").answer() == "amber is the word"
    retries = ("-c", "model_providers.gw.stream_max_retries=0")
    broken = codex("crash:2 a b c", *retries, session="last")
    assert (broken.code, broken.types()[-1]) == (1, "turn.failed")
    assert codex("which word", session="last").answer() == "which word"
    said = [part.text for m in engine.turns[-1].messages if m.role == "assistant" for part in m.parts if part.text]
    assert said == ["amber is the word"]
    asked = [part.text for m in engine.turns[-1].messages if m.role == "user" for part in m.parts]
    assert [text for text in asked if text in ("amber is the word", "which word")] == [
        "amber is the word",
        "which word",
    ]


def test_a_budget_that_is_spent_in_mid_session(codex: Codex, live: LiveGateway) -> None:
    """The turn after the one that spent it fails with one clear message; with another key the session goes on."""
    _, limited = live.create_key(KeySpec(name="codex-limited", budget_tokens=1000))
    assert codex("first", key=limited).answer() == "first"
    refused = codex("second", key=limited, session="last")
    assert (refused.code, refused.types()[-1]) == (1, "turn.failed")
    assert "Quota exceeded" in refused.events[-1]["error"]["message"]
    assert codex("third", session="last").answer() == "third"


def test_an_output_schema(codex: Codex, engine: FakeEngine, tmp_path: Path) -> None:
    """`--output-schema` reaches the engine as a strict schema, and the answer is the JSON."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({**schema, "additionalProperties": False}))
    assert json.loads(codex('{"ok":true}', "--output-schema", str(file)).answer()) == {"ok": True}
    form = engine.turns[-1].format
    assert (form.kind, form.strict, (form.schema or {})["required"]) == ("json_schema", True, ["ok"])


def test_a_spent_budget_ends_the_turn(codex: Codex, live: LiveGateway) -> None:
    """One request, one clear message about the quota, and no second try."""
    _, poor = live.create_key(KeySpec(name="codex-poor", budget_tokens=1))
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    assert live.client(poor).post("/v1/chat/completions", json=body).status_code == 200
    refused = live.gateway.metrics.errors.labels("429", "insufficient_quota")
    before = refused._value.get()
    run = codex("hello", key=poor)
    assert (run.code, run.types()[-1]) == (1, "turn.failed")
    assert "Quota exceeded" in run.events[-1]["error"]["message"]
    assert refused._value.get() == before + 1


def test_a_prompt_that_does_not_fit_ends_the_turn(codex: Codex, live: LiveGateway) -> None:
    """A context too small for Codex's prompt is told as that, at once."""
    refused = live.gateway.metrics.errors.labels("400", "context_length_exceeded")
    run = codex("hello", model="small")
    assert (run.code, run.types()[-1]) == (1, "turn.failed")
    assert "context" in run.events[-1]["error"]["message"]
    assert refused._value.get() == 1


def test_an_engine_that_breaks_in_mid_stream_ends_the_turn(codex: Codex, engine: FakeEngine) -> None:
    """`response.failed` tells the cause with its id; Codex tries as often as it does for its vendor, then gives up."""
    before = len(engine.turns)
    run = codex("crash:2 a b c", "-c", "model_providers.gw.stream_max_retries=1")
    assert (run.code, run.types()[-1]) == (1, "turn.failed")
    assert "the fake engine broke (error id: err_" in run.events[-1]["error"]["message"]
    assert run.items("agent_message") == [], "half an answer is not taken for one"
    assert 1 <= len(engine.turns) - before <= 6


def test_codex_through_llama_cpp(codex: Codex, launch: Callable[..., LiveGateway], tmp_path: Path) -> None:
    """A real engine streams its answer, in this case nonsense of random weights, and the turn completes."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=65_536)
    model = ModelConfig(name="tiny", path=str(path), context=65_536, slots=1)
    with served(launch, tmp_path, model) as real:
        run = codex("hello", model="tiny", server=real)
    assert (run.code, run.complaints(), run.types()[-1]) == (0, [], "turn.completed")
    assert run.events[-1]["usage"]["input_tokens"] > 10_000


def test_a_session_across_a_restart_of_the_engine(codex: Codex, tmp_path: Path) -> None:
    """A server as a person starts it, and llama.cpp started anew while Codex waits for its answer: Codex asks again,
    the gateway waits for the engine, and the turn is completed; so is the next one of the session."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", context=65_536)
    models = f"  - {{name: tiny, path: {path}, context: 65536, slots: 1, threads: 1}}\n"
    sekisho = Sekisho(tmp_path / "home", models + "guard: {mode: 'off', output: false}\n")
    try:
        sekisho.up()
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(codex, "one", model="tiny", server=sekisho)
            pid = sekisho.child("engine-tiny").pid
            assert eventually(lambda: _busy(sekisho) or first.done(), 120)
            assert not first.done(), "the turn was over before the engine could be stopped"
            took = asyncio.run(restart_engine(sekisho.home, "tiny"))
            run = first.result()
        assert (took.old_pid, run.code, run.types()[-1]) == (pid, 0, "turn.completed"), run.stderr
        second = codex("two", model="tiny", server=sekisho, session="last")
        assert (second.code, second.types()[-1]) == (0, "turn.completed"), second.stderr
    finally:
        sekisho.down()


def _busy(sekisho: Sekisho) -> bool:
    """Whether the engine is at work, by its own word."""
    door = asyncio.run(engine_door(sekisho.home, "tiny"))
    address = door.url.removesuffix("/v1") + "/slots"
    try:
        slots = httpx.get(address, headers={"authorization": f"Bearer {door.key.reveal()}"}, timeout=5).json()
    except httpx.TransportError:
        return False
    return any(slot["is_processing"] for slot in slots)


@pytest.mark.skipif(not builtin.path().exists(), reason="the built-in model is not there: run `make mini`")
def test_the_built_in_model_is_too_small_and_says_so(
    codex: Codex, launch: Callable[..., LiveGateway], tmp_path: Path
) -> None:
    """llama.cpp itself finds Codex's prompt too long for the built-in model: told once, in words."""
    with served(launch, tmp_path, ModelConfig(name="sekisho-mini", path="builtin", slots=1)) as real:
        run = codex("hello", model="sekisho-mini", server=real)
        refused = real.gateway.metrics.errors.labels("400", "context_length_exceeded")._value.get()
    assert (run.code, run.types()[-1], refused) == (1, "turn.failed", 1)
    assert "context window" in run.events[-1]["error"]["message"]
