"""One measurement at one engine, and its difference from the baseline: the door for loops and commands."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from sekisho.control.perplexity import llama_hidden, llama_probabilities, torch_route, vllm_route
from sekisho.control.perplexity.base import (
    STRETCH,
    Delta,
    Kind,
    Measurement,
    Precision,
    Scores,
    Unmeasured,
    delta,
    measurement,
)
from sekisho.control.perplexity.baselines import Baselines, fingerprint
from sekisho.control.perplexity.client import Client
from sekisho.control.perplexity.compare import Agreement, agree, by_position
from sekisho.control.perplexity.texts import Text, part_id
from sekisho.core.clock import Clock
from sekisho.engines.config import KvType, ModelConfig

_SIXTEEN: Final[tuple[KvType, KvType]] = ("f16", "f16")
_CHECKED: Final = 24  # positions of a cross-check


class Target(msgspec.Struct, frozen=True):
    """`config`: as it is in force now; its types of the KV cache are what route a measures. `address`: the engine's
    root, without /v1 (route a needs none)."""

    config: ModelConfig
    address: str | None = None
    key: str | None = None


class Job(msgspec.Struct, frozen=True):
    """`number`: of a light run, counted on from one to the next, so that each looks at another part of the text."""

    text: Text
    kind: Kind = "light"
    number: int = 0
    deadline_s: float = 1800.0

    @property
    def only(self) -> int | None:
        return self.number if self.kind == "light" else None

    @property
    def stretch(self) -> int:
        return STRETCH[self.kind]


class Compared(msgspec.Struct, frozen=True):
    """What was measured under the policy, what at 16 bits, and the difference."""

    measured: Measurement
    baseline: Measurement
    delta: Delta


async def measure(target: Target, job: Job, clock: Clock, precision: Precision = "in_force") -> Measurement:
    """Raises `Unmeasured`. Cancelling stops the measurement at the engine, too."""
    name, score = _route(target)
    model_hash = await asyncio.to_thread(fingerprint, target.config)
    begun = clock.monotonic()
    scores = await score(target, job, precision)
    return measurement(
        scores,
        model=target.config.name,
        text_id=part_id(job.text, job.kind, job.only),
        route=name,
        took_s=clock.monotonic() - begun,
        at=clock.now(),
        model_hash=model_hash,
    )


async def compared(target: Target, job: Job, clock: Clock, baselines: Baselines) -> Compared:
    """Measures under the policy in force and, where none is kept, the baseline. Raises `Unmeasured`."""
    measured = await measure(target, job, clock)
    baseline = baselines.get(measured)
    if baseline is None:
        baseline = await measure(target, job, clock, "full")
        baselines.put(baseline)
    return Compared(measured, baseline, delta(measured, baseline))


async def cross_checked(target: Target, job: Job) -> Agreement:
    """Route a against route b, on a few positions of one stretch: whether the process that measures and the worker that
    serves see the same. Only for llama.cpp. Raises `Unmeasured`."""
    if target.config.engine != "llama_cpp" or target.address is None:
        raise Unmeasured("only a running llama.cpp worker can be cross-checked")
    scores = await llama_hidden.score(
        target.config, job.text.body, STRETCH["light"], only=job.number, deadline_s=job.deadline_s
    )
    tokens = scores.stretches[0].tokens
    async with Client(target.address, target.key) as client:
        second = await llama_probabilities.score(client, tokens, llama_probabilities.spread(_CHECKED, len(tokens)))
    return agree(by_position(scores), second)


async def _llama(target: Target, job: Job, precision: Precision) -> Scores:
    kv = _SIXTEEN if precision == "full" else None
    return await llama_hidden.score(
        target.config, job.text.body, job.stretch, only=job.only, kv=kv, deadline_s=job.deadline_s
    )


async def _torch(target: Target, job: Job, precision: Precision) -> Scores:
    async with _client(target) as client:
        return await torch_route.score(
            client, job.text.body, job.stretch, only=job.only, precision=precision, deadline_s=job.deadline_s
        )


async def _vllm(target: Target, job: Job, precision: Precision) -> Scores:
    if precision == "full":
        raise Unmeasured(
            "vLLM's cache type is fixed when it starts: the baseline is what is measured while it runs at 16 bits"
        )
    async with _client(target) as client:
        named = target.config.upstream_model or target.config.name
        return await vllm_route.score(client, named, job.text.body, job.stretch, only=job.only)


def counts_itself(config: ModelConfig) -> bool:
    """Whether the engine tells a measurement's requests as it tells anybody's: vLLM does. llama.cpp is measured by
    another process, and our torch worker counts its traffic alone."""
    return config.engine == "openai_http"


def _client(target: Target) -> Client:
    if target.address is None:
        raise Unmeasured("the engine's address is not known")
    return Client(target.address, target.key)


Score = Callable[[Target, Job, Precision], Awaitable[Scores]]
ROUTES: Final[Mapping[str, tuple[str, Score]]] = MappingProxyType(
    {
        "llama_cpp": (llama_hidden.ROUTE, _llama),
        "torch": (torch_route.ROUTE, _torch),
        "openai_http": (vllm_route.ROUTE, _vllm),
    }
)
"""By the engine of a model's settings."""


def _route(target: Target) -> tuple[str, Score]:
    found = ROUTES.get(target.config.engine)
    if found is None:
        raise Unmeasured(f"perplexity cannot be measured at {target.config.engine}: it can at {', '.join(ROUTES)}")
    return found
