"""A supervisor with a real worker and its door, and a gateway that speaks the orders' form."""

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
from aiohttp import web
from kept_port import kept_port

from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.control_door import ControlDoor, DoorClient
from sekisho.ops.engine_orders import HOLD_PATH, MOVE_PATH, TRAFFIC_PATH, HoldOrder, MoveOrder, TrafficState
from sekisho.ops.engine_swap import Limits, Placed
from sekisho.ops.supervisor import ChildSpec, Supervisor
from sekisho.ops.swap_board import Gateway, SwapBoard
from sekisho.ops.swap_room import Memory

KEY = "worker-key"
WORKER = """
import http.server, sys, time
port, kind = int(sys.argv[1]), sys.argv[2]
print(f"worker {kind} begins", flush=True)
if kind == "bad":
    print("error: no such model", flush=True); sys.exit(78)
if kind == "dies":
    print("boom", flush=True); sys.exit(3)
if kind == "never":
    time.sleep(600)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def lives(pid: int | None) -> bool:
    try:
        return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110 - other processes, no event to wait for
            await asyncio.sleep(0.01)


class GatewayDouble:
    """Obeys orders; `calls` are the turns on each worker, `silent` and `refusing` are its troubles."""

    def __init__(self) -> None:
        self.moves: list[MoveOrder] = []
        self.holds: list[HoldOrder] = []
        self.placed: list[tuple[str, Placed, bool]] = []
        self.calls: dict[str, int] = {}
        self.held = False
        self.silent = 0
        self.refusing = False
        self.url = ""
        self.where = ""

    async def start(self) -> "GatewayDouble":
        app = web.Application(middlewares=[self._guarded])
        app.router.add_post(MOVE_PATH, self._move)
        app.router.add_post(HOLD_PATH, self._hold)
        app.router.add_get(TRAFFIC_PATH, self._traffic)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        await self._runner.cleanup()

    def note(self, model: str, placed: Placed, held: bool) -> None:
        self.placed.append((model, placed, held))

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        if self.silent:
            self.silent -= 1
            request.transport.close()  # type: ignore[union-attr]  # as one that is killed
            return web.Response(status=500)
        if self.refusing:
            return web.Response(status=400, text="config: no")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _move(self, request: web.Request) -> web.Response:
        order = msgspec.json.decode(await request.read(), type=MoveOrder)
        self.moves.append(order)
        self.where = order.url
        return self._state()

    async def _hold(self, request: web.Request) -> web.Response:
        order = msgspec.json.decode(await request.read(), type=HoldOrder)
        self.holds.append(order)
        self.held = order.for_s > 0
        return self._state()

    async def _traffic(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode({"m": self._told()}))

    def _told(self) -> TrafficState:
        return TrafficState(self.where, self.calls, sum(self.calls.values()), 2, self.held, 4, 0)

    def _state(self) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._told()))


class Stage:
    """A supervisor with the worker of the model `m`, its door, and somebody who knocks."""

    def __init__(self, home: Path, gateway: GatewayDouble) -> None:
        self.home = home
        self.gateway = gateway
        self.clock = ManualClock()
        url = f"http://127.0.0.1:{kept_port()}/v1"
        self.config = ModelConfig("m", engine="torch", path="good")
        gateway.where = url
        self.supervisor = Supervisor(home, [self.spec(self.config, url)])
        self.board = SwapBoard(
            self.supervisor,
            {"m": Placed(self.config, url)},
            self.spec,
            Gateway(gateway.url, KEY, gateway.note),
            Limits(poll_s=0.01, ready_timeout_s=60),
            clock=self.clock,
            measure=lambda pid, old, new: (Memory("memory", 2**40, 2**20),),
        )
        listening = socket.create_server(("127.0.0.1", 0))
        self.door = ControlDoor(listening, self.board, self.supervisor.statuses, KEY)
        self.client = DoorClient(f"http://127.0.0.1:{listening.getsockname()[1]}", KEY)

    def spec(self, config: ModelConfig, url: str) -> ChildSpec:
        port = url.removesuffix("/v1").rpartition(":")[2]
        argv = (sys.executable, "-u", "-c", WORKER, port, str(config.path))
        return ChildSpec("engine-m", argv, self.home / "engine-m.log")

    def names(self) -> list[str]:
        return [child.name for child in self.supervisor.statuses()]

    @property
    def pid(self) -> int | None:
        return self.supervisor.status("engine-m").pid

    def beside(self) -> int | None:
        """The process of the worker beside the present one."""
        return next((child.pid for child in self.supervisor.statuses() if "~" in child.name), None)
