"""The agent as it is started: wrong parts do not keep the rest from running, and it ends when it is told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sekisho.control.address import TOKEN_ENV, TOKEN_FILE
from sekisho.control.assembly import EngineAddress, Place, _layers, serve
from sekisho.control.config import ControlConfig, QualityLoopConfig
from sekisho.control.policy_book import PolicyBook
from sekisho.control.policy_changes import PolicyProblem
from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines say themselves why they are down, however slow this machine is."""
    monkeypatch.setattr("sekisho.control.agent.STATE_DEADLINE_S", 60.0)


NOWHERE = EngineAddress(ModelConfig(name="m", engine="openai_http", url="http://127.0.0.1:9/v1"), None)


def place(folder: Path, *engines: EngineAddress, **settings: Any) -> Place:
    home = Home(folder)
    home.create()
    return Place(home, ControlConfig(port=0, **settings), engines or (NOWHERE,))


@contextlib.asynccontextmanager
async def running(where: Place) -> AsyncIterator[str]:
    """Its address; ended as a signal ends it."""
    told: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(serve(where, lambda url, token: told.put_nowait(url)))
    asking = asyncio.create_task(told.get())
    await asyncio.wait((task, asking), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        asking.cancel()
        task.result()
    try:
        yield asking.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def get(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.json()


async def until_told(url: str, model: str) -> dict[str, Any]:
    """What the agent says of an engine, once it has looked."""
    while True:
        engines = {each["model"]: each for each in (await get(f"{url}/v1/metrics"))["engines"]}
        if model in engines:
            found: dict[str, Any] = engines[model]
            return found
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("url", "key", "options"),
    [("http://127.0.0.1:9/v1", "a\nb", {}), ("file:///etc", None, {}), (None, None, {"actuator": "abacus"})],
)
async def test_an_engine_that_cannot_be_talked_to_is_down(
    tmp_path: Path, url: str | None, key: str | None, options: dict[str, Any]
) -> None:
    """With its reason; the other ones are watched."""
    config = ModelConfig(name="bad", engine="openai_http", url="http://127.0.0.1:9/v1", options=options)
    async with running(place(tmp_path, EngineAddress(config, url, key), NOWHERE)) as at:
        told = await until_told(at, "bad")
        assert told["state"] == "down"
        assert "bad" in told["reason"]
        assert (await until_told(at, "m"))["engine"] == "openai_http"


async def test_a_text_that_is_gone_is_replaced_by_the_built_in_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And somebody is told."""
    chosen = QualityLoopConfig(text=str(tmp_path / "gone.txt"))
    async with running(place(tmp_path, quality=chosen)) as at:
        assert (await get(f"{at}/v1/policy"))["version"] == 0
    assert any("gone.txt" in each.getMessage() and "built-in text" in each.getMessage() for each in caplog.records)


async def test_an_agent_that_is_about_to_end_is_no_fault_of_the_settings(tmp_path: Path) -> None:
    """The book of another one is an OSError, which the supervisor tries again."""
    where = place(tmp_path)
    where.folder.mkdir()
    with PolicyBook(where.folder, ManualClock()), pytest.raises(OSError, match="another control agent is at work"):
        async with running(where):
            raise AssertionError("two agents at once")


async def test_a_token_that_all_can_read_is_a_fault_that_a_person_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how."""
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    where = place(tmp_path)
    file = where.home.secrets / TOKEN_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_text("token")
    file.chmod(0o644)
    with pytest.raises(PolicyProblem, match="chmod 600"):
        async with running(where):
            raise AssertionError("with a token that all can read")


async def test_somebody_who_watches_does_not_keep_it_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open stream of events never ends by itself, and the supervisor kills what takes too long."""
    monkeypatch.setattr("sekisho.control.assembly.GOODBYE_S", 0.01)
    async with aiohttp.ClientSession() as session, asyncio.timeout(90):
        async with running(place(tmp_path)) as at:
            response = await session.get(f"{at}/v1/events")
            assert response.status == 200
        assert not (tmp_path / "run" / "agent.json").exists()


async def test_a_lemonade_server_tells_of_its_npu(tmp_path: Path) -> None:
    """Its system-stats are asked where an engine is Lemonade, with its key."""

    async def stats(request: web.Request) -> web.Response:
        asked.append((request.path, request.headers.get("Authorization")))
        return web.json_response({"cpu_percent": 10.0, "memory_gb": 4.0, "gpu_percent": 5.0, "npu_percent": 50.0})

    asked: list[tuple[str, str | None]] = []
    application = web.Application()
    application.router.add_get("/v1/system-stats", stats)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    config = ModelConfig(name="m", engine="openai_http", url=url, options={"actuator": "lemonade"})
    where = place(tmp_path, EngineAddress(config, url, "k"))
    async with running(where) as agent_url:
        devices = {each["kind"]: each for each in (await until_devices(agent_url, "npu"))}
    await runner.cleanup()
    assert devices["npu"]["utilisation"] == 0.5
    assert asked[0] == ("/v1/system-stats", "Bearer k")


async def until_devices(url: str, kind: str) -> Any:
    """The devices of the first look that has one of this kind."""
    async with asyncio.timeout(90):
        while True:
            devices = (await get(url + "/v1/metrics"))["devices"]
            if any(each["kind"] == kind for each in devices):
                return devices
            await asyncio.sleep(0.05)


def test_a_common_number_of_layers_is_that_of_the_smallest_model(tmp_path: Path) -> None:
    """By the files' heads; a file that is gone, or another engine, says nothing."""
    gone = EngineAddress(ModelConfig(name="gone", path=str(tmp_path / "none.gguf")), None)
    assert _layers((gone, NOWHERE)) is None
    assert _layers((gone, EngineAddress(ModelConfig(name="mini", path="builtin"), None))) == 6
