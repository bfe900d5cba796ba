"""vLLM: it tells much on `/metrics`; what a policy asks for are flags of its start.

Flags and metrics as published: https://docs.vllm.ai/en/stable/cli/serve/ and https://docs.vllm.ai/en/stable/usage/metrics/
"""

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sekisho.control.actuators.base import Wanted, answers, joined
from sekisho.control.actuators.engine_http import STATE_DEADLINE_S, Answer, EngineHttp, within
from sekisho.control.actuators.metrics_text import Samples, accept_rate, samples, total
from sekisho.control.base import Applied, EngineState, KvState
from sekisho.control.policy import GIB, Policy
from sekisho.control.policy_changes import kv_types
from sekisho.engines.config import ModelConfig

LABEL: Final = "vLLM"
_BLOCKS: Final = "keeps its cache in blocks of one type and drops no token of a running request"
_DEVICES: Final = "runs prompts and tokens on the devices it was started with"
MISSING: Final[Mapping[str, str]] = {
    "kv.recent_window": _BLOCKS,
    "kv.level_thresholds": _BLOCKS,
    "kv.budget": _BLOCKS,
    "kv.evict": _BLOCKS,
    "kv.demote_after_prefill": "stores a prompt in the cache's type at once",
    "io.enable_iobinding": "is not ONNX Runtime: there is nothing to bind",
    "io.dml_pool_bytes": "knows no DirectML; --gpu-memory-utilization is its share of a card",
    "io.host_pool_bytes": "has no pool but that for prompts, engine.prompt_cache_bytes",
    "scheduler": _DEVICES,
    "engine.gpu_layers": "does not split a model by layers between card and processor",
    "engine.threads": "has no setting for it; OMP_NUM_THREADS decides on a processor",
}
NGRAM: Final = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
_UNTOLD: Final = "does not tell what it was started with"
# By the bits of keys and values. The last two need a vLLM that has TurboQuant.
_DTYPES: Final = {(16, 16): "auto", (8, 8): "fp8", (8, 4): "turboquant_k8v4", (4, 4): "turboquant_4bit_nc"}
_ALIASES: Final = {"fp8_e4m3": "fp8"}
_BITS: Final = {"f32": 16, "f16": 16, "bf16": 16, "q8_0": 8, "q5_1": 4, "q5_0": 4, "q4_1": 4, "q4_0": 4, "iq4_nl": 4}


class Launch(msgspec.Struct, frozen=True):
    """What is known of how it was started. None: it does not tell."""

    served: str
    cache_dtype: str | None = None
    max_model_len: int | None = None
    prefix_caching: bool | None = None
    offloading_bytes: int | None = None
    speculates: bool | None = None


def changes(policy: Policy, model: str, launch: Launch) -> tuple[Applied, ...]:
    """What a start with other flags would bring. Nothing of a policy can be changed while it runs."""
    found: dict[str, tuple[Any, Any, bool]] = {}
    flags: list[str] = []
    engine, types = policy.engine, _types(policy)
    dtype = None if types is None else _DTYPES.get((_BITS[types[0]], _BITS[types[1]]))
    if dtype is not None:
        found["kv.mode"] = (launch.cache_dtype, dtype, launch.cache_dtype is not None)
        flags += ["--kv-cache-dtype", dtype]
    for name, kind in (("kv.key_type", policy.kv.key_type), ("kv.value_type", policy.kv.value_type)):
        if kind is not None and dtype is not None:
            found[name] = found["kv.mode"]
    if engine.slots is not None:
        found["engine.slots"] = (None, engine.slots, False)
        flags += ["--max-num-seqs", str(engine.slots)]
    if engine.context is not None:
        found["engine.context"] = (launch.max_model_len, engine.context, launch.max_model_len is not None)
        flags += ["--max-model-len", str(engine.context)]
    if engine.prompt_cache_bytes is not None:
        was = launch.offloading_bytes if launch.prefix_caching else 0
        found["engine.prompt_cache_bytes"] = (was, engine.prompt_cache_bytes, launch.prefix_caching is not None)
        flags += _prompt_cache(engine.prompt_cache_bytes)
    if engine.speculation is not None:
        was_on = None if launch.speculates is None else "ngram" if launch.speculates else "off"
        found["engine.speculation"] = (was_on, engine.speculation, was_on is not None)
        flags += ["--speculative-config", msgspec.json.encode(NGRAM).decode()] if engine.speculation == "ngram" else []
    line = shlex.join(["vllm", "serve", launch.served, *flags])
    return answers(model, LABEL, policy, _wanted(found, dtype, types, line), MISSING)


def _types(policy: Policy) -> tuple[str, str] | None:
    """Types of keys and values; None where the policy leaves them as vLLM was started. One alone stands for both."""
    kv = policy.kv
    named = kv.key_type or kv.value_type
    if kv.mode == "configured" and named is None:
        return None
    return kv_types(policy, (named or "f16", named or "f16"))


def _wanted(
    found: dict[str, tuple[Any, Any, bool]], dtype: str | None, types: tuple[str, str] | None, line: str
) -> dict[str, Wanted]:
    by_flag = f"a flag of {LABEL}'s start; start it with: {line}"
    wanted = {
        name: Wanted(was, value, "restart", joined(None if known else f"{LABEL} {_UNTOLD}", by_flag), known)
        for name, (was, value, known) in found.items()
    }
    if dtype is None and types is not None:
        reason = f"{LABEL} has no cache type for keys of {types[0]} with values of {types[1]}"
        lacking = Wanted(None, "/".join(types), "unsupported", reason)
        wanted |= dict.fromkeys(("kv.mode", "kv.key_type", "kv.value_type"), lacking)
    return wanted


def _prompt_cache(size_bytes: int) -> list[str]:
    if not size_bytes:
        return ["--no-enable-prefix-caching"]
    return ["--enable-prefix-caching", "--kv-offloading-size", f"{size_bytes / GIB:g}"]


class VllmActuator:
    """Any vLLM server with OpenAI's interface."""

    engine = "vllm"
    label = LABEL

    def __init__(self, config: ModelConfig, url: str | None, key: str | None) -> None:
        self.model = config.name
        self._served = config.upstream_model or config.name
        self._http = EngineHttp(config.name, LABEL, url, key)

    async def state(self) -> EngineState:
        return await within(STATE_DEADLINE_S, self.model, self.engine, self._state())

    async def _state(self) -> EngineState:
        metrics, models, version = await asyncio.gather(
            self._http.ask("GET", "/metrics"), self._http.ask("GET", "/v1/models"), self._http.ask("GET", "/version")
        )
        if models.status != 200:
            raise self._http.refused("GET", "/v1/models", models)
        told = samples(metrics.text) if metrics.status == 200 else {}
        return read(self.model, told, launched(self._served, told, models), version.fields.get("version"))

    async def _launch(self) -> Launch:
        metrics, models = await asyncio.gather(self._http.ask("GET", "/metrics"), self._http.ask("GET", "/v1/models"))
        if models.status != 200:
            raise self._http.refused("GET", "/v1/models", models)
        return launched(self._served, samples(metrics.text) if metrics.status == 200 else {}, models)

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        return changes(policy, self.model, await self._launch())

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        """Nothing can be changed while it runs: says what a start with other flags would bring."""
        return await self.plan(policy)

    async def close(self) -> None:
        await self._http.close()


def launched(served: str, told: Samples, models: Answer) -> Launch:
    """How it was started, out of `vllm:cache_config_info` and its list of models."""
    listed = models.fields.get("data")
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    entry = next((each for each in entries if each.get("id") == served), entries[0] if entries else {})
    infos = told.get("vllm:cache_config_info", ())
    info: Mapping[str, str] = infos[0][0] if infos else {}
    length = entry.get("max_model_len")
    return Launch(
        root if isinstance(root := entry.get("root"), str) and root else served,
        _ALIASES.get(info.get("cache_dtype", ""), info.get("cache_dtype")),
        length if isinstance(length, int) else None,
        {"True": True, "False": False}.get(info.get("enable_prefix_caching", "")),
        _bytes(info.get("kv_offloading_size"), GIB),
        "vllm:spec_decode_num_draft_tokens_total" in told if told else None,
    )


def _bytes(told: str | None, unit: int) -> int | None:
    """`None` is what an option that was not given says."""
    if told is None:
        return None
    try:
        return 0 if told == "None" else round(float(told) * unit)
    except ValueError:
        return None


def read(model: str, told: Samples, launch: Launch, version: Any) -> EngineState:
    """A state out of its metrics. Of the cache it tells the used share; bytes only where its size was set in bytes."""
    running = total(told, "vllm:num_requests_running")
    waiting = total(told, "vllm:num_requests_waiting")
    used = _mean(told, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    infos = told.get("vllm:cache_config_info", ())
    info: Mapping[str, str] = infos[0][0] if infos else {}
    limit = _bytes(info.get("kv_cache_memory_bytes"), 1) or None
    drafted = total(told, "vllm:spec_decode_num_draft_tokens_total")
    accepted = total(told, "vllm:spec_decode_num_accepted_tokens_total")
    rate, no_rate = accept_rate(drafted, accepted)
    kv = None
    if used is not None and limit is not None:
        kv = KvState(round(used * limit), limit, hit_rate=1.0)
    return EngineState(
        model,
        "vllm",
        "ready",
        joined(
            None if told else f"{LABEL} tells no metrics",
            None if kv else f"{LABEL} tells the share of its cache that is used, not bytes",
            "speculation is off" if told and launch.speculates is False else no_rate,
            f"{LABEL} does not tell --max-num-seqs",
        ),
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        None,
        kv,
        rate,
        {
            "version": version,
            "kv_used_share": used,
            "kv_tokens": info.get("kv_cache_size_tokens"),
            "drafted_tokens": drafted,
            "accepted_tokens": accepted,
            "prefix_hits": total(told, "vllm:prefix_cache_hits_total"),
            "prefix_queries": total(told, "vllm:prefix_cache_queries_total"),
            "preemptions": total(told, "vllm:num_preemptions_total"),
            "told": ["running", "waiting", "accept_rate"],
            "computed": ["kv"] if kv else [],
        }
        | msgspec.structs.asdict(launch),
    )


def _mean(told: Samples, *names: str) -> float | None:
    """A share that each of several engines in one server tells."""
    for name in names:
        if values := [value for _, value in told.get(name, ())]:
            return sum(values) / len(values)
    return None
