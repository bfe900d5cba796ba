"""The wiring's own wits."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from sekisho import serve
from sekisho.control.config import ControlConfig
from sekisho.control.environment import VARIABLES
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.engine_swap import Placed
from sekisho.ops.home import Home
from sekisho.ops.supervisor import ChildSpec
from sekisho.serve import Plan, PlanFile, agent_process, plan, supervising
from sekisho.settings import Settings


async def test_a_gateway_that_is_too_busy_to_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, a first question that nobody answers in time must not take the whole server down."""
    monkeypatch.setattr(supervising, "PROBE_TIMEOUT_S", 0.2)
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        if asked == 1:
            monkeypatch.setattr(supervising, "PROBE_TIMEOUT_S", 60.0)  # of the next one: no slow machine ends it
            await reader.read()  # until it gives up
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        config = GatewayConfig(port=listener.sockets[0].getsockname()[1])
        nobody = cast(Any, SimpleNamespace(statuses=list))
        assert await supervising._until_ready(nobody, config) == ()
    assert asked == 2


@pytest.fixture
def plan_file(tmp_path: Path) -> PlanFile:
    """Of a home with two local models."""
    models = tuple(ModelConfig(name=name, path="builtin", slots=2) for name in ("one", "two"))
    home = Home(tmp_path).create()
    return PlanFile(home, serve.make_plan(home, Settings(models=models)))


def test_another_worker_stands_in_the_plan_with_its_settings(plan_file: PlanFile, tmp_path: Path) -> None:
    """What a gateway reads at its start: address, settings, whether turns wait; the other model and the log are as
    they were."""
    before = plan_file.plan
    placed = Placed(msgspec.structs.replace(before.settings.models[1], slots=9), "http://127.0.0.1:9/v1")
    for held in (True, True, False):
        plan_file.place("two", placed, held)
        written = msgspec.json.decode((tmp_path / "run" / "plan.json").read_bytes(), type=Plan)
        assert written == plan_file.plan
        assert [model.slots for model in written.settings.models] == [2, 9]
        assert written.workers["two"] == serve.Worker(placed.url, before.workers["two"].log_path)
        assert written.workers["one"] == before.workers["one"]
        assert written.held == (("two",) if held else ())


def test_a_plan_that_cannot_be_written_stays_as_it_was(
    plan_file: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told, and neither the file nor what is known of it has changed."""
    plan_file.write()
    before, body = plan_file.plan, (tmp_path / "run" / "plan.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(plan, "replace_file", full)
    with pytest.raises(OSError, match="no space"):
        plan_file.place("one", Placed(before.settings.models[0], "http://127.0.0.1:9/v1"), True)
    assert plan_file.plan == before
    assert (tmp_path / "run" / "plan.json").read_bytes() == body


async def test_the_stability_log_asks_the_worker_that_is_there_now(
    plan_file: PlanFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an exchange the probe of a model goes to the new address."""
    asked: list[str] = []

    async def answers(url: str) -> bool:
        asked.append(url)
        return True

    monkeypatch.setattr("sekisho.ops.engine_door.answers", answers)
    probe = supervising._probes(plan_file)["engine-one"]
    first = plan_file.plan.workers["one"].url
    assert await probe()
    plan_file.place("one", Placed(plan_file.plan.settings.models[0], "http://127.0.0.1:9/v1"), False)
    assert await probe()
    assert asked == [first, "http://127.0.0.1:9/v1"]


def test_the_agent_reads_in_the_plan_whether_a_worker_is_exchanged(plan_file: PlanFile, tmp_path: Path) -> None:
    """With settings and address; a model without a worker of ours has no place."""
    home, model = Home(tmp_path), plan_file.plan.settings.models[1]
    for held in (True, False):
        plan_file.place("two", Placed(model, "http://127.0.0.1:9/v1"), held)
        assert agent_process._placed(home, "two") == Placed(model, "http://127.0.0.1:9/v1", held)
        assert agent_process._placed(home, "one") == Placed(
            plan_file.plan.settings.models[0], plan_file.plan.workers["one"].url
        )
    assert agent_process._placed(home, "three") is None


# --- the agent is optional -------------------------------------------------------------------------------------------


class Children:
    """Takes children as the supervisor does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def add(self, spec: ChildSpec) -> None:
        self.names.append(spec.name)


async def begun(home: Home, enabled: bool = True) -> tuple[list[str], str | None, tuple[str, ...]]:
    """Which children there are then, the new token and the warnings."""
    children = Children()
    settings = Settings(control=ControlConfig(enabled=enabled))
    token, warnings = await supervising._start_agent(cast(Any, children), home, settings, "worker-key")
    return children.names, token, warnings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path).create()


async def test_the_agent_is_started_as_configured(home: Home) -> None:
    """With a token at the first start, which is told then only."""
    assert await begun(home, enabled=False) == ([], None, ())
    names, token, warnings = await begun(home)
    assert (names, token, warnings) == (["agent"], (home.secrets / "agent.token").read_text().strip(), ())
    assert await begun(home) == (["agent"], None, ())


@pytest.mark.parametrize(
    ("name", "value", "enabled", "starts"),
    [
        ("INFEROS_ENABLED", "false", True, False),
        ("INFEROS_ENABLED", "true", False, True),
        ("GAIA_OPTIMIZATION_MODE", "inferos", False, True),
        ("GAIA_OPTIMIZATION_MODE", "none", True, True),
    ],
)
async def test_the_environment_wins_over_the_settings(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, value: str, enabled: bool, starts: bool
) -> None:
    """As the documentation says of its variables."""
    monkeypatch.setenv(name, value)
    names, _, warnings = await begun(home, enabled)
    assert (names, warnings) == (["agent"] * starts, ())


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_wrong_variable_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """It stops nothing, and the agent runs as configured."""
    monkeypatch.setenv("INFEROS_ENABLED", "perhaps")
    monkeypatch.setenv("INFEROS_AGENT_PORT", "7055")
    names, _, (warning,) = await begun(home, enabled)
    assert names == ["agent"] * enabled
    assert "INFEROS_ENABLED: must be true or false" in warning
    config = ControlConfig(port=7044)
    assert agent_process._adjusted(config, dict(os.environ)) == (config, {})
    monkeypatch.setenv("INFEROS_ENABLED", "true")
    assert agent_process._adjusted(config, dict(os.environ))[0].port == 7055


@pytest.mark.parametrize("trouble", ["a folder", "open to others"])
async def test_a_token_that_cannot_be_used_is_a_warning(home: Home, trouble: str) -> None:
    """The server goes on without the agent, and it is told what is wrong."""
    path = home.secrets / "agent.token"
    if trouble == "a folder":
        path.mkdir()
    else:
        path.write_text("somebody-knows-it")
        path.chmod(0o666)
    names, token, (warning,) = await begun(home)
    assert (names, token) == ([], None)
    assert str(path) in warning
    assert warning.startswith("The control agent is not started, for its token cannot be used: ")
    assert "somebody-knows-it" not in warning
