"""`sekisho policy …`: what the engines shall do, through the control agent."""

from typing import Annotated, Any

import typer

from sekisho.cli import policy_ablate, policy_compare, policy_sides, policy_tune
from sekisho.cli.agent_client import AgentClient, agent_client
from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output
from sekisho.cli.policy_answers import tell
from sekisho.cli.policy_fields import flat, nested, short
from sekisho.cli.top import AgentOption

app = typer.Typer(
    help="Show and change what the engines do: KV cache, slots, placement, quality limits.",
    epilog=example(
        "sekisho policy show", "sekisho policy set kv.mode=quality_optimized", ja="方針を表示し、変更します。"
    ),
    no_args_is_help=True,
)

ModelOption = Annotated[str | None, typer.Option("--model", help="For this model only.")]


@app.command("show", epilog=example("sekisho policy show", ja="現在の方針を表示します。"))
def show(
    model: ModelOption = None, agent: AgentOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show the policy in force, and since which version."""
    out = Output(as_json=as_json)
    answer = agent_client(at_home(home), agent).get("/v1/policy" + (f"?model={model}" if model else ""))
    out.json(answer)
    out.say("policy_version", version=answer.pop("version"), model=answer.pop("model") or out.text("policy_all"))
    out.table(out.columns("setting", "value"), list(flat(answer).items()))


@app.command(
    "set",
    epilog=example(
        "sekisho policy set kv.mode=dynamic engine.slots=8 --dry-run",
        "sekisho policy set --preset auto",
        ja="方針を変更します。",
    ),
)
def change(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="As in kv.recent_window=128.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Begin with a preset: sekisho policy presets; auto: by the model's size."),
    ] = None,
    model: ModelOption = None,
    why: Annotated[str, typer.Option("--why", help="Stands beside the version.")] = "by command",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change on which engine.")] = False,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change settings of the policy. No running answer breaks off."""
    out = Output(as_json=as_json)
    body = nested(settings or [])
    if not body and preset is None:
        raise CommandFailed("nothing to change", hint="sekisho policy set kv.mode=dynamic", exit_code=USAGE)
    if preset == policy_sides.AUTO:
        preset = policy_sides.by_size(out, at_home(home), model)
    body |= {"why": why} | ({"preset": preset} if preset else {}) | ({"model": model} if model else {})
    client = agent_client(at_home(home), agent)
    with out.waiting("policy_waiting"):
        answer = client.post("/v1/policy" + ("?dry_run=true" if dry_run else ""), body)
    out.json(answer)
    tell(out, answer)


@app.command("versions", epilog=example("sekisho policy versions", ja="方針の履歴を表示します。"))
def versions(agent: AgentOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show every version: when, by whom, why."""
    import time

    out = Output(as_json=as_json)
    found = agent_client(at_home(home), agent).get("/v1/policy/versions")["versions"]
    out.json(found)
    rows = [
        (
            each["number"],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at"])),
            each["by"],
            each.get("model") or "*",
            each["why"],
            ", ".join(f"{field}={short(value)}" for field, value in flat(each["changes"]).items()),
        )
        for each in found
    ]
    out.table(out.columns("version", "time", "by", "model", "why", "changes"), rows)


@app.command(
    "rollback", epilog=example("sekisho policy rollback", "sekisho policy rollback 3", ja="以前の方針に戻します。")
)
def rollback(
    version: Annotated[int | None, typer.Argument(min=0, help="The version; default: the one before.")] = None,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier version in force again."""
    out = Output(as_json=as_json)
    client = agent_client(at_home(home), agent)
    with out.waiting("policy_waiting"):
        answer = client.post("/v1/policy/rollback", {} if version is None else {"version": version})
    out.json(answer)
    tell(out, answer)


@app.command("presets", epilog=example("sekisho policy presets", ja="用途別の方針の一覧です。"))
def presets(agent: AgentOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the presets by model size and by use, and why each is as it is."""
    out = Output(as_json=as_json)
    found = agent_client(at_home(home), agent).get("/v1/policy/presets")["presets"]
    out.json(found)
    rows = [
        (name, ", ".join(f"{field}={short(value)}" for field, value in flat(each["changes"]).items()), each["why"])
        for name, each in found.items()
    ]
    out.table(out.columns("name", "changes", "why"), rows)


@app.command(
    "baseline",
    epilog=example("sekisho policy baseline on", "sekisho policy baseline off", ja="比較用の基準に切り替えます。"),
)
def baseline(
    state: Annotated[str, typer.Argument(metavar="on|off", help="on: everything at 16 bits; off: as before.")],
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch to the baseline to compare with, and back."""
    out = Output(as_json=as_json)
    if state.lower() not in ("on", "off"):
        raise CommandFailed(f"{state!r} is neither on nor off", exit_code=USAGE)
    client: AgentClient = agent_client(at_home(home), agent)
    with out.waiting("policy_waiting"):
        answer = client.post("/v1/baseline", {"enabled": state.lower() == "on"})
    out.json(answer)
    tell(out, answer)


@app.command("measure", epilog=example("sekisho policy measure --full", ja="品質（パープレキシティ）を測定します。"))
def measure(
    model: ModelOption = None,
    full: Annotated[bool, typer.Option("--full", help="The whole text; else one stretch of it.")] = False,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the policy costs: perplexity under it, against 16 bits, on the same text."""
    out = Output(as_json=as_json)
    body = {"kind": "full" if full else "light"} | ({"model": model} if model else {})
    client = agent_client(at_home(home), agent)
    with out.waiting("policy_measuring"):
        answer = client.post("/v1/quality", body)
    out.json(answer)
    compared = answer["compared"]
    if compared is None:
        raise CommandFailed(f"{answer['model']}: {answer['reason']}")
    delta = compared["delta"]
    rows = [
        (out.text("quality_now"), f"{compared['measured']['perplexity']:.3f}"),
        (out.text("quality_baseline"), f"{compared['baseline']['perplexity']:.3f}"),
        (out.text("quality_delta"), f"{delta['value']:+.3f} ({delta['relative']:+.2%})"),
        (out.text("quality_interval"), _interval(delta)),
        (out.text("quality_tokens"), f"{delta['tokens']:,}"),
        (out.text("quality_route"), compared["measured"]["route"]),
    ]
    out.table(out.columns("setting", "value"), rows)
    out.line(answer["verdict"]["why"])


def _interval(delta: dict[str, Any]) -> str | None:
    return None if delta["low"] is None else f"{delta['low']:+.3f} … {delta['high']:+.3f}"


for module in (policy_tune, policy_compare, policy_ablate):
    module.register(app)
