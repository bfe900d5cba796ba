"""A dashboard for Grafana 12 on what agent and gateway tell Prometheus: made from a table of rows and panels, in the
classic JSON model (https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/). Pure.

It asks for its data source and its models by variables of its own, so that it can be imported as it is.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from sekisho.control.prometheus import MODEL, PREFIX

SCHEMA_VERSION: Final = 41  # Grafana 12.0's; later ones bring it up to theirs
COLUMNS: Final = 24
_HEIGHT: Final = {"timeseries": 8, "stat": 4}
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OURS: Final = f'{MODEL}=~"$model"'  # of the agent's metrics; the gateway's call the same label `model`
_THEIRS: Final = 'model=~"$model"'
_RATE: Final = "[$__rate_interval]"


class Query(NamedTuple):
    """`legend`: with `{{label}}` for a label's value."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """`width` of 24 columns. `unit`: Grafana's name of it. `most`: the top of the scale."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]


def _agent(name: str, more: str = "") -> str:
    return f"{PREFIX}{name}{{{_OURS}{more}}}"


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({_agent(name)}{_RATE}))"


def _percentiles(histogram: str, selector: str) -> tuple[Query, ...]:
    """50, 95 and 99 %, of all models that are chosen."""
    rates = f"sum by (le) (rate({histogram}_bucket{{{selector}}}{_RATE}))"
    return tuple(Query(f"histogram_quantile({share / 100:g}, {rates})", f"{share} %") for share in (50, 95, 99))


def _by_model(name: str, legend: str = "") -> Query:
    return Query(_agent(name), f"{{{{{MODEL}}}}}{legend}")


_NOW: Final = Row(
    "Now",
    (
        Panel("Engines ready", "short", (Query(f"sum({_agent('engine_ready')})", "ready"),), "", "stat", 4),
        Panel(
            "Tokens a second",
            "short",
            (Query(f"sum({_agent('window_generation_tokens_per_second')})", "tokens"),),
            "Generated tokens of requests that ended in the last minute, per second.",
            "stat",
            4,
        ),
        Panel("Requests running", "short", (Query(f"sum({_agent('num_requests_running')})", "run"),), "", "stat", 4),
        Panel("Requests waiting", "short", (Query(f"sum({_agent('num_requests_waiting')})", "wait"),), "", "stat", 4),
        Panel(
            "Errors of ours",
            "percentunit",
            (Query(f"max({_agent('window_error_ratio')})", "share"),),
            "Of the last minute's requests, those that broke on our side; the worst model.",
            "stat",
            4,
        ),
        Panel(
            "ΔPPL",
            "short",
            (Query(f"max({_agent('quality_delta_perplexity')})", "ΔPPL"),),
            "Perplexity under the policy less that at 16 bits; the worst model.",
            "stat",
            4,
        ),
    ),
)
_REQUESTS: Final = Row(
    "Throughput and requests",
    (
        Panel(
            "Tokens a second",
            "short",
            (
                Query(_rate("generation_tokens_total", MODEL), f"{{{{{MODEL}}}}} generated"),
                Query(_rate("prompt_tokens_total", MODEL), f"{{{{{MODEL}}}}} read"),
            ),
            "Of finished requests.",
        ),
        Panel(
            "Requests a second, by status",
            "reqps",
            (Query(_rate("finished_requests_total", "status"), "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Running and waiting",
            "short",
            (
                _by_model("num_requests_running", " run"),
                _by_model("num_requests_waiting", " wait"),
                _by_model("num_slots", " slots"),
            ),
        ),
        Panel(
            "Requests a second, by protocol",
            "reqps",
            (Query(f"sum by (protocol) (rate(sekisho_requests_total{{{_THEIRS}}}{_RATE}))", "{{protocol}}"),),
            stacked=True,
        ),
        Panel(
            "Tokens a second, by key",
            "short",
            (Query(f"topk(10, sum by (key) (rate(sekisho_tokens_total{{{_THEIRS}}}{_RATE})))", "{{key}}"),),
            "Read and generated; the ten keys with most.",
        ),
        Panel(
            "Answers with an error, a second",
            "reqps",
            (Query(f"sum by (code) (rate(sekisho_errors_total{_RATE}))", "{{code}}"),),
            stacked=True,
        ),
    ),
)
_LATENCY: Final = Row(
    "Latency",
    (
        Panel("Whole requests", "s", _percentiles(f"{PREFIX}e2e_request_latency_seconds", _OURS)),
        Panel("First token", "s", _percentiles(f"{PREFIX}time_to_first_token_seconds", _OURS), "Of streamed requests."),
        Panel(
            "The guard's judgement",
            "s",
            _percentiles("sekisho_judge_seconds", ""),
            "From a request's arrival at the guard to its verdict; all models.",
        ),
    ),
)
_MEMORY: Final = Row(
    "KV memory",
    (
        Panel(
            "Used and allowed",
            "bytes",
            (_by_model("kv_cache_used_bytes", " used"), _by_model("kv_cache_limit_bytes", " allowed")),
        ),
        Panel(
            "By level",
            "bytes",
            (Query(f"sum by (level) ({_agent('kv_cache_level_bytes')})", "{{level}}"),),
            "L0: 16 bits, L1: 8, L2: fewer; L3: what evicted tokens would take at 16 bits.",
            stacked=True,
        ),
        Panel(
            "Shares",
            "percentunit",
            (
                _by_model("kv_cache_usage_perc", " used"),
                _by_model("kv_cache_attention_kept_ratio", " attention kept"),
                _by_model("spec_decode_draft_acceptance_rate", " guesses kept"),
            ),
            most=1.0,
        ),
    ),
)
_QUALITY: Final = Row(
    "Quality",
    (
        Panel(
            "ΔPPL and its limit",
            "short",
            (_by_model("quality_delta_perplexity"), _by_model("quality_max_delta_perplexity", " limit")),
            "Of the last perplexity run.",
        ),
        Panel(
            "Perplexity",
            "short",
            (Query(_agent("quality_perplexity"), f"{{{{{MODEL}}}}} {{{{precision}}}}"),),
            "Under the policy in force, and at 16 bits, on the same text.",
        ),
        Panel("Online, nats per token", "short", (_by_model("online_nll_nats"),), "An early sign, no perplexity."),
    ),
)
_DEVICES: Final = Row(
    "Devices",
    (
        Panel("Busy", "percentunit", (Query(f"{PREFIX}device_utilization_ratio", "{{device}}"),), most=1.0),
        Panel(
            "Memory used",
            "percentunit",
            (Query(f"{PREFIX}device_memory_used_bytes / {PREFIX}device_memory_size_bytes", "{{device}}"),),
            most=1.0,
        ),
        Panel("Temperature", "celsius", (Query(f"{PREFIX}device_temperature_celsius", "{{device}}"),)),
    ),
)
_AGENT: Final = Row(
    "The agent and the guard",
    (
        Panel(
            "Decisions",
            "short",
            (Query(f"sum by (loop, outcome) (increase({PREFIX}decisions_total{_RATE}))", "{{loop}} {{outcome}}"),),
            stacked=True,
        ),
        Panel(
            "Loops: processor",
            "percentunit",
            (Query(f"rate({PREFIX}loop_cpu_seconds_total{_RATE})", "{{loop}}"),),
            "Share of one processor.",
        ),
        Panel(
            "Loops: runs that broke or were left out",
            "short",
            (
                Query(f"increase({PREFIX}loop_failures_total{_RATE})", "{{loop}} broke"),
                Query(f"increase({PREFIX}loop_missed_runs_total{_RATE})", "{{loop}} left out"),
            ),
        ),
        Panel(
            "Verdicts a second",
            "reqps",
            (Query(f"sum by (decision) (rate(sekisho_verdicts_total{_RATE}))", "{{decision}}"),),
            width=12,
            stacked=True,
        ),
        Panel("The book can be written", "bool_yes_no", (Query("min(sekisho_book_open)", "open"),), "", "stat", 6),
        Panel(
            "Devices that are gone",
            "short",
            (Query(f"count({PREFIX}device_present == 0) or vector(0)", "gone"),),
            "",
            "stat",
            6,
        ),
    ),
)
ROWS: Final = (_NOW, _REQUESTS, _LATENCY, _MEMORY, _QUALITY, _DEVICES, _AGENT)


def dashboard(rows: Sequence[Row] = ROWS) -> dict[str, Any]:
    """As Grafana imports it."""
    return {
        "uid": "sekisho-metrics",
        "title": "Sekisho",
        "description": "The gateway's and the control agent's metrics.",
        "tags": ["sekisho", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": list(_placed(rows)),
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    names = f"label_values({PREFIX}engine_ready, {MODEL})"
    query = {"qryType": 1, "query": names, "refId": "PrometheusVariableQueryEditor-VariableQuery"}
    model = {"name": "model", "label": "Model", "type": "query", "datasource": _SOURCE, "query": query}
    shown = {"hide": 0, "skipUrlSync": False, "options": [], "regex": ""}
    return [
        {**source, **shown, "multi": False, "includeAll": False, "refresh": 1},
        {
            **model,
            **shown,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
            "refresh": 2,
            "sort": 1,
        },
    ]


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """All rows one below the other, the panels of each from left to right and then in the next line."""
    number, top = 0, 0
    for row in rows:
        number += 1
        at = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": at, "panels": []}
        left, top, height = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            number += 1
            tall = _HEIGHT[panel.kind]
            yield _panel(panel, number, {"h": tall, "w": panel.width, "x": left, "y": top})
            left, height = left + panel.width, max(height, tall)
        top += height


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    timeseries = panel.kind == "timeseries"
    shown: dict[str, Any] = {"unit": panel.unit, "color": {"mode": "palette-classic" if timeseries else "thresholds"}}
    shown |= {"mappings": [], "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]}}
    shown |= {"max": panel.most} if panel.most is not None else {}
    shown |= {"min": 0, "custom": _drawn(panel)} if timeseries else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": shown, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "editorMode": "code",
                "range": timeseries,
                "instant": not timeseries,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _drawn(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 5,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "textMode": "auto",
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
    }
