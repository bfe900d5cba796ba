"""Which settings of a worker a policy means, for a worker that is started only to be measured."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from sekisho.control.actuators import llama_cpp, torch
from sekisho.control.base import Applied
from sekisho.control.measured import MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.engines import kv_size, llama_demotion, llama_worker
from sekisho.engines.config import KvType, ModelConfig
from sekisho.engines.kv_size import KvShape
from sekisho.engines.worker_process import WorkerError
from sekisho.kv.policy import from_plain


class Kind(msgspec.Struct, frozen=True):
    """How an engine takes a policy. `meant`: settings out of a policy and the model's own; `told`: what would become of
    each field. Both raise ValueError where the model's own settings are wrong. `extra` goes into a load's requests."""

    meant: Callable[[Policy, ModelConfig], ModelConfig]
    told: Callable[[Policy, ModelConfig], tuple[Applied, ...]]
    extra: Mapping[str, Any]


def _llama(policy: Policy, own: ModelConfig) -> ModelConfig:
    return llama_cpp.target(policy, own, own)


def _torch(policy: Policy, own: ModelConfig) -> ModelConfig:
    """With the cache's policy, which a running worker takes without being started anew."""
    kv = msgspec.to_builtins(torch.wanted_kv(policy, own))
    return msgspec.structs.replace(torch.target(policy, own, own), kv=kv)


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "llama_cpp": Kind(_llama, llama_cpp.changes, {"ignore_eos": True}),
        "torch": Kind(
            _torch, lambda policy, own: torch.changes(policy, own, from_plain(own.kv or {})), {"ignore_eos": True}
        ),
    }
)
"""By the engine of a model's settings: those whose workers can be started beside the server."""


def kind_of(own: ModelConfig) -> Kind:
    """Raises MeasurementFailed for an engine that cannot be tried, and for a model that does not talk."""
    if own.embeddings:
        raise MeasurementFailed(f"{own.name} makes embeddings: it has no answers to time")
    if own.engine not in KINDS:
        raise MeasurementFailed(f"{own.name} runs on {own.engine}: only workers of {', '.join(KINDS)} can be tried")
    return KINDS[own.engine]


def meant(policy: Policy, own: ModelConfig) -> ModelConfig:
    """What a policy means for a model with these settings. Raises MeasurementFailed."""
    kind = kind_of(own)
    try:
        return kind.meant(policy, own)
    except ValueError as error:
        raise MeasurementFailed(f"kv of {own.name}: {error}") from error


def unsupported(policy: Policy, own: ModelConfig) -> dict[str, str]:
    """The fields of the policy that the engine does not have, and why. Raises MeasurementFailed."""
    kind = kind_of(own)
    try:
        told = kind.told(policy, own)
    except ValueError as error:
        raise MeasurementFailed(f"kv of {own.name}: {error}") from error
    return {each.field: each.reason or "" for each in told if each.effect == "unsupported"}


def usual_threads(config: ModelConfig) -> int | None:
    """What a worker takes that is told no number; None where that is not known. Looks at the file."""
    if config.engine != "llama_cpp":
        return None
    try:
        return llama_worker.default_threads(llama_worker.model_path(config).stat().st_size)
    except (OSError, WorkerError):
        return None


def effective(config: ModelConfig, threads: int | None) -> ModelConfig:
    """With the `usual_threads`, so that two that mean the same are equal."""
    return config if config.threads is not None else msgspec.structs.replace(config, threads=threads)


def shape(config: ModelConfig, *, at_most: bool = False) -> KvShape | str:
    """What a token takes in llama.cpp's cache, or why that cannot be told. Reads the file's head."""
    try:
        path: Path = llama_worker.model_path(config)
    except WorkerError as error:
        return f"the KV cache's size cannot be computed: {error}"
    return kv_size.shape(path, at_most=at_most)


def kv_bytes(config: ModelConfig, known: KvShape) -> int:
    """All slots of llama.cpp, full, and the reader at 16 bits where prompts are demoted."""
    token = known.token_bytes(config.kv_type_k, config.kv_type_v)
    return int(token * config.context * config.slots) + staging_bytes(config, known)


def staging_bytes(config: ModelConfig, known: KvShape) -> int:
    """What reading one prompt at 16 bits takes beside the slots, where prompts are demoted afterwards."""
    return int(known.token_bytes("f16", "f16") * config.context) if llama_demotion.asked(config) else 0


def is_whole(keys: KvType, values: KvType) -> bool:
    """Whether this is what losses are measured against."""
    return keys == values == "f16"
