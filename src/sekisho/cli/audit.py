"""`sekisho audit tail|search|show|verify`: reading the book, which works beside a running server."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import audit_upkeep
from sekisho.cli.book import RecoveryOption, query_of, reader_keys
from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed
from sekisho.cli.keys import with_store
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.audit import Entry, Reader, Report
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

STYLES = {"ALLOW": "green", "ESCALATE": "yellow", "REFUSE": "red"}
FOLLOW_S = 0.5
SHOWN_PROBLEMS = 20
SHOWN_CHARS = 100

app = typer.Typer(
    help="Read and check the book: every decision and its outcome.",
    epilog=example("sekisho audit tail", "sekisho audit verify", ja="監査記録を読み、検査します。"),
    no_args_is_help=True,
)
audit_upkeep.register(app)

CountOption = Annotated[int, typer.Option("--lines", "-n", min=0, help="How many records.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="From then on: 2h (ago), 7d, 2026-11-20, or a date and time.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Before then, written as for --since.")]


@app.command("tail", epilog=example("sekisho audit tail -n 20 --follow", ja="監査記録の末尾を表示します。"))
def tail(
    lines: CountOption = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl+C.")] = False,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the last records. With --follow and --json: one JSON object a line."""
    out, place = Output(as_json=as_json), at_home(home)
    reader = _reader(place, recovery)
    entries = reader.tail(lines)
    if not follow:
        out.json(entries)
        _show_lines(out, entries)
        return
    _follow(out, place, reader, entries)


def _follow(out: Output, place: "Home", reader: "Reader", entries: "list[Entry]") -> None:
    """Reads the book again when a file of it has grown."""
    last, seen = entries[-1].sequence if entries else 0, _sizes(place.audit)
    if not entries:
        last = max((entry.sequence for entry in reader.tail(1)), default=0)
    while True:
        for entry in entries:
            last = entry.sequence
            out.json(entry)
            _show_lines(out, [entry])
        while (sizes := _sizes(place.audit)) == seen:
            time.sleep(FOLLOW_S)
        seen = sizes
        entries = list(reader.entries(last))


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.jsonl")}


@app.command("search", epilog=example("sekisho audit search --decision refuse --since 7d", ja="監査記録を検索します。"))
def search(
    request: Annotated[str | None, typer.Option("--request", help="The id of a request, as in answers.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Name or id of a key.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user's name.")] = None,
    decision: Annotated[str | None, typer.Option("--decision", help="allow, escalate or refuse.")] = None,
    category: Annotated[str | None, typer.Option("--category", help="As in medical, fraud, none.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="verdict, outcome, escalation or admin.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    text: Annotated[str | None, typer.Option("--text", help="Words of the input, the output or the reason.")] = None,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find records. Everything that is given must hold."""
    import msgspec

    out, place = Output(as_json=as_json), at_home(home)
    query = msgspec.structs.replace(
        query_of(since, until),
        request_id=request,
        key_id=None if key is None else _key_id(place, key),
        user_id=user,
        decision=_one_of("--decision", decision, "allow", "escalate", "refuse"),
        category=_one_of("--category", category, *_categories()),
        kind=_one_of("--kind", kind, "verdict", "outcome", "escalation", "admin"),
        text=text,
    )
    entries = _reader(place, recovery).search(query)
    if as_json:
        out.json(list(entries))
        return
    if not _show_lines(out, entries):
        out.say("book_nothing")


def _categories() -> tuple[str, ...]:
    from typing import get_args

    from sekisho.core.verdict import Category

    return get_args(Category)


def _one_of(option: str, value: str | None, *known: str) -> str | None:
    if value is not None and value.lower() not in known:
        raise CommandFailed(f"{option}: {value!r} is none", hint=f"one of {', '.join(known)}", exit_code=USAGE)
    return None if value is None else value.lower()


def _key_id(place: "Home", key: str) -> str:
    """The id of a key that is named. A key of the book may be long gone from the database: an id is taken as it is."""
    if key.startswith("key_"):
        return key
    records = with_store(place, settings_of(place), lambda store: store.list_keys(include_revoked=True))
    found = next((record.id for record in reversed(records) if record.name == key), None)
    if found is None:
        raise CommandFailed(f"there is no key {key!r}", hint="sekisho key list --all", exit_code=ABSENT)
    return found


@app.command("show", epilog=example("sekisho audit show 17", ja="記録の全項目を表示します。"))
def show(
    record: Annotated[
        str, typer.Argument(metavar="SEQUENCE|ID", help="A record's number, or the id of a request or a ticket.")
    ],
    vault: Annotated[
        bool, typer.Option("--vault", help="Also what the placeholders of personal data stood for.")
    ] = False,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one record, or all of a request, with every field."""
    out, place = Output(as_json=as_json), at_home(home)
    reader = _reader(place, recovery)
    if record.isdigit():
        found = [entry] if (entry := reader.show(int(record))) is not None else []
    else:
        found = [entry for entry in reader.entries() if record in _ids(entry)]
    if not found:
        raise CommandFailed(out.text("book_no_record", record=record), exit_code=ABSENT)
    requests = dict.fromkeys(getattr(entry.record, "request_id", "") for entry in found)
    texts = _unsealed(place, [request for request in requests if request]) if vault else {}
    out.json({"entries": found, **({"vault": texts} if vault else {})})
    for entry in found:
        out.line(out.text("book_record", sequence=entry.sequence, segment=entry.segment, line=entry.line), style="bold")
        _show_fields(out, plain(entry.record))
    for placeholder, text in texts.items():
        out.line(f"  {placeholder} = {text}")


def _ids(entry: "Entry") -> set[str]:
    return {getattr(entry.record, "request_id", ""), getattr(entry.record, "ticket_id", "")} - {""}


def _show_fields(out: Output, values: dict[str, Any]) -> None:
    width = max(map(len, values))
    for name, value in values.items():
        if name == "findings":
            for finding in value:
                via = " > ".join(finding.get("via") or ()) or "plain"
                words = f"{finding['source']}: {finding['rule']} ({finding['decision']}), {finding['where']}, {via}"
                out.line(f"  {name:<{width}}  {words}")
        elif isinstance(value, dict):
            for inner, detail in value.items():
                out.line(f"  {inner:<{width}}  {detail}")
        elif value != "":
            out.line(f"  {name:<{width}}  {value}", style=STYLES.get(value) if isinstance(value, str) else None)


def _unsealed(place: "Home", requests: list[str]) -> dict[str, str]:
    """What the vault has of these requests. Raises CommandFailed where there is no vault, or no key to it."""
    from sekisho.audit.keys import VAULT_FILE
    from sekisho.audit.vault import VAULT_NAME, Vault

    key = place.secrets / VAULT_FILE
    if not key.exists():
        if not (place.audit / VAULT_NAME).exists():
            raise CommandFailed(
                "there is no vault", hint="`audit.vault: true` keeps one from then on", exit_code=ABSENT
            )
        raise CommandFailed(f"the vault is opened by {key}, which is not there", exit_code=ABSENT)
    vault = Vault.open(place.audit, place.secrets)
    return {name: text for request in requests for name, text in vault.get(request).items()}


@app.command("verify", epilog=example("sekisho audit verify --anchors /mnt/anchors", ja="改ざんがないか検査します。"))
def verify(
    anchors: Annotated[
        list[Path] | None, typer.Option("--anchors", help="Folder with anchors; default: as configured. Repeatable.")
    ] = None,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the whole book. Names the first bad record and why; exit code 1 then."""
    out, place = Output(as_json=as_json), at_home(home)
    with out.waiting("book_verifying"):
        report = checked(place, settings_of(place), anchors, recovery)
    out.json({**plain(report), "first": report.first})
    _show_report(out, report)
    if not report.ok:
        raise typer.Exit(FAILED)


def checked(place: "Home", settings: "Settings", anchors: list[Path] | None, recovery: Path | None) -> "Report":
    """The verifier's report. Raises CommandFailed for a folder of anchors that is not there."""
    from sekisho.audit import anchor_folder
    from sekisho.audit import verify as run

    for folder in anchors or ():
        if not folder.is_dir():
            raise CommandFailed(f"{folder} is not a folder", exit_code=ABSENT)
    keys = reader_keys(place, recovery)
    return run(place.audit, keys, anchors or [anchor_folder(place.audit, settings.audit.anchor)])


def _show_report(out: Output, report: "Report") -> None:
    first = report.first
    if first is None:
        out.line(
            out.text("book_whole", records=report.records, segments=report.segments, anchored=report.anchored),
            style="green",
        )
    else:
        number = "?" if first.sequence is None else str(first.sequence)
        place = ", ".join(
            f"{name} {value}" for name, value in (("segment", first.segment), ("line", first.line)) if value is not None
        )
        out.line(out.text("book_broken", record=number, place=place or "anchors", reason=first.reason), style="red")
        for problem in report.problems[1:SHOWN_PROBLEMS]:
            out.line(f"  {problem.kind}: {problem.reason}")
        if len(report.problems) > SHOWN_PROBLEMS:
            out.say("book_more", count=len(report.problems) - SHOWN_PROBLEMS)
    for deletion in report.removed:
        out.say("book_removed", first=deletion.first_sequence, last=deletion.last_sequence, time=deletion.time)
    for note in report.notes:
        out.line(f"  {note}", style="dim")


def _reader(place: "Home", recovery: Path | None) -> "Reader":
    from sekisho.audit import Reader

    return Reader(place.audit, reader_keys(place, recovery))


def _show_lines(out: Output, entries: "Iterable[Entry]") -> int:
    """A line for each; how many there were."""
    count = 0
    for entry in entries:
        count += 1
        outcome, about, text = _in_short(plain(entry.record))
        text = " ".join(text.split())
        text = text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
        time_text = entry.record.timestamp[:19].replace("T", " ")
        line = f"{entry.sequence:>7}  {time_text}  {outcome:<10} {about:<12} {' '.join(sorted(_ids(entry)))}  {text}"
        out.line(line.rstrip(), style=STYLES.get(outcome))
    return count


def _in_short(record: dict[str, Any]) -> tuple[str, str, str]:
    """What happened, about what, in which words."""
    kind = record.get("kind", "")
    if kind == "verdict":
        about = record.get("category", "none")
        return record["decision"], about, record.get("input", "") or record.get("rationale", "")
    if kind == "outcome":
        return record["status"], "outcome", record.get("output", "")
    if kind == "escalation":
        return record["event"], record.get("category", "none"), record.get("text", "")
    details = ", ".join(f"{name} {value}" for name, value in record.get("detail", {}).items())
    return record.get("action", ""), "admin", f"{record.get('user_id', '')} {details}"
