"""The door of the supervisor's process: through it the control agent has a model's worker exchanged and sees who runs.

It listens on 127.0.0.1 and opens with the workers' key. Its address stands in `run/plan.json` (`door`).

    POST /swap      {"model", "changes", "limits"?}  the SwapReport, once the exchange has ended; 409 while another runs
    GET  /swaps     exchanges that run and that ended
    GET  /children  the supervisor's children
"""

import hmac
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import InvalidRequest, NotFound, RequestError
from sekisho.ops.children_file import ChildStatus
from sekisho.ops.engine_swap import SwapReport
from sekisho.ops.swap_board import SwapBoard, SwapBusy, Swaps

if TYPE_CHECKING:  # a fifth of a second, and the door opens after the first answer
    from aiohttp import web

log = logging.getLogger(__name__)

_BODY_LIMIT: Final = 1 << 20
_CONNECT_S: Final = 10.0
_QUESTION_S: Final = 30.0
T = TypeVar("T")


class SwapAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /swap`. `limits`: fields of `engine_swap.Limits`."""

    model: str
    changes: dict[str, Any]
    limits: dict[str, Any] = {}


class Told(msgspec.Struct, frozen=True):
    """Why a request was refused. `param`: the field at fault."""

    message: str
    param: str | None = None


class Refusal(msgspec.Struct, frozen=True):
    error: Told


class ControlDoor:
    """`listening` is its socket: who connected before `start` is answered then."""

    def __init__(
        self, listening: socket.socket, board: SwapBoard, children: Callable[[], list[ChildStatus]], key: str
    ) -> None:
        self._socket = listening
        self._board = board
        self._children = children
        self._expected = f"Bearer {key}".encode()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        from aiohttp import web

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            return await self._guarded(request, handler)

        app = web.Application(middlewares=[guarded], client_max_size=_BODY_LIMIT)
        app.router.add_post("/swap", self._swap)
        app.router.add_get("/swaps", self._swaps)
        app.router.add_get("/children", self._list_children)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def close(self) -> None:
        """Ends exchanges where they stand. May be called again, and without `start`."""
        await self._board.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None
        self._socket.close()

    async def _guarded(
        self, request: "web.Request", handler: "Callable[[web.Request], Awaitable[web.StreamResponse]]"
    ) -> "web.StreamResponse":
        shown = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(shown, self._expected):
            return _answer(401, Refusal(Told("this door opens with the workers' key")))
        try:
            return await handler(request)
        except NotFound as error:
            return _answer(404, Refusal(Told(error.message, error.param)))
        except RequestError as error:
            return _answer(400, Refusal(Told(error.message, error.param)))
        except SwapBusy as error:
            return _answer(409, Refusal(Told(str(error))))

    async def _swap(self, request: "web.Request") -> "web.StreamResponse":
        try:
            asked = decoded(await request.read(), SwapAsked)
        except Undecodable as error:
            raise InvalidRequest(str(error)) from None
        try:
            return _answer(200, await self._board.swap(asked.model, asked.changes, asked.limits))
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"limits: {error}", param="limits") from None

    async def _swaps(self, request: "web.Request") -> "web.StreamResponse":
        return _answer(200, self._board.swaps())

    async def _list_children(self, request: "web.Request") -> "web.StreamResponse":
        return _answer(200, self._children())


def _answer(status: int, value: Any) -> "web.StreamResponse":
    from aiohttp import web

    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


class DoorFailed(Exception):
    """The door is not there, another exchange runs (`busy`), or it said something that cannot be read."""

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy


class DoorClient:
    """For the control agent. One connection a call. Raises NotFound for a model that has no worker of ours,
    InvalidRequest (`param` is the field) for changes that cannot be, DoorFailed for the rest."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}

    async def swap(self, model: str, changes: dict[str, Any], limits: dict[str, Any] | None = None) -> SwapReport:
        """Waits until the exchange has ended, however long it takes; cancelling does not end it."""
        body = msgspec.json.encode(SwapAsked(model, changes, limits or {}))
        return await self._asked("POST", "/swap", SwapReport, body, total_s=None)

    async def swaps(self) -> Swaps:
        return await self._asked("GET", "/swaps", Swaps)

    async def children(self) -> list[ChildStatus]:
        return await self._asked("GET", "/children", list[ChildStatus])

    async def _asked(
        self, method: str, path: str, shape: type[T], body: bytes | None = None, total_s: float | None = _QUESTION_S
    ) -> T:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=_CONNECT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session,
                session.request(method, self._url + path, data=body) as response,
            ):
                status, answer = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            raise DoorFailed(f"the supervisor's door at {self._url} does not answer: {why}") from error
        try:
            if status == 200:
                return decoded(answer, shape)
            told = decoded(answer, Refusal).error
        except Undecodable as error:
            raise DoorFailed(f"the supervisor's door answered {status}, and that cannot be read: {error}") from error
        if status == 404:
            raise NotFound(told.message, param=told.param)
        if status == 400:
            raise InvalidRequest(told.message, param=told.param)
        raise DoorFailed(told.message, busy=status == 409)
