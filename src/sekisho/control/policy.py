"""The policy: what the engines shall do, in one value. Fields, bounds and defaults of `kv`, `io`, `scheduler` and
`quality` are those of the agent's published interface; `engine` and the fields after `level_thresholds` are ours.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sekisho.engines.config import KvType
from sekisho.kv.policy import LevelThresholds

GIB: Final = 2**30
Share = Annotated[float, Meta(ge=0, le=1)]
KvMode = Literal["configured", "dynamic", "latency_optimized", "throughput_optimized", "quality_optimized", "disabled"]
Placement = Literal["hybrid", "gpu_only", "npu_only"]
Device = Literal["dml", "npu", "cpu"]


class KvSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode` `configured`, the default, is what the settings of each model say; fields here that differ from their
    defaults change that. `disabled` keeps everything at 16 bits. `budget`, `evict`: see `sekisho.kv.policy.KVPolicy`.
    `key_type`, `value_type`: for engines with one type per context (llama.cpp); None follows from the mode.
    `demote_after_prefill`: prompts are read at 16 bits and stored at these types afterwards, where the engine can."""

    mode: KvMode = "configured"
    recent_window: Annotated[int, Meta(ge=16, le=512)] = 64
    level_thresholds: LevelThresholds = LevelThresholds()
    budget: Annotated[float, Meta(gt=0, le=1)] | None = None
    evict: bool = False
    key_type: KvType | None = None
    value_type: KvType | None = None
    demote_after_prefill: bool = False


class IoSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pools in bytes; given with a unit as well (`units`)."""

    enable_iobinding: bool = True
    dml_pool_bytes: Annotated[int, Meta(ge=GIB)] = 2 * GIB
    host_pool_bytes: Annotated[int, Meta(ge=GIB)] = 4 * GIB


class SchedulerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where prompts are read and where tokens are made, for engines that have a choice."""

    mode: Placement = "hybrid"
    prefill_device: Device = "dml"
    decode_device: Device = "npu"


class QualitySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits. `max_delta_ppl`: perplexity under the policy less perplexity at 16 bits, on the same text."""

    max_delta_ppl: Annotated[float, Meta(ge=0, le=2)] = 0.5
    min_accept_rate: Share = 0.5


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None leaves a value as the settings of the model have it. `slots`: requests at once. `context`: tokens per slot.
    `gpu_layers`: -1 for all that fit. `speculation`: guessing tokens from what the prompt has said before.
    `prompt_cache_bytes`: host memory for prompts that were read before; 0 turns it off."""

    slots: Annotated[int, Meta(ge=1, le=1024)] | None = None
    context: Annotated[int, Meta(ge=256)] | None = None
    gpu_layers: Annotated[int, Meta(ge=-1)] | None = None
    threads: Annotated[int, Meta(ge=1)] | None = None
    prompt_cache_bytes: Annotated[int, Meta(ge=0)] | None = None
    speculation: Literal["off", "ngram"] | None = None


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole policy. Decode it with `policy_changes.merged`, which names the field that is wrong."""

    kv: KvSection = KvSection()
    io: IoSection = IoSection()
    scheduler: SchedulerSection = SchedulerSection()
    quality: QualitySection = QualitySection()
    engine: EngineSection = EngineSection()
