"""A worker of ours while somebody exchanges it: what the actuator says of it, and what it keeps of where it was."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from actuator_harness import KEY, EngineServer, Llama, Other, Torch
from aiohttp import web

from sekisho.control.actuators import create
from sekisho.control.actuators.engine_http import EngineHttp
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import Policy
from sekisho.core.decoding import Undecodable
from sekisho.engines.config import ModelConfig
from sekisho.engines.http_client import HttpClient
from sekisho.ops.engine_swap import Placed

Between = tuple[EngineServer, Actuator, Callable[..., None]]


@pytest.fixture(params=[Llama, Torch])
async def between(request: pytest.FixtureRequest) -> AsyncIterator[Between]:
    """A worker, its actuator, and what the plan says next of `held`: the last word stays."""
    server: EngineServer = request.param()
    await server.start()
    config = ModelConfig("m", engine="torch" if request.param is Torch else "llama_cpp", path="builtin")
    told: list[bool] = [False]

    def placed() -> Placed:
        return Placed(config, server.url, told.pop(0) if len(told) > 1 else told[0])

    actuator = create(config, server.url, KEY, None, placed)
    yield server, actuator, lambda *held: told.__setitem__(slice(None), held)
    await actuator.close()
    await server.stop()


async def test_a_worker_that_is_exchanged_is_starting(between: Between) -> None:
    """While the plan holds the model's turns, a worker that does not answer is no engine that is down."""
    server, actuator, says = between
    says(True)
    assert (await actuator.state()).state == "ready"  # it answers still
    await server.stop()
    state = await actuator.state()
    assert (state.model, state.engine, state.state) == ("m", actuator.engine, "starting")
    assert state.reason == "its worker is being exchanged"
    says(False)
    assert (await actuator.state()).state == "down"


async def test_an_exchange_that_begins_between_looking_and_asking_is_seen(between: Between) -> None:
    """The plan is read again before an engine is called down."""
    server, actuator, says = between
    await server.stop()
    says(False, True)
    assert (await actuator.state()).state == "starting"
    says(True, False)  # it ended just now: the next look finds the new worker
    assert (await actuator.state()).state == "starting"


async def test_a_plan_that_cannot_be_read_is_a_reason(between: Between) -> None:
    """Not a crash, and not an exchange."""
    server = between[0]

    def unreadable() -> Placed:
        raise Undecodable("plan.json: no JSON")

    other = create(ModelConfig("m", path="builtin"), server.url, KEY, None, unreadable)
    state = await other.state()
    assert (state.state, "plan.json" in (state.reason or "")) == ("down", True)
    with pytest.raises(ActuatorFailed, match="where it runs cannot be read"):
        await other.plan(Policy())
    await other.close()


# --- addresses that it has left --------------------------------------------------------------------------------------


class Counted(Other):
    """Knows how many connections to it are open."""

    def __init__(self) -> None:
        super().__init__()
        self.let_on = asyncio.Event()
        self.open: set[asyncio.BaseTransport] = set()

    async def slow(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        await self.let_on.wait()
        return web.json_response({})

    async def quick(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        return web.json_response({})

    def note(self, request: web.Request) -> None:
        assert request.transport is not None
        self.open.add(request.transport)

    def gone(self) -> bool:
        return all(each.is_closing() for each in self.open)


@pytest.fixture
async def addresses() -> AsyncIterator[list[Counted]]:
    servers = [Counted() for _ in range(3)]
    for server in servers:
        await server.start()
        server.trouble = server.quick
    yield servers
    for server in servers:
        await server.stop()


async def until(fact: Callable[[], bool]) -> None:
    for _ in range(3000):
        if fact():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def test_an_address_that_was_left_is_let_go_of(addresses: list[Counted]) -> None:
    """With the first question at the next one its connections are closed, however often the engine moves."""
    http = EngineHttp("m", "an engine", None, KEY)
    for server in addresses * 3:
        http.move(server.url)
        await http.ask("GET", "/health")
        assert http._former == []
    await until(lambda: all(server.gone() for server in addresses[:-1]))
    assert not addresses[-1].gone()
    await http.close()
    await http.close()


async def test_a_question_under_way_ends_where_it_began(addresses: list[Counted]) -> None:
    """Its address is let go of after it, not before."""
    first, second, third = addresses
    first.trouble = first.slow
    http = EngineHttp("m", "an engine", first.url, KEY)
    asking = asyncio.create_task(http.ask("GET", "/health"))
    await until(lambda: bool(first.open))
    for server in (second, third):
        http.move(server.url)
        await http.ask("GET", "/health")
    assert len(http._former) == 1
    first.let_on.set()
    assert (await asking).status == 200
    await http.ask("GET", "/health")
    assert http._former == []
    await until(lambda: first.gone() and second.gone())
    await http.close()


async def test_an_address_that_is_none_changes_nothing(
    addresses: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stays where it was, with its connections, however long it takes to ask again."""
    monkeypatch.setitem(HttpClient.__init__.__kwdefaults__, "keepalive_s", 3600.0)
    http = EngineHttp("m", "an engine", addresses[0].url, KEY)
    await http.ask("GET", "/health")
    with pytest.raises(ActuatorFailed, match="not an http address"):
        http.move("ftp://elsewhere")
    assert (await http.ask("GET", "/health")).status == 200
    assert len(addresses[0].open) == 1
    await http.close()
