"""The torch engine: the KV cache's policy changes while it runs; slots, context and threads by a swap."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sekisho.control.actuators.base import Wanted, answers, asks, done, joined
from sekisho.control.actuators.swapping import WorkerActuator, context_wanted
from sekisho.control.base import Applied, Effect, EngineState, KvState
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import kv_policy
from sekisho.engines.config import ModelConfig
from sekisho.kv.policy import KVPolicy, from_plain

LABEL: Final = "the torch engine"
CHANGE_S: Final = 60.0  # the change waits for the round that runs, which may read a portion of a prompt
_TYPES: Final = "chooses the type of each page by its importance, and has none for all"
_DEVICE: Final = "runs on the one device of its `devices`, prompts and tokens alike"
MISSING: Final[Mapping[str, str]] = {
    "kv.key_type": _TYPES,
    "kv.value_type": _TYPES,
    "io.enable_iobinding": "is not ONNX Runtime: its tensors stay on their device anyway",
    "io.dml_pool_bytes": "has no pool; `kv_limit_mib` of its settings is what its cache may take",
    "io.host_pool_bytes": "has no pool in host memory",
    "scheduler": _DEVICE,
    "engine.gpu_layers": "runs whole on one device",
    "engine.prompt_cache_bytes": "keeps no prompt after its answer",
    "engine.speculation": "does not speculate",
}
_SETTINGS: Final = ("slots", "context", "threads")
_NAMED: Final = ("recent_window", "budget", "evict", "level_thresholds")
_KV_FIELDS: Final = ("recent_window", "budget", "evict")
_THRESHOLDS: Final = ("L1_int8", "L2_int4", "L3_evict")


class Told(msgspec.Struct, frozen=True):
    """What `GET /kv` says, as far as it is used here."""

    policy: KVPolicy
    slots: int
    running: int
    prefilling: int
    waiting: int
    context: int
    tokens: int
    limit_bytes: int
    reserved_bytes: int
    cache: dict[str, Any]


def wanted_kv(policy: Policy, configured: ModelConfig) -> KVPolicy:
    """The cache's policy: what `policy` leaves open is as the model's own settings have it. Raises ValueError."""
    return kv_policy(policy, from_plain(configured.kv or {}))


def target(policy: Policy, config: ModelConfig, configured: ModelConfig) -> ModelConfig:
    """Settings for a new worker, which begins with the cache's policy that is wanted now."""
    engine = policy.engine
    new = msgspec.structs.replace(
        config,
        slots=engine.slots or configured.slots,
        context=engine.context or configured.context,
        threads=engine.threads or configured.threads,
    )
    kv = msgspec.to_builtins(wanted_kv(policy, configured))
    return new if new == config else msgspec.structs.replace(new, kv=kv)


def changes(
    policy: Policy, config: ModelConfig, kv: KVPolicy, configured: ModelConfig | None = None, *, can_swap: bool = True
) -> tuple[Applied, ...]:
    """What `apply` would do to a worker with the settings `config`, whose cache has the policy `kv`. `configured`: the
    model's own settings, None: the same. Raises ValueError where their `kv` is none."""
    effect: Effect = "swap" if can_swap else "restart"
    own = configured or config
    new, asked = target(policy, config, own), policy.engine
    settings = ", ".join(f"{name}: {getattr(new, name)}" for name in _SETTINGS)
    reason = None if can_swap else f"{LABEL} takes it at its start only: start it with {settings}"
    wanted = _kv_wanted(policy, kv, wanted_kv(policy, own))
    for name in _SETTINGS:
        was, value = getattr(config, name), getattr(new, name)
        if getattr(asked, name) is not None or was != value:
            wanted[f"engine.{name}"] = Wanted(was, value, effect, reason)
    if asked.context is not None:
        wanted["engine.context"] = context_wanted(asked.context, config, new, effect, reason)
    if asked.speculation == "off":
        wanted["engine.speculation"] = Wanted("off", "off", "unchanged")
    if asked.prompt_cache_bytes == 0:
        wanted["engine.prompt_cache_bytes"] = Wanted(0, 0, "unchanged")
    if policy.kv.demote_after_prefill:
        always = f"{LABEL} always reads a prompt in full precision and packs it afterwards"
        wanted["kv.demote_after_prefill"] = Wanted(True, True, "unchanged", always, known=False)
    return answers(config.name, LABEL, policy, wanted, MISSING)


def _kv_wanted(policy: Policy, kv: KVPolicy, new: KVPolicy) -> dict[str, Wanted]:
    """The cache's fields. With `disabled` they stand in one: the mode decides about all others then."""
    if policy.kv.mode == "disabled":
        was, value = (_pressed(each) for each in (kv, new))
        others = (*_KV_FIELDS[1:], *(f"level_thresholds.{name}" for name in _THRESHOLDS))
        off = dict.fromkeys(others, Wanted(None, None, "unchanged", "kv.mode is disabled", known=False))
        own = {"mode": Wanted(was, value, "now"), "recent_window": Wanted(kv.recent_window, new.recent_window, "now")}
        return {f"kv.{name}": each for name, each in (off | own).items()}
    found = {f"kv.{name}": Wanted(getattr(kv, name), getattr(new, name), "now") for name in _KV_FIELDS}
    found["kv.mode"] = Wanted(None, policy.kv.mode, "unchanged", "its figures are the fields beside it")
    for name in _THRESHOLDS:
        was, value = getattr(kv.level_thresholds, name), getattr(new.level_thresholds, name)
        found[f"kv.level_thresholds.{name}"] = Wanted(was, value, "now")
    if rest := ", ".join(name for name in _kv_changes(kv, new) if name not in _NAMED):
        reason = f"{rest}: as the model's settings have it"
        found["kv.mode"] = Wanted(None, policy.kv.mode, "now", reason, known=False)
    return found


def _pressed(kv: KVPolicy) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(kv)
    return {name: plain[name] for name in ("level_thresholds", "budget", "evict")}


def _kv_changes(old: KVPolicy, new: KVPolicy) -> dict[str, Any]:
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    return {name: value for name, value in after.items() if before[name] != value}


class TorchActuator(WorkerActuator):
    """A worker of ours."""

    engine = "torch"
    label = LABEL

    async def _state(self) -> EngineState:
        await self._worker.look()
        health = await self._http.ask("GET", "/health")
        if health.status == 503:
            return EngineState(self.model, self.engine, "starting", "the model is being loaded")
        return read(self._worker.config, await self._told())

    async def _told(self) -> Told:
        said = await self._http.told("GET", "/kv", timeout_s=CHANGE_S)
        try:
            return msgspec.convert(said, Told)
        except msgspec.ValidationError as error:
            raise self._http.failed(
                f"GET /kv: {error}", "update the server: this worker is of another version"
            ) from None

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        await self._worker.look()
        return self._changes(policy, (await self._told()).policy)

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        await self._worker.look()
        kv, worker = (await self._told()).policy, self._worker
        planned = self._changes(policy, kv)
        if asks(planned, "swap"):  # the new worker begins with the cache's policy
            planned = await worker.swap(target(policy, worker.config, worker.configured), planned)
        elif asked := _kv_changes(kv, wanted_kv(policy, worker.configured)):
            await self._http.told("PUT", "/kv/policy", asked, timeout_s=CHANGE_S)
        return done(planned, "now")

    def _changes(self, policy: Policy, kv: KVPolicy) -> tuple[Applied, ...]:
        worker = self._worker
        try:
            return changes(policy, worker.config, kv, worker.configured, can_swap=worker.can_swap)
        except ValueError as error:
            raise self._http.failed(f"kv: {error}", "correct `kv` in the model's settings") from None


def read(config: ModelConfig, told: Told) -> EngineState:
    """A state out of what `/kv` said."""
    cache = told.cache
    evicted = (cache.get("levels") or {}).get("L3")
    kv = KvState(
        cache.get("bytes_used"),
        told.limit_bytes,
        cache.get("bytes_at_16_bits"),
        cache.get("level_bytes"),
        cache.get("chunks"),
        1.0 if evicted == 0 else None,
    )
    return EngineState(
        config.name,
        "torch",
        "ready",
        joined(
            None if kv.levels is not None else f"{LABEL} of this version tells pages by level, not bytes",
            "what an evicted page would have drawn cannot be measured" if evicted else None,
            f"{LABEL} does not speculate",
        ),
        told.running + told.prefilling,
        told.waiting,
        told.slots,
        kv,
        None,
        {
            "context": told.context,
            "kv": msgspec.to_builtins(told.policy),
            "tokens": told.tokens,
            "reserved_bytes": told.reserved_bytes,
            "levels": cache.get("levels"),
            "formats": cache.get("formats"),
            "hits": cache.get("hits"),
            "told": ["running", "waiting", "slots", "kv"],
            "computed": [],
        },
    )
