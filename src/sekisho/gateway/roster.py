"""The models the team can name: each with its engine, its queue, and what the engine last said of itself."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import TypeVar

from sekisho.core.errors import EngineUnavailable, Forbidden, InvalidRequest, NotFound
from sekisho.core.events import Batch, EventStream, Handler, Stage, compose
from sekisho.core.turn import EmbedRequest, Turn
from sekisho.engines.base import Embeddings, Engine, EngineModel, Health
from sekisho.engines.config import ModelConfig
from sekisho.gateway.identity import Holder
from sekisho.gateway.queue import FairQueue
from sekisho.gateway.trouble import persistently

log = logging.getLogger("sekisho.gateway.roster")

_RETRY_S = 0.25
_POLL_STARTING_S = 0.5
_POLL_READY_S = 5.0
_HELD_AT_START_S = 30.0

Answer = TypeVar("Answer")


class EngineUse:
    """An engine and how many calls are under way there: `with use:` around each. Once it is `left` it is closed by the
    end of its last call."""

    __slots__ = ("calls", "engine", "left", "url")

    def __init__(self, engine: Engine, url: str | None) -> None:
        self.engine = engine
        self.url = url
        self.calls = 0
        self.left: Callable[[EngineUse], None] | None = None

    def __enter__(self) -> None:
        self.calls += 1

    def __exit__(self, *_: object) -> None:
        self.calls -= 1
        if self.left is not None and not self.calls:
            self.left(self)


class Entry:
    """One model. `url` is its worker's address, for engines of ours."""

    def __init__(self, config: ModelConfig, engine: Engine, queue: FairQueue, url: str | None = None) -> None:
        self.config = config
        self.queue = queue
        self.use = EngineUse(engine, url)
        self.former: list[EngineUse] = []
        self.health = Health("starting")
        self.card: EngineModel | None = None
        self.moved = asyncio.Event()
        self.last_order = 0  # of the supervisor's (`engine_moves`)
        self._closing: set[asyncio.Task[None]] = set()
        self._lease: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def engine(self) -> Engine:
        """Where new calls go."""
        return self.use.engine

    def move(self, config: ModelConfig, engine: Engine, url: str) -> None:
        """New calls go to `engine` from now on. Calls under way stay where they began."""
        former, self.use = self.use, EngineUse(engine, url)
        self.config, self.card = config, None
        self.queue.renew(config.slots)
        self.former.append(former)
        former.left = self._let_go
        if not former.calls:
            self._let_go(former)
        self.moved.set()

    def calls(self) -> dict[str, int]:
        """How many calls are under way, by the address of the worker."""
        counts: dict[str, int] = {}
        for use in (self.use, *self.former):
            if use.url is not None:
                counts[use.url] = counts.get(use.url, 0) + use.calls
        return counts

    def hold(self, for_s: float) -> None:
        """Lets no turn begin, for at most so long: whoever holds must say so again. Meanwhile nobody's wait counts."""
        self.queue.hold()
        self._end_lease()
        self._lease = asyncio.get_running_loop().call_later(for_s, self._forgotten)

    def release(self) -> None:
        self._end_lease()
        self.queue.release_hold()

    async def close(self) -> None:
        self._end_lease()
        await asyncio.gather(*(use.engine.close() for use in (self.use, *self.former)), *self._closing)

    def _forgotten(self) -> None:
        log.warning("model %s: whoever held its turns has not been heard of: they go on", self.name)
        self.release()

    def _end_lease(self) -> None:
        if self._lease is not None:
            self._lease.cancel()
        self._lease = None

    def _let_go(self, use: EngineUse) -> None:
        self.former.remove(use)
        task = asyncio.get_running_loop().create_task(use.engine.close(), name=f"close a former engine of {self.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    @property
    def context_tokens(self) -> int | None:
        """As the engine lists it, else as configured where we start the engine ourselves."""
        if self.card is not None and self.card.context_tokens is not None:
            return self.card.context_tokens
        return self.config.context if self.config.has_worker else None


class Roster:
    """Finds the model of a turn and runs the turn through queue and engine."""

    def __init__(
        self,
        entries: Iterable[Entry],
        aliases: Mapping[str, str],
        default: str | None,
        restart_wait_s: float,
        checkpoint: Stage,
    ) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._aliases = dict(aliases)
        self._default = default
        self._restart_wait_s = restart_wait_s
        # The road inside the gateway, outermost first. Personas and memory will join this list.
        self._unguarded = compose([self._queued, self._through_restarts], self._engine)
        self._road = compose([checkpoint], self._unguarded)

    def find(self, name: str, holder: Holder) -> Entry:
        """The model's entry. Raises NotFound for an unknown name, Forbidden for one that the key may not use."""
        entry = self._lookup(name)
        if entry is None:
            names = ", ".join(self.permitted(holder)) or "none"
            raise NotFound(
                f"The model '{name[:200]}' does not exist. This key may use: {names}.",
                param="model",
                code="model_not_found",
            )
        allowed = holder.record.models
        if allowed is not None and entry.name not in allowed and name not in allowed:
            raise Forbidden(f"This key may not use the model '{name}'.", param="model", code="model_not_allowed")
        return entry

    def permitted(self, holder: Holder) -> list[str]:
        """Model names this key may use, in the order of the settings."""
        allowed = holder.record.models
        return [name for name in self.entries if allowed is None or name in allowed]

    def run(self, turn: Turn) -> EventStream:
        """Runs a turn whose `model` is an entry's own name. Engine contract as in `engines.base.Engine.generate`."""
        return self._road(turn)

    def unguarded(self, turn: Turn) -> EventStream:
        """The road without the checkpoint, for the checkpoint's own questions. Raises EngineUnavailable for a model
        that does not exist."""
        if turn.model not in self.entries:
            raise EngineUnavailable(f"There is no model '{turn.model}'.")
        return self._unguarded(turn)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """As `run`: in its key's turn, and through a restart of the engine. Raises as `engines.base.Engine.embed`."""
        async with self._slot(request):
            return await self._once_back(request.model, lambda engine: engine.embed(request))

    async def count_tokens(self, turn: Turn) -> int:
        """As `embed`; an engine that counts without a slot is not waited for in the queue."""
        engine = self.entries[turn.model].engine
        async with self._slot(turn) if engine.count_takes_slot else nullcontext():
            return await self._once_back(turn.model, lambda engine: engine.count_tokens(turn))

    def ready(self) -> bool:
        """Whether at least one model can answer now."""
        return any(entry.health.state == "ready" for entry in self.entries.values())

    async def watch(self) -> None:
        """Asks every engine for its health until it is cancelled."""
        for entry in self.entries.values():
            if entry.queue.held:  # as the plan says: a worker is being exchanged
                entry.hold(_HELD_AT_START_S)
        async with asyncio.TaskGroup() as group:
            for entry in self.entries.values():
                group.create_task(persistently(f"health of {entry.name}", partial(self._watch, entry)))

    async def close(self) -> None:
        for entry in self.entries.values():
            await entry.close()

    def _lookup(self, name: str) -> Entry | None:
        if not name and self._default is not None:
            name = self._default
        entry = self.entries.get(name)
        if entry is None and name in self._aliases:
            entry = self.entries.get(self._aliases[name])
        if entry is None and name.endswith(":latest"):  # the way Ollama's clients write a name
            entry = self._lookup(name.removesuffix(":latest"))
        return entry

    async def _watch(self, entry: Entry) -> None:
        while True:
            entry.moved.clear()
            use = entry.use
            health = await use.engine.health()
            card = entry.card
            if use is entry.use and health.state == "ready" and (card is None or entry.health.state != "ready"):
                try:
                    card = next(iter(await use.engine.models()), None)
                except EngineUnavailable as error:
                    health = Health("down", error.message)
            if use is not entry.use:
                continue  # what was heard is of a former worker
            if health.state != entry.health.state:
                log.info("model %s: %s%s", entry.name, health.state, f" ({health.reason})" if health.reason else "")
            entry.health, entry.card = health, card
            try:
                async with asyncio.timeout(_POLL_READY_S if health.state == "ready" else _POLL_STARTING_S):
                    await entry.moved.wait()
            except TimeoutError:
                continue

    async def _queued(self, turn: Turn, inner: Handler) -> AsyncGenerator[Batch, None]:
        async with self._slot(turn), aclosing(inner(turn)) as events:
            async for batch in events:
                yield batch

    @asynccontextmanager
    async def _slot(self, request: Turn | EmbedRequest) -> AsyncIterator[None]:
        queue = self.entries[request.model].queue
        worker = await queue.acquire(request.caller.key_id if request.caller else "")
        try:
            yield
        finally:
            queue.release(worker)

    async def _through_restarts(self, turn: Turn, inner: Handler) -> AsyncGenerator[Batch, None]:
        """A turn that found its engine down waits for the supervisor to bring it back, if nothing was said yet. Where
        another worker has taken over meanwhile, the turn begins there."""
        entry = self.entries[turn.model]
        patience = self._patience(entry)
        while True:
            said, use = False, entry.use
            try:
                with use:
                    async with aclosing(inner(turn)) as events:
                        async for batch in events:
                            said = True
                            yield batch
                return
            except EngineUnavailable:
                if said or (use is entry.use and not await patience.again()):
                    raise

    async def _once_back(self, model: str, ask: Callable[[Engine], Awaitable[Answer]]) -> Answer:
        """The same for a question with one answer."""
        entry = self.entries[model]
        patience = self._patience(entry)
        while True:
            use = entry.use
            try:
                with use:
                    return await ask(use.engine)
            except EngineUnavailable:
                if use is entry.use and not await patience.again():
                    raise

    def _patience(self, entry: Entry) -> "_Patience":
        return _Patience(self._restart_wait_s if entry.config.has_worker else 0.0, entry.queue)

    def _engine(self, turn: Turn) -> EventStream:
        return self.entries[turn.model].engine.generate(turn)


class _Patience:
    """How long a call waits for an engine that the supervisor restarts. While the queue is held, the engine is being
    exchanged: the call then waits for the end of that, which does not count and which the hold's lease bounds."""

    def __init__(self, limit_s: float, queue: FairQueue) -> None:
        self._limit_s = limit_s
        self._queue = queue
        self._deadline_s: float | None = None

    async def again(self) -> bool:
        """Whether to ask once more, after a moment. The time runs from the first call."""
        if self._queue.held:
            self._deadline_s = None
            await self._queue.opened()
            return True
        now_s = asyncio.get_running_loop().time()
        if self._deadline_s is None:
            self._deadline_s = now_s + self._limit_s
        if now_s >= self._deadline_s:
            return False
        await asyncio.sleep(_RETRY_S)
        return True


def check_fits(turn: Turn, entry: Entry) -> None:
    """Raises InvalidRequest when more output is asked for than the model's context holds."""
    wanted, context = turn.sampling.max_tokens, entry.context_tokens
    if wanted is not None and context is not None and wanted > context:
        name = _MAX_TOKENS_NAME[turn.protocol]
        raise InvalidRequest(
            f"{name} is {wanted}, but the context of '{entry.name}' holds {context} tokens, prompt included.",
            param=name,
            code="max_tokens_exceeds_context",
        )


_MAX_TOKENS_NAME = {
    "chat": "max_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
    "ollama_chat": "options.num_predict",
    "ollama_generate": "options.num_predict",
}
