"""`sekisho scorecard`: thresholds, their approval, the verdict, and the server's own records."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import quantities
from sekisho.cli.book import RecoveryOption, note, person, reader_keys
from sekisho.cli.failure import ABSENT, FAILED, CommandFailed
from sekisho.cli.keys import with_store
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.audit import Reader
    from sekisho.evaluate.figures import Figures
    from sekisho.evaluate.verdict.records import Records
    from sekisho.evaluate.verdict.scorecard import ApprovalState, Result, Scorecard
    from sekisho.evaluate.verdict.stability import Stop
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

STYLES = {"pass": "green", "fail": "red", "open": "yellow"}
VERDICTS = {"adopt": "green", "reject": "red"}
FIGURES_FILE = "figures.json"
SHOWN = 50
SUFFICIENT = "adopt"

app = typer.Typer(
    help="Is it good enough? The thresholds, who approved them, and the verdict.",
    epilog=example("sekisho scorecard init", "sekisho scorecard show", ja="採用の基準と判定です。"),
    no_args_is_help=True,
)

RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's id, or its folder; default: the newest run.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="A machine's name in the thresholds; default: `profile` of the settings."),
]


@app.command("init", epilog=example("sekisho scorecard init", ja="基準のファイルを作ります。"))
def init(
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the built-in thresholds to a file that is yours to change."""
    from sekisho.evaluate.verdict.thresholds import write_template

    out, place = Output(as_json=as_json), at_home(home)
    path = write_template(place, replace=force)
    out.json({"path": str(path)})
    out.say("card_written", path=path)


@app.command("show", epilog=example("sekisho scorecard show run_… --profile a100", ja="判定を表示します。"))
def show(
    run: RunArgument = None, profile: ProfileOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Judge the figures of a run by the thresholds as they are now. Exit code 0 for `adopt`, else 1."""
    from sekisho.evaluate.verdict.approvals import scorecard

    out, place = Output(as_json=as_json), at_home(home)
    folder = run_folder(place, run)
    card = scorecard(place, figures_of(folder), chosen_profile(profile, settings_of(place)), folder.name)
    out.json({"run": folder.name, **_plain(card)})
    show_card(out, card)
    raise typer.Exit(0 if card.verdict.decision == SUFFICIENT else FAILED)


@app.command(
    "approve",
    epilog=example(
        'sekisho scorecard approve run_… --measured-by taro --by hanako --why "day 1"', ja="基準を承認します。"
    ),
)
def approve(
    run: RunArgument = None,
    measured_by: Annotated[str, typer.Option("--measured-by", metavar="NAME", help="Who measured.")] = "",
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who approves: somebody else.")] = "",
    why: Annotated[str, typer.Option("--why", help="Why these thresholds.")] = "",
    alone: Annotated[
        str, typer.Option("--alone", metavar="REASON", help="Why the same person measures and approves.")
    ] = "",
    profile: ProfileOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze the thresholds of a profile, on the figures of a run. Later changes are shown on every scorecard."""
    from sekisho.audit import AdminRecord
    from sekisho.evaluate.verdict.approvals import Wish
    from sekisho.evaluate.verdict.approvals import approve as freeze
    from sekisho.evaluate.verdict.thresholds import load

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    folder = run_folder(place, run)
    wish = Wish(
        profile=chosen_profile(profile, settings),
        measured_by=measured_by or (person() if alone else ""),
        approved_by=by or (person() if alone else ""),
        why=why,
        run_id=folder.name,
        manifest_sha256=_manifest(place, folder),
        alone=alone,
    )
    record = freeze(place, load(place), wish, time.time())
    detail: dict[str, str | int | float | bool | None] = {
        "profile": record.profile,
        "number": record.number,
        "rules_sha256": record.rules_sha256,
        "run": record.run_id,
        "measured_by": record.measured_by,
    }
    noted = note(place, settings, AdminRecord(action="thresholds_approved", user_id=record.approved_by, detail=detail))
    out.json({**_plain(record), "noted": noted})
    out.say("card_frozen", profile=record.profile, number=record.number, by=record.approved_by, run=record.run_id)
    if not noted:
        out.warn(out.text("book_not_noted"))


@app.command("history", epilog=example("sekisho scorecard history", ja="承認の履歴を表示します。"))
def history(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List all approvals, and what the thresholds say otherwise now. Exit code 1 where the records are not whole."""
    from sekisho.evaluate.verdict.approvals import read, state_of
    from sekisho.evaluate.verdict.thresholds import load

    out, place = Output(as_json=as_json), at_home(home)
    approvals, thresholds = read(place), load(place)
    profiles = dict.fromkeys(record.profile for record in approvals.records)
    states = {name: state_of(approvals, thresholds, name)[0] for name in profiles if name in thresholds.profiles}
    out.json({"problem": approvals.problem, "records": _plain(approvals.records), "states": _plain(states)})
    if approvals.problem:
        out.line(out.text("card_broken", problem=approvals.problem), style="red")
    if approvals.records:
        columns = ("card_number", "card_profile", "card_by", "card_measured_by", "time", "card_run", "why")
        rows = [
            (r.number, r.profile, r.approved_by, r.measured_by, quantities.moment(r.at), r.run_id, r.why)
            for r in approvals.records
        ]
        out.table(out.columns(*columns), rows)
    elif not approvals.problem:
        out.say("card_no_history")
    for name, state in states.items():
        _show_changes(out, state, f"{name}: ")
    if approvals.problem:
        raise typer.Exit(FAILED)


@app.command(
    "records", epilog=example("sekisho scorecard records --since 7d", ja="停止・復旧・漏えいの記録を調べます。")
)
def records(
    since: Annotated[
        str, typer.Option("--since", help="From then on: 7d (ago), 2026-11-20, or a date and time.")
    ] = "7d",
    path: Annotated[
        list[Path] | None, typer.Option("--path", help="One more file or folder to scan for keys. Repeatable.")
    ] = None,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the server's own records say: stops, recovery, who got in, keys in plain text. Exit code 1 where there
    is something to mend."""
    from sekisho.evaluate.verdict.records import figures
    from sekisho.evaluate.verdict.thresholds import load

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    calendar = load(place).calendar
    begin = quantities.past("--since", since, time.time())
    for extra in path or ():
        if not extra.exists():
            raise CommandFailed(f"{extra}: no such file or folder", exit_code=ABSENT)
    found = collect_records(out, place, settings, begin, path or (), recovery)
    out.json({**_plain(found), "figures": _plain(figures(found))})
    _show_records(out, found, calendar.morning)
    bad = found.stability.stops or found.access.successes or found.scan.count or found.scan.unreadable
    raise typer.Exit(FAILED if bad else 0)


# --- what several commands use --------------------------------------------------------------------------------------


def collect_records(
    out: Output,
    place: "Home",
    settings: "Settings",
    since: float,
    extra: Sequence[Path] = (),
    recovery: Path | None = None,
) -> "Records":
    """The server's own records since then; the book among them where its key is at hand. Raises CommandFailed."""
    from sekisho.evaluate.verdict.records import collect
    from sekisho.evaluate.verdict.thresholds import load

    calendar, book = load(place).calendar, _book(place, recovery)
    with out.waiting("card_scanning"):
        return with_store(
            place,
            settings,
            lambda store: collect(place, store, since=since, calendar=calendar, book=book, extra=extra),
        )


def chosen_profile(option: str | None, settings: "Settings") -> str:
    """Which thresholds count: the option, `profile` of the settings, or those of any other machine."""
    from sekisho.evaluate.verdict.thresholds import OTHER

    return option or settings.profile or OTHER


def run_folder(place: "Home", run: str | None) -> Path:
    """The folder of a run that has figures. Raises CommandFailed."""
    if run is not None:
        folder = next((each for each in (place.runs / run, Path(run)) if (each / FIGURES_FILE).is_file()), None)
        if folder is None:
            raise CommandFailed(f"there is no run {run!r} with figures", hint="sekisho evaluate", exit_code=ABSENT)
        return folder.resolve()
    found = [path.parent for path in place.runs.glob(f"*/{FIGURES_FILE}")]
    if not found:
        raise CommandFailed("there is no run with figures yet", hint="sekisho evaluate", exit_code=ABSENT)
    return max(found, key=lambda folder: (folder / FIGURES_FILE).stat().st_mtime)


def figures_of(folder: Path) -> "Figures":
    """Raises CommandFailed for a file that is none."""
    from sekisho.core.decoding import Undecodable, decoded
    from sekisho.evaluate.figures import Figures

    try:
        return decoded((folder / FIGURES_FILE).read_bytes(), Figures)
    except Undecodable as error:
        raise CommandFailed(f"{folder / FIGURES_FILE} cannot be read: {error}") from error


def _manifest(place: "Home", folder: Path) -> str:
    """The SHA-256 of the run's manifest, whose signature and files were checked. Raises CommandFailed."""
    import hashlib

    from sekisho.cli.evaluate_runs import signing_key_of
    from sekisho.core.decoding import decoded
    from sekisho.evaluate.conclusion import read_plan, unfinished
    from sekisho.evaluate.report.signing import MANIFEST_FILE, Manifest, check_manifest, public_key

    key = signing_key_of(place)
    checked = check_manifest(folder, None if key is None else public_key(key))
    if not checked.ok:
        hint = f"thresholds rest on a whole, signed run; sekisho evaluate report {folder.name} signs what was added"
        raise CommandFailed(f"{folder}: {checked.why[0]}", hint=hint)
    body = (folder / MANIFEST_FILE).read_bytes()
    if decoded(body, Manifest).run != folder.name:
        raise CommandFailed(f"{folder.name} is a copy of another run", hint="approve on the run itself")
    missing = unfinished(folder, read_plan(folder)) if (folder / "plan.json").exists() else ()
    if missing:
        raise CommandFailed(missing[0][0], hint=f"sekisho evaluate --resume {folder.name}")
    return hashlib.sha256(body).hexdigest()


def _book(place: "Home", recovery: Path | None) -> "Reader | None":
    from sekisho.audit import Reader

    try:
        return Reader(place.audit, reader_keys(place, recovery))
    except CommandFailed:
        if recovery is not None:
            raise
        return None  # it is told that the book was not read


def _plain(value: Any) -> Any:
    from sekisho.cli.output import plain

    return plain(value)


# --- words ----------------------------------------------------------------------------------------------------------


def show_card(out: Output, card: "Scorecard") -> None:
    """The verdict, the table, what to do."""
    here = 1 if out.language == "ja" else 0
    verdict = card.verdict
    a, b = (out.text(f"card_{outcome}") for outcome in (verdict.a, verdict.b))
    title = out.text("card_verdict", title=verdict.title[here], profile=card.profile, a=a, b=b)
    out.line(title, style=VERDICTS.get(verdict.decision, "yellow"))
    if not verdict.certain and verdict.decision != "undecided":
        out.say("card_uncertain")
    for words in card.notes:
        out.line(words[here], style="yellow")
    _show_changes(out, card.approval)
    out.line()
    rows = [_row(out, result, here) for result in card.results]
    out.table(out.columns("card_result", "card_pattern", "card_criterion", "card_wanted", "card_measured"), rows)
    actions = [words[here] for words in verdict.next_actions]
    actions += [f"{r.criterion.name[here]}: {r.next_action[here]}" for r in card.results if r.next_action is not None]
    if actions:
        out.line()
        out.line(out.text("card_next"), style="bold")
        for action in dict.fromkeys(actions):
            out.line(f"- {action}")


def _row(out: Output, result: "Result", here: int) -> tuple[str, str, str, str, str]:
    from sekisho.evaluate.verdict.criterion import bound, shown

    outcome = out.text(f"card_{result.outcome}")
    if not result.certain and result.outcome != "open":
        outcome = out.text("card_unsure", outcome=outcome)
    figure = result.figure
    unit = figure.unit if figure is not None else ""
    measured = result.reason[here]
    if figure is not None and figure.value is not None and result.outcome != "open":
        n = "" if figure.n is None else f" (n = {figure.n})"
        measured = f"{shown(figure.value, unit)}{n}  {figure.id}"
    patterns = " + ".join(pattern.upper() for pattern in result.criterion.patterns)
    return outcome, patterns, result.criterion.name[here], bound(result.criterion, unit)[here], measured


def _show_changes(out: Output, state: "ApprovalState", before: str = "") -> None:
    if state.status in ("approved", "changed"):
        told = {"by": state.approved_by, "at": quantities.moment(state.approved_at), "run": state.run_id}
        out.line(before + out.text("card_approved", **told, why=state.why))
    if state.changes:
        out.line(before + out.text("card_changes", at=quantities.moment(state.changed_at) or "?"), style="yellow")
        for change in state.changes:
            values = {"before": change.before or "—", "after": change.after or "—"}
            out.line(out.text("card_change", criterion=change.criterion, what=change.what, **values), style="yellow")


def _show_records(out: Output, found: "Records", morning: str | None) -> None:
    stability, access, scan = found.stability, found.access, found.scan
    if stability.recorded_since is None:
        out.say("card_no_record")
    else:
        covered, days = len(stability.covered), len(stability.days)
        told = {"planned": stability.planned_stops, "restarts": stability.restarts, "zone": stability.time_zone}
        out.say("card_days", covered=covered, days=days, **told)
        longest = f"{stability.longest_recovery_s:,.0f}"
        if stability.stops:
            out.line(out.text("card_stops", count=len(stability.stops), longest=longest), style="red")
        else:
            out.say("card_no_stops")
        for stop in stability.stops[:SHOWN]:
            _show_stop(out, stop)
    if stability.lost_events:
        out.say("card_lost_events", count=stability.lost_events)
    if stability.mornings:
        latest = max(stability.mornings, key=lambda each: each.late_s)
        out.say("card_mornings", late=f"{latest.late_s:,.0f}", morning=morning, day=latest.day)
    looked_at = max(access.looked_at, access.in_book or 0)
    style = "red" if access.successes else None
    out.line(out.text("card_access", looked=looked_at, successes=access.successes), style=style)
    for each in access.intruders[:SHOWN]:
        at = quantities.moment(each.at)
        out.line(f"  {at}  {each.request_id}  {each.key_id or '—'}: {out.text(f'card_{each.why}')}")
    if access.book_problem:
        out.say("card_book", why=access.book_problem)
    _show_denied(out, access.denied)
    counts = {"definite": scan.definite, "suspicious": scan.suspicious}
    style = "red" if scan.count else None
    out.line(out.text("card_scanned", count=scan.count, files=scan.files, **counts), style=style)
    for leak in scan.leaks[:SHOWN]:
        out.line(f"  {leak}{f' {leak.key_name}' if leak.key_name else ''}")
    if scan.unreadable:
        out.say("card_unreadable", count=len(scan.unreadable))
        for line in scan.unreadable[:SHOWN]:
            out.line(f"  {line}")


def _show_stop(out: Output, stop: "Stop") -> None:
    how = out.text(f"card_{stop.how}", code=stop.exit_code)
    if stop.how == "ended" and stop.exit_code is not None and stop.exit_code < 0:
        how = out.text("card_signalled", code=-stop.exit_code)
    key = "card_stop_open" if stop.mended_at is None else "card_stop"
    child = stop.child or out.text("card_server")
    out.say(key, at=quantities.moment(stop.at), child=child, how=how, down=f"{stop.down_s:,.1f}")


def _show_denied(out: Output, denied: dict[str, int] | None) -> None:
    from sekisho.ops.denials import NOT_A_KEY

    if denied is None:
        out.say("card_not_counted")
        return
    count = sum(number for code, number in denied.items() if code in NOT_A_KEY)
    codes = ", ".join(f"{code} {number}" for code, number in sorted(denied.items())) or "—"
    out.say("card_denied", count=count, codes=codes)
