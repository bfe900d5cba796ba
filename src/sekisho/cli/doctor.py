"""`sekisho doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli import hints
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.ops.doctor import Finding, Patient
    from sekisho.ops.home import Home

MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "ok": ("✓", "green"), "info": ("·", "dim")}


def register(app: typer.Typer) -> None:
    app.command("doctor", epilog=example("sekisho doctor", ja="環境を診断し、直し方を示します。"))(doctor)


def doctor(
    gpus: Annotated[bool, typer.Option("--gpus", help="Only the graphics cards: memory, use, processes.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and this home; every finding comes with its fix. Exit code 1 when there is an error."""
    import asyncio

    import msgspec

    from sekisho.ops.doctor import examine

    out, place = Output(as_json=as_json), at_home(home)
    if gpus:
        _show_cards(out)
        return
    findings = [
        msgspec.structs.replace(finding, fix=hints.here(finding.fix), fix_ja=hints.here(finding.fix_ja))
        for finding in asyncio.run(examine(_patient(place)))
    ]
    errors, warnings = (sum(f.severity == kind for f in findings) for kind in ("error", "warning"))
    out.json({"findings": findings, "errors": errors, "warnings": warnings})
    _show(out, findings)
    if errors or warnings:
        out.say("doctor_summary", errors=errors, warnings=warnings)
    else:
        out.say("doctor_good")
    if errors:
        raise typer.Exit(1)


def _patient(place: "Home") -> "Patient":
    """With the settings where they can be read, else the defaults and what is wrong with the settings."""
    from sekisho import settings as reading
    from sekisho.ops.doctor import Patient
    from sekisho.serve import database_url

    problems: tuple[str, ...] = ()
    try:
        settings = reading.load(place)
    except reading.SettingsError as error:
        settings = reading.Settings()
        problems = tuple(str(problem) for problem in error.problems)
    return Patient(
        home=place,
        host=settings.gateway.host,
        port=settings.gateway.port,
        models=settings.models,
        settings_problems=problems,
        allow_networks=settings.gateway.allow_networks,
        database=database_url(place, settings),
    )


def _show(out: Output, findings: "list[Finding]") -> None:
    for finding in findings:
        mark, style = MARKS[finding.severity]
        what, why, fix = finding.told(out.language)
        out.line(f"{mark} {what}" + (f": {why}" if why else ""), style=style)
        if fix:
            out.line(f"    {out.text('fix')}: {fix}")


def _show_cards(out: Output) -> None:
    """A sample of this moment; nothing is loaded."""
    from sekisho.ops.gpu_sample import read_gpus

    reading = read_gpus()
    out.json(reading)
    if not reading.gpus:
        out.say("gpus_none")
        return
    rows = []
    for gpu in reading.gpus:
        memory = [None if count is None else f"{count / 2**30:.1f} GiB" for count in (gpu.used_bytes, gpu.total_bytes)]
        share, busy = (None if value is None else f"{value:.0%}" for value in (gpu.used_share, gpu.busy))
        processes = ", ".join(
            f"{process.name or '?'} ({process.pid}"
            + ("" if process.used_bytes is None else f", {process.used_bytes / 2**30:.1f} GiB")
            + ")"
            for process in gpu.processes
        )
        rows.append((gpu.index, gpu.name, *memory, share, busy, processes or None))
    columns = ("gpus_index", "name", "gpus_used", "gpus_total", "gpus_share", "gpus_busy", "process")
    out.table(out.columns(*columns), rows, unbroken=6)
