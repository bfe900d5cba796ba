"""A real agent at a real port, with engines that are values."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from sekisho.control.agent import Agent, Parts
from sekisho.control.api.door import Door
from sekisho.control.api.events import EventBus
from sekisho.control.api.routes import application
from sekisho.control.base import ActuatorFailed, Applied, DeviceState, EngineState
from sekisho.control.config import ControlConfig
from sekisho.control.history import History
from sekisho.control.policy import Policy
from sekisho.control.policy_book import PolicyBook
from sekisho.control.policy_changes import difference
from sekisho.control.policy_service import Cause
from sekisho.control.totals import Totals
from sekisho.control.window import Window
from sekisho.core.clock import ManualClock

TOKEN = "a token of this test"
PERSON = Cause("api", "request", "api", "a person")


class ValueEngine:
    """An engine that takes `kv.*` at once, `engine.*` by a swap, and nothing else. `broken`: what it fails with.
    `gate`: what a change waits for, once it has begun."""

    def __init__(self, model: str = "mini") -> None:
        self.model = model
        self.engine = "value"
        self.policy = Policy()
        self.state_now = EngineState(model, "value", "ready", slots=4)
        self.broken: str | None = None
        self.gate: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.applied = 0

    async def state(self) -> EngineState:
        return self.state_now

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        if self.broken is not None:
            raise ActuatorFailed(self.broken)
        return tuple(
            Applied(self.model, field, *self._effect(field), was=old, value=new)
            for field, (old, new) in difference(self.policy, policy).items()
        )

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        said = await self.plan(policy)
        self.policy = policy
        self.applied += 1
        return tuple(msgspec.structs.replace(each, done=each.effect in ("now", "swap")) for each in said)

    def _effect(self, field: str) -> Any:
        section = field.split(".")[0]
        return ({"kv": "now", "engine": "swap"}.get(section, "unsupported"), False)

    async def close(self) -> None:
        return


async def no_devices() -> tuple[DeviceState, ...]:
    return ()


def make_agent(folder: Path, *engines: ValueEngine, config: ControlConfig | None = None) -> tuple[Agent, ManualClock]:
    clock = ManualClock()
    parts = Parts(
        clock,
        PolicyBook(folder / "policy", clock),
        History(folder / "history", clock),
        Window(60.0, clock=clock),
        Totals(clock),
        {engine.model: engine for engine in engines or (ValueEngine(),)},
        None,
        no_devices,
        EventBus(),
    )
    return Agent(config or ControlConfig(), parts), clock


class Live:
    """The agent's address and a client that shows the token unless told otherwise."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, Any]:
        """Status, decoded body (text where it is no JSON), headers."""
        sent = dict(headers or {}) | ({"X-Inferos-Token": token} if token is not None else {})
        data = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        async with self._session.request(method, self.url + path, data=data, headers=sent) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            return response.status, msgspec.json.decode(raw) if is_json else raw.decode(), response.headers

    async def get(self, path: str, **given: Any) -> Any:
        return (await self.ask("GET", path, token=None, **given))[1]

    async def post(self, path: str, body: Any) -> Any:
        status, answer, _ = await self.ask("POST", path, body)
        assert status == 200, answer
        return answer


@contextlib.asynccontextmanager
async def serving(agent: Agent, origins: tuple[str, ...] = ()) -> AsyncIterator[Live]:
    runner = web.AppRunner(application(agent, Door(TOKEN, origins)), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as session:
            yield Live(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()
        await agent.close()
