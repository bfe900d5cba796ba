"""What settings cost in perplexity, measured once for each kind of KV cache."""

from typing import Final

import msgspec

from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.measure import Job, Target, compared
from sekisho.control.trial_settings import is_whole
from sekisho.control.trial_worker import Running
from sekisho.core.clock import Clock
from sekisho.engines.config import ModelConfig

BESIDE: Final = frozenset({"llama_cpp"})
"""Engines that are measured in a process of its own, so that no worker has to run."""
_Cache = tuple[str | None, str, str, bytes]


class Quality:
    """Perplexity under the settings less that at 16 bits, on the same text. One model at a time. `perplexity`: at 16
    bits, once anything was measured."""

    def __init__(self, job: Job, baselines: Baselines, clock: Clock) -> None:
        self._job, self._baselines, self._clock = job, baselines, clock
        self._known: dict[_Cache, float | str] = {}
        self.perplexity: float | None = None

    def known(self, config: ModelConfig) -> float | None:
        """What was measured of such a cache before. None: nothing yet, or it could not be."""
        if config.engine == "llama_cpp" and is_whole(config.kv_type_k, config.kv_type_v):
            return 0.0
        found = self._known.get(_cache(config))
        return None if isinstance(found, str) else found

    async def loss(self, config: ModelConfig, running: Running | None = None) -> float:
        """Raises Unmeasured, for the same cache with the same reason again. `running`: a worker with these settings,
        for the engines that measure themselves."""
        if (known := self.known(config)) is not None:
            return known
        found = self._known.get(_cache(config))
        if found is None:
            found = self._known[_cache(config)] = await self._measured(config, running)
        if isinstance(found, str):
            raise Unmeasured(found)
        return found

    async def _measured(self, config: ModelConfig, running: Running | None) -> float | str:
        alone = config
        if config.engine in BESIDE:  # whatever the context is, the same text is read
            alone = msgspec.structs.replace(config, slots=1, context=self._job.stretch, options={})
        root, key = (None, None) if running is None else (running.root, running.key)
        try:
            found = await compared(Target(alone, root, key), self._job, self._clock, self._baselines)
        except Unmeasured as error:
            return str(error)
        self.perplexity = found.baseline.perplexity
        return found.delta.value


def _cache(config: ModelConfig) -> _Cache:
    """What decides about the loss."""
    return config.path, config.kv_type_k, config.kv_type_v, msgspec.json.encode(config.kv)
