"""llama.cpp: everything is a setting of its start, so a change is a swap of the worker."""

import asyncio
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from sekisho.control.actuators import kv_bytes
from sekisho.control.actuators.base import Wanted, answers, asks, fields, joined, whole_mib
from sekisho.control.actuators.engine_http import Answer
from sekisho.control.actuators.metrics_text import Samples, accept_rate, samples, total
from sekisho.control.actuators.swapping import WorkerActuator, context_wanted
from sekisho.control.base import Applied, Effect, EngineState, KvState
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import kv_types
from sekisho.engines import kv_size, llama_demotion
from sekisho.engines.config import ModelConfig
from sekisho.engines.kv_size import KvShape

LABEL: Final = "llama.cpp"
_DEMOTES: Final = llama_demotion.OPTION
_BY_ITSELF: Final[Mapping[str, Any]] = {"cache_ram_mib": 8192, "speculation": "off", _DEMOTES: False}
_NOT_BY_IMPORTANCE: Final = "has one type for all keys and one for all values, and keeps every token"
MISSING: Final[Mapping[str, str]] = {
    "kv.recent_window": _NOT_BY_IMPORTANCE,
    "kv.level_thresholds": _NOT_BY_IMPORTANCE,
    "kv.budget": _NOT_BY_IMPORTANCE,
    "kv.evict": _NOT_BY_IMPORTANCE,
    "io.enable_iobinding": "is not ONNX Runtime: there is nothing to bind",
    "io.dml_pool_bytes": "takes what model and context need and has no pool",
    "io.host_pool_bytes": "has no pool; engine.prompt_cache_bytes is what it keeps in host memory",
    "scheduler.mode": "reads prompts and makes tokens on the same device, and knows no NPU",
    "scheduler.prefill_device": "reads prompts where its layers lie; engine.gpu_layers says where",
    "scheduler.decode_device": "makes tokens where its layers lie; engine.gpu_layers says where",
}
_SETTINGS: Final = ("context", "slots", "gpu_layers", "threads", "kv_type_k", "kv_type_v", "devices", "options")


def target(policy: Policy, config: ModelConfig, configured: ModelConfig) -> ModelConfig:
    """The settings that the policy asks for. What it leaves open is as `configured`, in the model's own settings; what
    no policy knows of stays as it is in `config`, which is in force."""
    keys, values = kv_types(policy, (configured.kv_type_k, configured.kv_type_v))
    engine = policy.engine
    layers = engine.gpu_layers if engine.gpu_layers is not None else _placed_layers(policy)
    new = msgspec.structs.replace(
        config,
        kv_type_k=keys,
        kv_type_v=values,
        slots=engine.slots or configured.slots,
        context=engine.context or configured.context,
        gpu_layers=configured.gpu_layers if layers is None else layers,
        threads=engine.threads or configured.threads,
    )
    return msgspec.structs.replace(new, options=_options(policy, new, configured))


def _options(policy: Policy, config: ModelConfig, configured: ModelConfig) -> dict[str, str | int | float | bool]:
    """`config`: the new settings but for these."""
    size = policy.engine.prompt_cache_bytes
    asked: dict[str, str | int | bool | None] = {
        "cache_ram_mib": None if size is None else whole_mib(size),
        "speculation": policy.engine.speculation,
        _DEMOTES: _demotes(policy, config, configured),
    }
    options = dict(config.options)
    for name, value in asked.items():
        wanted = option(configured, name) if value is None else value
        if wanted == option(config, name):
            continue  # in force, perhaps without a word
        if value is None and name not in configured.options:
            del options[name]
        else:
            options[name] = wanted
    return options


def option(config: ModelConfig, name: str) -> Any:
    """An option of the worker, or what llama.cpp does without a word about it."""
    return config.options.get(name, _BY_ITSELF[name])


def _demotes(policy: Policy, config: ModelConfig, configured: ModelConfig) -> bool | None:
    """Off where the new settings cannot have what the model's own have; None where these decide."""
    if llama_demotion.why_not(config) is not None:
        return False if option(configured, _DEMOTES) else None
    return policy.kv.demote_after_prefill or None


def _placed_layers(policy: Policy) -> int | None:
    """Layers on the card that the scheduler's part asks for; None where it leaves that open."""
    scheduler = policy.scheduler
    if scheduler.mode == "gpu_only":
        return -1
    return 0 if (scheduler.prefill_device, scheduler.decode_device) == ("cpu", "cpu") else None


def changes(
    policy: Policy, config: ModelConfig, configured: ModelConfig | None = None, *, can_swap: bool = True
) -> tuple[Applied, ...]:
    """What `apply` would do to a worker with the settings `config`. `configured`: the model's own settings, None: the
    same."""
    new = target(policy, config, configured or config)
    effect: Effect = "swap" if can_swap else "restart"
    reason = None if can_swap else _by_hand(new)
    asked = fields(policy)
    pairs: dict[str, tuple[Any, Any]] = {
        "kv.mode": (f"{config.kv_type_k}/{config.kv_type_v}", f"{new.kv_type_k}/{new.kv_type_v}"),
        "kv.key_type": (config.kv_type_k, new.kv_type_k),
        "kv.value_type": (config.kv_type_v, new.kv_type_v),
        "engine.slots": (config.slots, new.slots),
        "engine.context": (config.context, new.context),
        "engine.gpu_layers": (config.gpu_layers, new.gpu_layers),
        "engine.threads": (config.threads, new.threads),
        "engine.prompt_cache_bytes": (option(config, "cache_ram_mib"), option(new, "cache_ram_mib")),
        "engine.speculation": (option(config, "speculation"), option(new, "speculation")),
    }
    placing = _placing(policy)
    silent = ("kv.key_type", "kv.value_type", *(("engine.gpu_layers",) if placing else ()))  # another field says it
    wanted = {
        name: Wanted(was, value, effect, reason)
        for name, (was, value) in pairs.items()
        if asked[name] is not None or (was != value and name not in silent)
    }
    if policy.engine.context is not None:
        wanted["engine.context"] = context_wanted(policy.engine.context, config, new, effect, reason)
    wanted |= dict.fromkeys(placing, Wanted(config.gpu_layers, new.gpu_layers, effect, reason))
    if policy.kv.demote_after_prefill or option(config, _DEMOTES) != option(new, _DEMOTES):
        wanted["kv.demote_after_prefill"] = _demotion(config, new, can_swap=can_swap)
    return answers(config.name, LABEL, policy, wanted, MISSING)


def _demotion(config: ModelConfig, new: ModelConfig, *, can_swap: bool) -> Wanted:
    """Of keys and values that stay at 16 bits there is nothing to store smaller: that is no trouble."""
    was, value, why = option(config, _DEMOTES), option(new, _DEMOTES), llama_demotion.why_not(new)
    if was != value and can_swap:
        return Wanted(was, value, "swap", why)
    if why == llama_demotion.AT_16_BITS:
        return Wanted(was, value, "unchanged", why, known=False)
    if why is not None:
        return Wanted(was, True, "unsupported", f"{LABEL} {why}")
    if not can_swap:
        return Wanted(was, True, "unsupported", f"{LABEL}'s own server has no such flag; a worker of Sekisho's has")
    return Wanted(was, value, "swap")


def _placing(policy: Policy) -> tuple[str, ...]:
    """The fields of `scheduler` that decide about layers on the card here."""
    scheduler, devices = policy.scheduler, ("scheduler.prefill_device", "scheduler.decode_device")
    if policy.engine.gpu_layers is not None or _placed_layers(policy) is None:
        return ()
    if scheduler.mode != "gpu_only":
        return devices
    on_card = (scheduler.prefill_device, scheduler.decode_device) == ("dml", "dml")
    return ("scheduler.mode", *(devices if on_card else ()))


def flags(config: ModelConfig) -> str:
    """These settings as llama-server's command line has them, but for demotion, of which that has nothing."""
    told: list[Any] = ["-c", config.context * config.slots, "-np", config.slots]
    told += ["-ctk", config.kv_type_k, "-ctv", config.kv_type_v]
    told += ["-ngl", "all" if config.gpu_layers < 0 else config.gpu_layers]
    told += ["-t", config.threads] if config.threads else []
    told += ["--cache-ram", option(config, "cache_ram_mib")] if "cache_ram_mib" in config.options else []
    told += ["--spec-type", "ngram-simple" if option(config, "speculation") == "ngram" else "none"]
    return " ".join(map(str, told))


def _by_hand(config: ModelConfig) -> str:
    return f"{LABEL} takes it at its start only, and nobody here can start it anew: start it with {flags(config)}"


class LlamaCppActuator(WorkerActuator):
    """A worker of ours, or with `swapper` None any llama-server, of which the settings are then only believed."""

    engine = "llama_cpp"
    label = LABEL
    _shape: KvShape | str | None = None  # read once

    async def _state(self) -> EngineState:
        await self._worker.look()
        health, slots, metrics = await asyncio.gather(
            self._http.ask("GET", "/health"), self._http.ask("GET", "/slots"), self._http.ask("GET", "/metrics")
        )
        if health.status == 503:
            return EngineState(self.model, self.engine, "starting", "the model is being loaded")
        for path, answer in (("/health", health), ("/slots", slots)):
            if answer.status in (401, 403):
                raise self._http.refused("GET", path, answer)
        if self._shape is None:
            self._shape = await asyncio.to_thread(_shape, self._worker.config)
        return read(self._worker.config, slots, samples(metrics.text) if metrics.status == 200 else {}, self._shape)

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        await self._worker.look()
        health = await self._http.ask("GET", "/health")
        if health.status not in (200, 503):
            raise self._http.refused("GET", "/health", health)
        return self._changes(policy)

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        """Also of a worker that does not answer: other settings may be what brings it back."""
        await self._worker.look()
        planned = self._changes(policy)
        if not asks(planned, "swap"):
            return planned
        return await self._worker.swap(target(policy, self._worker.config, self._worker.configured), planned)

    def _changes(self, policy: Policy) -> tuple[Applied, ...]:
        worker = self._worker
        return changes(policy, worker.config, worker.configured, can_swap=worker.can_swap)


def _shape(config: ModelConfig) -> KvShape | str:
    """Reads the model file's head."""
    from sekisho.engines.llama_worker import WorkerError, model_path

    try:
        path: Path = model_path(config)
    except WorkerError as error:
        return f"the KV cache's size cannot be computed: {error}"
    return kv_size.shape(path)


def read(config: ModelConfig, slots: Answer, told: Samples, known: KvShape | str) -> EngineState:
    """A state out of what `/slots` and `/metrics` said. Of the KV cache llama.cpp tells tokens, not bytes."""
    listed = _listed(slots)
    running = total(told, "llamacpp:requests_processing")
    if running is None and listed is not None:
        running = sum(bool(slot.get("is_processing")) for slot in listed)
    waiting = total(told, "llamacpp:requests_deferred")
    drafted = total(told, "llamacpp:spec_decode_num_draft_tokens_total")
    accepted = total(told, "llamacpp:spec_decode_num_accepted_tokens_total")
    rate, no_rate = accept_rate(drafted, accepted)
    if option(config, "speculation") == "off" and not drafted:
        no_rate = "speculation is off"
    kv, no_kv = _kv(config, listed, known, told)
    counted = {"drafted_tokens": drafted, "accepted_tokens": accepted}
    return EngineState(
        config.name,
        "llama_cpp",
        "ready",
        joined(None if told else "it tells no metrics", no_kv, no_rate),
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        None if listed is None else len(listed),
        kv,
        rate,
        {name: getattr(config, name) for name in _SETTINGS}
        | counted
        | _reader(config, known)
        | {"computed": ["kv"] if kv else [], "told": ["running", "waiting", "slots", "accept_rate"]},
    )


def _listed(slots: Answer) -> list[dict[str, Any]] | None:
    """The slots; None where they are switched off or cannot be read."""
    listed = slots.value if slots.status == 200 else None
    readable = isinstance(listed, list) and all(isinstance(slot, dict) for slot in listed)
    return listed if readable else None


def _kv(
    config: ModelConfig, listed: list[dict[str, Any]] | None, known: KvShape | str, told: Samples
) -> tuple[KvState | None, str | None]:
    if isinstance(known, str):
        return None, known
    if listed is None:
        return None, "it does not tell what its slots hold"
    room = [slot.get("n_ctx") for slot in listed]
    held = [_held(slot) for slot in listed]
    whole = None if None in room else sum(room)  # type: ignore[arg-type]
    tokens = math.fsum(held) if None not in held else None  # type: ignore[arg-type]
    state = kv_bytes.kv_state(known, config.kv_type_k, config.kv_type_v, None if tokens is None else int(tokens), whole)
    if llama_demotion.asked(config):
        read = total(told, "sekisho_demotion_reader_tokens")
        state = kv_bytes.with_reader(state, known, None if read is None else int(read), config.context)
    return state, None if tokens is not None else "it does not tell how many tokens its slots hold"


def _reader(config: ModelConfig, known: KvShape | str) -> dict[str, int]:
    """What the cache takes that prompts are read into, of one context at 16 bits."""
    if not llama_demotion.asked(config) or isinstance(known, str):
        return {}
    return {"reader_bytes": round(config.context * known.token_bytes("f16", "f16"))}


def _held(slot: dict[str, Any]) -> int | None:
    """Tokens that a slot holds, of its last request, too; None for a llama.cpp that does not tell."""
    if "id_task" not in slot and not slot.get("is_processing"):
        return 0  # never used
    held = slot.get("n_prompt_tokens")
    return held if isinstance(held, int) else None
