"""Which worker each model has, and the exchanges that run and that ended. One exchange a model at a time."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from sekisho.core.clock import Clock, SystemClock
from sekisho.core.errors import NotFound
from sekisho.engines.config import ModelConfig
from sekisho.ops import swap_room
from sekisho.ops.engine_swap import Limits, Placed, Step, Swap, SwapReport, failed, unchanged
from sekisho.ops.engine_traffic import GatewayTraffic, Note
from sekisho.ops.engine_workers import EngineWorkers
from sekisho.ops.model_change import changed
from sekisho.ops.supervisor import ChildSpec, Supervisor
from sekisho.ops.swap_room import How, Memory

log = logging.getLogger(__name__)

_KEPT: Final = 100

Spec = Callable[[ModelConfig, str], ChildSpec]
Measure = Callable[[int | None, ModelConfig, ModelConfig], tuple[Memory, ...]]


class SwapBusy(Exception):
    """An exchange of this model runs already. The text says which step it is at."""


class Running(msgspec.Struct, frozen=True):
    """An exchange that has not ended, or whose old worker still has turns (`draining`)."""

    model: str
    how: How | None
    step: Step | Literal["measuring"]
    started_at: float


class Swaps(msgspec.Struct, frozen=True):
    """`ended`: the last ones, oldest first."""

    running: tuple[Running, ...] = ()
    ended: tuple[SwapReport, ...] = ()


class Gateway(msgspec.Struct, frozen=True):
    """Where the gateway listens, the workers' key, and how the plan is written."""

    url: str
    key: str
    note: Note


class SwapBoard:
    """`placed`: the worker of each model that the supervisor runs itself. `spec` makes a child of settings and an
    address. Belongs to the supervisor's loop; `close` before the supervisor is stopped."""

    def __init__(
        self,
        supervisor: Supervisor,
        placed: Mapping[str, Placed],
        spec: Spec,
        gateway: Gateway,
        limits: Limits | None = None,
        *,
        clock: Clock | None = None,
        measure: Measure = swap_room.measure,
    ) -> None:
        self.placed = dict(placed)
        self._supervisor = supervisor
        self._spec = spec
        self._gateway = gateway
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._measure = measure
        self._closed = False
        self._numbers = itertools.count(1)
        self._running: dict[str, _Run] = {}
        self._ended: deque[SwapReport] = deque(maxlen=_KEPT)

    async def swap(self, model: str, changes: Mapping[str, Any], limits: Mapping[str, Any] | None = None) -> SwapReport:
        """Exchanges the model's worker for one with these settings. Cancelling the caller does not end the exchange.
        `limits` are fields of `Limits` for this one. Raises NotFound, InvalidRequest, SwapBusy, and msgspec's
        ValidationError for limits that are none."""
        placed = self.placed.get(model)
        if placed is None:
            names = ", ".join(self.placed) or "none"
            raise NotFound(f"{model}: the server starts no engine for it. Engines of its own: {names}", param="model")
        new = changed(placed.config, changes)
        here = msgspec.convert({**msgspec.to_builtins(self._limits), **(limits or {})}, Limits)
        if self._closed:
            raise SwapBusy("the server is being stopped")
        if (busy := self._running.get(model)) is not None:
            raise SwapBusy(f"{model} is being exchanged already ({busy.told.step}): try again when that has ended")
        if new == placed.config:
            return unchanged(placed, self._clock)
        run = self._running[model] = _Run(model, self._clock.now())
        run.task = asyncio.get_running_loop().create_task(self._carry_out(run, placed, new, here), name=f"swap {model}")
        return await asyncio.shield(run.report)

    def swaps(self) -> Swaps:
        return Swaps(tuple(run.told for run in self._running.values()), tuple(self._ended))

    async def close(self) -> None:
        """Ends what runs, where it stands; nothing begins any more."""
        self._closed = True
        tasks = [run.task for run in self._running.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, run: "_Run", was: Placed, new: ModelConfig, limits: Limits) -> None:
        workers = EngineWorkers(run.model, self._supervisor, self._spec, limits.ready_timeout_s, self._clock, was.url)
        log_path = str(self._spec(new, was.url).log_path)
        gateway = self._gateway
        traffic = GatewayTraffic(
            run.model, gateway.url, gateway.key, gateway.note, log_path, self._numbers, self._clock
        )
        try:
            if (problem := await asyncio.to_thread(swap_room.problem, new)) is not None:
                report = failed(was, problem, run.started_at, self._clock)
                self._ended.append(report)
                run.report.set_result(report)
                return
            memories = await asyncio.to_thread(self._measure, workers.pid, was.config, new)
            how, why = swap_room.choose(memories, limits.reserve_bytes)
            run.swap = Swap(was, new, how, why, workers, traffic, limits, self._clock)
            report = await run.swap.run()
            self.placed[run.model] = run.swap.placed
            self._ended.append(report)
            log.warning("%s: %s (%s): %s", report.model, report.outcome, report.how, report.why)
            if not run.report.done():
                run.report.set_result(report)
            await run.swap.settle()
        except asyncio.CancelledError:
            if not run.report.done():
                run.report.set_exception(SwapBusy("the server is being stopped"))
            raise
        except Exception as error:  # whoever waits for the report must not wait for ever
            log.exception("the exchange of %s failed", run.model)
            if not run.report.done():
                run.report.set_exception(error)
        finally:
            del self._running[run.model]
            await traffic.close()


class _Run:
    def __init__(self, model: str, started_at: float) -> None:
        self.model = model
        self.started_at = started_at
        self.swap: Swap | None = None
        self.task: asyncio.Task[None] | None = None
        self.report: asyncio.Future[SwapReport] = asyncio.get_running_loop().create_future()
        self.report.add_done_callback(_looked_at)

    @property
    def told(self) -> Running:
        if self.swap is None:
            return Running(self.model, None, "measuring", self.started_at)
        return Running(self.model, self.swap.how, self.swap.step, self.started_at)


def _looked_at(report: "asyncio.Future[SwapReport]") -> None:
    """The caller may have left: then nobody else asks for the exception."""
    if not report.cancelled():
        report.exception()
