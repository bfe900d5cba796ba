"""A real gateway on a real port, in a thread of its own, with the engines a test asks for."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import httpx
import uvicorn

from sekisho import serve
from sekisho.engines.config import ModelConfig
from sekisho.gateway.app import Gateway
from sekisho.gateway.server import server
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.store import KeyRecord, KeySpec, Store

# What these tests say to the fake engine are orders to it, and no requests of people.
UNGUARDED = GuardConfig(mode="off", output=False)
FAKE = ModelConfig(name="fake", engine="fake", slots=64)
# How long a test waits for what takes milliseconds: a loaded machine is slow and not wrong.
PATIENCE_S = 60.0
ALL = frozenset({"chat", "embeddings", "admin", "control", "audit"})


class Closable(Protocol):
    def close(self) -> object: ...


class LiveGateway:
    """Started by the fixture `live`; stopped at the end of the test."""

    def __init__(self, home: Home, plan: Plan, key: str | None = None, scopes: frozenset[str] = ALL) -> None:
        self.home = home
        self.plan = plan
        self.database = serve.database_url(home, plan.settings, {})
        self.key = key or self.create_key(KeySpec(name="test", scopes=scopes))[1]
        self.gateway: Gateway
        self._server: uvicorn.Server
        self._loop: asyncio.AbstractEventLoop
        self._clients: list[Closable] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "LiveGateway":
        self._thread.start()
        deadline = time.monotonic() + PATIENCE_S
        while not (getattr(self, "_server", None) and self._server.started):
            assert time.monotonic() < deadline, "the gateway did not start"
            assert self._thread.is_alive(), "the gateway died at its start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        while not (self.fetch("/readyz").status_code == 200 and self.gateway.ring.holders()):
            assert time.monotonic() < deadline, self.fetch("/readyz", headers=self.headers()).text
            time.sleep(0.02)
        return self

    def fetch(self, path: str, method: str = "GET", **options: Any) -> httpx.Response:
        """Asks without a key, unless `options` bring one."""
        options.setdefault("timeout", PATIENCE_S)
        return httpx.request(method, self.url + path, **options)

    def _run(self) -> None:
        async def main() -> None:
            self.gateway = serve.build_gateway(self.home, self.plan)
            self._loop = asyncio.get_running_loop()
            self._server = server(self.gateway)
            await self._server._serve()  # without its signal handlers, which belong to a main thread

        asyncio.run(main())

    def stop(self) -> None:
        while self._clients:
            self._clients.pop().close()
        if not self._thread.is_alive():
            return
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the gateway did not stop"

    def create_key(self, spec: KeySpec) -> tuple[KeyRecord, str]:
        return self.in_store(lambda store: store.create_key(spec))

    def in_store(self, work: Callable[[Store], Any]) -> Any:
        """Runs a coroutine function on the store, as another process would."""

        async def run() -> Any:
            store = await Store.open(self.database)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def in_loop(self, work: Callable[[], Any]) -> Any:
        """Calls a function in the gateway's own loop."""

        async def run() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    def usage(self, count: int) -> list[Any]:
        """The usage rows, once there are at least `count`."""
        deadline = time.monotonic() + PATIENCE_S

        async def rows(store: Store) -> list[Any]:
            return [row async for row in store.usage_rows(0, time.time() + 60)]

        while True:
            found: list[Any] = self.in_store(rows)
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} usage rows, not {count}"
            time.sleep(0.05)

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.key}"}

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        options.setdefault("timeout", PATIENCE_S)
        options.setdefault("headers", self.headers(key))
        client = httpx.Client(base_url=self.url, **options)
        self.closes(client)
        return client

    @contextmanager
    def asking(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPConnection]:
        """A request that is sent; its client leaves at the end of the block."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE_S)
        try:
            connection.request("POST", path, json.dumps(body), {**self.headers(), "content-type": "application/json"})
            yield connection
        finally:
            connection.close()

    def closes(self, client: "Closable") -> None:
        """What is closed when the gateway stops."""
        self._clients.append(client)


Launch = Callable[..., LiveGateway]


def chat(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


def eventually(fact: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether a fact comes true."""
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def error(response: httpx.Response) -> dict[str, Any]:
    """The OpenAI-shaped error of an answer."""
    told: dict[str, Any] = response.json()["error"]
    assert told["id"].startswith("err_")
    assert response.headers["x-error-id"] == told["id"]
    return told
