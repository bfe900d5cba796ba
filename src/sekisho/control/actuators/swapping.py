"""A worker of ours: where it is, which settings it runs with, and how it comes to others."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from sekisho.control.actuators.base import Swapper, Wanted, done, joined
from sekisho.control.actuators.engine_http import STATE_DEADLINE_S, EngineHttp, within
from sekisho.control.base import ActuatorFailed, Applied, Effect, EngineState
from sekisho.core.decoding import Undecodable
from sekisho.core.errors import SekishoError
from sekisho.engines.config import ModelConfig
from sekisho.ops.control_door import DoorFailed
from sekisho.ops.engine_swap import Placed

WhereIsIt = Callable[[], Placed | None]
"""Settings and address of a model's worker now, as whoever runs the workers wrote them down; may read a file."""
EXCHANGED: Final = "its worker is being exchanged"
_AS_BEFORE: Final = "the worker that ran before goes on as it was"


class Worker:
    """`configured`: the model's own settings, which a policy lies upon. `config` and `http`: settings in force and
    address as of the last `look`; without `placed` those of the beginning, and what the swaps since then said."""

    def __init__(
        self, config: ModelConfig, http: EngineHttp, swapper: Swapper | None, placed: WhereIsIt | None = None
    ) -> None:
        self.configured = self.config = config
        self.http = http
        self._swapper, self._placed = swapper, placed
        self._held = False

    @property
    def can_swap(self) -> bool:
        return self._swapper is not None

    async def look(self) -> None:
        """Somebody else may have exchanged it: each exchange brings another address."""
        try:
            found = None if self._placed is None else await asyncio.to_thread(self._placed)
        except (OSError, Undecodable) as error:
            raise self.http.failed(f"where it runs cannot be read: {error}", "look whether the server runs") from error
        if found is not None:
            self.config, self._held = found.config, found.held
            self.http.move(found.url)

    async def told(self, deadline_s: float, engine: str, asking: Awaitable[EngineState]) -> EngineState:
        """What `asking`, which looks first, says within `deadline_s`. A worker that does not answer while turns wait
        for another one is not down: that one is starting. Never raises."""
        model = self.configured.name
        state = await within(deadline_s, model, engine, asking)
        if state.state != "down" or not (self._held or await self._is_held()):
            return state
        return EngineState(model, engine, "starting", EXCHANGED)

    async def _is_held(self) -> bool:
        """Looks again: the exchange may have begun after the first look."""
        try:
            await self.look()
        except ActuatorFailed:
            return False
        return self._held

    async def swap(self, new: ModelConfig, planned: tuple[Applied, ...]) -> tuple[Applied, ...]:
        """The records with what was done. Raises ActuatorFailed; the worker then runs as before."""
        assert self._swapper is not None  # whoever plans a swap has looked at `can_swap`
        try:
            report = await self._swapper.swap(self.config.name, differing(self.config, new))
        except SekishoError as error:
            raise self.http.failed(f"the swap was refused: {error.message}", _AS_BEFORE) from error
        except (DoorFailed, OSError) as error:
            raise self.http.failed(f"the swap could not be asked for: {error}", _AS_BEFORE) from error
        if report.outcome == "failed":
            raise self.http.failed(f"the swap failed: {report.why}", _AS_BEFORE)
        self.config = _now(report.now, new)
        await self.look()
        return done(planned, "swap")


class WorkerActuator(ABC):
    """The hand on a worker of ours, as an `Actuator`; what differs between engines is `_state`, `plan` and `apply`."""

    engine: str
    label: str

    def __init__(
        self,
        config: ModelConfig,
        url: str | None,
        key: str | None,
        swapper: Swapper | None = None,
        placed: WhereIsIt | None = None,
    ) -> None:
        self.model = config.name
        self._http = EngineHttp(config.name, self.label, url, key)
        self._worker = Worker(config, self._http, swapper, placed)

    async def state(self) -> EngineState:
        return await self._worker.told(STATE_DEADLINE_S, self.engine, self._state())

    @abstractmethod
    async def _state(self) -> EngineState:
        """Looks where the worker is, and asks it. Raises ActuatorFailed."""

    async def close(self) -> None:
        await self._http.close()


def differing(old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """The fields of the settings that change, each whole."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    return {name: value for name, value in after.items() if before[name] != value}


def _now(told: Any, new: ModelConfig) -> ModelConfig:
    """What the report says is in force now; what was asked for where it does not say so."""
    try:
        return msgspec.convert(dict(told), ModelConfig) if told else new
    except msgspec.ValidationError:
        return new


def context_wanted(asked: int, old: ModelConfig, new: ModelConfig, effect: Effect, reason: str | None) -> Wanted:
    """The context, which the built-in model has less of than somebody may ask for."""
    if new.context == asked:
        return Wanted(old.context, asked, effect, reason)
    limit = f"the model was made for no more than {new.context} tokens"
    same = old.context == new.context
    return Wanted(old.context, new.context, "unchanged" if same else effect, joined(limit, reason), known=False)
