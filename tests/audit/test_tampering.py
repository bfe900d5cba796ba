"""What the verifier sees when somebody was at the files. Counts are printed (pytest -s)."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sekisho.audit.keys import ReaderKeys
from sekisho.audit.verify import Report, verify

from .conftest import Shelf, verdict

RECORDS = 4  # in each of the three segments


async def _fill(shelf: Shelf, starts: int = 3, records: int = RECORDS) -> None:
    for start in range(starts):
        book = shelf.open()
        for number in range(records):
            await book.append(verdict(f"{start}.{number}"))
        book.close()


@pytest.fixture
async def full(shelf: Shelf) -> Shelf:
    """Three segments of four records each, anchored at every start and end."""
    await _fill(shelf)
    assert shelf.verify().ok
    return shelf


def _segment(shelf: Shelf, index: int) -> Path:
    return shelf.folder / f"{index:08d}.jsonl"


def _all(index: int) -> list[str]:
    return [f"{start}.{number}" for start in range(index) for number in range(RECORDS)]


def _rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


@pytest.fixture(autouse=True)
def plain(shelf: Shelf) -> None:
    """Packing is tested on its own: here the files are changed byte by byte."""
    import msgspec

    shelf.config = msgspec.structs.replace(shelf.config, compress=False)


async def test_truncation_of_a_closed_segment_at_every_byte(full: Shelf) -> None:
    """Each cut of a segment that another one follows is found, and named within that segment."""
    path = _segment(full, 1)
    whole = path.read_bytes()
    keys = full.keys()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        report = verify(full.folder, keys, ())
        assert not report.ok, size
        assert report.first is not None
        assert report.first.segment == 1
        assert report.first.kind in ("truncated", "edited"), (size, report.first)
    print(f"\n{len(whole)} truncations of a closed segment, {len(whole)} found")


@pytest.mark.slow
async def test_truncation_of_the_last_segment_at_every_byte(full: Shelf) -> None:
    """What is readable is an exact prefix; without anchors a clean cut is not seen, with them every lost record is."""
    path = _segment(full, 2)
    whole = path.read_bytes()
    keys = full.keys()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        records = max(0, sum(end <= size for end in ends) - 1)
        report = verify(full.folder, keys, (full.anchors,))
        assert full.inputs() == [*_all(2), *(f"2.{number}" for number in range(records))]
        assert not report.ok, size
        if size >= ends[0]:
            assert [problem.kind for problem in report.problems] == ["truncated"], (size, report.problems)
            assert report.problems[0].sequence == 2 * RECORDS + records + 1
            assert verify(full.folder, keys, ()).ok
    print(f"\n{len(whole)} truncations of the last segment, all found by the anchor")


async def test_the_book_goes_on_behind_any_cut(full: Shelf, tmp_path: Path) -> None:
    """A crash that leaves any prefix of the last segment: the next start continues it, changes no old byte, and the
    book verifies (but for the anchors, which know better)."""
    original = _segment(full, 2).read_bytes()
    begin = original.index(b"\n") + 1
    checked = 0
    for size in range(begin, len(original), 7):
        copy = Shelf(tmp_path / f"cut{size}")
        copy.config = full.config
        shutil.copytree(full.folder, copy.folder)
        shutil.copytree(full.secrets, copy.secrets)
        _segment(copy, 2).write_bytes(original[:size])
        book = copy.open()
        await book.append(verdict("after"))
        book.close()
        assert _segment(copy, 2).read_bytes() == original[:size]
        inputs = copy.inputs()
        assert inputs[-1] == "after"
        assert [*_all(3), "after"][: len(inputs) - 1] == inputs[:-1]
        report = copy.verify(anchors=False)
        assert report.ok, (size, report.problems)
        checked += 1
    print(f"\n{checked} crashes in mid-line, each continued")


def _flip(shelf: Shelf, index: int, bits: Callable[[int], range]) -> None:
    path = _segment(shelf, index)
    whole = path.read_bytes()
    keys = shelf.keys()
    anchors = (shelf.anchors,) if index == 2 else ()  # only the last segment's end is known to nobody else
    flips, named = 0, 0
    line = 1
    for at in range(len(whole)):
        for bit in bits(at):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            report = verify(shelf.folder, keys, anchors)
            assert not report.ok, (at, bit)
            assert report.first is not None
            assert report.first.segment == index, (at, bit, report.first)
            flips += 1
            named += report.first.line == line
        line += whole[at] == 10
    print(f"\n{flips} flipped bits, {flips} found, {named} named by their line")
    assert named >= flips * 0.99  # a flip of the last line's end reads as a line that was never finished


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("index", [1, 2])
async def test_flipping_every_bit(full: Shelf, index: int) -> None:
    """Each flipped bit of a segment, closed or last, makes the verifier fail, in that segment, at that line."""
    _flip(full, index, lambda at: range(8))


async def test_flipping_a_bit_of_every_byte(full: Shelf) -> None:
    """The same for one bit of each byte, so that every run of the suite sees it."""
    _flip(full, 1, lambda at: range(at % 8, at % 8 + 1))


async def test_an_edited_record_is_named(full: Shelf) -> None:
    """An edit is told with segment, line and sequence number, and only once."""

    def edit(lines: list[bytes]) -> list[bytes]:
        lines[2] = lines[2].replace(b'"c":"', b'"c":"AAAA', 1)
        return lines

    _rewrite(_segment(full, 1), edit)
    report = full.verify()
    assert [(p.kind, p.segment, p.line, p.sequence) for p in report.problems] == [("edited", 1, 3, 6)]


async def test_swapped_lines_are_named(full: Shelf) -> None:
    """Two lines that changed places are told as swapped, not as lost."""
    _rewrite(_segment(full, 1), lambda lines: [lines[0], lines[2], lines[1], *lines[3:]])
    report = full.verify()
    assert [(p.kind, p.segment, p.line, p.sequence) for p in report.problems] == [("swapped", 1, 2, 6)]


async def test_a_deleted_line_is_named(full: Shelf) -> None:
    """A line taken out of the middle is told by its number."""
    _rewrite(_segment(full, 1), lambda lines: [*lines[:2], *lines[3:]])
    report = full.verify()
    assert [(p.kind, p.segment, p.line, p.sequence) for p in report.problems] == [("deleted", 1, 3, 6)]


async def test_a_duplicated_line_is_named(full: Shelf) -> None:
    """A line that stands twice is told where it stands the second time, next to the first or not."""
    _rewrite(_segment(full, 1), lambda lines: [*lines[:3], lines[2], *lines[3:]])
    assert [(p.kind, p.line, p.sequence) for p in full.verify().problems] == [("duplicated", 4, 6)]


async def test_an_inserted_line_is_named(full: Shelf) -> None:
    """A foreign line, and a genuine one of another segment, are told as inserted."""
    other = _segment(full, 0).read_bytes().splitlines(keepends=True)[2]
    original = _segment(full, 1).read_bytes()
    for foreign in (b'{"n":6,"p":"x","c":"y","s":1}\n', other, b"\n", b"\xff\xfe\n"):
        _segment(full, 1).write_bytes(original)
        _rewrite(_segment(full, 1), lambda lines, new=foreign: [*lines[:2], new, *lines[2:]])  # type: ignore[misc]
        report = full.verify()
        assert [(p.kind, p.segment, p.line) for p in report.problems] == [("inserted", 1, 3)], foreign


async def test_lines_behind_the_end_of_a_closed_segment_are_named(full: Shelf, tmp_path: Path) -> None:
    """Nothing can be added to a segment that was closed by rotation."""
    book = full.open()
    await book.append(verdict("a"))
    book._writer.rotate()
    await book.append(verdict("b"))
    book.close()
    assert full.verify().ok
    path = _segment(full, 3)
    path.write_bytes(path.read_bytes() + b"more\n")
    report = full.verify()
    assert [(p.kind, p.segment, p.line) for p in report.problems] == [("inserted", 3, 3)]


async def test_damage_in_the_last_segment_before_a_restart_is_named(full: Shelf) -> None:
    """The writer has no keys for the past and goes on before the damage; the verifier still says what it was."""
    path = _segment(full, 2)
    original, keys = path.read_bytes(), full.secrets
    changes: dict[str, Callable[[list[bytes]], list[bytes]]] = {
        "edited": lambda lines: [*lines[:2], lines[2].replace(b'"c":"', b'"c":"AAAA'), *lines[3:]],
        "deleted": lambda lines: [*lines[:2], *lines[3:]],
    }
    for kind, change in changes.items():
        path.write_bytes(original)
        for later in full.folder.glob("00000003*"):
            later.unlink()
        (keys / "audit-ratchet.json").unlink()
        _rewrite(path, change)
        await _fill(full, starts=1, records=1)
        problems = full.verify(anchors=False).problems
        assert [(p.kind, p.segment, p.line, p.sequence) for p in problems] == [(kind, 2, 3, 10)]


async def test_a_missing_segment_is_named(full: Shelf) -> None:
    """A segment taken out of the middle, and one from the start, are told as missing."""
    kept = _segment(full, 1).read_bytes()
    _segment(full, 1).unlink()
    assert [(p.kind, p.segment, p.sequence) for p in full.verify().problems] == [("segment_missing", 1, 5)]
    _segment(full, 1).write_bytes(kept)
    _segment(full, 0).unlink()
    assert [(p.kind, p.segment) for p in full.verify().problems] == [("segment_missing", 0)]


async def test_a_missing_last_segment_is_a_rollback(full: Shelf) -> None:
    """The last segment's disappearance is seen by the anchors, and by the writer's keys."""
    _segment(full, 2).unlink()
    assert {p.kind for p in full.verify().problems} == {"rolled_back"}
    assert [p.kind for p in full.verify(anchors=False).problems] == ["rolled_back"]


async def test_exchanged_segments_are_named(full: Shelf) -> None:
    """A segment under another one's name is not taken for it."""
    one, two = _segment(full, 1).read_bytes(), _segment(full, 2).read_bytes()
    _segment(full, 1).write_bytes(two)
    _segment(full, 2).write_bytes(one)
    report = full.verify()
    assert report.first is not None
    assert (report.first.kind, report.first.segment, report.first.line) == ("edited", 1, 1)


async def test_rollback_of_everything_to_an_old_copy(full: Shelf, tmp_path: Path) -> None:
    """Folder and secrets are put back together: only an anchor kept elsewhere can tell, and does."""
    saved = tmp_path / "saved"
    shutil.copytree(full.folder, saved / "folder")
    shutil.copytree(full.secrets, saved / "secrets")
    await _fill(full, starts=1)
    for name, place in (("folder", full.folder), ("secrets", full.secrets)):
        shutil.rmtree(place)
        shutil.copytree(saved / name, place)
    assert full.verify(anchors=False).ok
    report = full.verify()
    assert [p.kind for p in report.problems] == ["rolled_back"]
    assert "vouches for 16 records" in report.problems[0].reason


async def test_rollback_and_going_on(full: Shelf, tmp_path: Path) -> None:
    """An old copy that was written on since is a different book at the anchored place."""
    saved = tmp_path / "saved"
    shutil.copytree(full.folder, saved / "folder")
    shutil.copytree(full.secrets, saved / "secrets")
    await _fill(full, starts=1)
    for name, place in (("folder", full.folder), ("secrets", full.secrets)):
        shutil.rmtree(place)
        shutil.copytree(saved / name, place)
    anchors = full.anchors.rename(tmp_path / "taken away")
    await _fill(full, starts=1, records=6)
    assert full.verify().ok
    report = verify(full.folder, full.keys(), (anchors,))
    assert report.first is not None
    assert (report.first.kind, report.first.segment) == ("rolled_back", 3)


async def test_rollback_of_the_folder_alone(full: Shelf, tmp_path: Path) -> None:
    """The writer's keys have moved on: an old copy of the folder is seen without any anchor, even if it goes on."""
    shutil.copytree(full.folder, tmp_path / "saved")
    await _fill(full, starts=2)
    shutil.rmtree(full.folder)
    shutil.copytree(tmp_path / "saved", full.folder)
    assert [p.kind for p in full.verify(anchors=False).problems] == ["rolled_back"]
    await _fill(full, starts=1)
    report = full.verify(anchors=False)
    assert [(p.kind, p.segment) for p in report.problems] == [("segment_missing", 3)]


async def test_a_huge_segment_number_costs_nothing(full: Shelf) -> None:
    """A file that claims a number no book reaches is told, and no key is derived for it."""
    shutil.copy(_segment(full, 1), full.folder / "999999999999.jsonl")
    report = full.verify(anchors=False)
    assert [(p.kind, p.segment) for p in report.problems if p.kind == "inserted"] == [("inserted", 999999999999)]


async def test_another_books_segment(full: Shelf, tmp_path: Path) -> None:
    """A segment of another book under the right name is no part of this one."""
    other = Shelf(tmp_path / "other")
    other.config = full.config
    await _fill(other)
    shutil.copy(_segment(other, 1), _segment(full, 1))
    report = full.verify()
    assert report.first is not None
    assert (report.first.kind, report.first.segment) == ("edited", 1)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_rearrangement_of_lines_is_found(shelf: Shelf, data: st.DataObject) -> None:
    """Whatever lines in any order with anything between: only the original verifies, alone or with a line begun."""
    if not shelf.folder.exists():
        asyncio.run(_fill(shelf, starts=1))
        shelf.folder.joinpath("copy").write_bytes(_segment(shelf, 0).read_bytes())
    original = shelf.folder.joinpath("copy").read_bytes()
    lines = original.splitlines(keepends=True)
    pieces = st.one_of(
        st.sampled_from(lines), st.binary(max_size=40), st.sampled_from(lines).map(lambda line: line[:-1])
    )
    changed = b"".join(data.draw(st.lists(pieces, max_size=8)))
    _segment(shelf, 0).write_bytes(changed)
    report: Report = verify(shelf.folder, shelf.keys(), (shelf.anchors,))
    begun = changed.removeprefix(original)  # a line that was begun behind the whole original is no fault
    assert report.ok == (changed.startswith(original) and b"\n" not in begun)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_the_parsers_take_any_bytes(noise: bytes) -> None:
    """Header and line parsers answer None for what they do not know, and never raise."""
    from sekisho.audit.segment import parse_header, parse_line

    assert parse_header(noise) is None
    assert parse_line(noise) is None


def test_a_key_file_is_needed_to_verify(tmp_path: Path) -> None:
    """Without the recovery key there is no verifying: it says so."""
    from sekisho.audit.keys import KeyUnavailable

    with pytest.raises(KeyUnavailable, match="recovery key"):
        ReaderKeys.load(tmp_path)
