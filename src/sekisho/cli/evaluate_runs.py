"""What is done with the runs of `sekisho evaluate`: report, list, attest, verify."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sekisho.cli import quantities
from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.evaluate.conclusion import Conclusion, Found
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

NEWEST = "last"

RunArgument = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's id; `last` is the newest.")]


def register(app: typer.Typer) -> None:
    app.command("report", epilog=example("sekisho evaluate report last --pdf", ja="レポートを作り直します。"))(report)
    app.command("list", epilog=example("sekisho evaluate list", ja="実行の一覧です。"))(list_)
    epilog = example(
        "sekisho evaluate attest last ui.fatal_errors 0 --n 30 --by hanako", ja="人が数えた値を記録します。"
    )
    app.command("attest", epilog=epilog)(attest)
    epilog = example("sekisho evaluate forget 20261128-090000-1a2b", ja="実行を削除します。")
    app.command("forget", epilog=epilog)(forget)
    app.command("verify", epilog=example("sekisho evaluate verify report.html", ja="署名を確かめます。"))(verify)


def conclude(
    out: Output, place: "Home", folder: Path, collected: "Found | None", profile: str | None = None
) -> "Conclusion":
    """Scorecard and report from the folder; signed where the home has its key."""
    from sekisho.cli.keys import with_store
    from sekisho.evaluate import untouched
    from sekisho.evaluate.conclusion import conclude as make
    from sekisho.evaluate.conclusion import read_plan
    from sekisho.evaluate.report.signing import public_key
    from sekisho.store import RunRecord, StepRecord, Store

    async def stored(store: Store) -> tuple[RunRecord | None, list[StepRecord]]:
        return await store.get_run(folder.name), await store.run_steps(folder.name)

    key, language = signing_key_of(place), report_language(out)
    run, steps = with_store(place, settings_of(place), stored)
    public = None if key is None else public_key(key)
    changes = untouched.check(folder, read_plan(folder), run, steps, public, collected is not None)
    done = make(
        place,
        folder,
        key=key,
        language=language,
        profile=profile,
        found=collected,
        changes=changes,
        now=time.time(),
    )
    if not done.signed:
        out.warn(out.text("evaluate_unsigned"))
    return done


def signing_key_of(place: "Home") -> bytes | None:
    """The key that signs this home's reports; None before the first start of its server."""
    from sekisho.audit.export import signing_key
    from sekisho.audit.keys import SIGNING_FILE

    return signing_key(place.secrets) if (place.secrets / SIGNING_FILE).exists() else None


def report_language(out: Output) -> Literal["ja", "en"]:
    return "ja" if out.language == "ja" else "en"


def records_of(out: Output, place: "Home", settings: "Settings", folder: Path, since: str | None) -> "Found":
    """The server's own records and accounts: of the last fourteen days where nothing else is said."""
    from sekisho.cli.keys import with_store
    from sekisho.cli.scorecard import collect_records
    from sekisho.evaluate.conclusion import Found
    from sekisho.evaluate.verdict import cost

    begin = quantities.past("--since", since or "14d", time.time())
    found = collect_records(out, place, settings, begin, (folder,))
    gateway = settings.gateway
    accounts = with_store(
        place,
        settings,
        lambda store: cost.collect(store, begin, found.until, gateway.currency, bool(gateway.prices)),
    )
    return Found(found, accounts)


def tell(out: Output, done: "Conclusion", rubric: bool) -> None:
    from sekisho.cli.output import plain
    from sekisho.cli.scorecard import show_card

    out.json(
        {
            "run": done.run,
            "decision": done.scorecard.verdict.decision,
            "report": str(done.report),
            "signed": done.signed,
            "scorecard": plain(done.scorecard),
        }
    )
    show_card(out, done.scorecard)
    out.say("evaluate_report", report=done.report)
    if rubric and done.figures.get("rubric.adoptable_rate") is not None:
        figure = done.figures.get("rubric.adoptable_rate")
        if figure is not None and figure.value is None:
            out.say("evaluate_rate", run=done.run)
            out.say("evaluate_again", run=done.run)


def report(
    run: RunArgument = NEWEST,
    pdf: Annotated[bool, typer.Option("--pdf", help="A PDF too, by an installed Chromium, Chrome or Edge.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="Read the server's records anew, from then: 14d, 2026-11-16.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="By another profile's thresholds.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make scorecard and report anew: after ratings, attested figures, other thresholds, or more days of records."""
    out, place = Output(as_json=as_json), at_home(home)
    folder = run_folder(place, run)
    collected = records_of(out, place, settings_of(place), folder, since) if since is not None else None
    done = conclude(out, place, folder, collected, profile)
    if pdf:
        from sekisho.evaluate.report.pdf import print_pdf

        with out.waiting("evaluate_printing"):
            print_pdf(done.report, place.runs / f"{folder.name}.pdf", report_language(out))
    tell(out, done, True)


def list_(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the runs of this home, newest first."""
    out, place = Output(as_json=as_json), at_home(home)
    rows = [_row(folder) for folder in _folders(place)]
    out.json({"runs": rows})
    if not rows:
        out.say("evaluate_none")
        return
    columns = out.columns("run", "plan", "verdict", "model")
    damaged = out.text("evaluate_damaged")
    out.table(columns, [(row["run"], row["plan"] or damaged, row["decision"], row["model"]) for row in rows])
    for row in rows:
        if row["damaged"]:
            out.warn(row["damaged"])


def _row(folder: Path) -> dict[str, Any]:
    """`damaged` says why, where the plan of this run cannot be read: the other runs are listed all the same."""
    from sekisho.core.errors import NotFound
    from sekisho.evaluate.conclusion import SCORECARD_FILE, read_plan

    try:
        plan = read_plan(folder)
    except NotFound as error:
        return {"run": folder.name, "plan": None, "decision": None, "model": None, "damaged": error.message}
    try:
        decision = json.loads((folder / SCORECARD_FILE).read_bytes())["verdict"]["decision"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        decision = None  # it has not come so far
    model = ", ".join(dict.fromkeys(model for _, model in plan.places.values()))
    return {"run": folder.name, "plan": plan.name, "decision": decision, "model": model, "damaged": None}


def attest(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id; `last` is the newest.")],
    figure: Annotated[str, typer.Argument(metavar="FIGURE", help="Its id: ui.fatal_errors, codex.cuts, …")],
    value: Annotated[float, typer.Argument(metavar="VALUE", min=0)],
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who counted it.")],
    n: Annotated[int | None, typer.Option("--n", min=0, help="Of how many.")] = None,
    note: Annotated[str, typer.Option("--note", help="Where and how.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a figure that a person counted, and make the report anew. It is shown as attested by that person, and every
    change of it is kept."""
    from sekisho.evaluate.conclusion import attest as keep

    out, place = Output(as_json=as_json), at_home(home)
    folder = run_folder(place, run)
    kept = keep(folder, figure, value, by=by, n=n, note=note, now=time.time())
    out.json({"run": folder.name, "figure": figure, "value": kept.value, "by": by, "n": n})
    out.say("evaluate_attested", figure=figure, value=f"{kept.value:g}", by=by)
    out.say("evaluate_report", report=conclude(out, place, folder, None).report)


def forget(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a run: its folder with everything in it, and its steps in the database. Not while somebody works on it."""
    import shutil

    from sekisho.cli.keys import with_store
    from sekisho.evaluate.durable.run_folder import RunFolder

    out, place = Output(as_json=as_json), at_home(home)
    folder = place.runs / run
    if run == NEWEST or "/" in run or not folder.is_dir():
        raise CommandFailed(f"there is no run {run}", hint="sekisho evaluate list; name it in full", exit_code=ABSENT)
    held = RunFolder(folder)
    held.acquire()
    try:
        known = with_store(place, settings_of(place), lambda store: store.forget_run(run))
        shutil.rmtree(folder)
    finally:
        held.release()
    out.json({"run": run, "forgotten": True, "in_database": known})
    out.say("evaluate_forgotten", run=run)


def verify(
    what: Annotated[str, typer.Argument(metavar="RUN_OR_FILE", help="A run's id or folder, or a report's file.")],
    signer: Annotated[
        str | None, typer.Option("--signer", help="Public key in hex; default: this home's, where it has one.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a report, or every file of a run, is as it was signed. Exit code 1 when it is not."""
    from sekisho.evaluate.report import signing

    out, place = Output(as_json=as_json), at_home(home)
    public = _public(place, signer)
    path = Path(what)
    answer: dict[str, Any]
    if path.is_file():
        checked = signing.check(path.read_bytes(), public)
        ok, who, why = checked.ok, checked.signer, checked.why
        answer = {"ok": ok, "signer": who, "why": why[0]}
    else:
        path = path if path.is_dir() else run_folder(place, what)
        whole = signing.check_manifest(path, public)
        ok, who, why = whole.ok, whole.signer, whole.why
        changed = {"changed": whole.changed, "missing": whole.missing, "added": whole.added}
        answer = {"ok": ok, "signer": who, "why": why[0], **changed}
    words = why[int(out.language == "ja")]
    if not ok:
        raise CommandFailed(f"{what}: {words}", details=answer, exit_code=FAILED)
    out.json(answer)
    out.say("evaluate_true", file=what, signer=who)
    if public is None:
        out.warn(words)


def _public(place: "Home", signer: str | None) -> bytes | None:
    from sekisho.evaluate.report.signing import public_key

    if signer is not None:
        try:
            key = bytes.fromhex(signer)
        except ValueError:
            key = b""
        if len(key) != 32:
            raise CommandFailed(f"--signer: {signer!r} is no public key", hint="64 hex digits", exit_code=USAGE)
        return key
    private = signing_key_of(place)
    return None if private is None else public_key(private)


def run_folder(place: "Home", run: str) -> Path:
    """The folder of a run by its id, `last`, or its path. Raises CommandFailed."""
    folders = _folders(place)
    if run == NEWEST:
        if not folders:
            raise CommandFailed("there is no run yet", hint="sekisho evaluate", exit_code=ABSENT)
        return folders[0]
    for folder in (place.runs / run, Path(run)):
        if (folder / "plan.json").is_file():
            return folder.resolve()
    known = ", ".join(folder.name for folder in folders[:5]) or "none"
    raise CommandFailed(f"there is no run {run}", hint=f"runs: {known}", exit_code=ABSENT)


def _folders(place: "Home") -> list[Path]:
    """Newest first."""
    found = [path.parent for path in place.runs.glob("*/plan.json")]
    return sorted(found, key=lambda folder: folder.name, reverse=True)
