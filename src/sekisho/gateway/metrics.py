"""Prometheus metrics of the gateway. One registry per gateway, so that tests and several gateways do not mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sekisho.core.verdict import Verdict
from sekisho.store import UsageRecord

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """`observe` is called once a request, with what the book-keeping got."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "protocol")
        self._requests = Counter(
            "sekisho_requests_total", "Finished requests.", (*labels, "status"), registry=self.registry
        )
        self._tokens = Counter(
            "sekisho_tokens_total",
            "Tokens as the engine counted them.",
            ("model", "key", "kind"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "sekisho_request_seconds",
            "From arrival to the last byte.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first = Histogram(
            "sekisho_first_token_seconds",
            "From arrival to the first content token of a stream.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "sekisho_errors_total", "Answers with an error.", ("status", "code"), registry=self.registry
        )
        self.running = Gauge("sekisho_running", "Turns that an engine works on.", ("model",), registry=self.registry)
        self.waiting = Gauge("sekisho_waiting", "Turns in the queue.", ("model",), registry=self.registry)
        self.engine_ready = Gauge(
            "sekisho_engine_ready", "1 when the engine lists its model.", ("model",), registry=self.registry
        )
        self.verdicts = Counter(
            "sekisho_verdicts_total",
            "What was decided about requests and answers.",
            ("stage", "decision", "category", "decided_by"),
            registry=self.registry,
        )
        self.judging = Histogram(
            "sekisho_judge_seconds",
            "From a request's arrival at the guard to its verdict.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self.book_open = Gauge("sekisho_book_open", "1 while the book can be written.", registry=self.registry)
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram, Histogram]] = {}

    def observe_verdict(self, stage: str, verdict: Verdict, judged_s: float | None) -> None:
        self.verdicts.labels(stage, verdict.decision, verdict.category, verdict.decided_by).inc()
        if judged_s is not None:
            self.judging.observe(judged_s)

    def observe(self, record: UsageRecord, key_name: str) -> None:
        kind = (record.model, record.protocol, record.status)
        children = self._children.get(kind)
        if children is None:
            model, protocol, status = kind
            children = self._children[kind] = (
                self._requests.labels(model, protocol, status),
                self._duration.labels(model, protocol),
                self._first.labels(model, protocol),
            )
        requests, duration, first = children
        requests.inc()
        duration.observe(record.duration_ms / 1e3)
        if record.ttft_ms is not None:
            first.observe(record.ttft_ms / 1e3)
        if record.input_tokens:
            self._tokens.labels(record.model, key_name, "input").inc(record.input_tokens)
        if record.output_tokens:
            self._tokens.labels(record.model, key_name, "output").inc(record.output_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
