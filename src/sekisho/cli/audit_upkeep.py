"""`sekisho audit export|check|anchor|retain`: records taken out and proved, the book vouched for, old ones deleted."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sekisho.cli.book import RecoveryOption, note, open_book, person, query_of, reader_keys, writer_keys
from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.audit.retention import Deletion
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

T = TypeVar("T")
_SIGNER = re.compile(r"[0-9a-fA-F]{64}")

RecipientOption = Annotated[
    list[str] | None,
    typer.Option("--recipient", help="Encrypt to this age recipient (age1…). Repeatable. Needs sekisho\\[audit]."),
]


def register(app: typer.Typer) -> None:
    epilog = example("sekisho audit export --since 7d --recipient age1… --out book.age", ja="記録を書き出します。")
    app.command("export", epilog=epilog)(export)
    epilog = example("sekisho audit check book.jsonl --signer 3f…9a", ja="書き出した記録の署名を確かめます。")
    app.command("check", epilog=epilog)(check)
    app.command("anchor", epilog=example("sekisho audit anchor", ja="現在の末尾に署名し、証跡の一覧を表示します。"))(
        anchor
    )
    app.command(
        "retain", epilog=example("sekisho audit retain --days 365 --dry-run", ja="古い記録を署名付きで削除します。")
    )(retain)


class Counted(Iterator[T]):
    """Passes values on and counts them."""

    def __init__(self, values: Iterator[T]) -> None:
        self._values = values
        self.count = 0

    def __next__(self) -> T:
        value = next(self._values)
        self.count += 1
        return value


def export(
    out_file: Annotated[Path, typer.Option("--out", help="The file to write. One that is there is not replaced.")],
    since: Annotated[str | None, typer.Option("--since", help="As in 7d, 2026-11-20; default: the beginning.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before then; default: now.")] = None,
    recipient: RecipientOption = None,
    recovery: RecoveryOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write records as signed JSON lines, encrypted where a recipient is named."""
    from sekisho.audit import AdminRecord, Reader
    from sekisho.audit.export import export_lines, signing_key, write_export
    from sekisho.audit.keys import public_key
    from sekisho.audit.writer import timestamp

    out, place = Output(as_json=as_json), at_home(home)
    query, settings = query_of(since, until), settings_of(place)
    keys = reader_keys(place, recovery)
    if not recipient:
        out.warn(out.text("export_in_clear"))
    entries = Counted(Reader(place.audit, keys).search(query))
    lines = export_lines(entries, keys.book, timestamp(time.time()), signing_key(place.secrets))
    with new_file(out_file) as draft, draft.open("wb") as file:
        write_export(lines, file, tuple(recipient or ()))
    detail: dict[str, str | int | float | bool | None] = {
        "file": out_file.name,
        "records": entries.count,
        "encrypted": bool(recipient),
    }
    noted = note(place, settings, AdminRecord(action="export", user_id=person(), detail=detail))
    signer = public_key(signing_key(place.secrets)).hex()
    out.json({**detail, "file": str(out_file), "noted": noted, "signer": signer})
    out.say("export_done", count=entries.count, file=out_file)
    out.say("export_signer", signer=signer)
    if not noted:
        out.warn(out.text("book_not_noted"))


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export in clear; an encrypted one after `age -d`.")],
    signer: Annotated[
        str | None, typer.Option("--signer", help="The signer that `audit export` told; default: this home's book.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that an export is whole and signed by the book's key. Needs no book where --signer is given. Exit code 1
    when it is not."""
    from sekisho.audit.export import check_export
    from sekisho.audit.keys import public_key

    out, place = Output(as_json=as_json), at_home(home)
    if signer is not None and not _SIGNER.fullmatch(signer):
        raise CommandFailed("--signer: 64 hexadecimal digits, as `sekisho audit export` told them", exit_code=USAGE)
    if not file.is_file():
        raise CommandFailed(f"{file}: no such file", exit_code=ABSENT)
    public = bytes.fromhex(signer) if signer is not None else public_key(writer_keys(place).signing)
    with file.open("rb") as lines:
        count = check_export(lines, public)
    out.json({"file": str(file), "good": count is not None, "records": count, "signer": public.hex()})
    if count is None:
        out.warn(out.text("check_bad", file=file))
        raise typer.Exit(FAILED)
    out.say("check_good", file=file, count=count)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A draft beside `path`, readable by its owner alone, that takes its place when all went well. Raises CommandFailed
    where `path` is there already."""
    if path.exists():
        raise CommandFailed(f"{path} is there already", hint="choose another --out", exit_code=USAGE)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def anchor(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many anchors to show.")] = 5,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign how far the book goes now, and show the last anchors. A running server does that by itself."""
    from sekisho.audit import anchor_folder
    from sekisho.audit.anchor import read_anchors
    from sekisho.audit.keys import public_key
    from sekisho.ops.home import running

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    keys = writer_keys(place)
    served = running(place) is not None
    if not served:
        open_book(place, settings).close()  # both ends anchor
    folder = anchor_folder(place.audit, settings.audit.anchor)
    good, bad = read_anchors(folder, keys.book, public_key(keys.signing))
    shown = good[-lines:] if lines else []
    newest = good[-1].count if good else None
    out.json({"folder": str(folder), "running": served, "newest": newest, "anchors": shown, "bad": bad})
    out.say("anchor_folder", folder=folder)
    rows = [(each.time, each.count, each.segment, each.head.hex()[:16]) for each in shown]
    out.table(out.columns("time", "count", "segment", "head"), rows)
    for each in bad:
        out.warn(f"{each.file}, line {each.line}: {each.reason}")
    if served:
        out.say("anchor_by_server", seconds=f"{settings.audit.anchor.seconds:g}", records=settings.audit.anchor.records)


def retain(
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="Keep this many days; default: audit.retention_days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete whole segments that are older, with a signed record of it. Works while no server runs."""
    from sekisho.ops.home import running

    out, place = Output(as_json=as_json), at_home(home)
    settings = settings_of(place)
    kept_days = settings.audit.retention_days if days is None else days
    if days is None and not kept_days:
        hint = "--days says how many days to keep; `audit.retention_days` sets it for good"
        raise CommandFailed("nothing says how long to keep records", hint=hint, exit_code=USAGE)
    keys = writer_keys(place)
    if not dry_run and running(place) is not None:
        hint = "set `audit.retention_days` and the server deletes by itself; or: sekisho down, then again"
        raise CommandFailed("the running server has the book", hint=hint)
    deletion = _plan(place, keys.book, kept_days) if dry_run else _delete(place, settings, kept_days)
    out.json({"days": kept_days, "dry_run": dry_run, "deletion": deletion})
    if deletion is None:
        out.say("retain_nothing", days=f"{kept_days:g}")
        return
    key = "retain_would" if dry_run else "retain_done"
    out.say(
        key,
        first=deletion.first_sequence,
        last=deletion.last_sequence,
        segments=deletion.last_segment - deletion.first_segment + 1,
    )


def _plan(place: "Home", book: str, days: float) -> "Deletion | None":
    from sekisho.audit import retention
    from sekisho.audit.writer import timestamp

    now = time.time()
    return retention.plan(place.audit, book, now - days * 86_400, timestamp(now))


def _delete(place: "Home", settings: "Settings", days: float) -> "Deletion | None":
    import asyncio

    book = open_book(place, settings)
    try:
        return asyncio.run(book.retain(days, person()))
    finally:
        book.close()
