"""`sekisho up`, `down` and `status`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import banner
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.ops.home import Home, RunState
    from sekisho.settings import Settings

LOOPBACK = ("127.", "localhost", "::1")
SPARE_STOP_S = 30.0

HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")]
PortOption = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="A GGUF file, or a model of the settings; serves this one only, for this run."),
]
GuardOption = Annotated[
    str | None, typer.Option("--guard", metavar="MODE", help="off, basic, production or emergency, for this run.")
]
TestModeOption = Annotated[
    bool, typer.Option("--test-mode", help="The guard decides and records, but calls nobody and holds nobody.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Return when the server answers; it goes on running.")]


def register(app: typer.Typer) -> None:
    app.command("up", epilog=example("sekisho up", "sekisho up --detach", ja="サーバーを起動します。"))(up)
    app.command("down", epilog=example("sekisho down", ja="サーバーを止めます。"))(down)
    app.command("status", epilog=example("sekisho status", ja="稼働状況を表示します。"))(status)


def up(
    host: HostOption = None,
    port: PortOption = None,
    model: ModelOption = None,
    guard: GuardOption = None,
    test_mode: TestModeOption = False,
    detach: DetachOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the server. Where it runs already, say so and end well."""
    from sekisho.ops.home import running

    out, place = Output(as_json=as_json), at_home(home)
    settings = guarded(overridden(settings_of(place), host, port, model), guard, test_mode)
    state = running(place)
    if state is not None:
        _tell_already(out, state)
        return
    if detach:
        from sekisho.cli.detached import start

        start(out, place, _arguments(host, port, model, guard, test_mode))
        return
    raise typer.Exit(_serve(out, place, settings))


def _serve(out: Output, place: "Home", settings: "Settings") -> int:
    import msgspec

    from sekisho.ops.instance_lock import AlreadyRunning
    from sekisho.serve import Announcement, supervise

    host = settings.gateway.host

    def announce(announcement: Announcement) -> None:
        if not host.startswith(LOOPBACK):
            warnings = (*announcement.warnings, out.text("open_host", host=host))
            announcement = msgspec.structs.replace(announcement, warnings=warnings)
        out.json(announcement)
        if not out.as_json:
            banner.show(out, plain(announcement), detached=False)

    try:
        return supervise(place, settings, announce=announce)
    except AlreadyRunning:  # another `up` was quicker by a moment: it is still starting
        state = _started_elsewhere(place)
        if state is None:
            raise
    _tell_already(out, state)
    return 0


def _started_elsewhere(place: "Home") -> "RunState | None":
    from sekisho.ops.home import running

    deadline = time.monotonic() + SPARE_STOP_S
    while (state := running(place)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return state


def _tell_already(out: Output, state: "RunState") -> None:
    out.json({"already_running": True, "url": state.url, "pid": state.pid, "version": state.version})
    out.say("up_already", url=state.url)


def overridden(settings: "Settings", host: str | None, port: int | None, model: str | None) -> "Settings":
    """The settings of this run alone. Raises CommandFailed for a model that is neither a file nor known."""
    import msgspec

    gateway = msgspec.structs.replace(
        settings.gateway, host=host or settings.gateway.host, port=port or settings.gateway.port
    )
    settings = msgspec.structs.replace(settings, gateway=gateway)
    return settings if model is None else _with_model(settings, model)


def guarded(settings: "Settings", mode: str | None, test_mode: bool) -> "Settings":
    """The settings with the guard of this run. Raises CommandFailed for a mode that there is not."""
    from typing import get_args

    import msgspec

    from sekisho.guard.config import Mode

    if mode is not None and mode not in get_args(Mode):
        hint = f"modes are {', '.join(get_args(Mode))}"
        raise CommandFailed(f"--guard: {mode!r} is not a mode", hint=hint, exit_code=USAGE)
    guard = msgspec.structs.replace(
        settings.guard, mode=mode or settings.guard.mode, test_mode=test_mode or settings.guard.test_mode
    )
    return msgspec.structs.replace(settings, guard=guard)


def _with_model(settings: "Settings", model: str) -> "Settings":
    import msgspec

    from sekisho.engines.config import ModelConfig

    known = settings.model(model)
    path = Path(model).expanduser()
    if known is None and not path.is_file():
        names = ", ".join(entry.name for entry in settings.models)
        raise CommandFailed(
            f"{model}: no such file, and no model of the settings", hint=f"models: {names}", exit_code=USAGE
        )
    chosen = known or ModelConfig(name=path.stem, path=str(path.resolve()))
    aliases = {alias: target for alias, target in settings.aliases.items() if target == chosen.name}
    return msgspec.structs.replace(settings, models=(chosen,), aliases=aliases, default_model=None)


def _arguments(host: str | None, port: int | None, model: str | None, guard: str | None, test_mode: bool) -> list[str]:
    given = {"--host": host, "--port": port, "--model": model, "--guard": guard}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    return [*words, "--test-mode"] if test_mode else words


def down(
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0, help="Seconds to wait; default: drain_timeout_s and 30.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop the server: running turns may end first."""
    from sekisho.ops.home import running

    out, place = Output(as_json=as_json), at_home(home)
    state = running(place)
    if state is None:
        raise CommandFailed(out.text("down_not_running"), exit_code=ABSENT)
    limit_s = timeout_s if timeout_s is not None else settings_of(place).gateway.drain_timeout_s + SPARE_STOP_S
    began = time.monotonic()
    _terminate(state)
    with out.waiting("stopping"):
        while state.alive():
            if time.monotonic() - began > limit_s:
                raise CommandFailed(f"process {state.pid} is still running after {limit_s:g} s", hint="sekisho status")
            time.sleep(0.05)
    out.json({"stopped": True, "pid": state.pid})
    out.say("down_done")


def _terminate(state: "RunState") -> None:
    import psutil

    try:
        psutil.Process(state.pid).terminate()
    except psutil.NoSuchProcess:
        return  # it ended between the look and the signal
    except psutil.AccessDenied as error:
        raise CommandFailed(f"process {state.pid} belongs to another user") from error


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what runs: processes, restarts, models, and whether the address answers."""
    from sekisho.ops.children_file import read_children
    from sekisho.ops.home import running

    out, place = Output(as_json=as_json), at_home(home)
    state = running(place)
    if state is None:
        raise CommandFailed(out.text("down_not_running"), hint="sekisho up", exit_code=ABSENT)
    code, body = probe(state.url + "/readyz")
    found = read_children(place.run)
    children = found.children if found is not None else []
    now = time.time()
    out.json(
        {
            "running": True,
            "ready": code == 200,
            "url": state.url,
            "pid": state.pid,
            "version": state.version,
            "uptime_s": round(now - state.started_at, 1),
            "readyz": {"status": code, "body": body},
            "children": children,
        }
    )
    if code == 200:
        out.say("status_ready", url=state.url, uptime=duration(now - state.started_at), version=state.version)
    else:
        reason = body if isinstance(body, str) else _error_text(body) or f"HTTP {code}"
        out.say("status_not_ready", url=state.url, reason=reason)
    rows = [
        (c.name, c.state, c.pid, c.restarts, duration(now - c.started_at) if c.started_at else None, c.exit_code)
        for c in children
    ]
    out.table(out.columns("process", "state", "pid", "restarts", "uptime", "exit"), rows)
    for child in children:
        if child.state in ("failing", "misconfigured"):
            for line in child.log_tail:
                out.line(f"  {child.name} | {line}")
    if code != 200:
        raise typer.Exit(1)


def _error_text(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("message") if isinstance(error, dict) else None


def probe(url: str, timeout_s: float = 5.0) -> tuple[int | None, Any]:
    """Status and body (JSON where it is) of a GET; (None, reason) when nobody answers. Proxies are left out."""
    import json
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            code, body = response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            code, body = error.code, error.read()
    except (OSError, ValueError) as error:
        return None, str(getattr(error, "reason", error))
    try:
        return code, json.loads(body)
    except ValueError:
        return code, body.decode(errors="replace")


def duration(seconds: float) -> str:
    """`3d 4h`, `2h 5m`, `7m 3s`, `9s`."""
    whole = max(0, int(seconds))
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{value}{unit}" for value, unit in parts[:2])


def tail(path: Path, lines: int = 20) -> list[str]:
    """The last lines of a log; none when there is no log."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
