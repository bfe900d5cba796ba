"""The wiring's own wits."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from sekisho import serve
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.engine_swap import Placed
from sekisho.ops.home import Home
from sekisho.serve import Plan, PlanFile, plan, supervising
from sekisho.settings import Settings


async def test_a_gateway_that_is_too_busy_to_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, a first question that nobody answers in time must not take the whole server down."""
    monkeypatch.setattr(supervising, "PROBE_TIMEOUT_S", 0.2)
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        if asked == 1:
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
