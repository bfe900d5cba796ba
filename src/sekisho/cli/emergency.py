"""`sekisho emergency on|off|status|export`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import quantities
from sekisho.cli.audit_upkeep import RecipientOption, new_file
from sekisho.cli.book import RecoveryOption, note, person
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.guard import mode_in_force
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.guard.emergency import Emergency
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

app = typer.Typer(
    help="Declare an emergency, end it, and collect what is known of it.",
    epilog=example('sekisho emergency on --reason "keys leaked"', ja="緊急モードを宣言し、終了します。"),
    no_args_is_help=True,
)


@app.command(
    "on", epilog=example('sekisho emergency on --reason "keys leaked" --backup', ja="緊急モードに切り替えます。")
)
def on(
    reason: Annotated[str, typer.Option("--reason", help="Why; it is shown by `status` and goes into the book.")],
    backup: Annotated[bool, typer.Option("--backup", help="Back up database, book and settings first.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send every request to a person, but for the keys of `guard.emergency_allow`. Counts within a second."""
    import msgspec

    from sekisho.audit import AdminRecord
    from sekisho.guard.emergency import Emergency, emergency_file
    from sekisho.ops.home import write_atomically

    out, place = Output(as_json=as_json), at_home(home)
    if not reason.strip():
        raise CommandFailed("--reason: say why", exit_code=USAGE)
    place.create()
    before = _current(place)
    emergency = before or Emergency(time.time(), person(), reason.strip())
    if before is None:  # first of all: a back-up may take a while
        body = msgspec.json.format(msgspec.json.encode(emergency)) + b"\n"
        write_atomically(emergency_file(place.guard), body)
    settings = _settings(out, place)  # may be wrong: that holds no emergency up
    if before is None:
        _note(place, settings, AdminRecord(action="emergency_on", user_id=emergency.by, detail={"reason": reason}))
    copied = _back_up(out, place, settings) if backup else None
    out.json({"already": before is not None, **plain(emergency), "backup": None if copied is None else str(copied)})
    out.line(out.text("emergency_already" if before is not None else "emergency_on"), style="bold red")
    _tell(out, emergency)
    if copied is not None:
        out.say("emergency_backup", folder=copied)
    out.say("emergency_end_with")


@app.command("off", epilog=example("sekisho emergency off", ja="緊急モードを終了します。"))
def off(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """End the emergency. Counts within a second. Exit code 3 where there is none."""
    from sekisho.audit import AdminRecord
    from sekisho.guard.emergency import emergency_file

    out, place = Output(as_json=as_json), at_home(home)
    emergency = _current(place)
    if emergency is None:
        raise CommandFailed(out.text("emergency_none"), exit_code=ABSENT)
    emergency_file(place.guard).unlink(missing_ok=True)
    settings = _settings(out, place)
    _note(place, settings, AdminRecord(action="emergency_off", user_id=person(), detail={"reason": emergency.reason}))
    answer = mode_in_force(place, settings)
    out.json({"ended": emergency, "mode": answer["mode"]})
    out.say("emergency_off", mode=answer["mode"])


@app.command("status", epilog=example("sekisho emergency status", ja="緊急モードの状態を表示します。"))
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show whether an emergency is on, since when, by whom and why."""
    out, place = Output(as_json=as_json), at_home(home)
    emergency = _current(place)
    answer = mode_in_force(place, _settings(out, place))
    out.json({"on": emergency is not None, **({} if emergency is None else plain(emergency)), "mode": answer["mode"]})
    if emergency is None:
        out.say("emergency_none")
    else:
        out.line(out.text("emergency_on"), style="bold red")
        _tell(out, emergency)
    out.line("  " + out.text(f"mode_{answer['mode']}"))


@app.command(
    "export",
    epilog=example("sekisho emergency export --since 6h --out incident.tar.gz", ja="調査用の資料をまとめます。"),
)
def export(
    out_file: Annotated[Path, typer.Option("--out", help="The file to write. One that is there is not replaced.")],
    since: Annotated[
        str | None, typer.Option("--since", help="From then on; default: the emergency's beginning, else 24h.")
    ] = None,
    recipient: RecipientOption = None,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect records, report, logs, settings, status and versions in one file. Holds no key and no password."""
    from sekisho.audit.export import write_export
    from sekisho.cli.incident import Incident

    out, place = Output(as_json=as_json), at_home(home)
    emergency = _current(place)
    now = time.time()
    begin = now - 86_400 if emergency is None else min(emergency.since, now)
    if since is not None:
        begin = quantities.past("--since", since, now)
    if not recipient:
        out.warn(out.text("export_in_clear"))
    with out.waiting("collecting"), new_file(out_file) as draft, draft.open("wb") as file:
        incident = Incident(place, recovery, begin, now)
        write_export(incident.packed(), file, tuple(recipient or ()))
    answer = {"file": str(out_file), "parts": incident.names, "missing": incident.missing, "encrypted": bool(recipient)}
    out.json(answer)
    out.say("incident_done", file=out_file, count=len(incident.names))
    for name, why in incident.missing.items():
        out.warn(f"{name}: {why}")


def _settings(out: Output, place: "Home") -> "Settings":
    """Those of the home; the defaults, with a warning, where they are wrong."""
    from sekisho.settings import Settings, SettingsError

    try:
        return settings_of(place)
    except SettingsError as error:
        out.warn(str(error))
        return Settings()


def _current(place: "Home") -> "Emergency | None":
    from sekisho.guard.emergency import emergency_file, read_emergency

    return read_emergency(emergency_file(place.guard))


def _tell(out: Output, emergency: "Emergency") -> None:
    out.line("  " + out.text("emergency_since", since=quantities.moment(emergency.since), by=emergency.by))
    out.line("  " + out.text("emergency_reason", reason=emergency.reason))


def _note(place: "Home", settings: "Settings", record: Any) -> None:
    """Into the book, where no server has it: a running one notes what it sees of the switch."""
    from sekisho.ops.home import running

    if running(place) is None:
        note(place, settings, record)


def _back_up(out: Output, place: "Home", settings: "Settings") -> Path:
    from sekisho.cli.backup import back_up
    from sekisho.serve import database_url

    with out.waiting("backing_up"):
        copied = back_up(place, database_url(place, settings))
    for name, why in copied.left_out.items():
        out.warn(f"{name}: {why}")
    return copied.folder
