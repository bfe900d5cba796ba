"""The folder of a run, with real files."""

import asyncio
import errno
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import journal_harness as harness
import pytest
from journal_harness import Counted, done, entered, files_in, opened, the_run, the_step

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.durable.journal_errors import (
    FolderUnusable,
    WrongFolder,
)
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.store import Store

clock, folder, store = harness.clock, harness.folder, harness.store


async def test_files_are_whole_private_and_recorded(store: Store, folder: Path) -> None:
    """Written or taken over, in sub-folders, replaced, empty or large: the SHA-256 on record is that of the file."""

    async def work(context: StepContext) -> None:
        context.write("a.json", b"old")
        assert context.write("a.json", b"new") == folder / "a.json"
        context.write("deep/er/花子.bin", bytes(3_000_000))
        context.write("empty", b"")
        (context.folder / "tool.csv").write_bytes(b"by a tool")
        assert context.keep("tool.csv") == folder / "tool.csv"

    await done(store, folder, ("a", work))
    recorded = (await the_step(store, "a")).artifacts
    assert recorded.keys() == {"a.json", "deep/er/花子.bin", "empty", "tool.csv"}
    for name, digest in recorded.items():
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    assert (folder / "a.json").read_bytes() == b"new"
    assert files_in(folder).keys() == recorded.keys() | {".lock", ".journal.json"}
    if os.name == "posix":
        assert not any(path.stat().st_mode & 0o077 for path in (folder, folder / "a.json", folder / "deep"))


async def test_a_reader_sees_the_old_file_or_the_new_one(store: Store, folder: Path) -> None:
    """While a file is replaced again and again, everybody who reads it gets one of its versions, whole."""
    size = 400_000
    seen: set[tuple[int, int]] = set()

    def read(until_it_is: int) -> None:
        while (until_it_is, size) not in seen:
            body = (folder / "out.bin").read_bytes()
            assert body == body[:1] * len(body)
            seen.add((body[0], len(body)))

    async def work(context: StepContext) -> None:
        context.write("out.bin", bytes(size))
        reading = asyncio.create_task(asyncio.to_thread(read, 60))
        for version in range(1, 61):
            await asyncio.to_thread(context.write, "out.bin", bytes([version]) * size)
        await reading

    await done(store, folder, ("a", work))
    assert {length for _, length in seen} == {size}


BAD_NAMES = ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "./a", ".lock", "a/.b", "a\\b", "a:b"]
BAD_NAMES += ["a\0", "\ud800", "x" * 201, "link/x"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_name_that_leads_elsewhere_is_refused(store: Store, folder: Path, name: str) -> None:
    """Out of the folder, onto the journal's own files, or what some file system would not take."""

    async def work(context: StepContext) -> None:
        (folder / "link").symlink_to(folder.parent)
        for refuse in (lambda: context.write(name, b"x"), lambda: context.keep(name)):
            with pytest.raises(ValueError, match=r"not a name|leads out"):
                refuse()

    await done(store, folder, ("a", work))
    assert (await the_step(store, "a")).artifacts == {}


async def test_two_steps_cannot_write_one_file(store: Store, folder: Path) -> None:
    """Not in one life, not at once and not in a later life: one of the two could never be verified."""
    await done(store, folder, ("a", Counted("x.txt")))
    with pytest.raises(ValueError, match="step a already"):
        await done(store, folder, ("a", Counted("x.txt")), ("b", Counted("x.txt")))
    assert (folder / "x.txt").read_bytes() == b"1"
    async with opened(store, folder) as journal:
        work = (journal.step(key, None, Counted("y.txt")) for key in ("c", "d"))
        assert sorted(type(outcome).__name__ for outcome in await asyncio.gather(*work, return_exceptions=True)) == [
            "ValueError",
            "int",
        ]


async def test_a_context_is_over_with_its_step(store: Store, folder: Path) -> None:
    """A background task that outlives its step cannot make a finished step unfinished."""
    contexts: list[StepContext] = []

    async def work(context: StepContext) -> None:
        contexts.append(context)

    async with opened(store, folder) as journal:
        await journal.step("a", None, work)
        with pytest.raises(RuntimeError, match="over"):
            contexts[0].write("x", b"")
        with pytest.raises(RuntimeError, match="over"):
            await contexts[0].checkpoint(1)
    assert (await the_step(store, "a")).state == "done"


async def test_a_full_disk_is_told_and_leaves_nothing_half(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC in mid-write: the old file stays, no draft is left, the step is failed, and with space it succeeds."""
    real = os.write
    full = True

    def write(descriptor: int, body: Any) -> int:
        if len(body) < 1_000:
            return real(descriptor, body)
        if full and len(body) < 100_000:  # the first half fitted
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, body[: len(body) // 2])

    async def work(context: StepContext) -> int:
        context.write("out.bin", bytes([context.attempt]))
        context.write("out.bin", bytes(150_000))
        return context.attempt

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(FolderUnusable, match=r"out\.bin: No space left on device; .* resume"):
        await done(store, folder, ("a", work))
    assert (folder / "out.bin").read_bytes() == b"\1"
    assert files_in(folder).keys() == {".journal.json", ".lock", "out.bin"}
    failed = await the_step(store, "a")
    assert failed.state == "failed"
    assert failed.error is not None
    assert "No space left" in failed.error
    full = False
    assert await done(store, folder, ("a", work)) == [2]
    assert (folder / "out.bin").read_bytes() == bytes(150_000)


async def test_a_folder_that_goes_away_is_not_begun_again(store: Store, folder: Path) -> None:
    """Moved during the run: the next write says so, instead of making another folder."""

    async def work(context: StepContext) -> None:
        shutil.move(folder, folder.with_name("moved"))
        context.write("sub/x", b"")

    with pytest.raises(FolderUnusable, match="not there any more"):
        await done(store, folder, ("a", work))
    assert folder.name not in os.listdir(folder.parent)


async def test_drafts_of_a_killed_write_are_swept(store: Store, folder: Path) -> None:
    """Anywhere below the folder, but not through a link out of it, and nothing else is touched."""
    await done(store, folder, ("a", Counted("deep/out.txt")))
    outside = folder.parent / ".outside.part"
    outside.write_bytes(b"not ours")
    (folder / "link").symlink_to(folder.parent)
    for draft in (folder / ".x.json.part", folder / "deep" / ".out.txt.part"):
        draft.write_bytes(b"torn")
    (folder / "real.part").write_bytes(b"a person's")
    assert await done(store, folder, ("a", Counted("deep/out.txt"))) == [1]
    assert {name for name in files_in(folder) if name.endswith(".part")} == {"real.part"}
    assert outside.exists()


# Whose folder


async def test_a_folder_belongs_to_one_run_of_one_database(store: Store, folder: Path, tmp_path: Path) -> None:
    """Another run's id, another database (without such a run, or with one of the same name) and a copy beside the
    original are refused in words; the folder moved as a whole goes on."""
    work = Counted()
    await done(store, folder, ("a", work))
    with pytest.raises(WrongFolder, match="is the folder of run run-1, not of run-2"):
        await entered(store, folder, None, "run-2")
    other = await Store.open(tmp_path / "other.db")
    with pytest.raises(WrongFolder, match="knows no run run-1"):
        await entered(other, folder)
    await entered(other, tmp_path / "another" / "run-1")
    with pytest.raises(WrongFolder, match="another run that is called run-1"):
        await entered(other, folder)
    await other.close()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(WrongFolder, match=f"is a copy; run run-1 has its folder at {folder}"):
        await entered(store, copy)
    shutil.rmtree(copy)
    alias = tmp_path / "alias"
    alias.symlink_to(folder)
    assert await done(store, alias, ("a", work)) == [1]
    moved = tmp_path / "elsewhere" / "run-1"
    moved.parent.mkdir()
    alias.unlink()
    shutil.move(folder, moved)
    assert await done(store, moved, ("a", work)) == [1]
    assert (await the_run(store)).folder == str(moved)
    with pytest.raises(WrongFolder, match=f"not its folder: put the folder back .it was {moved}"):
        await entered(store, folder)
    assert folder.name not in os.listdir(folder.parent)
    for body in (b"{", b'{"run": "\xff"}'):
        (moved / ".journal.json").write_bytes(body)
        with pytest.raises(WrongFolder, match="damaged"):
            await entered(store, moved)
    assert work.calls == 1


@pytest.mark.parametrize("run_id", ["", "a/b", "..", "-x", "x" * 65, "a b", "花", "a\0"])
async def test_an_id_is_fit_for_a_folder(store: Store, folder: Path, run_id: str) -> None:
    """It may come from a command line: refused in words, and nothing is made."""
    with pytest.raises(InvalidRequest, match="a run's id has"):
        await entered(store, folder, None, run_id)
    assert folder.parent.name not in os.listdir(folder.parent.parent)
