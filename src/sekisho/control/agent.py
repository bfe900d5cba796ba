"""The agent: its loops gather signals, its watchers decide, its policy service acts, and everything is written down."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from sekisho.control import view
from sekisho.control.api.events import EventBus
from sekisho.control.base import Actuator, Decision, DeviceState, EngineState, Signals
from sekisho.control.config import ControlConfig
from sekisho.control.enforcement import Enforcement
from sekisho.control.feed import Feed
from sekisho.control.history import DECISIONS, METRICS, History
from sekisho.control.loops import Loop, LoopFigures
from sekisho.control.policy_book import PolicyBook
from sekisho.control.policy_changes import PolicyProblem, plain
from sekisho.control.policy_service import Cause, PolicyChange, PolicyService
from sekisho.control.presets import preset as preset_named
from sekisho.control.totals import Totals
from sekisho.control.window import Window
from sekisho.core.clock import Clock

log = logging.getLogger("sekisho.control")

STATE_DEADLINE_S = 5.0

Watcher = Callable[[Signals], Awaitable[None]]


class Parts(NamedTuple):
    """What an agent is made of. `feed` None: nobody tells of requests, as for an engine without our gateway."""

    clock: Clock
    book: PolicyBook
    history: History
    window: Window
    totals: Totals
    actuators: Mapping[str, Actuator]
    feed: Feed | None
    sample_devices: Callable[[], Awaitable[tuple[DeviceState, ...]]]
    bus: EventBus


class Health(msgspec.Struct, frozen=True):
    """`healthy`: every loop runs in time, every engine is ready, alerts arrive and the disk takes the history;
    `degraded`: not all of that, `reasons` say what; `failing`: no engine is ready."""

    status: Literal["healthy", "degraded", "failing"]
    timestamp: str | None
    version: int
    reasons: tuple[str, ...]
    loops: tuple[LoopFigures, ...]
    engines: dict[str, str]


class Agent:
    """Started once by `run`, which goes on until it is cancelled. Belongs to one event loop.

    `watchers` see the signals of each middle loop, in their order, `slow_watchers` those of each slow one. `quality_of`
    tells the last perplexity figures of a model (None: of the worst), `unsent` what keeps alerts from arriving.
    """

    def __init__(self, config: ControlConfig, parts: Parts) -> None:
        self.config = config
        self.bus = parts.bus
        self.history = parts.history
        self._parts = parts
        self._clock = parts.clock
        self.policies = PolicyService(
            parts.book, parts.actuators, parts.clock, parts.history.next_number, self._decided
        )
        self.watchers: list[Watcher] = []
        self.slow_watchers: list[Watcher] = []
        self.quality_of: Callable[[str | None], view.QualityView] = lambda model: view.QualityView()
        self.measure: Callable[[str | None, str], Awaitable[Any]] | None = None
        self.probe: Callable[[bool], Awaitable[Any]] | None = None
        self.unsent: Callable[[], tuple[str, ...]] = tuple
        self._queued: dict[str, EngineState] = {}  # as the gateway sees them: what runs and waits there
        self._engines: dict[str, EngineState] = {}
        self._devices: tuple[DeviceState, ...] = ()
        self._enforcement = Enforcement(
            self.policies, parts.clock, lambda state: self.bus.publish("engine", self._clock.now(), state)
        )
        self._counted: Counter[tuple[str, str]] = Counter()  # decisions, by loop and outcome
        loops = config.loops
        self._loops = (
            Loop("fast", loops.fast_s, self._fast, parts.clock),
            Loop("middle", loops.middle_s, self._middle, parts.clock),
            Loop("slow", loops.slow_s, self._slow, parts.clock),
        )

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All loops and the feed, until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._parts.feed is not None:
                group.create_task(self._read_feed(self._parts.feed), name="feed")
            for loop in self._loops:
                group.create_task(loop.run(), name=f"{loop.name} loop")

    async def close(self) -> None:
        """Frees connections and files. May be called twice."""
        if self._parts.feed is not None:
            await self._parts.feed.close()
        for actuator in self._parts.actuators.values():
            await actuator.close()
        await asyncio.to_thread(self._parts.book.close)
        self.history.close()

    # --- loops --------------------------------------------------------------------------------------------------------

    async def _read_feed(self, feed: Feed) -> None:
        async with contextlib.aclosing(feed.batches()) as batches:
            async for batch in batches:
                self._parts.window.take(batch)
                self._parts.totals.take(batch)
                if batch.reason is None:
                    self._queued = {state.model: state for state in batch.models}

    async def _fast(self) -> None:
        """Tells who watches how things stand."""
        if self.bus.readers:
            self.bus.publish("metrics", self._clock.now(), self.metrics(None))

    async def _middle(self) -> None:
        """Looks at engines and devices, brings engines to the policy, and lets the watchers decide."""
        states = await asyncio.gather(*(self._state(actuator) for actuator in self._parts.actuators.values()))
        self._devices = await self._parts.sample_devices()
        self._engines = {state.model: self._joined(state) for state in states}
        for state in states:
            await self._enforcement.look(state)
        signals = self.signals()
        for watcher in self.watchers:
            await watcher(signals)

    async def _slow(self) -> None:
        """Keeps a point of history, and does what takes long."""
        await asyncio.to_thread(self.history.append, METRICS, self.metrics(None))
        for model in self._names:
            await self._enforcement.look_for_drift(model)
        signals = self.signals()
        for watcher in self.slow_watchers:
            await watcher(signals)

    async def _state(self, actuator: Actuator) -> EngineState:
        try:
            async with asyncio.timeout(STATE_DEADLINE_S):
                return await actuator.state()
        except TimeoutError:
            why = f"the engine did not tell its state within {STATE_DEADLINE_S:g} s"
            return EngineState(actuator.model, actuator.engine, "down", why)

    def _joined(self, state: EngineState) -> EngineState:
        """What waits is known to the gateway alone; what runs may be known to both, and the engine is nearer."""
        queued = self._queued.get(state.model)
        if queued is None:
            return state
        return msgspec.structs.replace(
            state,
            running=state.running if state.running is not None else queued.running,
            waiting=queued.waiting if queued.waiting is not None else state.waiting,
            slots=state.slots if state.slots is not None else queued.slots,
        )

    # --- what it knows ------------------------------------------------------------------------------------------------

    def signals(self) -> Signals:
        """All that a decision may look at, now."""
        return Signals(
            self._clock.now(),
            self._clock.monotonic(),
            tuple(self._engines.values()),
            self._devices,
            self._parts.window.samples(),
        )

    def health(self) -> Health:
        engines = {model: self._engines[model].state if model in self._engines else "unknown" for model in self._names}
        loops = tuple(loop.figures() for loop in self._loops)
        reasons = [f"{model}: {state}" for model, state in engines.items() if state != "ready"]
        reasons += self._enforcement.reasons()
        reasons += [f"{loop.name} loop: {loop.last_error}" for loop in loops if loop.last_error]
        reasons += [f"{loop.name} loop: its last run began {loop.late_s:.3g} s late" for loop in loops if loop.behind]
        reasons += self.unsent()
        if self.history.failing:
            reasons.append(f"the history cannot be written; {self.history.lost} records are lost so far")
        if self._parts.feed is not None and self._parts.feed.reason is not None:
            reasons.append(self._parts.feed.reason)
        reasons += [f"policy version {each.number}: {each.message}" for each in self.policies.book.problems]
        none_ready = bool(engines) and "ready" not in engines.values()
        status: Literal["healthy", "degraded", "failing"] = (
            "failing" if none_ready else "degraded" if reasons else "healthy"
        )
        at = view.instant(self._clock.now())
        return Health(status, at, self.policies.book.version, tuple(reasons), loops, engines)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._parts.actuators)

    def metrics(self, model: str | None) -> dict[str, Any]:
        """Raises PolicyProblem for a model that there is not."""
        policy = self.policies.current(model)
        engines = [state for state in self._engines.values() if model is None or state.model == model]
        return view.metrics(
            self._parts.window.figures(model),
            engines,
            self._devices,
            self.quality_of(model),
            policy,
            version=self.policies.book.version,
            at=self._clock.now(),
        )

    def prometheus(self) -> bytes:
        from sekisho.control import prometheus

        seen = prometheus.Seen(
            [self._parts.window.figures(name) for name in self._names],
            self._parts.totals.counted(),
            tuple(self._engines.values()),
            self._devices,
            self._counted,
            [loop.figures() for loop in self._loops],
            [
                prometheus.Quality(name, self.quality_of(name), self.policies.current(name).quality.max_delta_ppl)
                for name in self._names
            ],
        )
        return prometheus.text(seen)

    async def capabilities(self, *, refresh: bool) -> Any:
        return None if self.probe is None else await self.probe(refresh)

    # --- what it does -------------------------------------------------------------------------------------------------

    async def change_policy(
        self,
        changes: Mapping[str, Any],
        cause: Cause,
        *,
        by: str,
        model: str | None = None,
        preset: str | None = None,
        dry_run: bool = False,
    ) -> PolicyChange:
        """With `preset`, its changes first and `changes` over them. Raises PolicyProblem, ActuatorFailed."""
        if preset is not None:
            changes = _over(preset_named(preset).changes, changes)
        if not changes:
            raise PolicyProblem("policy", "there is nothing to change")
        return await self.policies.change(changes, cause, by=by, model=model, dry_run=dry_run)

    async def baseline(self, enabled: bool, cause: Cause) -> PolicyChange:
        """Everything at 16 bits, to compare with; and back to what was in force before. Twice the same changes
        nothing."""
        book = self.policies.book
        entered = next((each for each in reversed(book.versions()) if each.by in (_BASELINE, _BASELINE_OFF)), None)
        is_on = entered is not None and entered.by == _BASELINE and entered.number == book.version
        if enabled and not is_on:
            return await self.policies.change({"kv": {"mode": "disabled"}}, cause, by=_BASELINE)
        if not enabled and is_on and entered is not None:
            return await self.policies.roll_back(_before(book, entered.number), cause, by=_BASELINE_OFF)
        why = "the baseline is in force already" if enabled else "the baseline is not in force"
        decision = self.policies.note(cause, why)
        current = plain(self.policies.current())
        return PolicyChange(False, book.version, current, {}, (), "nothing", decision.number)

    def change_config(self, changes: Mapping[str, Any]) -> ControlConfig:
        """Changes of `loops` and `act`, until the next start. Raises PolicyProblem."""
        fixed = set(changes) - {"loops", "act"}
        if fixed:
            raise PolicyProblem(sorted(fixed)[0], "is set in sekisho.yaml; loops and act can be changed here")
        try:
            changed = msgspec.convert(_over(msgspec.to_builtins(self.config), changes), ControlConfig)
        except msgspec.ValidationError as error:
            raise PolicyProblem("config", str(error)) from error
        periods = msgspec.structs.astuple(changed.loops)
        for loop, period_s in zip(self._loops, periods, strict=True):
            if not 0.1 <= period_s <= 3600:
                raise PolicyProblem(f"loops.{loop.name}_s", "must be between 0.1 and 3600")
        for loop, period_s in zip(self._loops, periods, strict=True):
            loop.period_s = period_s
        self.config = changed
        return changed

    async def measure_quality(self, model: str | None, kind: str) -> Any:
        """Raises PolicyProblem for a model that there is not, or whose perplexity cannot be measured here."""
        self.policies.current(model)
        if self.measure is None:
            raise PolicyProblem("model", "there is no engine whose perplexity can be measured here")
        return await self.measure(model, kind)

    def _decided(self, decision: Decision) -> None:
        self._counted[decision.loop, decision.outcome] += 1
        self.history.append(DECISIONS, decision)
        self.bus.publish("decision", decision.at, decision)
        log.info("%s: %s (%s) %s", decision.rule, decision.action, decision.outcome, decision.why)


_BASELINE = "baseline"
_BASELINE_OFF = "baseline off"


def _before(book: PolicyBook, number: int) -> int:
    """The version that was in force before one."""
    return max((each.number for each in book.versions() if each.number < number), default=0)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """One nested mapping laid over another; neither changes."""
    result = dict(below)
    for name, value in above.items():
        under = result.get(name)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        result[name] = _over(under, value) if both else value  # type: ignore[arg-type]
    return result
