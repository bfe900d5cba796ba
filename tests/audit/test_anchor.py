"""Anchors: how often, what they prove, and what a bad one does."""

import asyncio
import threading
from collections.abc import Callable

import msgspec

from sekisho.audit.anchor import read_anchors
from sekisho.audit.config import AnchorConfig, AuditConfig
from sekisho.audit.files import Files

from .conftest import Shelf, verdict


def _counts(shelf: Shelf, *, while_written: bool = False) -> list[int]:
    """A line that is being written may be seen torn; no other may."""
    keys = shelf.keys()
    good, bad = read_anchors(shelf.anchors, keys.book, keys.public)
    assert not [line for line in bad if not (while_written and line.torn)]
    return [anchor.count for anchor in good]


async def _until(shelf: Shelf, holds: Callable[[list[int]], bool]) -> None:
    """Waits for the anchors' thread, as long as the test may take."""
    while not holds(await asyncio.to_thread(_counts, shelf, while_written=True)):  # noqa: ASYNC110 - a thread's work, no event to wait for
        await asyncio.sleep(0.01)


async def test_anchors_at_start_at_the_end_and_on_demand(shelf: Shelf) -> None:
    """A book that was opened and closed is anchored at both; asking twice at one place makes one."""
    book = shelf.open()
    await book.append(verdict())
    book.anchor_now()
    assert book.anchor_now() is None
    await book.append(verdict())
    book.close()
    assert _counts(shelf)[-2:] == [1, 2]


async def test_anchors_every_so_many_records(shelf: Shelf) -> None:
    """After N records the next anchor is written without anybody asking."""
    shelf.config = msgspec.structs.replace(shelf.config, anchor=AnchorConfig(str(shelf.anchors), 5, 3600))
    book = shelf.open()
    await _until(shelf, bool)
    for number in range(1, 21):
        await book.append(verdict(str(number)))
        await _until(shelf, lambda counts, number=number: number - max(counts) < 5)  # type: ignore[misc]
    book.close()
    assert len(set(_counts(shelf))) >= 5
    report = shelf.verify()
    assert (report.anchored, report.notes) == (20, ())


async def test_records_that_come_while_an_anchor_is_written_are_anchored_too(shelf: Shelf) -> None:
    """The next anchor is due at once where enough came meanwhile, though no later record asks for it."""
    begun, go_on = threading.Event(), threading.Event()

    class SlowFirstAnchor(Files):
        def sync(self, descriptor: int) -> None:
            if threading.current_thread().name == "sekisho-anchor":
                begun.set()
                go_on.wait()
            super().sync(descriptor)

    shelf.config = msgspec.structs.replace(shelf.config, anchor=AnchorConfig(str(shelf.anchors), 5, 3600))
    book = shelf.open(files=SlowFirstAnchor())
    await asyncio.to_thread(begun.wait)
    for number in range(6):
        await book.append(verdict(str(number)))
    go_on.set()
    await _until(shelf, lambda counts: max(counts) >= 5)
    book.close()


async def test_anchors_every_so_many_seconds(shelf: Shelf) -> None:
    """A quiet book is anchored too, once per place."""
    shelf.config = msgspec.structs.replace(shelf.config, anchor=AnchorConfig(str(shelf.anchors), 10**6, 0.02))
    book = shelf.open()
    await book.append(verdict())
    await _until(shelf, lambda counts: 1 in counts)
    book.close()


async def test_bad_anchors_are_told(shelf: Shelf) -> None:
    """A forged or altered anchor is a problem, a torn last line is not, and neither hides the good ones."""
    book = shelf.open()
    await book.append(verdict())
    book.close()
    path = next(shelf.anchors.iterdir())
    lines = path.read_bytes()
    path.write_bytes(lines + lines.splitlines(keepends=True)[-1][:50])
    report = shelf.verify()
    assert report.ok
    assert any("not a whole line" in note for note in report.notes)
    path.write_bytes(lines.replace(b'"count":1', b'"count":9'))
    assert {problem.kind for problem in shelf.verify().problems} == {"bad_anchor"}
    path.write_bytes(b"{}\n" + lines)
    report = shelf.verify()
    assert [problem.kind for problem in report.problems] == ["bad_anchor"]
    assert report.anchored == 1


async def test_anchors_inside_the_folder_by_default(shelf: Shelf) -> None:
    """Without a configured place they lie beside the segments, which shows a cut tail but no rollback."""
    shelf.config = AuditConfig(fsync=False)
    book = shelf.open()
    await book.append(verdict())
    book.close()
    assert [path.parent.name for path in shelf.folder.rglob("*.anchors.jsonl")] == ["anchors"]
