"""All commands, put together."""

from typing import Annotated

import typer

from sekisho.cli import (
    agent,
    audit,
    bench,
    clients,
    configuration,
    continuity,
    doctor,
    emergency,
    engine,
    escalation,
    evaluate,
    gate,
    guard,
    keys,
    kv,
    models,
    policy,
    rubric,
    scorecard,
    server,
    top,
    usage,
    version,
)
from sekisho.cli.options import example

app = typer.Typer(
    name="sekisho",
    help="Sekisho: a private LLM server for a team. One address in front of a local model.",
    epilog=example("sekisho up", "sekisho key create --name taro", ja="社内向けの LLM サーバーです。")
    + "\n\nExit codes: 0 done · 1 it failed · 2 wrong usage or settings · 3 not running or not found · 4 no network",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def everything(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error arose. Works anywhere in the line.")
    ] = False,
) -> None:
    """Sekisho: a private LLM server for a team. One address in front of a local model."""
    # `running.run` takes --debug out before Typer sees it; it is declared here for the help text


server.register(app)
app.add_typer(keys.app, name="key")
usage.register(app)
app.add_typer(models.app, name="model")
app.add_typer(engine.app, name="engine")
app.add_typer(guard.app, name="guard")
app.add_typer(audit.app, name="audit")
app.add_typer(escalation.app, name="escalation")
app.add_typer(emergency.app, name="emergency")
app.add_typer(configuration.app, name="config")
app.add_typer(policy.app, name="policy")
agent.register(app)
top.register(app)
clients.register(app)
doctor.register(app)
gate.register(app)
bench.register(app)
continuity.register(app)
app.add_typer(rubric.app, name="rubric")
app.add_typer(kv.app, name="kv")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(scorecard.app, name="scorecard")
version.register(app)
