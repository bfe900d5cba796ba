import asyncio
import errno
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import StoreUnavailable
from sekisho.store import Store, UsageRecord, UsageSpool
from sekisho.store.spool import decode_line, encode_line
from sekisho.store.usage import storable

Make = Callable[..., UsageRecord]


class Ledger:
    """A sink that keeps each request_id once, as the store does; `outage` makes it fail."""

    def __init__(self) -> None:
        self.records: dict[str, UsageRecord] = {}
        self.durable: set[bool] = set()
        self.outage = False
        self.pause = asyncio.Event()
        self.pause.set()

    async def append_usage(self, records: Sequence[UsageRecord], durable: bool = False) -> int:
        await self.pause.wait()
        if self.outage:
            raise StoreUnavailable("down")
        self.durable.add(durable)
        before = len(self.records)
        for record in records:
            self.records.setdefault(record.request_id, record)
        return len(self.records) - before


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.usage"))


def quarantined(folder: Path) -> list[Path]:
    return list(folder.glob("*.damaged"))


def left_by_the_dead(folder: Path, content: bytes) -> UsageSpool:
    """A spool whose folder holds one dead process' segment with this content."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "1-dead.usage").write_bytes(content)
    return UsageSpool(folder)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[UsageSpool]:
    opened = UsageSpool(tmp_path / "spool")
    yield opened
    opened.close()


@given(st.text(), st.none() | st.text(), st.integers(), st.floats(0, 1e11))
def test_a_line_carries_any_record(request_id: str, user: str | None, tokens: int, moment: float) -> None:
    """What is encoded is one line and decodes to the record, or to its storable form."""
    record = UsageRecord(
        request_id=request_id,
        key_id="k",
        model="m",
        protocol="chat",
        started_at=moment,
        duration_ms=1.0,
        status="completed",
        http_status=200,
        user=user,
        input_tokens=tokens,
    )
    line = encode_line(record)
    assert line.index(b"\n") == len(line) - 1
    good, bad = decode_line(line[:-1])
    assert good in ([record], [storable(record)])
    assert bad == []


async def test_what_is_appended_is_drained_once_in_order(spool: UsageSpool, usage: Make) -> None:
    """Records go to the store in the order of appending, over many batches; then the disk is empty again."""
    ledger, made = Ledger(), [usage(f"r{n}") for n in range(700)]
    for record in made:
        spool.append(record)
    assert spool.pending_bytes > 0
    assert await spool.drain(ledger) == 700
    assert list(ledger.records.values()) == made
    assert await spool.drain(ledger) == 0
    assert spool.pending_bytes == 0
    assert [path.stat().st_size for path in segments(spool._folder)] == [0]


async def test_records_that_come_during_a_drain_are_kept(spool: UsageSpool, usage: Make) -> None:
    """Appending while the store is busy loses nothing: the file is shortened only when all of it is imported."""
    ledger = Ledger()
    ledger.pause.clear()
    spool.append(usage("r1"))
    draining = asyncio.create_task(spool.drain(ledger))
    await asyncio.sleep(0)
    spool.append(usage("r2"))
    ledger.pause.set()
    assert await draining == 1
    assert await spool.drain(ledger) == 1
    assert list(ledger.records) == ["r1", "r2"]


async def test_a_cancelled_or_failed_drain_is_repeated_without_loss(spool: UsageSpool, usage: Make) -> None:
    """Wherever a drain stops, the next one brings the rest."""
    ledger = Ledger()
    for number in range(600):
        spool.append(usage(f"r{number}"))
    ledger.outage = True
    with pytest.raises(StoreUnavailable):
        await spool.drain(ledger)
    ledger.outage = False
    for rounds in range(1, 6):
        task = asyncio.create_task(spool.drain(ledger))
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await spool.drain(ledger)
    assert len(ledger.records) == 600


async def test_segments_are_bounded_and_removed(tmp_path: Path, usage: Make) -> None:
    """A long outage makes many files, not one endless file; after it all but the active one are gone."""
    spool, ledger = UsageSpool(tmp_path, segment_bytes=2000), Ledger()
    for number in range(100):
        spool.append(usage(f"r{number}"))
    assert len(segments(tmp_path)) > 10
    assert max(path.stat().st_size for path in segments(tmp_path)) < 3000
    assert await spool.drain(ledger) == 100
    assert len(segments(tmp_path)) == 1
    spool.close()
    assert segments(tmp_path) == []


async def test_a_closed_spool_refuses_and_its_rest_goes_to_the_next(tmp_path: Path, usage: Make) -> None:
    """Closing keeps what was not drained; closing twice is fine; a drain that is under way ends cleanly."""
    spool, ledger = UsageSpool(tmp_path), Ledger()
    spool.append(usage("r1"))
    ledger.pause.clear()
    draining = asyncio.create_task(spool.drain(ledger))
    await asyncio.sleep(0)
    spool.close()
    spool.close()
    ledger.pause.set()
    with pytest.raises(StoreUnavailable, match="closed"):
        await draining
    with pytest.raises(StoreUnavailable, match="closed"):
        spool.append(usage("r2"))
    successor = UsageSpool(tmp_path)
    assert successor.recover() == 1
    assert await successor.drain(ledger) == 0  # r1 had arrived after all: known, so not billed again
    assert list(ledger.records) == ["r1"]
    successor.close()
    assert segments(tmp_path) == []


async def test_the_living_are_not_robbed(tmp_path: Path, usage: Make) -> None:
    """Another spool of the same folder, in this process or another, does not adopt a segment in use."""
    living, other, ledger = UsageSpool(tmp_path), UsageSpool(tmp_path), Ledger()
    living.append(usage("r1"))
    assert other.recover() == 0
    assert await other.drain(ledger) == 0
    assert await living.drain(ledger) == 1
    living.close()
    other.close()


async def test_a_segment_cut_at_any_byte_gives_exactly_its_whole_lines(tmp_path: Path, usage: Make) -> None:
    """Truncate at every byte: every whole line is billed, the torn one is not, nothing is called damaged."""
    made = [usage("r1"), usage("r2", user="太郎"), usage("r3", ttft_ms=1.5)]
    lines = [encode_line(record) for record in made]
    content = b"".join(lines)
    for length in range(len(content) + 1):
        spool, ledger = left_by_the_dead(tmp_path / "spool", content[:length]), Ledger()
        spool.recover()
        await spool.drain(ledger)
        whole = content[:length].count(b"\n")
        assert list(ledger.records.values()) == made[:whole]
        spool.close()
        assert list((tmp_path / "spool").iterdir()) == []


async def test_a_flipped_bit_costs_at_most_the_record_it_hit(
    tmp_path: Path, usage: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage one byte anywhere, newlines included: all other records are billed, the damage is kept and its place
    logged."""
    made = [usage(f"r{n}", user="deadbeef {") for n in range(3)]  # the user's text looks like the start of a line
    lines = [encode_line(record) for record in made]
    content = b"".join(lines)
    for place in range(len(content) - 1):  # the last newline is the torn line of the test above
        damaged = bytearray(content)
        damaged[place] ^= 0x01
        spool, ledger = left_by_the_dead(tmp_path / "spool", bytes(damaged)), Ledger()
        caplog.clear()
        spool.recover()
        await spool.drain(ledger)
        spool.close()
        hit = sum(len(line) for line in lines[:1]) <= place
        hit += sum(len(line) for line in lines[:2]) <= place
        others = [record for number, record in enumerate(made) if number != hit]
        kept = list(ledger.records.values())
        assert [record for record in kept if record.request_id != f"r{int(hit)}"] == others
        if len(kept) < 3:
            (aside,) = quarantined(tmp_path / "spool")
            assert aside.read_bytes() in bytes(damaged)
            assert aside.name in caplog.text
        assert all(record in made for record in kept)
        assert segments(tmp_path / "spool") == []


@settings(max_examples=60, deadline=None)
@given(garbage=st.binary(max_size=300), position=st.integers(0, 3))
async def test_garbage_between_lines_is_set_aside(
    tmp_path_factory: pytest.TempPathFactory, usage: Make, garbage: bytes, position: int
) -> None:
    """Foreign bytes on lines of their own cost no record."""
    made = [usage(f"r{n}") for n in range(3)]
    lines = [encode_line(record) for record in made]
    lines.insert(position, garbage + b"\n")
    spool, ledger = left_by_the_dead(tmp_path_factory.getbasetemp() / "garbage", b"".join(lines)), Ledger()
    spool.recover()
    await spool.drain(ledger)
    spool.close()
    assert list(ledger.records.values()) == made


async def test_a_record_of_another_version_is_set_aside_not_lost(tmp_path: Path, usage: Make) -> None:
    """A sound line that this version cannot read stands in a file for whoever can."""
    body = b'{"request_id": "r9", "shape": "of the future"}'
    spool = left_by_the_dead(tmp_path / "spool", b"%08x %b\n" % (zlib.crc32(body), body) + encode_line(usage("r1")))
    ledger = Ledger()
    assert spool.recover() == 1
    assert await spool.drain(ledger) == 1
    (kept,) = quarantined(tmp_path / "spool")
    assert body in kept.read_bytes()
    spool.close()


async def test_with_fsync_the_way_is_durable_to_the_end(tmp_path: Path, usage: Make) -> None:
    """A spool that syncs asks the store to sync too before the segment goes."""
    spool, ledger = UsageSpool(tmp_path, fsync=True), Ledger()
    spool.append(usage("r1"))
    await spool.drain(ledger)
    assert ledger.durable == {True}
    spool.close()


LIMITED = """
import asyncio, os, resource, sys
from pathlib import Path
from sekisho.core.errors import StoreUnavailable
from sekisho.store import UsageRecord, UsageSpool

def record(name):
    return UsageRecord(request_id=name, key_id="k", model="m", protocol="chat", started_at=1.0, duration_ms=1.0,
                       status="completed", http_status=200)

def append_until_refused(first):
    for number in range(first, first + 10_000):
        try:
            spool.append(record(f"r{number}"))
        except StoreUnavailable:
            return number
    raise SystemExit("the disk is never full")

spool = UsageSpool(Path(sys.argv[1]))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
full = append_until_refused(0)
assert append_until_refused(full) == full, "and stays refused"
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
again = append_until_refused(full)
print(again, flush=True)  # what stays in a buffer dies with the process
assert again > full
os.kill(os.getpid(), 9)
"""


async def test_a_full_disk_refuses_and_never_acknowledges_half_a_line(tmp_path: Path) -> None:
    """At the limit the disk takes part of a line: the append is refused and the part is cut off, so that lines
    appended when there is room again are whole. All that was acknowledged, and nothing else, is there afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIMITED, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    assert process.returncode == -9
    acknowledged = [f"r{number}" for number in range(int(output))]
    spool, ledger = UsageSpool(tmp_path), Ledger()
    assert spool.recover() == 1
    await spool.drain(ledger)
    spool.close()
    assert list(ledger.records) == acknowledged
    assert quarantined(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_no_space_left_is_unavailable(spool: UsageSpool, usage: Make) -> None:
    """ENOSPC from the system is StoreUnavailable with an id; when the disk has room again the spool goes on."""
    spool.append(usage("r1"))
    real = spool._active.descriptor
    spool._active.descriptor = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(StoreUnavailable) as caught:
        spool.append(usage("r2"))
    assert caught.value.id.startswith("err_")
    os.close(spool._active.descriptor)
    spool._active.descriptor = real
    spool.append(usage("r3"))
    ledger = Ledger()
    await spool.drain(ledger)
    assert list(ledger.records) == ["r1", "r3"]


async def test_a_torn_tail_that_cannot_be_cut_is_never_built_upon(
    spool: UsageSpool, usage: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line stays on the disk and cannot be removed: the next record goes into a new segment, unharmed."""
    spool.append(usage("r1"))
    write = os.write

    def half(descriptor: int, line: bytes) -> int:
        write(descriptor, line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def stuck(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", half)
        broken.setattr(os, "ftruncate", stuck)
        with pytest.raises(StoreUnavailable):
            spool.append(usage("r2"))
        broken.setattr(os, "write", write)
        spool.append(usage("r3"))
    ledger = Ledger()
    await spool.drain(ledger)
    assert list(ledger.records) == ["r1", "r3"]


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """A file where the folder should be is told at once."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(StoreUnavailable):
        UsageSpool(tmp_path / "spool")


async def test_two_spools_that_drain_the_same_records_bill_them_once(store: Store, tmp_path: Path, usage: Make) -> None:
    """Copies of one segment drained side by side, as after a restored backup, are billed once."""
    spools = []
    content = b"".join(encode_line(usage(f"r{n}")) for n in range(500))
    for name in ("a", "b"):
        spools.append(left_by_the_dead(tmp_path / name, content))
        spools[-1].recover()
    new = await asyncio.gather(*(spool.drain(store) for spool in spools))
    assert sum(new) == 500
    assert (await store.spent("2026-09"))["key_1"].requests == 500
    for spool in spools:
        spool.close()
