"""The dashboard for Grafana names what agent and gateway really export, in the shape that Grafana imports."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from exposed_harness import exposed
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from sekisho.control import grafana
from sekisho.control.grafana import COLUMNS, Panel, Query, Row, dashboard
from sekisho.gateway.metrics import Metrics

Exported = dict[str, set[str]]
"""By the name of a sample, its labels."""
FUNCTIONS = {"sum", "rate", "increase", "max", "min", "count", "topk", "vector", "histogram_quantile", "by", "or"}


def of_agent() -> Exported:
    found: Exported = {}
    for family in text_string_to_metric_families(exposed().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def of_gateway() -> Exported:
    metrics = Metrics()
    labels = {
        each._name: set(each._labelnames) for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)
    }
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + end: labels[family.name] | ({"le"} if end == "_bucket" else set())
        for family in metrics.registry.collect()
        for end in ends[family.type]
    }


def queries() -> list[Query]:
    return [query for row in grafana.ROWS for panel in row.panels for query in panel.queries]


def problems(query: Query, exported: Exported) -> list[str]:
    """Metrics and labels of one query that nobody exports."""
    bare = re.sub(r'"[^"]*"|\$\w+', "", query.expr)
    wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    wanted |= {label.strip() for part in re.findall(r"by \(([^)]*)\)", bare) for label in part.split(",")}
    wanted |= {label for part in re.findall(r"\{([^}]*)\}", bare) for label in re.findall(r"(\w+)=", part)}
    words = re.sub(r"\{[^}]*\}|by \([^)]*\)|\[[^\]]*\]", " ", bare)
    names = set(re.findall(r"[A-Za-z_]\w*", words)) - FUNCTIONS
    unknown = sorted(names - set(exported))
    labels = set[str]().union(*(exported[name] for name in names if name in exported))
    return [*unknown, *([] if unknown else [f"{label} of {names}" for label in sorted(wanted - labels)])]


def test_every_query_names_metrics_and_labels_that_are_exported() -> None:
    """Both endpoints; a metric that had another name, or a label that it had not, would be found."""
    exported = of_agent() | of_gateway()
    assert [each for query in queries() for each in problems(query, exported)] == []
    used = {name for name in exported if any(re.search(rf"\b{name}\b", query.expr) for query in queries())}
    assert len(used) > 35
    for name in used:
        without = {other: labels for other, labels in exported.items() if other != name}
        assert any(name in problems(query, without) for query in queries()), name
    assert problems(Query('up{job="x"}', "{{job}}"), exported) == ["up"]
    assert problems(Query("sum by (color) (sekisho_running)", "{{model}}"), exported)


def test_what_people_look_for_is_there() -> None:
    """Throughput, latency and first token as percentiles, KV memory and its levels, devices, quality, decisions."""
    exprs = " ".join(query.expr for query in queries())
    for name in (
        "sekisho_agent_generation_tokens_total",
        "sekisho_agent_finished_requests_total",
        "sekisho_agent_e2e_request_latency_seconds_bucket",
        "sekisho_agent_time_to_first_token_seconds_bucket",
        "sekisho_agent_kv_cache_used_bytes",
        "sekisho_agent_kv_cache_level_bytes",
        "sekisho_agent_device_utilization_ratio",
        "sekisho_agent_quality_delta_perplexity",
        "sekisho_agent_decisions_total",
        "sekisho_agent_loop_cpu_seconds_total",
        "sekisho_requests_total",
    ):
        assert name in exprs


def places(made: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Each cell that a panel takes, once for each panel."""
    for panel in made["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                yield x, y


@pytest.mark.parametrize(
    "rows",
    [
        grafana.ROWS,
        (Row("wide", tuple(Panel("p", "short", (), width=width) for width in (24, 12, 13, 11, 1))),),
        (Row("tall", (Panel("s", "short", (), kind="stat", width=12), *[Panel("p", "short", (), width=12)] * 2)),) * 2,
    ],
)
def test_panels_lie_side_by_side(rows: tuple[Row, ...]) -> None:
    """None on another, none outside the grid, and each row below the one before."""
    made = dashboard(rows)
    taken = list(places(made))
    assert len(taken) == len(set(taken))
    assert all(0 <= x < COLUMNS for x, _ in taken)
    heads = [panel["gridPos"]["y"] for panel in made["panels"] if panel["type"] == "row"]
    assert heads == sorted(set(heads))
    assert sum(panel["type"] != "row" for panel in made["panels"]) == sum(len(row.panels) for row in rows)


class GridPos(msgspec.Struct, forbid_unknown_fields=True):
    h: int
    w: int
    x: int
    y: int


class Source(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    uid: str


class Target(msgspec.Struct, forbid_unknown_fields=True):
    refId: str
    datasource: Source
    expr: str
    legendFormat: str
    editorMode: str
    range: bool
    instant: bool


class FieldConfig(msgspec.Struct, forbid_unknown_fields=True):
    defaults: dict[str, Any]
    overrides: list[Any]


class AnyPanel(msgspec.Struct, forbid_unknown_fields=True):
    """Of the published schema (`kinds/dashboard/dashboard_kind.cue`), #Panel and #RowPanel together."""

    id: int
    type: str
    title: str
    gridPos: GridPos
    description: str = ""
    datasource: Source | None = None
    fieldConfig: FieldConfig | None = None
    options: dict[str, Any] = {}
    targets: list[Target] = []
    collapsed: bool = False
    panels: list[Any] = []


class Variable(msgspec.Struct):
    name: str
    type: str
    hide: int
    query: str | dict[str, Any]


class Templating(msgspec.Struct):
    list: list[Variable]


class Dashboard(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of the published schema, as far as they are used here."""

    uid: str
    title: str
    description: str
    tags: list[str]
    schemaVersion: int
    version: int
    editable: bool
    graphTooltip: int
    fiscalYearStartMonth: int
    timezone: str
    refresh: str
    time: dict[str, str]
    timepicker: dict[str, Any]
    annotations: dict[str, list[Any]]
    links: list[Any]
    templating: Templating
    panels: list[AnyPanel]


def test_it_has_the_shape_that_grafana_imports() -> None:
    """Fields and types of the published schema; numbers of panels and letters of queries once each; every variable that
    a query or a source uses is declared; panels of kinds that Grafana 12 still has."""
    body = msgspec.json.encode(dashboard())
    made = msgspec.json.decode(body, type=Dashboard)
    assert 8 <= len(made.uid) <= 40
    assert len({panel.id for panel in made.panels}) == len(made.panels)
    declared = {variable.name for variable in made.templating.list} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", body.decode())) - {"__all"} <= declared
    for panel in made.panels:
        assert panel.type in ("row", "timeseries", "stat")
        assert 0 < panel.gridPos.w <= 24
        assert (panel.type == "row") == (not panel.targets) == (panel.fieldConfig is None)
        letters = [target.refId for target in panel.targets]
        assert letters == sorted(set(letters))
        assert all(target.range is not target.instant for target in panel.targets)
        assert all(target.datasource.uid == "${datasource}" for target in panel.targets)
    titles = [panel.title for panel in made.panels if panel.type != "row"]
    assert all(titles)


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    """Its own checker, with Grafana's variables filled in."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed here (Debian: apt-get install prometheus)")
    filled = [each.expr.replace("$__rate_interval", "5m").replace("$model", ".*") for each in queries()]
    rules = [{"record": f"check:query:{number}", "expr": expr} for number, expr in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_bytes(msgspec.json.encode({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert f"{len(rules)} rules found" in done.stdout.decode()
