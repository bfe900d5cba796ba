"""Rotation, packing, retention, and clocks that jump."""

import asyncio
import gzip
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.audit.book import Book
from sekisho.audit.files import Files
from sekisho.audit.packing import pack_closed
from sekisho.audit.reader import Query, Reader
from sekisho.audit.records import AdminRecord
from sekisho.audit.retention import DELETIONS_FILE
from sekisho.audit.segment import segments
from sekisho.audit.verify import verify
from sekisho.core.errors import BookUnavailable

from .conftest import Shelf, verdict
from .faulty import FaultyFiles

DAY_S = 86400.0


@pytest.fixture
def quiet(shelf: Shelf) -> Shelf:
    shelf.config = msgspec.structs.replace(shelf.config, compress=False)
    return shelf


async def _days(shelf: Shelf, days: int, **options: object) -> Book:
    """A book with a record a day, hence a segment a day; left open."""
    book = shelf.open(**options)
    for day in range(days):
        await book.append(verdict(f"day {day}"))
        shelf.clock.advance(DAY_S)
    return book


async def test_a_segment_a_day(quiet: Shelf) -> None:
    """The first record of a new day (UTC) opens a new segment."""
    book = await _days(quiet, 4)
    book.close()
    assert [entry.segment for entry in quiet.entries()] == [0, 1, 2, 3]
    assert quiet.verify().ok


async def test_rotation_by_size(quiet: Shelf) -> None:
    """A full segment is followed by another; the chain goes on."""
    quiet.config = msgspec.structs.replace(quiet.config, segment_mb=0.01)
    book = quiet.open()
    for number in range(60):
        await book.append(verdict(f"{number} " + "x" * 300))
    book.close()
    report = quiet.verify()
    assert report.ok, report.problems
    assert report.segments > 3
    assert all(path.stat().st_size < 12_000 for path in quiet.folder.glob("*.jsonl"))


async def test_a_segment_that_is_packed_as_it_is_opened_is_read(quiet: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there a moment ago under its plain name: the packed form has the same lines."""
    (await _days(quiet, 3)).close()
    real_open = Path.open

    def late_open(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == quiet.folder / "00000000.jsonl" and not packing:
            packing.append(True)
            pack_closed(Files(), quiet.folder)
        return real_open(self, *arguments, **options)

    packing: list[bool] = []
    monkeypatch.setattr(Path, "open", late_open)
    assert quiet.inputs() == ["day 0", "day 1", "day 2"]
    assert packing


async def test_a_listing_that_shows_neither_form_of_a_segment_is_made_again(
    quiet: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain form is gone before the listing comes to it, and the packed one is there after it has passed. What is
    missing for good is still missed."""
    (await _days(quiet, 3)).close()
    real_iterdir, listings = Path.iterdir, []

    def torn_listing(self: Path) -> Any:
        listings.append(self)
        return (path for path in real_iterdir(self) if len(listings) > 1 or not path.name.startswith("00000001."))

    monkeypatch.setattr(Path, "iterdir", torn_listing)
    assert list(segments(quiet.folder)) == [0, 1, 2]
    (quiet.folder / "00000001.jsonl").unlink()
    assert list(segments(quiet.folder)) == [0, 2]
    assert [problem.kind for problem in quiet.verify().problems] == ["segment_missing"]


async def test_rotation_under_load(quiet: Shelf) -> None:
    """Many appenders, segments of a few records, packing and reading at the same time: all there, in order, sound."""
    quiet.config = msgspec.structs.replace(quiet.config, segment_mb=0.003, compress=True)
    book = quiet.open()

    async def client(name: int) -> None:
        for number in range(40):
            await book.append(verdict(f"{name}.{number}"))

    async def look() -> int:
        looks = 0
        while not done.is_set():
            await asyncio.to_thread(lambda: list(Reader(quiet.folder, quiet.keys()).entries()))
            report = await asyncio.to_thread(quiet.verify)
            assert report.ok, report.problems
            looks += 1
        return looks

    done = asyncio.Event()
    watching = asyncio.ensure_future(look())
    await asyncio.gather(*(client(name) for name in range(20)))
    done.set()
    looks = await watching
    book.close()
    inputs = quiet.inputs()
    assert len(inputs) == 800
    for name in range(20):
        assert [text for text in inputs if text.startswith(f"{name}.")] == [f"{name}.{n}" for n in range(40)]
    report = quiet.verify()
    assert report.ok, report.problems
    print(f"\n{report.segments} segments, read and verified {looks} times meanwhile")


async def test_clock_jumps(quiet: Shelf) -> None:
    """The wall clock jumps forward and back by years: order and chain do not care, and no segment is begun twice."""
    chance = random.Random(1)
    book = quiet.open()
    for number in range(40):
        await book.append(verdict(str(number)))
        quiet.clock.jump(chance.choice([-3e8, -3600, 0.0, 3600, 3e8]))
    book.close()
    assert quiet.inputs() == [str(number) for number in range(40)]
    assert quiet.verify().ok


async def test_packed_segments_read_and_verify_the_same(quiet: Shelf) -> None:
    """Packing changes no line: reader and verifier say the same before and after."""
    book = await _days(quiet, 4)
    book.close()
    before, entries = quiet.verify(), quiet.entries()
    assert pack_closed(Files(), quiet.folder) == 3
    assert len(list(quiet.folder.glob("*.gz"))) == 3
    assert quiet.verify() == before
    assert quiet.entries() == entries
    assert pack_closed(Files(), quiet.folder) == 0
    quiet.open().close()
    assert quiet.verify().ok


async def test_damage_in_a_packed_segment_is_found(quiet: Shelf) -> None:
    """A flipped bit of a packed file is found, or did not change what is inside (gzip's own time stamp, for one)."""
    book = await _days(quiet, 3)
    book.close()
    pack_closed(Files(), quiet.folder)
    path = quiet.folder / "00000001.jsonl.gz"
    whole = path.read_bytes()
    keys, found, same = quiet.keys(), 0, 0
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        if verify(quiet.folder, keys, (quiet.anchors,)).ok:
            assert gzip.decompress(changed) == gzip.decompress(whole), at
            same += 1
        else:
            found += 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        report = verify(quiet.folder, keys, (quiet.anchors,))
        assert not report.ok, size
        assert report.first is not None
        assert report.first.segment == 1
    print(f"\n{found} of {len(whole)} flips found, {same} changed nothing inside; {len(whole)} truncations found")
    assert same <= 10


@pytest.mark.parametrize("operation", ["create", "write", "sync", "replace", "sync_folder"])
async def test_packing_that_fails_loses_nothing(quiet: Shelf, operation: str) -> None:
    """A fault at any step of packing leaves a book that reads as before, and packing can be done again."""
    book = await _days(quiet, 3)
    book.close()
    entries = quiet.entries()
    files = FaultyFiles()
    files.fail(operation)
    with pytest.raises(OSError, match="Input/output"):
        pack_closed(files, quiet.folder)
    assert quiet.entries() == entries
    assert quiet.verify().ok
    pack_closed(Files(), quiet.folder)
    assert quiet.entries() == entries
    assert quiet.verify().ok


async def test_retention_deletes_whole_old_segments_in_the_open(quiet: Shelf) -> None:
    """What ended more than N days ago goes; the report says what, and the book still verifies, anchors and all."""
    book = await _days(quiet, 10)
    deletion = await book.retain(days=4, user_id="admin")
    assert deletion is not None
    assert (deletion.first_segment, deletion.last_segment, deletion.last_sequence) == (0, 4, 5)
    await book.append(verdict("after"))
    book.close()
    report = quiet.verify()
    assert report.ok, report.problems
    assert report.first_sequence == 6
    assert [each.last_segment for each in report.removed] == [4]
    assert not (quiet.folder / "00000004.jsonl").exists()
    told = [e.record for e in Reader(quiet.folder, quiet.keys()).search(Query(kind="admin"))]
    assert isinstance(told[0], AdminRecord)
    assert (told[0].user_id, told[0].detail["last_sequence"]) == ("admin", 5)


async def test_retention_again_and_again(quiet: Shelf) -> None:
    """Later deletions continue earlier ones, whose announcements they delete in the end."""
    book = await _days(quiet, 6)
    for _ in range(4):
        assert await book.retain(days=2) is not None
        for day in range(3):
            await book.append(verdict(f"more {day}"))
            quiet.clock.advance(DAY_S)
    assert await book.retain(days=1000) is None
    book.close()
    report = quiet.verify()
    assert report.ok, report.problems
    assert len(report.removed) == 4


async def test_deleting_without_the_record_is_found(quiet: Shelf) -> None:
    """Files removed by hand, a deletion record taken away or altered: each is a problem."""
    book = await _days(quiet, 6)
    await book.retain(days=3)
    book.close()
    path = quiet.folder / DELETIONS_FILE
    line = path.read_bytes()
    path.unlink()
    assert [p.kind for p in quiet.verify().problems] == ["segment_missing"]
    path.write_bytes(line.replace(b'"last_sequence":2', b'"last_sequence":3'))
    assert {p.kind for p in quiet.verify().problems} == {"segment_missing", "bad_deletion"}
    path.write_bytes(line)
    assert quiet.verify().ok
    (quiet.folder / "00000003.jsonl").unlink()
    assert "segment_missing" in {p.kind for p in quiet.verify().problems}


async def test_a_deletion_that_the_book_never_announced(quiet: Shelf) -> None:
    """Whoever has the signing key alone cannot delete unseen: the announcement in the book is missing."""
    from sekisho.audit import retention
    from sekisho.audit.export import signing_key

    book = await _days(quiet, 6)
    book.close()
    plan = retention.plan(quiet.folder, quiet.keys().book, quiet.clock.now() - 3 * DAY_S, "now")
    assert plan is not None
    forged = msgspec.structs.replace(plan, announced=6).signed(signing_key(quiet.secrets))
    retention.record(Files(), quiet.folder, forged)
    retention.remove(Files(), quiet.folder, forged)
    assert [p.kind for p in quiet.verify().problems] == ["bad_deletion"]


async def test_a_crash_between_record_and_removal(quiet: Shelf) -> None:
    """Files that are said to be deleted may still be there: the book verifies, and the next start removes them."""
    files = FaultyFiles()
    book = await _days(quiet, 6)
    original = Files.remove
    try:
        Files.remove = lambda self, path: (_ for _ in ()).throw(OSError("killed"))  # type: ignore[assignment]
        with pytest.raises(BookUnavailable):
            await book.retain(days=3)
    finally:
        Files.remove = original  # type: ignore[method-assign]
    book.close()
    assert quiet.verify().ok
    assert (quiet.folder / "00000000.jsonl").exists()
    quiet.open(files=files).close()
    assert not (quiet.folder / "00000000.jsonl").exists()
    assert quiet.verify().ok


async def test_retention_by_itself_does_not_believe_a_clock_that_jumped(quiet: Shelf) -> None:
    """With `retention_days` old segments go by themselves, but not after a jump of the clock."""
    quiet.config = msgspec.structs.replace(quiet.config, retention_days=3)
    book = await _days(quiet, 3)
    quiet.clock.jump(400 * DAY_S)
    await book._retain_by_clock()
    assert (quiet.folder / "00000000.jsonl").exists()
    quiet.clock.jump(-400 * DAY_S)
    for day in range(4):
        await book.append(verdict(f"later {day}"))
        quiet.clock.advance(DAY_S)
    await book._retain_by_clock()
    assert not (quiet.folder / "00000000.jsonl").exists()
    assert (quiet.folder / "00000005.jsonl").exists()
    book.close()
    report = quiet.verify()
    assert report.ok, report.problems


async def test_upkeep_packs_in_the_background(shelf: Shelf) -> None:
    """Closed segments are packed without anybody asking."""
    book = await _days(shelf, 3)
    while len(list(shelf.folder.glob("*.gz"))) < 2:  # noqa: ASYNC110 - a thread's work, no event to wait for
        await asyncio.sleep(0.02)
    book.close()
    assert sorted(path.name for path in segments(shelf.folder).values())[:2] == [
        "00000000.jsonl.gz",
        "00000001.jsonl.gz",
    ]
    assert shelf.verify().ok
