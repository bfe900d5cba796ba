import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_strategies import changes

from sekisho.control.policy import Policy
from sekisho.control.policy_book import FILE_NAME, BookBroken, BookInUse, BookUnwritable, PolicyBook, Version
from sekisho.control.policy_changes import PolicyProblem, merged
from sekisho.core.clock import ManualClock

CHILD = Path(__file__).parent / "policy_book_child.py"
posix = pytest.mark.skipif(os.name == "nt", reason="kill -9 and limits of a file's size are POSIX's")


def window(tokens: int) -> dict[str, Any]:
    return {"kv": {"recent_window": tokens}}


def lines(folder: Path) -> list[str]:
    return (folder / FILE_NAME).read_text(encoding="utf-8").splitlines(keepends=True)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[PolicyBook]:
    with PolicyBook(tmp_path, ManualClock()) as opened:
        yield opened


def reopened(book: PolicyBook, folder: Path) -> PolicyBook:
    book.close()
    return PolicyBook(folder, ManualClock())


def test_a_new_book_has_the_default_in_force(book: PolicyBook) -> None:
    """Version 0 says that nobody has asked for anything."""
    assert (book.version, book.current(), book.versions(), book.problems) == (0, Policy(), [], ())


def test_a_change_is_a_version_with_its_reason(tmp_path: Path) -> None:
    """Number, time, who, why, what was asked in the words it was asked in, and the whole policy after."""
    clock = ManualClock(now=1_800_000_000.0)
    with PolicyBook(tmp_path, clock) as book:
        version = book.change({"io": {"dml_pool_bytes": "3GiB"}}, by="api", why="more room\nfor the pool")
        clock.advance(5)
        second = book.change(window(128), by="tuner", why="recall")
    assert version == Version(
        number=1,
        at=1_800_000_000.0,
        by="api",
        why="more room\nfor the pool",
        model=None,
        changes={"io": {"dml_pool_bytes": "3GiB"}},
        policy=merged(Policy(), {"io": {"dml_pool_bytes": 3 * 2**30}}),
    )
    assert (second.number, second.at) == (2, 1_800_000_005.0)
    assert second.policy == merged(version.policy, window(128))


asked = st.lists(st.tuples(changes, st.sampled_from((None, "a", "b"))), max_size=6)


@settings(max_examples=40, deadline=None)
@given(asked, st.integers(0, 5))
def test_a_book_says_the_same_after_a_restart(steps: list[tuple[dict[str, Any], str | None]], back: int) -> None:
    """Versions, policies in force and models' own changes come back as they were; so does a later roll-back."""
    with tempfile.TemporaryDirectory() as name:
        with PolicyBook(Path(name), ManualClock()) as book:
            for wanted, model in steps:
                expected = merged(book.current(model), wanted)
                version = book.change(wanted, by="x", why="y", model=model)
                assert book.current(model) == expected
                assert version.number == book.version
                if version.changes == wanted and version.model == model:
                    assert version.policy == expected
            if back <= book.version:
                book.roll_back(back, "x")
            before = (book.version, book.versions(), book.own(), [book.current(each) for each in (None, "a", "b")])
        with PolicyBook(Path(name), ManualClock()) as again:
            after = (again.version, again.versions(), again.own(), [again.current(each) for each in (None, "a", "b")])
            assert again.problems == ()
        assert before == after


def test_a_model_has_its_own_changes_on_top(book: PolicyBook) -> None:
    """What it names itself stays whatever becomes of the common policy; the rest follows."""
    book.change(window(200), by="api", why="x", model="a")
    book.change({"kv": {"recent_window": 100}, "quality": {"max_delta_ppl": 0.1}}, by="api", why="x")
    assert (book.current().kv.recent_window, book.current("b").kv.recent_window) == (100, 100)
    assert (book.current("a").kv.recent_window, book.current("a").quality.max_delta_ppl) == (200, 0.1)
    assert book.own() == {"a": {"kv": {"recent_window": 200}}}
    version = book.follow("a", by="api", why="no longer")
    assert (book.current("a"), version.policy, book.own()) == (book.current(), book.current(), {})


def test_a_change_that_contradicts_a_model_s_own_is_refused(book: PolicyBook) -> None:
    """The field and the model are named, and the common policy stays."""
    book.change({"kv": {"level_thresholds": {"L1_int8": 0.55}}}, by="api", why="x", model="a")
    with pytest.raises(PolicyProblem, match="'a'") as refused:
        book.change({"kv": {"level_thresholds": {"L2_int4": 0.6}}}, by="api", why="x")
    assert refused.value.field == "kv.level_thresholds"
    assert (book.version, book.current()) == (1, Policy())


def test_a_refused_change_leaves_nothing(book: PolicyBook, tmp_path: Path) -> None:
    """Not in force, not among the versions, not in the file."""
    book.change(window(100), by="api", why="x")
    body = (tmp_path / FILE_NAME).read_bytes()
    for wanted, why in (({"kv": {"recent_window": 200, "budget": 7}}, "x"), (window(200), "half a \ud800")):
        with pytest.raises(PolicyProblem):
            book.change(wanted, by="api", why=why)
        assert (book.version, len(book.versions()), book.current().kv.recent_window) == (1, 1, 100)
        assert (tmp_path / FILE_NAME).read_bytes() == body


def test_a_change_that_changes_nothing_makes_no_version(book: PolicyBook, tmp_path: Path) -> None:
    """Whoever asks for the same again and again does not fill the disk."""
    first = book.change(window(100), by="api", why="x")
    assert book.change(window(100), by="loop", why="again") == first
    assert book.change({}, by="loop", why="nothing") == first
    assert book.follow("a", by="loop", why="it does already") == first
    assert len(lines(tmp_path)) == 1


def test_rolling_back_is_a_new_version(book: PolicyBook) -> None:
    """All that held after the earlier one holds again, models' own changes included; nothing is struck out."""
    book.change(window(100), by="api", why="x")
    book.change(window(200), by="api", why="x", model="a")
    book.change({"kv": {"mode": "disabled"}}, by="api", why="x")
    book.follow("a", by="api", why="x")
    version = book.roll_back(2, "kei", "too slow")
    assert (version.number, version.back_to, version.by, version.why) == (5, 2, "kei", "too slow")
    assert (book.current().kv.recent_window, book.current().kv.mode) == (100, "configured")
    assert book.current("a").kv.recent_window == 200
    assert book.roll_back(0, "kei").policy == Policy()
    assert (book.own(), [each.number for each in book.versions()]) == ({}, [1, 2, 3, 4, 5, 6])


def test_only_to_a_version_that_there_is(book: PolicyBook) -> None:
    """The error lists those that there are."""
    book.change(window(100), by="api", why="x")
    with pytest.raises(PolicyProblem, match="0, 1"):
        book.roll_back(2, "kei")
    assert book.version == 1


def test_one_writer(book: PolicyBook, tmp_path: Path) -> None:
    """A second one is refused at once, and let in after the first has closed."""
    with pytest.raises(BookInUse, match=FILE_NAME):
        PolicyBook(tmp_path, ManualClock())
    book.close()
    book.close()
    with pytest.raises(BookUnwritable, match="closed"):
        book.change(window(100), by="api", why="x")
    with PolicyBook(tmp_path, ManualClock()) as second:
        assert second.version == 0


def test_changes_from_many_threads_are_all_there(book: PolicyBook, tmp_path: Path) -> None:
    """Each has a number of its own, and the book can be read."""

    def change(number: int) -> int:
        return book.change(window(100 + number), by="x", why="y", model=f"m{number}").number

    with ThreadPoolExecutor(8) as pool:
        numbers = sorted(pool.map(change, range(40)))
    assert numbers == list(range(1, 41))
    with reopened(book, tmp_path) as again:
        assert [again.current(f"m{number}").kv.recent_window for number in range(40)] == list(range(100, 140))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_book_cut_anywhere_is_a_prefix(data: st.DataObject) -> None:
    """Whatever byte a write ended at: whole lines are versions, the rest is dropped, and the next change fits."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with PolicyBook(folder, ManualClock()) as book:
            for number in range(1, 4):
                book.change(window(100 + number), by="日本", why="y")
            versions = book.versions()
        body = (folder / FILE_NAME).read_bytes()
        cut = data.draw(st.integers(0, len(body)))
        grown = data.draw(st.sampled_from((b"", b"\0" * 50, b"\0" * 50 + b"\n")))
        (folder / FILE_NAME).write_bytes(body[:cut] + grown)
        kept = body[:cut].count(b"\n")
        with PolicyBook(folder, ManualClock()) as book:
            assert book.versions() == versions[:kept]
            assert book.version == kept
            assert book.change(window(300), by="x", why="y").number == kept + 1
        with PolicyBook(folder, ManualClock()) as book:
            assert book.version == kept + 1


def test_a_torn_line_is_told(book: PolicyBook, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning names the file."""
    book.change(window(100), by="api", why="x")
    book.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b'{"number": 2, "at')
    with caplog.at_level(logging.WARNING), PolicyBook(tmp_path, ManualClock()):
        pass
    assert [each.getMessage() for each in caplog.records if each.name.startswith("sekisho.")] == [
        f"{tmp_path / FILE_NAME}: dropped a torn last line of 17 bytes"
    ]
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (lambda all_: [all_[0], "{}\n", all_[2]], 2),
        (lambda all_: [all_[0], all_[1].replace("{", "[", 1), all_[2]], 2),
        (lambda all_: [all_[0], "\n", *all_[1:]], 2),
        (lambda all_: [all_[0], all_[2]], 2),
        (lambda all_: all_[1:], 1),
        (lambda all_: [*all_, all_[2]], 4),
        (lambda all_: [*all_[:2], all_[2].replace('"number":3', '"number":"3"')], 3),
    ],
)
def test_a_broken_line_is_an_error_that_names_it(book: PolicyBook, tmp_path: Path, broken: Any, line: int) -> None:
    """What was acknowledged is never skipped: the book does not open, and the file stays as it is."""
    for number in (1, 2, 3):
        book.change(window(100 + number), by="api", why="x")
    book.close()
    (tmp_path / FILE_NAME).write_text("".join(broken(lines(tmp_path))), encoding="utf-8")
    body = (tmp_path / FILE_NAME).read_bytes()
    for _ in range(2):  # the lock is free again after it failed
        with pytest.raises(BookBroken, match=rf"{FILE_NAME}, line {line}: "):
            PolicyBook(tmp_path, ManualClock())
    assert (tmp_path / FILE_NAME).read_bytes() == body


def edited(folder: Path, line: int, edit: Any) -> None:
    """Rewrites one line as an earlier or a later release might have written it."""
    all_ = lines(folder)
    fields = json.loads(all_[line - 1])
    edit(fields)
    all_[line - 1] = json.dumps(fields) + "\n"
    (folder / FILE_NAME).write_text("".join(all_), encoding="utf-8")


def test_a_policy_of_an_earlier_release_is_told_and_not_lost(
    book: PolicyBook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a field that is unknown now the book opens, the version before is in force, and the line stays there."""
    for number in (1, 2, 3):
        book.change(window(100 + number), by="api", why="x")
    book.close()
    edited(tmp_path, 3, lambda fields: fields["common"]["kv"].update(sinks=16))
    with PolicyBook(tmp_path, ManualClock()) as again:
        assert (again.version, again.current().kv.recent_window) == (2, 102)
        (problem,) = again.problems
        assert (problem.number, problem.line, problem.field) == (3, 3, "kv.sinks")
        assert "recent_window" in problem.message
        with pytest.raises(PolicyProblem, match="0, 1, 2"):
            again.roll_back(3, "kei")
        assert again.change(window(200), by="api", why="x").number == 4
    assert "version 3 is not put in force: kv.sinks" in caplog.text
    assert '"sinks": 16' in lines(tmp_path)[2]
    with PolicyBook(tmp_path, ManualClock()) as again:
        assert (again.version, again.current().kv.recent_window, len(again.problems)) == (4, 200, 1)


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: fields["common"]["kv"].update(recent_window=1000),
        lambda fields: fields["common"].update(persona={}),
        lambda fields: fields["own"].update(a={"kv": {"sinks": 16}}),
        lambda fields: fields["own"].update(a={"kv": {"level_thresholds": {"L3_evict": 0.9}}}),
    ],
)
def test_nothing_of_an_unusable_version_is_put_in_force(book: PolicyBook, tmp_path: Path, edit: Any) -> None:
    """A bound that has moved, a section that has gone, and models' own changes count like a field that is unknown."""
    book.change(window(101), by="api", why="x")
    book.close()
    edited(tmp_path, 1, edit)
    with PolicyBook(tmp_path, ManualClock()) as again:
        assert (again.version, again.current(), again.versions()) == (0, Policy(), [])
        assert [each.number for each in again.problems] == [1]


def test_a_policy_of_before_a_field_takes_its_default(book: PolicyBook, tmp_path: Path) -> None:
    """A field or section that a line does not have yet is at its default; what a later release adds is passed over."""
    book.change(window(101), by="api", why="x")
    book.close()

    def older(fields: dict[str, Any]) -> None:
        del fields["common"]["engine"], fields["common"]["kv"]["evict"]
        fields["signed"] = True

    edited(tmp_path, 1, older)
    with PolicyBook(tmp_path, ManualClock()) as again:
        assert (again.current(), again.problems) == (merged(Policy(), window(101)), ())


@posix
def test_kill_9_leaves_what_was_acknowledged(tmp_path: Path) -> None:
    """Ten lives in one book: after each all acknowledged versions are there, at most one more, in order."""
    chance = random.Random(20261128)
    known = 0
    for _ in range(10):
        child = subprocess.Popen([sys.executable, CHILD, tmp_path, "changes"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        try:
            for _ in range(chance.randint(1, 60)):
                known = int(child.stdout.readline())
        finally:
            child.send_signal(signal.SIGKILL)
            rest, _ = child.communicate()
        known = max([known, *map(int, rest.split("\n")[:-1])])
        with PolicyBook(tmp_path, ManualClock()) as book:
            versions = book.versions()
            assert [each.number for each in versions] == list(range(1, book.version + 1))
            assert known <= book.version <= known + 1
            assert all(each.policy.kv.recent_window == 16 + each.number % 400 for each in versions)


@posix
def test_a_full_disk_leaves_the_policy_before_in_force(tmp_path: Path) -> None:
    """Half a line is cut off again, and the next change is written once there is room."""
    told = subprocess.run(
        [sys.executable, CHILD, tmp_path, "full"], check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert told[0].startswith(f"refused: {tmp_path / FILE_NAME}: ")
    assert (told[0].split()[-3:], told[1]) == (["1", "100", "True"], "2 300")
    with PolicyBook(tmp_path, ManualClock()) as book:
        assert [each.policy.kv.recent_window for each in book.versions()] == [100, 300]


@posix
def test_the_book_is_for_its_owner_alone(book: PolicyBook, tmp_path: Path) -> None:
    """Nobody else reads who changed what."""
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o077 == 0


def test_versions_can_be_told_as_json(book: PolicyBook) -> None:
    """The interface lists them."""
    book.change(window(100), by="api", why="x")
    (told,) = msgspec.json.decode(msgspec.json.encode(book.versions()))
    assert (told["number"], told["policy"]["kv"]["recent_window"]) == (1, 100)
