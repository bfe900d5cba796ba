"""`sekisho doctor`."""

from typing import TYPE_CHECKING

import typer

from sekisho.cli import hints
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.ops.doctor import Finding

MARKS = {"error": ("✗", "red"), "warning": ("!", "yellow"), "ok": ("✓", "green"), "info": ("·", "dim")}


def register(app: typer.Typer) -> None:
    app.command("doctor", epilog=example("sekisho doctor", ja="環境を診断し、直し方を示します。"))(doctor)


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check this machine and this home; every finding comes with its fix. Exit code 1 when there is an error."""
    import asyncio

    import msgspec

    from sekisho import settings as reading
    from sekisho.ops.doctor import Patient, examine
    from sekisho.serve import database_url

    out, place = Output(as_json=as_json), at_home(home)
    try:
        settings = reading.load(place)
        problems: tuple[str, ...] = ()
    except reading.SettingsError as error:
        settings = reading.Settings()
        problems = tuple(str(problem) for problem in error.problems)
    patient = Patient(
        home=place,
        host=settings.gateway.host,
        port=settings.gateway.port,
        models=settings.models,
        settings_problems=problems,
    )
    findings = asyncio.run(examine(patient))
    findings.append(asyncio.run(_database(database_url(place, settings), place.database.exists())))
    findings = [msgspec.structs.replace(finding, fix=finding.fix and hints.here(finding.fix)) for finding in findings]
    errors, warnings = (sum(f.severity == kind for f in findings) for kind in ("error", "warning"))
    out.json({"findings": findings, "errors": errors, "warnings": warnings})
    _show(out, findings)
    if errors or warnings:
        out.say("doctor_summary", errors=errors, warnings=warnings)
    else:
        out.say("doctor_good")
    if errors:
        raise typer.Exit(1)


async def _database(url: str, exists: bool) -> "Finding":
    """Opens the database as the server will, but changes nothing in it."""
    from sekisho.core.errors import SekishoError
    from sekisho.ops.doctor import Finding
    from sekisho.store import Store

    is_file = "://" not in url
    if is_file and not exists:
        return Finding("database", "info", "no database yet", "it is made at the first start")
    try:
        store = await Store.open(url, migrate=False)
        try:
            await store.check()
        finally:
            await store.close()
    except SekishoError as error:
        fix = "check the file's rights and the disk" if is_file else "check DATABASE_URL, and that the database runs"
        return Finding("database", "error", "the database cannot be used", error.message, fix)
    return Finding("database", "ok", "the database opens")


def _show(out: Output, findings: "list[Finding]") -> None:
    for finding in findings:
        mark, style = MARKS[finding.severity]
        out.line(f"{mark} {finding.what}" + (f": {finding.why}" if finding.why else ""), style=style)
        if finding.fix:
            out.line(f"    {out.text('fix')}: {finding.fix}")
