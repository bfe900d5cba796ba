"""The agent's figures in the shape of its published interface (`GET /v1/metrics`). Pure; what is not measured is null,
and `reasons` says why, by dotted name."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from sekisho.control.base import DeviceState, EngineState, KvState
from sekisho.control.figures import Figures, Spread
from sekisho.control.policy import Policy

MB = 1_000_000
LEVELS = ("L0", "L1", "L2", "L3")


class QualityView(msgspec.Struct, frozen=True):
    """The last perplexity runs of one model. `kind`: `light` or `full`."""

    baseline_ppl: float | None = None
    current_ppl: float | None = None
    delta_ppl: float | None = None
    kind: str | None = None
    route: str | None = None
    text: str | None = None
    tokens: int | None = None
    last_run: float | None = None
    last_full: float | None = None
    next_full: float | None = None
    next_light: float | None = None
    status: str = "not measured"
    reason: str | None = "no perplexity run has ended yet"


def metrics(
    figures: Figures,
    engines: Sequence[EngineState],
    devices: Sequence[DeviceState],
    quality: QualityView,
    policy: Policy,
    *,
    version: int,
    at: float,
) -> dict[str, Any]:
    """The whole answer."""
    kv = _kv(engines)
    reasons = _reasons(figures, engines, devices, quality)
    return {
        "timestamp": instant(at),
        "measurement_window": {
            "duration_seconds": figures.window_s,
            "observed_seconds": figures.observed_s,
            "sample_count": figures.requests,
            "description": "requests that ended in the window",
        },
        "throughput": {
            "tokens_per_second": figures.tokens_per_second,
            "requests_per_second": figures.requests_per_second,
            "tokens_per_second_since_earliest_start": figures.tokens_per_second_since_earliest_start,
            "requests_per_second_since_earliest_start": figures.requests_per_second_since_earliest_start,
            "calculation": "generated tokens, and requests, of requests that ended, over the observed seconds",
        },
        "latency": {**_spread(figures.latency), "calculation": "arrival to last byte, of requests that ended well"},
        "first_token_latency": {
            **_spread(figures.first_token),
            "measurement_method": "measured at the first token of each stream",
        },
        "requests": {
            "ok": figures.ok,
            "failed": figures.failed,
            "rejected": figures.rejected,
            "cancelled": figures.cancelled,
            "error_share": figures.error_share,
            "errors": figures.errors,
        },
        "quality": _quality(figures, engines, quality, policy, at),
        "memory": {
            "kv_cache_usage_mb": None if kv.used_bytes is None else kv.used_bytes / MB,
            "kv_cache_limit_mb": None if kv.limit_bytes is None else kv.limit_bytes / MB,
            "kv_cache_hit_rate": kv.hit_rate,
        },
        "kv_stats": kv_stats(kv),
        "device_utilization": _utilisation(devices),
        "devices": devices,
        "engines": engines,
        "optimization_status": {"current_policy": policy.kv.mode, "policy_version": version},
        "reasons": reasons,
    }


def instant(at: float | None) -> str | None:
    """A moment as the interface writes it: UTC to the millisecond."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "mean_ms": spread.mean_ms,
        "median_ms": spread.median_ms,
        "p95_ms": spread.p95_ms,
        "p99_ms": spread.p99_ms,
        "std_ms": spread.std_ms,
        "n": spread.n,
    }


def _quality(
    figures: Figures, engines: Sequence[EngineState], quality: QualityView, policy: Policy, at: float
) -> dict[str, Any]:
    rates = [engine.accept_rate for engine in engines if engine.accept_rate is not None]
    nll = figures.online_nll
    return {
        "max_delta_ppl": policy.quality.max_delta_ppl,
        "delta_ppl_est": {
            "current": quality.current_ppl,
            "baseline": quality.baseline_ppl,
            "delta": quality.delta_ppl,
            "measurement": {
                "method": quality.route,
                "kind": quality.kind,
                "text": quality.text,
                "tokens": quality.tokens,
                "last_run": instant(quality.last_run),
                "last_full_evaluation": instant(quality.last_full),
            },
        },
        "online_nll": {
            "mean_nats": nll.mean_nats,
            "n": nll.n,
            "measurement": "mean of -log p of generated tokens over the last requests: an early sign, no perplexity",
        },
        "accept_rate": {
            "current": sum(rates) / len(rates) if rates else None,
            "target": policy.quality.min_accept_rate,
            "measurement": "drafted tokens that the model kept",
        },
        "full_evaluation": {
            "last_run": instant(quality.last_full),
            "next_scheduled": instant(quality.next_full),
            "next_light": instant(quality.next_light),
            "dataset": quality.text,
            "baseline_ppl": quality.baseline_ppl,
            "current_ppl": quality.current_ppl,
            "delta_ppl": quality.delta_ppl,
            "status": quality.status,
        },
    }


def _kv(engines: Sequence[EngineState]) -> KvState:
    """All engines together. A sum only where every engine that runs tells its part; the hit rate by bytes."""
    states = [engine.kv for engine in engines if engine.kv is not None]
    weighed = [(kv.hit_rate, kv.used_bytes) for kv in states if kv.hit_rate is not None and kv.used_bytes]
    weight = sum(count for _, count in weighed)
    levels: dict[str, int] = {}
    for kv in states:
        for level, count in (kv.levels or {}).items():
            levels[level] = levels.get(level, 0) + count
    return KvState(
        _sum([kv.used_bytes for kv in states]),
        _sum([kv.limit_bytes for kv in states]),
        _sum([kv.full_precision_bytes for kv in states]),
        levels or None,
        _sum([kv.chunks for kv in states]),
        sum(rate * count for rate, count in weighed) / weight if weight else None,
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def kv_stats(kv: KvState) -> dict[str, Any]:
    """`compression_ratio`: bytes held over bytes at 16 bits."""
    used, full = kv.used_bytes, kv.full_precision_bytes
    known = used is not None and full
    return {
        "total_chunks": kv.chunks,
        "level_distribution": None if kv.levels is None else {level: kv.levels.get(level, 0) for level in LEVELS},
        "compression_ratio": used / full if known and used is not None and full else None,
        "bytes_saved": full - used if known and used is not None and full else None,
        "hit_rate": kv.hit_rate,
    }


def _utilisation(devices: Sequence[DeviceState]) -> dict[str, float | None]:
    """By kind, the busiest of each; a kind that is not there is null."""
    found: dict[str, float | None] = {"npu_utilization": None, "gpu_utilization": None, "cpu_utilization": None}
    for device in devices:
        name = f"{device.kind}_utilization"
        if name in found and device.utilisation is not None:
            found[name] = max(found[name] or 0.0, device.utilisation)
    return found


def _reasons(
    figures: Figures, engines: Sequence[EngineState], devices: Sequence[DeviceState], quality: QualityView
) -> Mapping[str, str]:
    found = {
        "throughput": figures.reason,
        "latency": figures.latency.reason,
        "first_token_latency": figures.first_token.reason,
        "quality.online_nll": figures.online_nll.reason,
        "quality.delta_ppl_est": quality.reason,
    }
    for engine in engines:
        found[f"engines.{engine.model}"] = engine.reason
    for device in devices:
        found[f"devices.{device.id}"] = device.reason
    return {name: why for name, why in found.items() if why}
