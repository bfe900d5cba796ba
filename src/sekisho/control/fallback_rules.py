"""What can go wrong, how it is seen, and what is done about it: predicates over signals, and ladders of changes.

Thresholds of levels are those of `sekisho.kv.policy`: lower ones keep more in full precision. (This is the direction
that the cache itself has.)
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from sekisho.control.base import DeviceState, Sample, Signals
from sekisho.control.overlay import value_of
from sekisho.control.policy import Policy

Reason = Literal[
    "engine_down", "device_missing", "memory", "device_hot", "timeout", "quality", "agent_silent"
]  # in the order of precedence
PRECEDENCE: Final[tuple[Reason, ...]] = (
    "engine_down",
    "device_missing",
    "memory",
    "device_hot",
    "timeout",
    "quality",
    "agent_silent",
)
"""Where two reasons want the same field at the same time, the earlier one has it: first that there is an engine, then
that it keeps running, then how fast and how well it answers. The balancer comes after all of them."""
GUESSES: Final = "accept_rate:"  # begins the subject of findings about speculation; the model follows
TIMEOUT_CODES: Final = frozenset({"engine_timeout"})
DEVICE_ORDER: Final = ("npu", "dml", "cpu")
WINDOW: Final = (16, 512)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where trouble begins and where it ends. Shares are 0 to 1. `hot_cpu_c` and so on: for devices whose driver tells
    no limit of its own (our choice, a few degrees below where such parts slow down by themselves). A graphics card may
    be fuller than the machine: servers such as vLLM take nine tenths of it at their start. `kv_types`: of llama.cpp,
    those that run here (None: not known, and all are taken to)."""

    hot_cpu_c: float = 95.0
    hot_gpu_c: float = 85.0
    hot_npu_c: float = 85.0
    cooler_by_c: float = 8.0
    memory_high: float = 0.95
    memory_low: float = 0.80
    vram_high: float = 0.98
    vram_low: float = 0.90
    timeout_share: float = 0.2
    timeout_low: float = 0.05
    timeouts_at_least: int = 3
    drafted_at_least: int = 1_000
    quality_calm: float = 0.8
    silent_s: float = 120.0
    kv_types: frozenset[str] | None = None

    def eight_bits_run(self) -> bool:
        return self.kv_types is None or "q8_0" in self.kv_types


class QualityReading(msgspec.Struct, frozen=True):
    """One measurement of quality. `number` rises by one with each, so that none is counted twice."""

    number: int
    delta_ppl: float | None


class Finding(msgspec.Struct, frozen=True):
    """What one predicate saw. Neither `bad` nor `clear`: between the limit and where recovery begins. What cannot be
    measured makes no finding. `number`: of the measurement, where one is seen more than once."""

    reason: Reason
    subject: str
    signal: str
    value: float | None
    limit: float | None
    bad: bool
    clear: bool
    why: str = ""
    number: int | None = None


class Rung(msgspec.Struct, frozen=True):
    """One step of a ladder. Without fields it is an advice."""

    rule: str
    fields: dict[str, Any] = {}


class Rule(msgspec.Struct, frozen=True):
    """How one reason is treated. `readings`: bad ones in a row before acting. `recover_s`: how long it must be clear.
    `settle_s`: how long a change is given to show. `initial_s`, `limit_s`, `factor`: the back-off between changes.
    `notify_after`: how many within five minutes tell somebody. `follow_up`: what a person looks at meanwhile."""

    readings: int
    recover_s: float
    settle_s: float
    initial_s: float
    limit_s: float
    factor: float
    notify_after: int
    follow_up: str
    critical: bool = False


RULES: Final[Mapping[Reason, Rule]] = MappingProxyType(
    {
        "engine_down": Rule(
            2,
            30,
            60,
            5,
            300,
            2.0,
            1,
            "read the engine's log; one that ended is started again, one that hangs must be ended by hand",
            True,
        ),
        "device_missing": Rule(2, 300, 60, 5, 300, 2.0, 2, "check the device's driver and its power"),
        "memory": Rule(2, 60, 30, 1, 60, 1.8, 4, "give the machine more memory, or run a smaller model"),
        "device_hot": Rule(3, 60, 30, 5, 300, 2.0, 2, "check fans, dust and the power limit"),
        "timeout": Rule(2, 300, 60, 3, 180, 2.2, 3, "look at the time-outs in the settings and at the machine's load"),
        "quality": Rule(3, 600, 30, 2, 120, 1.5, 3, "measure the baseline again, or take weights with more bits"),
        "agent_silent": Rule(1, 60, 0, 3, 180, 2.2, 1, "see in the log what held the agent up"),
    }
)
"""Back-off and notification of quality, device, memory and timeout are those of the published interface."""


def findings(
    signals: Signals,
    policy: Policy,
    quality: QualityReading | None,
    silent_s: float | None,
    limits: Limits,
    answered: Mapping[str, Sample] = MappingProxyType({}),
) -> tuple[Finding, ...]:
    """What all predicates see, in the order of precedence. `silent_s`: since the agent looked last. `answered`: by
    model, the last request that ended before its time-outs were answered last."""
    seen = [
        *engine_down(signals),
        *device_missing(signals),
        *memory(signals, limits),
        *device_hot(signals, limits),
        *timeout(signals, limits, answered),
        *poor_quality(quality, policy, limits),
        *poor_guesses(signals, policy, limits),
        *agent_silent(silent_s, limits),
    ]
    return tuple(sorted(seen, key=lambda finding: PRECEDENCE.index(finding.reason)))


def engine_down(signals: Signals) -> Iterator[Finding]:
    """An engine that is down; one that is starting is neither bad nor well."""
    for engine in signals.engines:
        down, ready = engine.state == "down", engine.state == "ready"
        yield Finding("engine_down", engine.model, "engine.state", None, None, down, ready, engine.reason or "")


def device_missing(signals: Signals) -> Iterator[Finding]:
    """An accelerator that was there before and is gone."""
    for device in signals.devices:
        if device.kind in ("gpu", "npu"):
            present = device.present
            yield Finding("device_missing", device.id, "device.present", float(present), 1.0, not present, present)


def device_hot(signals: Signals, limits: Limits) -> Iterator[Finding]:
    """A device above its limit; well again `cooler_by_c` below it."""
    for device in signals.devices:
        limit = hot_limit_c(device, limits)
        if device.present and device.temperature_c is not None and limit is not None:
            value = device.temperature_c
            bad, clear = value > limit, value < limit - limits.cooler_by_c
            yield Finding("device_hot", device.id, "device.temperature_c", value, limit, bad, clear)


def hot_limit_c(device: DeviceState, limits: Limits) -> float | None:
    if device.hot_c is not None:
        return device.hot_c
    return {"cpu": limits.hot_cpu_c, "gpu": limits.hot_gpu_c, "npu": limits.hot_npu_c}.get(device.kind)


def memory(signals: Signals, limits: Limits) -> Iterator[Finding]:
    """Memory of a device, or KV memory of an engine, nearly used up."""
    shares: list[tuple[str, str, float, bool]] = []
    for device in signals.devices:
        if device.kind in ("gpu", "memory") and device.present and device.used_bytes is not None and device.total_bytes:
            share = device.used_bytes / device.total_bytes
            shares.append((device.id, "device.used_share", share, device.kind == "gpu"))
    for engine in signals.engines:
        kv = engine.kv
        if kv is not None and kv.used_bytes is not None and kv.limit_bytes:
            shares.append((f"kv:{engine.model}", "kv.used_share", kv.used_bytes / kv.limit_bytes, False))
    for subject, signal, share, vram in shares:
        high, low = (limits.vram_high, limits.vram_low) if vram else (limits.memory_high, limits.memory_low)
        yield Finding("memory", subject, signal, share, high, share >= high, share < low)


def timeout(
    signals: Signals, limits: Limits, answered: Mapping[str, Sample] = MappingProxyType({})
) -> Iterator[Finding]:
    """Of the requests in the window that were not cancelled, those that ran into a time-out, by model. Those that ended
    before the last answer say nothing about it: as long as the window has only them, it is neither bad nor clear."""
    by_model: dict[str, list[Sample]] = {engine.model: [] for engine in signals.engines}
    for sample in signals.samples:
        by_model.setdefault(sample.model, []).append(sample)
    for model, samples in by_model.items():
        last = answered.get(model)
        old = next((place for place in range(len(samples), 0, -1) if samples[place - 1] == last), 0)
        ended = [sample.status for sample in samples[old:] if sample.status != "cancelled"]
        late = sum(status in TIMEOUT_CODES for status in ended)
        share = late / len(ended) if ended else 0.0
        bad = late >= limits.timeouts_at_least and share >= limits.timeout_share
        clear = share < limits.timeout_low and (bool(ended) or not old)
        yield Finding("timeout", model, "samples.timeout_share", share, limits.timeout_share, bad, clear)


def poor_quality(quality: QualityReading | None, policy: Policy, limits: Limits) -> Iterator[Finding]:
    """Perplexity above the policy's limit. Hand in None where another ladder looks after it."""
    if quality is not None and quality.delta_ppl is not None:
        value, limit = quality.delta_ppl, policy.quality.max_delta_ppl
        bad, clear = value > limit, value <= limit * limits.quality_calm
        yield Finding("quality", "delta_ppl", "quality.delta_ppl", value, limit, bad, clear, number=quality.number)


def poor_guesses(signals: Signals, policy: Policy, limits: Limits) -> Iterator[Finding]:
    """Speculation whose guesses are kept too rarely costs more than it saves. Few guesses say nothing yet."""
    for engine in signals.engines:
        value, limit = engine.accept_rate, policy.quality.min_accept_rate
        if value is not None and (engine.settings.get("drafted_tokens") or 0) >= limits.drafted_at_least:
            subject = f"{GUESSES}{engine.model}"
            yield Finding("quality", subject, "engine.accept_rate", value, limit, value < limit, value >= limit)


def agent_silent(silent_s: float | None, limits: Limits) -> Iterator[Finding]:
    """The agent itself did not look for too long: asleep, stopped or stuck."""
    if silent_s is not None:
        bad = silent_s > limits.silent_s
        why = "nobody watched what the policy did meanwhile" if bad else ""
        yield Finding("agent_silent", "agent", "agent.silent_s", silent_s, limits.silent_s, bad, not bad, why)


def ladder(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    """What to do about it, one rung after the other; empty where only a person can do something."""
    return _LADDERS[finding.reason](finding, policy, signals, limits)


def _nothing(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    return ()


def _device_missing(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    """Work moves to the next device that is there, with more kept in full precision. With another card of the same
    kind there is nothing that a policy could say."""
    device = next(device for device in signals.devices if device.id == finding.subject)
    if any(other.kind == device.kind and other.present for other in signals.devices):
        return ()
    fields = _moved_off(device.kind, policy, signals, limits)
    if device.kind == "gpu":
        fields["engine.gpu_layers"] = 0
    careful = _more_precise(policy, 0.1 if device.kind == "gpu" else 0.05, 128 if device.kind == "gpu" else 96)
    return (Rung(f"the {device.kind} is gone", fields | careful),)


def _memory(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    window = max(WINDOW[0], min(32, policy.kv.recent_window // 2))
    harder = {"kv.recent_window": window, "kv.level_thresholds": _thresholds(policy, +0.1)}
    rungs = [Rung("compress more", harder)]
    if limits.eight_bits_run():  # what the mode means to an engine with one type
        rungs.append(Rung("compress most", {"kv.mode": "throughput_optimized"}))
    if any(device.id == finding.subject and device.kind == "memory" for device in signals.devices):
        rungs.insert(0, Rung("forget prompts", {"engine.prompt_cache_bytes": 0}))
    return (*rungs, *_fewer_slots(policy, signals, 1))


def _device_hot(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    device = next(device for device in signals.devices if device.id == finding.subject)
    moved = _moved_off(device.kind, policy, signals, limits)
    if device.kind == "npu":
        return (Rung("leave the hot npu", moved),) if moved else ()
    cooler = _fewer_slots(policy, signals, 2)
    return (*cooler, Rung("leave the hot gpu", moved)) if device.kind == "gpu" and moved else cooler


def _timeout(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    return (Rung("answer sooner", {"kv.mode": "latency_optimized"}), *_fewer_slots(policy, signals, 2))


def _quality(finding: Finding, policy: Policy, signals: Signals, limits: Limits) -> tuple[Rung, ...]:
    """INT4 to INT8 to 16 bits."""
    if finding.subject.startswith(GUESSES):
        return (Rung("stop guessing", {"engine.speculation": "off"}),)
    better: dict[str, Any] = {"kv.mode": "quality_optimized"}
    for name in ("kv.key_type", "kv.value_type"):
        if value_of(policy, name) in ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"):
            better[name] = "q8_0"
    whole = {"kv.mode": "disabled", "kv.key_type": None, "kv.value_type": None}
    careful = _more_precise(policy, 0.1, min(WINDOW[1], policy.kv.recent_window * 2))
    eight = (Rung("eight bits", better),) if limits.eight_bits_run() else ()
    return (Rung("less in four bits", careful), *eight, Rung("sixteen bits", whole))


_LADDERS: Final[Mapping[Reason, Callable[[Finding, Policy, Signals, Limits], tuple[Rung, ...]]]] = MappingProxyType(
    {
        "engine_down": _nothing,
        "device_missing": _device_missing,
        "memory": _memory,
        "device_hot": _device_hot,
        "timeout": _timeout,
        "quality": _quality,
        "agent_silent": _nothing,
    }
)


def _moved_off(kind: str, policy: Policy, signals: Signals, limits: Limits) -> dict[str, Any]:
    """The scheduler's fields that name this kind of device, moved to the next one that is there and not hot."""
    name = {"npu": "npu", "gpu": "dml"}.get(kind)
    if name is None:
        return {}
    gpus = [device for device in signals.devices if device.kind == "gpu" and device.present]
    cool = any((gpu.temperature_c or 0.0) <= (hot_limit_c(gpu, limits) or float("inf")) for gpu in gpus)
    following = DEVICE_ORDER[DEVICE_ORDER.index(name) + 1 :]
    target = next(device for device in following if device == "cpu" or cool)
    fields: dict[str, Any] = {
        field: target
        for field in ("scheduler.prefill_device", "scheduler.decode_device")
        if value_of(policy, field) == name
    }
    if policy.scheduler.mode == {"npu": "npu_only", "dml": "gpu_only"}[name]:
        fields["scheduler.mode"] = "hybrid"
    return fields


def _more_precise(policy: Policy, by: float, window: int) -> dict[str, Any]:
    return {
        "kv.recent_window": max(policy.kv.recent_window, window),
        "kv.level_thresholds": _thresholds(policy, -by),
    }


def _thresholds(policy: Policy, by: float) -> dict[str, float]:
    """All three moved alike: their order stays. Not below 0.4, 0.2, 0.1 nor above 0.95, 0.9, 0.85, unless people have
    set them so already."""
    now = value_of(policy, "kv.level_thresholds")
    moved = {}
    for name, (least, most) in {"L1_int8": (0.4, 0.95), "L2_int4": (0.2, 0.9), "L3_evict": (0.1, 0.85)}.items():
        moved[name] = round(min(max(now[name] + by, min(least, now[name])), max(most, now[name])), 6)
    return moved


def slots_now(policy: Policy, signals: Signals) -> int | None:
    """Requests at once: by policy, else the least of all engines, so that a common value gives none of them more."""
    if policy.engine.slots is not None:
        return policy.engine.slots
    return min((engine.slots for engine in signals.engines if engine.slots is not None), default=None)


def _fewer_slots(policy: Policy, signals: Signals, times: int) -> tuple[Rung, ...]:
    rungs: list[Rung] = []
    slots = slots_now(policy, signals)
    while slots is not None and slots > 1 and len(rungs) < times:
        slots //= 2
        rungs.append(Rung("fewer requests at once", {"engine.slots": slots}))
    return tuple(rungs)
