"""`sekisho agent`: the control agent alone, in front of an engine that Sekisho does not run; and what it tells."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import agent_reading, retyped
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.control.assembly import EngineAddress
    from sekisho.ops.home import Home


def register(app: typer.Typer) -> None:
    line = example(
        "sekisho agent --engine http://127.0.0.1:8000/v1",
        "sekisho agent capabilities",
        ja="制御エージェントだけを起動します。",
    )
    group = typer.Typer(epilog=line, invoke_without_command=True)
    group.callback()(agent)
    agent_reading.register(group)
    app.add_typer(group, name="agent")


def agent(
    context: typer.Context,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="URL", help="The engine's address, as clients use it.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="vllm, lemonade, llama_cpp, onnx_genai or openai_http; default: asked there."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Its model; default: the first that it lists.")] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", metavar="VARIABLE", help="The variable that holds the engine's key.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Where the agent listens; 0: any free port.")
    ] = None,
    optimization: Annotated[str | None, typer.Option("--optimization", help="inferos, or none: the baseline.")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="hybrid, gpu_only or npu_only.")] = None,
    kv_quantization: Annotated[
        str | None, typer.Option("--kv-quantization", help="enabled or disabled: kv.mode from the start.")
    ] = None,
    batch_size: Annotated[str | None, typer.Option("--batch-size", help="Requests at once: engine.slots.")] = None,
    max_tokens: Annotated[str | None, typer.Option("--max-tokens", help="Only says where that is set.")] = None,
    quality_threshold: Annotated[
        str | None, typer.Option("--quality-threshold", help="quality.max_delta_ppl from the start.")
    ] = None,
    memory_limit: Annotated[str | None, typer.Option("--memory-limit", help="Only says where that is set.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the control agent alone, for an engine that Sekisho does not run. Ctrl+C ends it."""
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context, context.invoked_subcommand)
        return
    if engine is None:
        hint = "sekisho agent --engine http://127.0.0.1:8000/v1; `sekisho up` starts one of its own"
        raise CommandFailed("--engine is missing: which engine is it for?", hint=hint, exit_code=USAGE)
    out, place = Output(as_json=as_json), at_home(home)
    flags = {
        "--optimization": optimization,
        "--mode": mode,
        "--kv-quantization": kv_quantization,
        "--batch-size": batch_size,
        "--max-tokens": max_tokens,
        "--quality-threshold": quality_threshold,
        "--memory-limit": memory_limit,
    }
    _run(out, place, lambda: _address(engine, kind, model, key_env), port, flags)


def _run(
    out: Output, home: "Home", address: Callable[[], "EngineAddress"], port: int | None, flags: dict[str, str | None]
) -> None:
    import msgspec

    from sekisho.control import process
    from sekisho.control.assembly import Place
    from sekisho.control.environment import from_flags
    from sekisho.control.policy_book import PolicyBookError
    from sekisho.control.policy_changes import PolicyProblem, overlaid

    home.create()
    try:
        config, changes = process.adjusted(settings_of(home).control, os.environ)
        config = config if port is None else msgspec.structs.replace(config, port=port)
        told = from_flags(flags)
        for note in told.notes:
            out.warn(note)
        where = Place(home, config, (address(),), changes=overlaid(changes, told.changes))
        process.run(where, lambda url, token: _tell(out, url, token, str(home.secrets / "agent.token")))
    except PolicyProblem as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error
    except PolicyBookError as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:  # a port that is taken, or another agent of this home
        raise CommandFailed(f"the agent cannot run: {error.strerror or error}", hint="sekisho status") from error


def _refuse_misplaced(context: typer.Context, sub: str) -> None:
    """An option before the name of what is asked would be read and not heeded."""
    for name in retyped.told(context):
        option = retyped.option_of(context, name)
        hint = f"options of `{sub}` stand behind it: sekisho agent {sub} {option} …"
        raise CommandFailed(f"{option} stands before `{sub}`", hint=hint, exit_code=USAGE)


def _address(url: str, kind: str | None, model: str | None, key_env: str | None) -> "EngineAddress":
    """Raises CommandFailed where nobody answers, or what is named is not there."""
    import asyncio

    from sekisho.control.actuators import ACTUATORS
    from sekisho.control.assembly import EngineAddress
    from sekisho.control.detection import NothingThere, detect
    from sekisho.engines.config import ModelConfig

    url = url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    if kind is not None and kind not in ACTUATORS:
        known = ", ".join(name for name in ACTUATORS if name != "fake")
        raise CommandFailed(f"--kind: {kind!r} is not known", hint=f"one of {known}", exit_code=USAGE)
    key = None if key_env is None else os.environ.get(key_env)
    if key_env is not None and not key:
        raise CommandFailed(f"--key-env: the variable {key_env} is not set", exit_code=USAGE)
    try:
        found = asyncio.run(detect(url, key))
    except NothingThere as error:
        raise CommandFailed(f"no engine answers: {error}", exit_code=ABSENT) from error
    if not found.models and model is None:
        raise CommandFailed("the engine lists no model", hint="name one with --model", exit_code=USAGE)
    options: dict[str, Any] = {"actuator": kind or found.kind}
    config = ModelConfig(name=model or found.models[0], engine="openai_http", url=url, options=options)
    return EngineAddress(config, url, key)


def _tell(out: Output, url: str, token: str | None, folder: str) -> None:
    out.json({"url": url, "token": token})
    out.say("agent_at", url=url)
    if token is not None:
        out.say("agent_token", path=folder)
        out.line(f"  {token}", style="bold")
