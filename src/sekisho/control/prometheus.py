"""The agent's figures in Prometheus' text format.

What vLLM measures as well has the last part of vLLM's name, its type, its unit and its label `model_name`, so that a
dashboard for vLLM serves after replacing `vllm:` with `sekisho_agent_`. The prefix stays ours: Prometheus keeps colons
for recording rules, and a real vLLM among the engines exposes its own. What is None is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sekisho.control.base import DeviceState, EngineState, KvState
from sekisho.control.figures import Figures, Spread
from sekisho.control.loops import LoopFigures
from sekisho.control.totals import SECONDS, Histogram, ModelTotals
from sekisho.control.view import QualityView

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "sekisho_agent_"
MODEL: Final = "model_name"
_STATISTICS: Final = {
    "mean_ms": "mean", "median_ms": "median", "p95_ms": "p95", "p99_ms": "p99", "std_ms": "std"
}  # fmt: skip

Row = tuple[tuple[str, ...], float | None]


class Quality(NamedTuple):
    """One model's last perplexity run, and the loss that its policy allows."""

    model: str
    view: QualityView
    max_delta_ppl: float


class Seen(NamedTuple):
    """`figures`: one per model; those of all models together are left out, for whoever adds up would count them twice.
    `decisions`: how many since the agent began, by loop and outcome."""

    figures: Sequence[Figures] = ()
    totals: Sequence[ModelTotals] = ()
    engines: Sequence[EngineState] = ()
    devices: Sequence[DeviceState] = ()
    decisions: Mapping[tuple[str, str], int] = MappingProxyType({})
    loops: Sequence[LoopFigures] = ()
    quality: Sequence[Quality] = ()


def text(seen: Seen) -> bytes:
    """The whole page."""
    registry = CollectorRegistry()
    families = (
        *_counts(seen.totals),
        *_window(seen.figures),
        *_engines(seen.engines),
        *_quality(seen.quality),
        *_devices(seen.devices),
        *_agent(seen.decisions, seen.loops),
    )
    registry.register(_Once(families))
    return generate_latest(registry)


class _Once(Collector):
    """What was measured already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = [metric for metric in metrics if metric.samples]

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauge(name: str, help_text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, help_text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _counter(name: str, help_text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """`name` without `_total`, which the format adds."""
    family = CounterMetricFamily(PREFIX + name, help_text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _histogram(name: str, help_text: str, rows: Iterable[tuple[str, Histogram]]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, help_text, labels=(MODEL,))
    for model, histogram in rows:
        bounds = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric((model,), buckets, histogram.sum_s)
    return family


def _counts(totals: Sequence[ModelTotals]) -> list[Metric]:
    return [
        _counter(
            "prompt_tokens",
            "Prompt tokens of finished requests, since the agent began.",
            (MODEL,),
            [((each.model,), each.input_tokens) for each in totals],
        ),
        _counter(
            "generation_tokens",
            "Generated tokens of finished requests, since the agent began.",
            (MODEL,),
            [((each.model,), each.output_tokens) for each in totals],
        ),
        _counter(
            "finished_requests",
            "Finished requests by status: ok, cancelled, or the error's code.",
            (MODEL, "status"),
            [((each.model, status), count) for each in totals for status, count in each.by_status.items()],
        ),
        _histogram(
            "e2e_request_latency_seconds",
            "From arrival to the last byte, of requests that ended well, in seconds.",
            [(each.model, each.duration) for each in totals],
        ),
        _histogram(
            "time_to_first_token_seconds",
            "From arrival to the first token of a streamed request, in seconds.",
            [(each.model, each.first_token) for each in totals],
        ),
    ]


def _window(figures: Sequence[Figures]) -> list[Metric]:
    named = [(each.model, each) for each in figures if each.model is not None]

    def per_model(name: str, help_text: str, field: str) -> Metric:
        return _gauge(name, help_text, (MODEL,), [((model,), getattr(each, field)) for model, each in named])

    def statistics(name: str, help_text: str, field: str) -> Metric:
        rows = [row for model, each in named for row in _spread(model, getattr(each, field))]
        return _gauge(name, help_text, (MODEL, "statistic"), rows)

    return [
        per_model("window_seconds", "How much of the window was watched, in seconds.", "observed_s"),
        per_model("window_requests", "Requests that ended in the window.", "requests"),
        per_model(
            "window_generation_tokens_per_second",
            "Generated tokens of requests that ended in the window, per second of it.",
            "tokens_per_second",
        ),
        per_model(
            "window_requests_per_second", "Requests that ended, per second of the window.", "requests_per_second"
        ),
        per_model(
            "window_error_ratio", "Share of the window's requests that broke on our side, 0 to 1.", "error_share"
        ),
        statistics(
            "window_request_latency_seconds", "Of the window's requests that ended well, in seconds.", "latency"
        ),
        statistics("window_first_token_seconds", "Of the window's streamed requests, in seconds.", "first_token"),
        _gauge(
            "online_nll_nats",
            "Mean of -ln p per generated token over the last requests that tell it: an early sign, no perplexity.",
            (MODEL,),
            [((model,), each.online_nll.mean_nats) for model, each in named],
        ),
    ]


def _spread(model: str, spread: Spread) -> Iterable[Row]:
    for field, statistic in _STATISTICS.items():
        value_ms = getattr(spread, field)
        yield (model, statistic), None if value_ms is None else value_ms / 1e3


def _engines(engines: Sequence[EngineState]) -> list[Metric]:
    def per_engine(name: str, help_text: str, value: Callable[[EngineState], float | None]) -> Metric:
        return _gauge(name, help_text, (MODEL,), [((engine.model,), value(engine)) for engine in engines])

    def of_kv(name: str, help_text: str, value: Callable[[KvState], float | None]) -> Metric:
        rows = [((engine.model,), value(engine.kv)) for engine in engines if engine.kv is not None]
        return _gauge(name, help_text, (MODEL,), rows)

    by_level = [
        ((engine.model, level), size_bytes)
        for engine in engines
        if engine.kv is not None and engine.kv.levels is not None
        for level, size_bytes in engine.kv.levels.items()
    ]
    return [
        per_engine("engine_ready", "1 while the engine can answer, else 0.", lambda engine: engine.state == "ready"),
        per_engine("num_requests_running", "Requests that the engine works on now.", lambda engine: engine.running),
        per_engine("num_requests_waiting", "Requests that wait for a slot now.", lambda engine: engine.waiting),
        per_engine("num_slots", "Requests that the engine takes at once.", lambda engine: engine.slots),
        of_kv("kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.", _used_share),
        of_kv("kv_cache_used_bytes", "Bytes in use by the KV cache.", lambda kv: kv.used_bytes),
        of_kv("kv_cache_limit_bytes", "Bytes that the KV cache may take.", lambda kv: kv.limit_bytes),
        _gauge("kv_cache_level_bytes", "Bytes of the KV cache by level; L3 was evicted.", (MODEL, "level"), by_level),
        of_kv(
            "kv_cache_attention_kept_ratio",
            "Share of the attention mass on tokens that were kept, 0 to 1.",
            lambda kv: kv.hit_rate,
        ),
        per_engine(
            "spec_decode_draft_acceptance_rate",
            "Share of drafted tokens that speculation kept, 0 to 1.",
            lambda engine: engine.accept_rate,
        ),
    ]


def _used_share(kv: KvState) -> float | None:
    return kv.used_bytes / kv.limit_bytes if kv.used_bytes is not None and kv.limit_bytes else None


def _quality(quality: Sequence[Quality]) -> list[Metric]:
    def per_model(name: str, help_text: str, value: Callable[[Quality], float | None]) -> Metric:
        return _gauge(name, help_text, (MODEL,), [((each.model,), value(each)) for each in quality])

    both = [
        ((each.model, precision), value)
        for each in quality
        for precision, value in (("in_force", each.view.current_ppl), ("full", each.view.baseline_ppl))
    ]
    return [
        _gauge(
            "quality_perplexity",
            "Of the last run: under the policy in force, and with the KV cache at 16 bits (full).",
            (MODEL, "precision"),
            both,
        ),
        per_model(
            "quality_delta_perplexity",
            "Perplexity under the policy less that at 16 bits, of the last run.",
            lambda each: each.view.delta_ppl,
        ),
        per_model("quality_max_delta_perplexity", "The most that the policy allows.", lambda each: each.max_delta_ppl),
        per_model(
            "quality_measured_timestamp_seconds",
            "When the last run ended, in seconds since 1970.",
            lambda each: each.view.last_run,
        ),
    ]


def _devices(devices: Sequence[DeviceState]) -> list[Metric]:
    def per_device(name: str, help_text: str, values: Iterable[float | None]) -> Metric:
        rows = [((device.id, device.kind), value) for device, value in zip(devices, values, strict=True)]
        return _gauge(name, help_text, ("device", "kind"), rows)

    return [
        per_device("device_present", "1 while the device is there, 0 once it is gone.", [d.present for d in devices]),
        per_device("device_utilization_ratio", "Busy share of the device, 0 to 1.", [d.utilisation for d in devices]),
        per_device("device_memory_used_bytes", "Bytes in use on the device.", [d.used_bytes for d in devices]),
        per_device("device_memory_size_bytes", "Bytes that the device has.", [d.total_bytes for d in devices]),
        per_device("device_temperature_celsius", "Temperature of the device.", [d.temperature_c for d in devices]),
    ]


def _agent(decisions: Mapping[tuple[str, str], int], loops: Sequence[LoopFigures]) -> list[Metric]:
    return [
        _counter(
            "decisions",
            "Decisions since the agent began, by loop and outcome.",
            ("loop", "outcome"),
            [((loop, outcome), count) for (loop, outcome), count in sorted(decisions.items())],
        ),
        _counter("loop_runs", "Runs of a loop.", ("loop",), [((each.name,), each.runs) for each in loops]),
        _counter(
            "loop_failures", "Runs of a loop that broke.", ("loop",), [((each.name,), each.failed) for each in loops]
        ),
        _counter(
            "loop_missed_runs",
            "Runs left out because the one before took too long.",
            ("loop",),
            [((each.name,), each.missed) for each in loops],
        ),
        _counter(
            "loop_cpu_seconds",
            "Processor time of a loop's runs, in seconds.",
            ("loop",),
            [((each.name,), each.cpu_s) for each in loops],
        ),
    ]
