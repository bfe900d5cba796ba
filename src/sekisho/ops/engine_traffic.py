"""The gateway as `engine_swap` sees it: orders over HTTP, repeated until a living gateway has obeyed them.

A gateway that is killed meanwhile is started again by the supervisor and reads the plan, which was written before the
order was given; so an order that nobody answers is simply given again. A hold is a lease that is renewed here: should
this process hang, the turns go on by themselves.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.engine_orders import HOLD_PATH, MOVE_PATH, TRAFFIC_PATH, HoldOrder, MoveOrder, TrafficState
from sekisho.ops.engine_swap import Placed, TrafficFailed

log = logging.getLogger(__name__)

_ANSWER_S: Final = 10.0
_AGAIN_S: Final = 0.2
_ORDER_PATIENCE_S: Final = 120.0  # a gateway in a crash loop is tried every half minute
_QUESTION_PATIENCE_S: Final = 10.0
_LEASE_S: Final = 30.0
_RENEW_S: Final = 5.0

Note = Callable[[str, Placed, bool], None]


class GatewayTraffic:
    """`Traffic` of one model. `note(model, placed, held)` writes the plan. `numbers` are of all orders of this process,
    rising. Raises as `Traffic` says."""

    def __init__(
        self, model: str, url: str, key: str, note: Note, log_path: str, numbers: "itertools.count[int]", clock: Clock
    ) -> None:
        self._model = model
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._note = note
        self._log_path = log_path
        self._numbers = numbers
        self._clock = clock
        self._renewing: asyncio.Task[None] | None = None

    def note(self, placed: Placed, *, held: bool) -> None:
        self._note(self._model, placed, held)

    async def move(self, placed: Placed) -> None:
        def order() -> MoveOrder:
            return MoveOrder(self._model, next(self._numbers), placed.url, placed.config, self._log_path)

        state = await self._obeyed(MOVE_PATH, order)
        if state.url != placed.url:
            raise TrafficFailed(f"the gateway sends turns to {state.url} still")

    async def hold(self, placed: Placed, held: bool) -> int:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})
            self._renewing = None
        state = await self._obeyed(HOLD_PATH, self._hold_order(_LEASE_S if held else 0.0))
        if state.held != held:
            raise TrafficFailed(f"the gateway {'lets' if held else 'does not let'} turns go on")
        if held:
            self._renewing = asyncio.get_running_loop().create_task(self._renew(), name=f"hold {self._model}")
        return state.waiting

    async def running(self, url: str) -> int:
        answer = await self._asked("GET", TRAFFIC_PATH, lambda: None, _QUESTION_PATIENCE_S)
        try:
            state = decoded(answer, dict[str, TrafficState]).get(self._model)
        except Undecodable as error:
            raise TrafficFailed(f"the gateway's answer cannot be read: {error}") from error
        if state is None:
            raise TrafficFailed(f"the gateway knows no model {self._model}")
        return state.calls.get(url, 0)

    async def close(self) -> None:
        """Renews no hold any more. May be called twice."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait({self._renewing})

    def _hold_order(self, for_s: float) -> Callable[[], HoldOrder]:
        return lambda: HoldOrder(self._model, next(self._numbers), for_s)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._obeyed(HOLD_PATH, self._hold_order(_LEASE_S))
            except TrafficFailed as error:
                log.warning("the turns of %s cannot be held any longer: %s", self._model, error)

    async def _obeyed(self, path: str, order: Callable[[], Any]) -> TrafficState:
        answer = await self._asked("POST", path, order, _ORDER_PATIENCE_S)
        try:
            return decoded(answer, TrafficState)
        except Undecodable as error:
            raise TrafficFailed(f"the gateway's answer cannot be read: {error}") from error

    async def _asked(self, method: str, path: str, body: Callable[[], Any], patience_s: float) -> bytes:
        """Each try makes a body of its own, so that its order has a number of its own."""
        import aiohttp  # not at the start of the server

        began_s = self._clock.monotonic()
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while True:
                wanted = body()
                data = None if wanted is None else msgspec.json.encode(wanted)
                try:
                    async with session.request(method, self._url + path, data=data) as response:
                        answer = await response.read()
                        if response.status == 200:
                            return answer
                        why = f"{response.status} {answer[:500].decode(errors='replace')}"
                        if response.status < 500:
                            raise TrafficFailed(f"the gateway refuses: {why}")
                except (aiohttp.ClientError, TimeoutError) as error:
                    why = str(error) or type(error).__name__
                if self._clock.monotonic() - began_s > patience_s:
                    raise TrafficFailed(f"the gateway does not answer: {why}")
                await asyncio.sleep(_AGAIN_S)
