"""`sekisho agent capabilities` and `sekisho agent grafana`: what the control agent tells, to be read here or there."""

import json
import sys
from typing import Annotated, Any

import typer

from sekisho.cli.agent_client import agent_client
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output
from sekisho.cli.top import AgentOption

PROBE_TIMEOUT_S = 600.0  # each thing that hangs has a minute


def register(group: typer.Typer) -> None:
    line = example("sekisho agent capabilities", ja="このマシンで実際に動くものを表示します。")
    group.command("capabilities", epilog=line)(capabilities)
    line = example("sekisho agent grafana > sekisho.json", ja="Grafana のダッシュボードを出力します。")
    group.command("grafana", epilog=line)(grafana)


def capabilities(
    again: Annotated[bool, typer.Option("--again", help="Try everything out again, whatever was found.")] = False,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which KV types, devices and precisions really run here, and what comes next where one does not."""
    out = Output(as_json=as_json)
    client = agent_client(at_home(home), agent)
    with out.waiting("capabilities_waiting"):
        found = (
            client.post("/v1/capabilities", {}) if again else client.get("/v1/capabilities", timeout_s=PROBE_TIMEOUT_S)
        )
    out.json(found)
    out.table(
        out.columns("capabilities_what", "capabilities_runs", "capabilities_deviation", "reason"),
        rows(out, found),
        unbroken=2,
    )
    fallback = found["fallback"]
    for key in ("devices", "kv_types"):
        out.say(f"capabilities_{key}", order=" → ".join(fallback[key]) or out.text("capabilities_none"))
    for place, kinds in fallback["precisions"].items():
        out.say("capabilities_precisions", place=place, order=" → ".join(kinds))


def grafana(as_json: JsonOption = False) -> None:
    """Print a dashboard for Grafana 12, to be imported there: Dashboards, New, Import. It is JSON either way; with
    --json on one line."""
    from sekisho.control.grafana import dashboard

    sys.stdout.write(json.dumps(dashboard(), ensure_ascii=False, indent=None if as_json else 2) + "\n")


def rows(out: Output, found: dict[str, Any]) -> list[tuple[object, ...]]:
    """What was tried: KV types of llama.cpp, then each provider of ONNX Runtime with each precision."""
    llama = found["llama"]
    tried = [(f"llama.cpp {kind}", probe) for kind, probe in llama["kv_types"].items()]
    for name, provider in found["providers"].items():
        tried += [(f"{name} {kind}", probe) for kind, probe in provider.items() if isinstance(probe, dict)]
    said = {True: out.text("capabilities_yes"), False: out.text("capabilities_no")}
    told: list[tuple[object, ...]] = [
        (what, said[probe["ok"]], _deviation(probe), probe["reason"]) for what, probe in tried
    ]
    absent = (("llama.cpp", llama["reason"]), ("ONNX Runtime", found["onnxruntime_reason"]))
    return told + [(name, said[False], None, why) for name, why in absent if why is not None]


def _deviation(probe: dict[str, Any]) -> str | None:
    return None if probe["max_error"] is None else f"{probe['max_error']:.3g}"
