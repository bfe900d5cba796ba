"""What the commands about the book share: its keys, its times, its one writer."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli import quantities
from sekisho.cli.failure import ABSENT, CommandFailed

if TYPE_CHECKING:
    from sekisho.audit import AdminRecord, Book, Query, ReaderKeys
    from sekisho.audit.keys import WriterKeys
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

RecoveryOption = Annotated[
    Path | None,
    typer.Option("--recovery", help="Where the recovery key was moved to; default: the home's secrets."),
]


def reader_keys(place: "Home", recovery: Path | None) -> "ReaderKeys":
    """The keys that open the book. Raises CommandFailed, naming the file that is needed."""
    from sekisho.audit import KeyUnavailable, ReaderKeys
    from sekisho.audit.keys import RECOVERY_FILE
    from sekisho.audit.reader import read_header
    from sekisho.audit.segment import segments

    _present(place)
    try:
        keys = ReaderKeys.load(place.secrets, recovery)
    except KeyUnavailable as error:
        file = recovery or place.secrets / RECOVERY_FILE
        hint = f"the book is opened by {file}; --recovery FILE names it where it was moved"
        raise CommandFailed(error.message, hint=hint) from error
    header = read_header(next(iter(segments(place.audit).values())))
    if header is not None and header.book != keys.book:
        raise CommandFailed(f"{recovery or place.secrets / RECOVERY_FILE} is the key of another book")
    return keys


def writer_keys(place: "Home") -> "WriterKeys":
    """The name of the book and its signing key, which need no recovery key. Makes no keys. Raises CommandFailed."""
    from sekisho.audit.keys import RATCHET_FILE, SIGNING_FILE, WriterKeys

    _present(place)
    for name in (RATCHET_FILE, SIGNING_FILE):
        if not (place.secrets / name).exists():
            raise CommandFailed(f"{place.secrets / name} is not there", hint="sekisho up makes it at the first start")
    return WriterKeys.load_or_create(place.secrets, may_create=False)


def _present(place: "Home") -> None:
    from sekisho.audit.segment import segments

    if not place.audit.is_dir() or not segments(place.audit):
        raise CommandFailed("there is no book yet", hint="it begins with the first start: sekisho up", exit_code=ABSENT)


def query_of(since: str | None, until: str | None) -> "Query":
    """The times of a query as the book writes them. Raises CommandFailed."""
    from sekisho.audit import Query
    from sekisho.audit.writer import timestamp

    now = time.time()
    first = None if since is None else timestamp(quantities.past("--since", since, now))
    last = None if until is None else timestamp(quantities.past("--until", until, now))
    return Query(since=first, until=last)


def person() -> str:
    """Who runs this command, for the book."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def open_book(place: "Home", settings: "Settings") -> "Book":
    """As its one writer. Raises BookUnavailable, also while a server has it."""
    from sekisho.audit import Book

    place.create()
    return Book.open(place.audit, place.secrets, settings.audit)


def note(place: "Home", settings: "Settings", record: "AdminRecord") -> bool:
    """Writes down what somebody did, where no server has the book; it notes such things itself. False: not written."""
    import asyncio

    from sekisho.core.errors import BookUnavailable

    try:
        book = open_book(place, settings)
    except BookUnavailable:
        return False

    async def append() -> None:
        await book.append(record)

    try:
        asyncio.run(append())
    finally:
        book.close()
    return True
