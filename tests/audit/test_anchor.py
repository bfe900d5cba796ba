"""Anchors: how often, what they prove, and what a bad one does."""

import asyncio

import msgspec

from sekisho.audit.anchor import read_anchors
from sekisho.audit.config import AnchorConfig, AuditConfig

from .conftest import Shelf, verdict


def _counts(shelf: Shelf) -> list[int]:
    keys = shelf.keys()
    good, bad = read_anchors(shelf.anchors, keys.book, keys.public)
    assert not bad
    return [anchor.count for anchor in good]


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
    for number in range(20):
        await book.append(verdict(str(number)))
        for _ in range(500):
            counts = await asyncio.to_thread(_counts, shelf)
            if number < 5 or number - max(counts, default=0) < 5:
                break
            await asyncio.sleep(0.01)
    assert len(set(_counts(shelf))) >= 3
    book.close()
    assert shelf.verify().anchored == 20


async def test_anchors_every_so_many_seconds(shelf: Shelf) -> None:
    """A quiet book is anchored too, once per place."""
    shelf.config = msgspec.structs.replace(shelf.config, anchor=AnchorConfig(str(shelf.anchors), 10**6, 0.02))
    book = shelf.open()
    await book.append(verdict())
    for _ in range(500):
        if 1 in await asyncio.to_thread(_counts, shelf):
            break
        await asyncio.sleep(0.01)
    counts = _counts(shelf)
    assert 1 in counts
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
