"""The exchange of a model's worker for one with other settings, without a dropped request (SPEC B5).

    side_by_side     start new ─> ready ─> move ─> old one's turns end ─> stop old
    one_after_other  hold turns ─> running ones end ─> stop old ─> start new ─> ready ─> move ─> let turns go on

Whatever goes wrong before the move, or breaks the new worker after it, leads back to the old settings. What does the
work is behind two protocols: `engine_workers` has the processes, `engine_traffic` the gateway.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import msgspec

from sekisho.core.clock import Clock
from sekisho.engines.config import ModelConfig
from sekisho.ops.swap_room import How

log = logging.getLogger(__name__)

Outcome = Literal["moved", "failed", "unchanged"]
Step = Literal["starting", "holding", "stopping", "moving", "draining", "going_back", "ended"]
MIB: Final = 2**20
_HELD_STILL: Final = "turns wait until their hold runs out"


class WorkerFailed(Exception):
    """A worker did not start, or not any more. `log_tail` holds its last lines."""

    def __init__(self, why: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.log_tail = log_tail


class TrafficFailed(Exception):
    """The gateway did not do what it was told, or could not be asked. The text says why."""


_FORESEEN: Final = (WorkerFailed, TrafficFailed, OSError)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`ready_timeout_s`: for a worker to load its model. `drain_timeout_s`: after so long it is told that turns still
    run on the old worker; it stays until they end. `hold_drain_timeout_s`: while turns are held, those that run have
    so long before the exchange is given up. `reserve_bytes`: memory that must stay free beside two workers."""

    ready_timeout_s: float = 600.0
    drain_timeout_s: float = 600.0
    hold_drain_timeout_s: float = 60.0
    reserve_bytes: int = 512 * MIB
    poll_s: float = 0.2


class Placed(msgspec.Struct, frozen=True):
    """A worker's settings and its address, which ends in /v1. `held`: its turns wait, for it is being exchanged; known
    only where somebody reads the plan."""

    config: ModelConfig
    url: str
    held: bool = False


class SwapReport(msgspec.Struct, frozen=True):
    """What became of an exchange. Times are seconds since 1970; `how` is None where nothing was begun. `held_requests`:
    who waited in the queue when it was opened again. `drained_requests`: who ran on the old worker at the move and came
    to an end there; `left_requests` still run there (`draining` in the list of exchanges until they end), None: not
    known. `log_tail`: the last lines of a worker that failed. `url`: of the model's worker at the end."""

    model: str
    outcome: Outcome
    how: How | None
    why: str
    started_at: float
    moved_at: float | None
    ended_at: float
    was: dict[str, Any]
    now: dict[str, Any]
    held_requests: int = 0
    drained_requests: int = 0
    left_requests: int | None = 0
    log_tail: tuple[str, ...] = ()
    url: str = ""


class Workers(Protocol):
    """The processes of one model: the present worker, and beside it for a while another one: the next, before
    `take_over`, or the former, after it. The present one is kept running by the supervisor all the time."""

    async def start(self, config: ModelConfig) -> str:
        """Starts the next one; its address. Raises WorkerFailed."""
        ...

    async def ready(self, *, present: bool = False) -> None:
        """Waits until the next one (or the present one) has loaded its model. Raises WorkerFailed."""
        ...

    def take_over(self) -> None:
        """The next one is the present one now, and that the former."""
        ...

    def give_back(self) -> None:
        """Undoes `take_over`."""
        ...

    def trouble(self) -> WorkerFailed | None:
        """Why the present one will not come back by itself."""
        ...

    async def pause(self) -> None:
        """Stops the present one, in order."""
        ...

    def resume(self) -> None:
        """Starts it again as it was."""
        ...

    async def drop(self) -> None:
        """Stops and forgets the one beside the present one; nothing where there is none."""
        ...


class Traffic(Protocol):
    """The turns of one model."""

    def note(self, placed: Placed, *, held: bool) -> None:
        """What a gateway that starts from now on will do. Raises OSError."""
        ...

    async def move(self, placed: Placed) -> None:
        """New turns go there. Returns once the running gateway does so. Raises TrafficFailed."""
        ...

    async def hold(self, placed: Placed, held: bool) -> int:
        """New turns wait, or go on; how many waited. A hold lasts until it is ended here. Raises TrafficFailed."""
        ...

    async def running(self, url: str) -> int:
        """How many turns run on the worker there. Raises TrafficFailed."""
        ...


class Swap:
    """One exchange. `run` gives the report; then `settle` waits for what the report left. `step` may be read at any
    time. Cancelling either leaves everything as it stands: for when the server is stopped."""

    def __init__(
        self,
        was: Placed,
        config: ModelConfig,
        how: How,
        why: str,
        workers: Workers,
        traffic: Traffic,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.step: Step = "starting"
        self.how = how
        self.placed = was
        self.started_at = clock.now()
        self._was = was
        self._config = config
        self._why = why
        self._workers = workers
        self._traffic = traffic
        self._limits = limits
        self._clock = clock
        self._new: Placed | None = None
        self._held = self._paused = self._noted = self._taken_over = False
        self._moved_at: float | None = None
        self._held_requests = self._drained = 0
        self._left: int | None = 0
        self._notes: list[str] = []

    async def run(self) -> SwapReport:
        """Never raises but for a cancellation."""
        try:
            await (self._side_by_side() if self.how == "side_by_side" else self._one_after_other())
        except _FORESEEN as error:
            tail = error.log_tail if isinstance(error, WorkerFailed) else ()
            return await self._failed(str(error), tail)
        except Exception as error:  # a mistake of ours must not leave a model without a worker, or its turns held
            log.exception("the exchange of %s failed", self._config.name)
            return await self._failed(f"{type(error).__name__}: {error}", ())
        if self._left != 0:
            self._notes.append(self._still_there())
        return self._report("moved", "; ".join((self._why, *self._notes)), ())

    async def settle(self) -> None:
        """Where the report came before the old worker's last turn ended: waits for that and stops the worker."""
        if self._taken_over and self._left != 0:
            await self._drained_from(self._was, None)
            await self._workers.drop()
        self.step = "ended"

    # --- the two ways -----------------------------------------------------------------------------------------------

    async def _side_by_side(self) -> None:
        new = await self._start()
        await self._move(new)
        self.step = "draining"
        self._left = await self._drained_from(self._was, self._limits.drain_timeout_s, watch=True)
        if self._left == 0:
            await self._try(self._notes, "the old worker may run still", self._workers.drop)

    async def _one_after_other(self) -> None:
        self.step, self._held = "holding", True
        self._traffic.note(self._was, held=True)
        await self._traffic.hold(self._was, True)
        left = await self._drained_from(self._was, self._limits.hold_drain_timeout_s)
        if left != 0:
            told = "whether turns still run cannot be asked" if left is None else f"{left} turns still run"
            raise TrafficFailed(f"{told} after {self._limits.hold_drain_timeout_s:g} s, while others wait")
        self.step, self._paused = "stopping", True
        await self._workers.pause()
        await self._move(await self._start())
        await self._try(self._notes, _HELD_STILL, lambda: self._release(self.placed))
        await self._try(self._notes, "the old worker is not forgotten", self._workers.drop)

    async def _start(self) -> Placed:
        self.step = "starting"
        self._new = Placed(self._config, await self._workers.start(self._config))
        await self._workers.ready()
        return self._new

    async def _move(self, new: Placed) -> None:
        """The plan first: a gateway that is killed now comes back with it, and one that lives is told."""
        self.step = "moving"
        self._traffic.note(new, held=self._held)
        self._noted = True
        self._workers.take_over()
        self._taken_over = True
        await self._traffic.move(new)
        self.placed, self._moved_at = new, self._clock.now()

    async def _release(self, placed: Placed) -> None:
        """Whatever becomes of the plan, those who wait go on."""
        try:
            self._traffic.note(placed, held=False)
        finally:
            self._held_requests = await self._traffic.hold(placed, False)
            self._held = False

    async def _drained_from(self, placed: Placed, limit_s: float | None, *, watch: bool = False) -> int | None:
        """Waits until no turn runs on that worker; how many do at the end of the limit, None: nobody can tell. `watch`:
        raises WorkerFailed when the present worker will not come back by itself."""
        began_s, first, silent = self._clock.monotonic(), 0, False
        while True:
            left: int | None = None
            try:
                left, silent = await self._traffic.running(placed.url), False
                first = max(first, left)
            except TrafficFailed as error:
                if not silent:
                    log.warning("exchanging the worker of %s: %s", self._config.name, error)
                silent = True
            trouble = self._workers.trouble() if watch else None
            if trouble is not None:
                raise trouble
            if left == 0 or (limit_s is not None and self._clock.monotonic() - began_s >= limit_s):
                self._drained = max(self._drained, first - (left or 0))
                return left
            await asyncio.sleep(self._limits.poll_s)

    # --- and back ---------------------------------------------------------------------------------------------------

    async def _failed(self, why: str, tail: tuple[str, ...]) -> SwapReport:
        self.step = "going_back"
        undone = await self._undo()
        return self._report("failed", "; ".join((why, *undone)), tail)

    async def _undo(self) -> list[str]:
        """Every step is tried, whatever became of the one before. What could not be undone, in words."""
        told: list[str] = []
        if self._noted:
            await self._try(told, "the plan names the new worker still", self._renote)
        if self._taken_over:
            self._workers.give_back()
            self._taken_over = False
        if self._noted and not self._paused:
            await self._try(told, "the gateway may use the new worker still", self._move_back)
        await self._try(told, "the new worker may run still", self._workers.drop)
        if self._paused:
            self._workers.resume()
            await self._try(told, "the old worker does not answer yet", lambda: self._workers.ready(present=True))
            if self._noted:
                await self._try(told, "the gateway may use the new worker still", self._move_back)
        if self._held:
            await self._try(told, _HELD_STILL, lambda: self._release(self._was))
        self.placed = self._was
        return told

    async def _renote(self) -> None:
        self._traffic.note(self._was, held=self._held)

    async def _move_back(self) -> None:
        """And lets turns that began on the new worker end there, where it can still end them."""
        await self._traffic.move(self._was)
        if self._new is not None and self._moved_at is not None and not self._paused:
            await self._drained_from(self._new, self._limits.hold_drain_timeout_s)

    async def _try(self, told: list[str], otherwise: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # logged and told; the steps after it matter as much
            mistake = not isinstance(error, _FORESEEN)
            log.warning("exchanging the worker of %s: %s: %s", self._config.name, otherwise, error, exc_info=mistake)
            told.append(f"{otherwise} ({error})")

    # --- words ------------------------------------------------------------------------------------------------------

    def _still_there(self) -> str:
        count = "it is not known how many turns" if self._left is None else f"{self._left} turns"
        return f"after {self._limits.drain_timeout_s:g} s {count} still run on the old worker, which ends with the last"

    def _report(self, outcome: Outcome, why: str, tail: tuple[str, ...]) -> SwapReport:
        return SwapReport(
            model=self._config.name,
            outcome=outcome,
            how=self.how,
            why=why,
            started_at=self.started_at,
            moved_at=self._moved_at,
            ended_at=self._clock.now(),
            was=msgspec.to_builtins(self._was.config),
            now=msgspec.to_builtins(self.placed.config),
            held_requests=self._held_requests,
            drained_requests=self._drained,
            left_requests=self._left,
            log_tail=tail,
            url=self.placed.url,
        )


def unchanged(placed: Placed, clock: Clock) -> SwapReport:
    """The report for changes that change nothing."""
    return _not_begun(placed, "unchanged", "the worker runs so already", clock.now(), clock)


def failed(placed: Placed, why: str, started_at: float, clock: Clock) -> SwapReport:
    """The report of an exchange that could not be begun."""
    return _not_begun(placed, "failed", why, started_at, clock)


def _not_begun(placed: Placed, outcome: Outcome, why: str, started_at: float, clock: Clock) -> SwapReport:
    plain = msgspec.to_builtins(placed.config)
    name, ended_at = placed.config.name, clock.now()
    return SwapReport(name, outcome, None, why, started_at, None, ended_at, plain, plain, url=placed.url)
