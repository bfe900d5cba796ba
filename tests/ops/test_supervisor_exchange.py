"""What the supervisor can do so that a worker is exchanged: pause, resume, rename, one log for two."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sekisho.ops.children_file import ChildStatus, read_children
from sekisho.ops.config import LogsConfig
from sekisho.ops.log_file import RotatingLog
from sekisho.ops.supervisor import ChildSpec, Supervisor

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and signals are those of POSIX")


def python(name: str, log_path: Path, code: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-u", "-c", code), log_path)


WAITS = "import sys, time; print('here'); time.sleep(600)"


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110 - other processes, no event to wait for
            await asyncio.sleep(0.01)


async def test_a_paused_child_stays_known_and_starts_again(tmp_path: Path) -> None:
    """It has no process, is not started by itself, and `resume` gives it one with a clean record."""
    async with Supervisor(tmp_path, [python("a", tmp_path / "a.log", WAITS)]) as supervisor:
        await until(lambda: supervisor.status("a").pid)
        first = supervisor.status("a").pid
        await supervisor.pause("a")
        assert (supervisor.status("a").state, supervisor.status("a").pid) == ("stopped", None)
        supervisor.resume("a")
        await until(lambda: supervisor.status("a").state == "running")
        second = supervisor.status("a").pid
        assert second not in (first, None)
        assert supervisor.status("a").restarts == 0
        supervisor.resume("a")
        await asyncio.sleep(0)
        assert supervisor.status("a").pid == second, "it runs already"
        await supervisor.pause("a")
    assert supervisor.status("a").state == "stopped"


async def test_a_child_that_gave_up_starts_again(tmp_path: Path) -> None:
    """After a configuration error it can be resumed, once the cause is gone."""
    code = f"import os, sys, time; os.path.exists({str(tmp_path / 'mended')!r}) or sys.exit(78); time.sleep(600)"
    async with Supervisor(tmp_path, [python("a", tmp_path / "a.log", code)]) as supervisor:
        await until(lambda: supervisor.status("a").state == "misconfigured")
        (tmp_path / "mended").touch()
        supervisor.resume("a")
        await until(lambda: supervisor.status("a").state == "running")


async def test_names_are_exchanged_at_once(tmp_path: Path) -> None:
    """The processes run on under each other's names, in `children.json` too, and whoever looks on is told."""
    told: list[ChildStatus] = []
    specs = [python(name, tmp_path / f"{name}.log", WAITS) for name in ("a", "b")]
    async with Supervisor(tmp_path, specs, on_change=told.append) as supervisor:
        await until(lambda: all(child.pid for child in supervisor.statuses()))
        a, b = supervisor.status("a").pid, supervisor.status("b").pid
        told.clear()
        supervisor.rename({"a": "b", "b": "a"})
        assert (supervisor.status("a").pid, supervisor.status("b").pid) == (b, a)
        written = read_children(tmp_path)
        assert written is not None
        assert {child.name: child.pid for child in written.children} == {"a": b, "b": a}
        assert [(status.name, status.pid) for status in told] == [("b", a), ("a", b)]
        await supervisor.remove("b")
        assert [child.name for child in supervisor.statuses()] == ["a"]
        assert supervisor.status("a").pid == b


async def test_names_that_clash_or_are_not_there_change_nothing(tmp_path: Path) -> None:
    """The mistake is raised, and every child keeps its name."""
    specs = [python(name, tmp_path / f"{name}.log", WAITS) for name in ("a", "b")]
    async with Supervisor(tmp_path, specs) as supervisor:
        with pytest.raises(ValueError, match="one name"):
            supervisor.rename({"a": "b"})
        with pytest.raises(KeyError):
            supervisor.rename({"c": "d"})
        assert [child.name for child in supervisor.statuses()] == ["a", "b"]


async def test_two_children_share_a_log_and_have_last_words_of_their_own(tmp_path: Path) -> None:
    """Whole lines of both stand in the file; what a child said last is told apart."""
    path = tmp_path / "engine.log"
    codes = {name: f"import time; print('{name} ' * 50, flush=True); time.sleep(600)" for name in ("one", "two")}
    async with Supervisor(tmp_path, [python("one", path, codes["one"])]) as supervisor:
        await supervisor.add(python("two", path, codes["two"]))
        await until(lambda: supervisor.log_tail("one") and supervisor.log_tail("two"))
        assert sorted(path.read_text().splitlines()) == ["one " * 50, "two " * 50]
        assert supervisor.log_tail("two") == ("two " * 50,)
        await supervisor.remove("one")
        assert supervisor.log_tail("two") == ("two " * 50,)


def test_a_shared_log_loses_no_line_when_it_is_full(tmp_path: Path) -> None:
    """Whoever fills it makes it give way for both; one that closes it does not close it for the other."""
    config = LogsConfig(max_bytes=1000, keep=50, compress=False)
    one = RotatingLog(tmp_path / "e.log", config)
    two = RotatingLog(tmp_path / "e.log", config, beside=one)
    for number in range(100):
        one.write(b"one %d\n" % number)
        two.write(b"two %d %s\n" % (number, b"x" * 50))
        if number % 10 == 0:
            one.close()
    two.close()
    lines = [line for file in tmp_path.glob("e.log*") for line in file.read_bytes().splitlines()]
    assert len(lines) == 200
    assert len(set(lines)) == 200
    assert len(list(tmp_path.glob("e.log*"))) > 5
