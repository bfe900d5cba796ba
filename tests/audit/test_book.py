"""The book as its users see it: append, read back, one writer, and what is kept."""

import asyncio
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.audit.records import (
    AdminRecord,
    EscalationRecord,
    OutcomeRecord,
    Record,
    VerdictRecord,
    decode,
    encode,
)
from sekisho.core.errors import BookUnavailable

from .conftest import Shelf, verdict


async def test_what_was_appended_is_read_back_in_order(shelf: Shelf) -> None:
    """Records come back as they were given, numbered from 1 without gaps, and the book verifies."""
    book = shelf.open()
    receipts = await asyncio.gather(*(book.append(verdict(f"text {number}")) for number in range(50)))
    book.close()
    assert [receipt.sequence for receipt in receipts] == list(range(1, 51))
    assert shelf.inputs() == [f"text {number}" for number in range(50)]
    report = shelf.verify()
    assert report.ok, report.problems
    assert (report.records, report.last_sequence, report.anchored) == (50, 50, 50)


async def test_the_book_goes_on_after_a_restart(shelf: Shelf) -> None:
    """Each start begins a fresh segment that continues the chain."""
    for number in range(3):
        book = shelf.open()
        await book.append(verdict(f"start {number}"))
        book.close()
    assert shelf.inputs() == ["start 0", "start 1", "start 2"]
    report = shelf.verify()
    assert report.ok, report.problems
    assert report.segments == 3


async def test_a_second_writer_is_refused(shelf: Shelf) -> None:
    """One writer per folder; when it ends, the next may open the book."""
    book = shelf.open()
    with pytest.raises(BookUnavailable, match="another process"):
        shelf.open()
    book.close()
    shelf.open().close()


async def test_a_writer_in_another_process_is_refused(shelf: Shelf) -> None:
    """The lock holds between processes, and a writer that is killed leaves none behind."""
    code = (
        "import sys; from pathlib import Path; from sekisho.audit import Book\n"
        "from sekisho.core.errors import BookUnavailable\n"
        "try: book = Book.open(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except BookUnavailable: sys.exit(7)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(shelf.folder), str(shelf.secrets)]
    book = shelf.open()
    assert (await asyncio.to_thread(subprocess.run, command, check=False)).returncode == 7
    book.close()
    assert (await asyncio.to_thread(subprocess.run, command, check=False)).returncode == -9
    shelf.open().close()
    assert shelf.verify(anchors=False).ok


async def test_a_closed_book_takes_nothing(shelf: Shelf) -> None:
    """An append after close fails; closing twice is harmless."""
    book = shelf.open()
    book.close()
    book.close()
    with pytest.raises(BookUnavailable, match="closed"):
        await book.append(verdict())


async def test_close_writes_what_is_queued(shelf: Shelf) -> None:
    """Records that were queued when the book was closed are written."""
    book = shelf.open()
    waits = [asyncio.ensure_future(book.append(verdict(str(number)))) for number in range(20)]
    await asyncio.sleep(0)
    await asyncio.to_thread(book.close)
    await asyncio.gather(*waits)
    assert len(shelf.inputs()) == 20


async def test_nothing_readable_is_on_the_disk(shelf: Shelf) -> None:
    """No text, name or decision stands in clear in any file of the book."""
    book = shelf.open()
    await book.append(verdict("a secret sentence"))
    await book.append(OutcomeRecord(request_id="req_1", status="ok", output="another sentence"))
    book.close()
    everything = b"".join(path.read_bytes() for path in shelf.folder.rglob("*") if path.is_file())
    for planted in (b"secret", b"sentence", b"req_1", b"user_1", b"ALLOW"):
        assert planted not in everything


async def test_hash_only_keeps_no_text(shelf: Shelf) -> None:
    """With `text: hash` the record has a keyed hash in place of each text: equal for equal texts, and not SHA-256."""
    shelf.config = msgspec.structs.replace(shelf.config, text="hash")
    book = shelf.open()
    await book.append(verdict("short"))
    await book.append(OutcomeRecord(request_id="req_1", status="ok", output="short"))
    await book.append(EscalationRecord(ticket_id="t", request_id="req_1", event="answered", text="short"))
    told = book.text_hash("short")
    book.close()
    first, second, third = (entry.record for entry in shelf.entries())
    assert isinstance(third, EscalationRecord)
    assert (third.text, third.text_hash) == ("", told)
    assert isinstance(first, VerdictRecord)
    assert isinstance(second, OutcomeRecord)
    assert (first.input, second.output) == ("", "")
    assert first.input_hash == second.output_hash == told
    assert told != hashlib.sha256(b"short").hexdigest()


async def test_missing_keys_are_not_replaced(shelf: Shelf) -> None:
    """A book that has segments is not continued under new keys when its own have gone."""
    book = shelf.open()
    await book.append(verdict())
    book.close()
    for path in shelf.secrets.iterdir():
        path.unlink()
    with pytest.raises(BookUnavailable, match="keys"):
        shelf.open()


async def test_records_from_several_loops(shelf: Shelf) -> None:
    """`append` works from any event loop; each gets its own receipts."""
    book = shelf.open()

    def run() -> list[int]:
        async def several() -> list[int]:
            return [(await book.append(AdminRecord(action="note"))).sequence for _ in range(10)]

        return asyncio.run(several())

    numbers = await asyncio.gather(asyncio.to_thread(run), asyncio.to_thread(run))
    book.close()
    assert sorted(numbers[0] + numbers[1]) == list(range(1, 21))


def test_importing_the_book_loads_no_cryptography() -> None:
    """The command line starts without it: 20 ms."""
    code = (
        "import sys, sekisho.audit, sekisho.audit.book, sekisho.audit.verify, sekisho.audit.reader\n"
        "sys.exit('cryptography' in sys.modules or 'pyrage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_texts = st.text(st.characters(), max_size=60)  # any code point, lone surrogates included
_records = st.one_of(
    st.builds(VerdictRecord, request_id=_texts, user_id=_texts, input=_texts, decision=st.just("REFUSE")),
    st.builds(OutcomeRecord, request_id=_texts, status=_texts, output=_texts, prompt_tokens=st.none() | st.integers()),
    st.builds(EscalationRecord, ticket_id=_texts, request_id=_texts, event=_texts, text=_texts),
    st.builds(
        AdminRecord,
        action=_texts,
        detail=st.dictionaries(_texts, st.none() | st.booleans() | st.integers() | _texts, max_size=3),
    ),
)


@given(_records)
def test_any_record_is_kept(record: Record) -> None:
    """Whatever stands in a record: it is written and read back the same, but for what JSON cannot hold."""
    read = decode(encode(record))
    assert type(read) is type(record)
    try:
        whole = msgspec.json.encode(record)
    except (UnicodeEncodeError, OverflowError):
        assert encode(read) == encode(record)
    else:
        assert msgspec.json.encode(read) == whole
        assert read == record


@settings(max_examples=25)
@given(st.lists(st.lists(_records, max_size=4), max_size=6), st.integers(1, 5))
def test_any_history_verifies(groups: list[list[Record]], restart_every: int) -> None:
    """Groups of any records with restarts between: what is read is what was acknowledged, and the book verifies."""

    async def run(shelf: Shelf) -> list[int]:
        book = shelf.open()
        numbers: list[int] = []
        for turn, group in enumerate(groups, 1):
            numbers += [receipt.sequence for receipt in await asyncio.gather(*map(book.append, group))]
            if turn % restart_every == 0:
                book.close()
                book = shelf.open()
        book.close()
        return numbers

    with tempfile.TemporaryDirectory() as root:
        shelf = Shelf(Path(root))
        count = sum(map(len, groups))
        assert asyncio.run(run(shelf)) == list(range(1, count + 1))
        report = shelf.verify()
        assert report.ok, report.problems
        kinds = [type(record) for group in groups for record in group]
        assert [type(entry.record) for entry in shelf.entries()] == kinds


def test_a_record_of_a_later_version_is_still_told() -> None:
    """A genuine record that cannot be understood is shown as it is, and stops nothing."""
    read = decode(b'{"kind":"verdict","decision":"PERHAPS"}')
    assert isinstance(read, AdminRecord)
    assert (read.action, read.detail["json"]) == ("unreadable", '{"kind":"verdict","decision":"PERHAPS"}')


async def test_a_record_that_is_too_large_is_refused(shelf: Shelf) -> None:
    """More than 32 MiB is not taken, and the book goes on."""
    book = shelf.open()
    with pytest.raises(BookUnavailable, match="larger"):
        await book.append(verdict("x" * (33 << 20)))
    assert (await book.append(verdict("y" * (3 << 20)))).sequence == 1
    book.close()
    assert shelf.verify().ok


async def test_a_cancelled_wait_cancels_no_record(shelf: Shelf) -> None:
    """Whoever stops waiting may find the record in the book all the same."""
    book = shelf.open()
    waiting = asyncio.ensure_future(book.append(verdict("left")))
    await asyncio.sleep(0)
    waiting.cancel()
    await book.append(verdict("stayed"))
    book.close()
    assert shelf.inputs() == ["left", "stayed"]
