"""A disk that is full, broken, or lies: what was acknowledged stays, what failed says so, and the book recovers."""

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sekisho.audit.book import Book
from sekisho.audit.records import VerdictRecord
from sekisho.core.errors import BookUnavailable, ServiceError

from .conftest import Shelf, verdict
from .faulty import ERRORS, FaultyFiles


@pytest.fixture
def synced(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Nothing is synced but for what a test appends: the writer's own lazy sync would meet the faults instead."""
    monkeypatch.setattr("sekisho.audit.book.LAZY_SYNC_S", 3600.0)
    shelf.config = msgspec.structs.replace(shelf.config, fsync=True, compress=False)
    return shelf


async def _try(book: Book, text: str) -> bool:
    try:
        await book.append(verdict(text))
    except BookUnavailable:
        return False
    return True


def _check(shelf: Shelf, acknowledged: list[str], failed: list[str]) -> None:
    """The readable log holds everything acknowledged, in order; of what failed it may hold some."""
    inputs = shelf.inputs()
    assert [text for text in inputs if text in set(acknowledged)] == acknowledged
    assert set(inputs) <= {*acknowledged, *failed}
    assert len(inputs) == len(set(inputs))
    report = shelf.verify()
    assert report.ok, report.problems


@pytest.mark.parametrize("name", sorted(ERRORS))
@pytest.mark.parametrize("operation", ["write", "sync", "create", "replace", "sync_folder"])
async def test_an_operation_that_fails(synced: Shelf, operation: str, name: str) -> None:
    """Appends fail as BookUnavailable while it lasts, and the book goes on in a new segment when it is over."""
    files = FaultyFiles()
    book = synced.open(files=files)
    assert await _try(book, "before")
    files.fail(operation, ERRORS[name])
    during = []
    for number in range(4):
        during.append(await _try(book, f"during {number}"))
        synced.clock.advance(1.5)
    files.heal()
    synced.clock.advance(2)
    assert await _try(book, "after")
    book.close()
    acknowledged = ["before", *(f"during {n}" for n, took in enumerate(during) if took), "after"]
    _check(synced, acknowledged, [f"during {n}" for n, took in enumerate(during) if not took])
    if operation in ("write", "sync"):
        assert not any(during)
        assert synced.verify().segments >= 2


async def test_the_error_is_operational(synced: Shelf) -> None:
    """503 `book_unavailable`, with an id of its own for each waiter and a time to come back."""
    files = FaultyFiles()
    book = synced.open(files=files)
    files.fail("sync")
    results = await asyncio.gather(*(book.append(verdict(str(n))) for n in range(5)), return_exceptions=True)
    book.close()
    assert all(isinstance(result, BookUnavailable) for result in results)
    errors = [result for result in results if isinstance(result, BookUnavailable)]
    assert isinstance(errors[0], ServiceError)
    assert (errors[0].status, errors[0].error_code, errors[0].retry_after_s) == (503, "book_unavailable", 1.0)
    assert len({error.id for error in errors}) == 5


async def test_nothing_is_acknowledged_on_a_file_whose_sync_failed(synced: Shelf) -> None:
    """After one failed sync the file gets no further byte, even though later syncs of it would succeed."""
    files = FaultyFiles()
    book = synced.open(files=files)
    assert await _try(book, "one")
    files.fail("sync", times=1)
    assert not await _try(book, "two")
    first = synced.folder / "00000000.jsonl"
    size = first.stat().st_size
    assert await _try(book, "three")
    book.close()
    assert first.stat().st_size == size
    segments = {text: each.segment for text, each in zip(synced.inputs(), synced.entries(), strict=True)}
    assert segments["three"] == 1
    _check(synced, ["one", "three"], ["two"])


async def test_what_was_handed_over_survives_a_failed_sync(synced: Shelf) -> None:
    """Records that were acknowledged as handed over are written again when the sync behind them fails: the kernel may
    have dropped its pages. They keep their numbers."""
    files = FaultyFiles()
    book = synced.open(files=files)
    receipts = [await book.hand_over(verdict(f"light {number}")) for number in range(3)]
    files.fail("sync", times=1)
    assert not await _try(book, "heavy")
    assert await _try(book, "after")
    book.close()
    old = synced.folder / "00000000.jsonl"
    header = old.read_bytes().splitlines(keepends=True)[0]
    old.write_bytes(header)  # what the kernel dropped
    numbers = {e.record.input: e.sequence for e in synced.entries() if isinstance(e.record, VerdictRecord)}
    for number, receipt in enumerate(receipts):
        assert numbers[f"light {number}"] == receipt.sequence
    assert synced.verify().ok


async def test_what_was_handed_over_is_made_durable_without_being_asked(
    synced: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after the records are with the kernel the writer syncs them, though nobody waits for it."""
    monkeypatch.setattr("sekisho.audit.book.LAZY_SYNC_S", 0.01)
    book = synced.open()
    receipt = await book.hand_over(verdict("light"))
    while book.place.sequence < receipt.sequence:  # noqa: ASYNC110 - the writer's thread tells nobody of it
        await asyncio.sleep(0.005)
    book.close()


async def test_a_short_write_on_a_full_disk(synced: Shelf) -> None:
    """A disk that takes part of a group: nothing of the group is acknowledged, the part is cut off."""
    for room in (0, 1, 100, 333, 700):
        shelf = Shelf(synced.folder.parent / f"room{room}")
        shelf.config = synced.config
        files = FaultyFiles()
        book = shelf.open(files=files)
        assert await _try(book, "before")
        files.room_bytes = room
        results = await asyncio.gather(*(_try(book, f"during {n}") for n in range(5)))
        files.heal()
        shelf.clock.advance(2)
        assert await _try(book, "after")
        book.close()
        _check(
            shelf,
            ["before", *(f"during {n}" for n, r in enumerate(results) if r), "after"],
            [f"during {n}" for n, r in enumerate(results) if not r],
        )


async def test_a_torn_tail_that_cannot_be_cut(synced: Shelf) -> None:
    """Where even the cut fails, the torn bytes stay behind the end that the next segment states, and do not count."""
    files = FaultyFiles()
    book = synced.open(files=files)
    assert await _try(book, "before")
    files.room_bytes = 150
    files.fail("truncate")
    assert not await _try(book, "during")
    files.heal()
    synced.clock.advance(2)
    assert await _try(book, "after")
    book.close()
    _check(synced, ["before", "after"], ["during"])
    assert any("never acknowledged" in note for note in synced.verify().notes)


async def test_rotation_onto_a_full_disk_goes_on_in_the_old_segment(synced: Shelf) -> None:
    """When no new segment can be begun, a full segment takes more rather than nothing."""
    synced.config = msgspec.structs.replace(synced.config, segment_mb=0.0005)
    files = FaultyFiles()
    book = synced.open(files=files)
    assert await _try(book, "x" * 600)
    files.fail("create", errno.ENOSPC)
    assert await _try(book, "goes on")
    files.heal()
    synced.clock.advance(2)
    assert await _try(book, "rotated")
    book.close()
    assert [entry.segment for entry in synced.entries()] == [0, 0, 1]
    assert synced.verify().ok


async def test_anchors_that_cannot_be_written_hold_nothing_up(synced: Shelf) -> None:
    """The place for anchors is a file: appends go on, and the book says that its anchors fail."""
    synced.anchors.write_text("in the way")
    book = synced.open()
    assert await _try(book, "one")
    assert book.anchor_now() is None
    assert book.anchors_failing
    book.close()
    assert synced.verify(anchors=False).ok


@pytest.mark.parametrize("seed", range(12))
async def test_random_faults(synced: Shelf, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred groups over a disk where everything fails at times, lazy syncs among them: all that was acknowledged
    is there, in order."""
    monkeypatch.setattr("sekisho.audit.book.LAZY_SYNC_S", 0.02)
    chance = random.Random(seed)
    synced.config = msgspec.structs.replace(synced.config, segment_mb=0.01)
    files = FaultyFiles()
    book = synced.open(files=files)
    acknowledged: list[tuple[int, str]] = []
    failed: list[str] = []

    async def one(text: str) -> None:
        send = book.hand_over if chance.random() < 0.3 else book.append
        try:
            acknowledged.append(((await send(verdict(text))).sequence, text))
        except BookUnavailable:
            failed.append(text)

    for turn in range(200):
        if chance.random() < 0.3:
            operation = chance.choice(["write", "sync", "create", "replace", "sync_folder", "truncate", "close"])
            files.fail(operation, chance.choice([errno.EIO, errno.ENOSPC]), times=chance.randint(1, 3))
        if chance.random() < 0.1:
            files.room_bytes = chance.randint(0, 3000)
        if chance.random() < 0.5:
            files.heal()
        await asyncio.gather(*(one(f"{turn}.{number}") for number in range(chance.randint(1, 4))))
        synced.clock.advance(chance.choice([0, 0, 0.3, 1.1, 40_000]))
    files.heal()
    await one("healed")  # behind whatever the writer had in hand, which may still have failed
    synced.clock.advance(2)
    await one("last")
    assert acknowledged[-1][1] == "last"
    book.close()
    print(f"\nseed {seed}: {len(acknowledged)} acknowledged, {len(failed)} failed, {synced.verify().segments} segments")
    _check(synced, [text for _, text in sorted(acknowledged)], failed)
    places = {e.sequence: e.record.input for e in synced.entries() if isinstance(e.record, VerdictRecord)}
    assert all(places[sequence] == text for sequence, text in acknowledged)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_real_full_disk(synced: Shelf, small_disk: Path) -> None:
    """A real ENOSPC: appends fail, nothing acknowledged is lost, and space that is made lets the book go on."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(100 << 10))
    synced.folder = small_disk / "audit"
    book = synced.open()
    took: list[str] = []
    failed: list[str] = []
    for number in range(400):
        text = f"{number} " + "x" * 700
        (took if await _try(book, text) else failed).append(text)
        synced.clock.advance(1.1)
    assert took
    assert failed
    ballast.unlink()
    for number in range(400, 410):
        text = f"{number} after"
        assert await _try(book, text)
        took.append(text)
    book.close()
    print(f"\n{len(took)} acknowledged, {len(failed)} failed on a full disk, {synced.verify().segments} segments")
    _check(synced, took, failed)
