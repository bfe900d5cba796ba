"""Measures a policy on a worker of its own: started with the settings that the policy asks for, loaded, ended.

The engine that serves is not touched, so that no request of anybody's meets a policy that is being tried.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import msgspec

from sekisho.control import trial_settings
from sekisho.control.actuators.base import fields
from sekisho.control.actuators.engine_http import EngineHttp
from sekisho.control.base import ActuatorFailed
from sekisho.control.comparison import OutOfBudget
from sekisho.control.load import Load, LoadPlan, decode_tokens_per_s, run_load
from sekisho.control.measured import Measure, Measured, MeasurementFailed
from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.policy import Policy
from sekisho.control.trial_quality import BESIDE, Quality
from sekisho.control.trial_worker import START_S, Running, started
from sekisho.core.clock import Clock
from sekisho.engines.config import ModelConfig
from sekisho.engines.kv_size import KvShape

T = TypeVar("T")
_LONGER: Final = 4
_SPARE_TOKENS: Final = 32  # what a chat template adds, and prompts that come out some percent too long
_LEAST_ANSWER: Final = 4
_PEAK_S: Final = 0.2
STOPPED: Final = "stopped"


class TrialPlan(msgspec.Struct, frozen=True):
    """At effort 1. `prompt_tokens` None: half a context, at most 512. `repeats`: prompts read alone."""

    prompt_tokens: int | None = None
    answer_tokens: int = 32
    repeats: int = 1
    seed: int = 1
    load_s: float = 1800.0
    start_s: float = START_S

    def load(self, config: ModelConfig, effort: float) -> LoadPlan:
        """All slots answer at once. Prompts and answers are as long as asked for, as far as a context goes. Raises
        MeasurementFailed where there is no room for both."""
        prompt = self.prompt_tokens or min(512, config.context // 2)
        room = config.context - _reserved(prompt)
        if room < _LEAST_ANSWER:
            raise MeasurementFailed(f"a context of {config.context} tokens has no room for prompts of {prompt}")
        return LoadPlan(
            config.name,
            contexts=config.slots,
            prompt_tokens=prompt,
            answer_tokens=min(room, max(_LEAST_ANSWER, round(self.answer_tokens * effort))),
            repeats=max(1, round(self.repeats * effort)),
            seed=self.seed,
            timeout_s=self.load_s,
            extra=dict(trial_settings.kind_of(config).extra),
        )


def _reserved(prompt_tokens: int) -> int:
    return prompt_tokens + max(_SPARE_TOKENS, prompt_tokens // 16)


class TrialEngine:
    """`own`: the model's settings, which a policy lies upon. `base`: the policy that the others are compared with: what
    it asks for in vain hinders nobody, and neither does what `spared` names. `quality` None: losses are not measured.
    `max_loss`: a policy that is known to lose more is not loaded any more."""

    def __init__(
        self,
        own: ModelConfig,
        base: Policy,
        plan: TrialPlan,
        quality: Quality | None,
        clock: Clock,
        *,
        spared: Collection[str] = (),
        max_loss: float | None = None,
    ) -> None:
        self._own, self._base, self._plan, self._clock = own, base, plan, clock
        self._quality, self._spared, self._max_loss = quality, frozenset(spared), max_loss
        self._shape = trial_settings.shape(own) if own.engine == "llama_cpp" else None

    async def measure(self, policy: Policy, effort: float) -> Measured:
        """A `Measure`. Raises MeasurementFailed: the engine cannot take the policy, the worker did not start, or did
        not answer."""
        config = self.settings(policy)
        load = self._plan.load(config, effort)
        loss, notes = (None, ()) if config.engine not in BESIDE else await self._loss(config, None)
        if loss is not None and self._max_loss is not None and not loss <= self._max_loss:
            return Measured(delta_ppl=loss, notes=("not loaded: it loses too much",))
        async with started(config, self._clock, self._plan.start_s) as worker, _peak(config, worker) as peak:
            loaded = await self._loaded(worker, load, config)
            if config.engine not in BESIDE:
                loss, notes = await self._loss(config, worker)
        kv_bytes, why = self._kv_bytes(config, peak)
        measured = loaded.measured(kv_bytes=kv_bytes, delta_ppl=loss)
        return msgspec.structs.replace(measured, notes=(*measured.notes, *notes, *why))

    def settings(self, policy: Policy) -> ModelConfig:
        """What the policy means here. Raises MeasurementFailed where the engine does not have what it asks for."""
        asked, known = fields(policy), fields(self._base)
        refused = {
            field: reason
            for field, reason in trial_settings.unsupported(policy, self._own).items()
            if asked[field] != known[field] and field not in self._spared
        }
        if refused:
            raise MeasurementFailed("; ".join(f"{field}: {reason}" for field, reason in refused.items()))
        return trial_settings.meant(policy, self._own)

    async def _loaded(self, worker: Running, plan: LoadPlan, config: ModelConfig) -> Load:
        """Once more with longer answers, where the first ones had ended before the last ones began; with other prompts,
        for the worker may remember these."""
        while True:
            loaded = await run_load(f"{worker.root}/v1", worker.key, plan, self._clock, worker.process)
            longest = config.context - _reserved(plan.prompt_tokens)
            if decode_tokens_per_s(loaded.together) is not None or plan.answer_tokens >= longest:
                return loaded
            longer = min(longest, _LONGER * plan.answer_tokens)
            plan = msgspec.structs.replace(plan, answer_tokens=longer, seed=plan.seed + 1)

    async def _loss(self, config: ModelConfig, worker: Running | None) -> tuple[float | None, tuple[str, ...]]:
        if self._quality is None:
            return None, ()
        try:
            return await self._quality.loss(config, worker), ()
        except Unmeasured as error:
            return None, (f"quality: {error}",)

    def _kv_bytes(self, config: ModelConfig, peak: list[int]) -> tuple[int | None, tuple[str, ...]]:
        if config.engine != "llama_cpp":
            return (max(peak), ()) if peak else (None, ("KV memory: the worker did not tell it",))
        if isinstance(self._shape, KvShape):
            return trial_settings.kv_bytes(config, self._shape), ()
        return None, (str(self._shape),)


@asynccontextmanager
async def _peak(config: ModelConfig, worker: Running) -> AsyncIterator[list[int]]:
    """What a worker that tells the bytes of its cache had there, looked at all the while."""
    found: list[int] = []
    if config.engine == "llama_cpp":
        yield found
        return
    looking = asyncio.create_task(_look(worker, found))
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(worker: Running, found: list[int]) -> None:
    http = EngineHttp("the worker", "KV memory", worker.root, worker.key)
    try:
        while True:
            with suppress(ActuatorFailed):
                cache = (await http.told("GET", "/kv")).get("cache")
                used = cache.get("bytes_used") if isinstance(cache, dict) else None
                found += [used] if isinstance(used, int) else []
            await asyncio.sleep(_PEAK_S)
    finally:
        await http.close()


async def until(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """What the work gives. Raises OutOfBudget as soon as `stop` is set; the work is cancelled then, and has ended."""
    doing, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise OutOfBudget(STOPPED)
        return await doing
    finally:
        for each in (doing, stopping):
            each.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


def stoppable(measure: Measure, stop: asyncio.Event) -> Measure:
    """The same, but after `stop` nothing is measured any more, and what is being measured ends."""

    async def measured(policy: Policy, effort: float) -> Measured:
        if stop.is_set():
            raise OutOfBudget(STOPPED)
        return await until(stop, measure(policy, effort))

    return measured
