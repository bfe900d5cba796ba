"""The stability log, with a real supervisor and real ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sekisho.core.clock import ManualClock
from sekisho.ops import stability_log
from sekisho.ops.children_file import ChildStatus, read_children
from sekisho.ops.home import Home
from sekisho.ops.restart_policy import RestartPolicy
from sekisho.ops.stability_log import (
    FILE_NAME,
    SERVER,
    Moment,
    StabilityEvent,
    StabilityLog,
    announce_restart,
    elapsed_s,
    read_history,
)
from sekisho.ops.supervisor import ChildSpec, Supervisor

posix = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
QUICK = RestartPolicy(first_delay_s=0.02, max_delay_s=0.5)
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def child(name: str, home: Home, code: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-u", "-c", code), home.logs / f"{name}.log")


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - other processes, no event to wait for
            await asyncio.sleep(0.01)


async def yes() -> bool:
    return True


def kinds(home: Home) -> list[tuple[str, str]]:
    return [(event.kind, event.child) for event in read_history(home).events]


class Running:
    """A supervisor with its log, as `serve` wires them."""

    def __init__(self, home: Home, *specs: ChildSpec, probes: dict[str, stability_log.Probe] | None = None) -> None:
        self.log = StabilityLog(home)
        self.supervisor = Supervisor(home.run, specs, policy=QUICK, on_change=self.log.changed)
        self._probes = {SERVER: yes, **(probes or {})}

    async def __aenter__(self) -> "Running":
        await self.supervisor.claim()
        self.log.begin()
        await self.supervisor.start()
        self._watching = asyncio.create_task(self.log.watch(self._probes))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        self.log.goodbye(planned=True)
        await self.supervisor.stop()
        self.log.close()


@posix
async def test_a_killed_child_is_written_down_and_when_it_was_back(home: Home) -> None:
    """kill -9 of a child: `ended` with the signal, `ready` once its probe says so, and nothing for the planned stop."""
    answering = False
    asked = 0

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        return answering

    async with Running(home, child("engine", home, SLEEP), probes={"engine": probe}) as server:
        await until(lambda: server.supervisor.status("engine").pid and kinds(home)[-1:] == [("ready", "")])
        first = server.supervisor.status("engine").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: server.supervisor.status("engine").restarts == 1 and kinds(home)[-1][0] == "ended")
        await until(lambda: asked > 1)
        assert kinds(home)[-1] == ("ended", "engine"), "it runs again, and does not answer yet"
        answering = True
        await until(lambda: kinds(home)[-1] == ("ready", "engine"))
    events = read_history(home).events
    assert [event.kind for event in events] == ["up", "ready", "ended", "ready", "down"]
    assert events[2].exit_code == -signal.SIGKILL
    assert events[3].ends == 1
    assert events[2].mono < events[3].mono
    assert len({event.life for event in events}) == len({event.boot for event in events}) == 1


@posix
async def test_a_crash_loop_is_one_end(home: Home) -> None:
    """However often a child ends before it is ready again, two events tell of it, with the count."""
    mended, well = home.path / "mended", home.path / "well"
    code = (
        f"import os, pathlib, sys, time; os.path.exists({str(mended)!r}) or sys.exit(3);"
        f"pathlib.Path({str(well)!r}).touch(); time.sleep(600)"
    )

    async def answers() -> bool:
        """A life that began before it was mended, and is about to end, does not."""
        return well.exists()

    async with Running(home, child("a", home, code), probes={"a": answers}) as server:
        await until(lambda: server.supervisor.status("a").restarts >= 4)
        mended.touch()
        await until(lambda: kinds(home)[-1] == ("ready", "a"))
    of_a = [event for event in read_history(home).events if event.child == "a"]
    assert [event.kind for event in of_a] == ["ended", "ready"]
    assert of_a[0].exit_code == 3
    assert of_a[1].ends >= 4


@posix
async def test_an_announced_restart_is_not_an_unplanned_end(home: Home) -> None:
    """Whoever ends a child to measure a cold start says so first; the next end of it, unannounced, counts again."""
    async with Running(home, child("engine", home, SLEEP)) as server:
        await until(lambda: server.supervisor.status("engine").pid)
        status = server.supervisor.status("engine")
        assert status.pid
        assert status.birth
        announce_restart(home, "engine", status.birth, "cold start is measured")
        os.kill(status.pid, signal.SIGTERM)
        await until(lambda: ("restarted", "engine") in kinds(home) and server.supervisor.status("engine").pid)
        again = server.supervisor.status("engine").pid
        assert again not in (None, status.pid)
        os.kill(again or 0, signal.SIGTERM)
        await until(lambda: ("ended", "engine") in kinds(home))
    restarted = next(event for event in read_history(home).events if event.kind == "restarted")
    assert (restarted.note, restarted.exit_code) == ("cold start is measured", -signal.SIGTERM)


@posix
async def test_an_announcement_is_for_one_process(home: Home) -> None:
    """What was announced of another process of the same name does not excuse this one's end."""
    async with Running(home, child("engine", home, SLEEP)) as server:
        await until(lambda: server.supervisor.status("engine").pid)
        announce_restart(home, "engine", "another boot/1", "cold start")
        os.kill(server.supervisor.status("engine").pid or 0, signal.SIGKILL)
        await until(lambda: ("ended", "engine") in kinds(home))


SUPERVISE = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_stability_log import SLEEP, Home, Running, child
async def main():
    home = Home(Path(sys.argv[1]))
    async with Running(home, child("a", home, SLEEP)):
        await asyncio.sleep(600)
asyncio.run(main())
"""


@posix
async def test_kill_9_of_the_supervisor_is_told_by_the_next_one(home: Home) -> None:
    """A life without a goodbye: nothing in the file is torn, and the next start says `lost`, with the last sign."""
    argv = (sys.executable, "-c", SUPERVISE, str(home.path), str(Path(__file__).parent))
    with subprocess.Popen(argv) as process:  # noqa: ASYNC220 - starting blocks for milliseconds
        await until(lambda: ("ready", "") in kinds(home))
        process.kill()
        process.wait()
    before = read_history(home)
    assert [event.kind for event in before.events] == ["up", "ready"]
    assert before.alive is not None
    async with Running(home):
        await until(lambda: kinds(home).count(("ready", "")) == 2)
    history = read_history(home)
    assert [event.kind for event in history.events] == ["up", "ready", "lost", "up", "ready", "down"]
    lost = history.events[2]
    assert lost.life == before.events[0].life != history.events[3].life
    assert lost.last is not None
    assert before.events[1].mono <= lost.last.mono <= lost.mono
    async with Running(home):
        pass
    assert [event.kind for event in read_history(home).events].count("lost") == 1, "an orderly end is none"


def test_a_torn_line_costs_itself_alone(home: Home) -> None:
    """A write that a power cut ended is passed over and counted; what comes after it has a line of its own."""
    log = StabilityLog(home)
    log.begin()
    log.close()
    path = home.path / FILE_NAME
    path.write_bytes(path.read_bytes() + b'{"kind":"ready","at":17')
    again = StabilityLog(home)
    again.begin()
    again.goodbye(planned=True)
    again.close()
    history = read_history(home)
    assert [event.kind for event in history.events] == ["up", "lost", "up", "down"]
    assert history.damaged == 1


def test_clock_jumps_make_no_time_negative(home: Home) -> None:
    """The wall clock goes back an hour in between: within one boot the other clock counts, else nothing below zero."""
    clock = ManualClock()
    log = StabilityLog(home, clock, boot="b1")
    log.begin()
    clock.advance(5)
    log.ready()
    clock.advance(30)
    clock.jump(-3600)
    log.goodbye(planned=True)
    log.close()
    up, ready, down = (event.moment for event in read_history(home).events)
    assert elapsed_s(ready, down) == 30
    assert elapsed_s(up, down) == 35
    assert elapsed_s(up, Moment(up.at - 3600, 1.0, "b2")) == 0


def test_what_a_full_disk_swallowed_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that could not be written are counted, and the count is written before the next one that could."""
    from sekisho.ops.stability_log import append_line

    full = True

    def append(*arguments: object) -> None:
        if full:
            raise OSError(28, "No space left on device")
        append_line(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stability_log, "append_line", append)
    log = StabilityLog(home)
    log.begin()
    log.ready()
    log._writer.submit(int).result()  # everything before it was tried
    full = False
    log.goodbye(planned=True)
    log.close()
    events = read_history(home).events
    assert [(event.kind, event.count) for event in events] == [("gap", 2), ("down", 0)]


def test_the_file_is_bounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file gives way to a new one; one older is kept, and both are read, the older first."""
    monkeypatch.setattr(stability_log, "LARGEST_BYTES", 2_000)
    log = StabilityLog(home)
    log.begin()
    for number in range(40):
        log.changed(ChildStatus("a", "running", pid=number + 1, birth="x"))
        log.changed(ChildStatus("a", "waiting", exit_code=number, log_tail=("x" * 200,)))
        log.changed(ChildStatus("a", "running", pid=number + 1, birth="x"))
        log.ready("a")
    log.close()
    files = sorted(path.name for path in home.path.glob(f"{FILE_NAME}*"))
    assert files == [FILE_NAME, f"{FILE_NAME}.1"]
    assert all((home.path / name).stat().st_size < 3_000 for name in files)
    codes = [event.exit_code for event in read_history(home).events if event.kind == "ended"]
    assert codes == list(range(40 - len(codes), 40))
    assert len(codes) > 3


def test_garbage_is_no_event(home: Home) -> None:
    """Lines of other shapes, and times that no clock tells, are counted as damaged and do not break the reader."""
    good = StabilityEvent(kind="up", at=1.0, mono=1.0, boot="b", life="l")
    lines = ["", "{}", "[1]", '{"kind":"up","at":1e300,"mono":1,"boot":"b","life":"l"}', "\x00\xff"]
    body = "\n".join([*lines, json.dumps({"kind": "up", "at": 1.0, "mono": 1.0, "boot": "b", "life": "l"})])
    (home.path / FILE_NAME).write_text(body, encoding="utf-8")
    history = read_history(home)
    assert history.events == (good,)
    assert history.damaged == 4


async def test_it_leaves_the_supervisors_file_alone(home: Home) -> None:
    """`children.json` stays as the supervisor writes it."""
    async with Running(home, child("a", home, SLEEP)) as server:
        await until(lambda: server.supervisor.status("a").pid)
        told = read_children(home.run)
        assert told is not None
        assert told.children == server.supervisor.statuses()


BAD = (
    b'{"kind":"up","at":1.0,"mono":1.0,"boot":"\x9c\xff","life":"l","seen":{"at":1,"mono":1,"boot":"\xff"},"why":""}\n'
)


@posix
async def test_a_bad_byte_stops_neither_the_server_nor_a_child(home: Home) -> None:
    """Files that are no UTF-8 are damaged ones: the log begins, and a child that ends is started again and told."""
    (home.path / FILE_NAME).write_bytes(BAD)
    (home.run / "alive.json").write_bytes(BAD)
    (home.run / "announced").mkdir()
    (home.run / "announced" / "engine.json").write_bytes(BAD)
    async with Running(home, child("engine", home, SLEEP)) as server:
        await until(lambda: server.supervisor.status("engine").pid)
        os.kill(server.supervisor.status("engine").pid or 0, signal.SIGKILL)
        await until(lambda: server.supervisor.status("engine").restarts == 1 and server.supervisor.status("engine").pid)
    history = read_history(home)
    assert history.damaged == 1
    assert ("ended", "engine") in [(event.kind, event.child) for event in history.events]


@pytest.mark.parametrize("name", ["read_history", "replace_file", "append_line"])
def test_nothing_that_fails_in_it_comes_out(home: Home, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever raises inside, also what nobody thought of, is logged and goes no further."""

    def fail(*_: object) -> None:
        raise RuntimeError("unthought of")

    monkeypatch.setattr(stability_log, name, fail)
    monkeypatch.setattr(stability_log.psutil, "boot_time", fail)
    log = StabilityLog(home)
    log.begin()
    log.changed(ChildStatus("a", "running", pid=1, birth="x"))
    log.changed(ChildStatus("a", "waiting", exit_code=1))
    log.goodbye(planned=True)
    log.close()
    written = [] if name == "append_line" else ["up", "ended", "down"]
    assert [event.kind for event in read_history(home).events] == written


def test_an_event_that_cannot_be_encoded_is_lost_and_told(home: Home) -> None:
    """Half a surrogate pair cannot be written: that event is counted, and the next ones are there."""
    log = StabilityLog(home)
    log.begin()
    log.changed(ChildStatus("a", "running", pid=1, birth="x"))
    log.changed(ChildStatus("a", "waiting", exit_code=1, log_tail=("\ud800",)))
    log.goodbye(planned=True)
    log.close()
    assert [(event.kind, event.count) for event in read_history(home).events] == [("up", 0), ("gap", 1), ("down", 0)]


async def test_a_probe_that_raises_is_no_answer(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and asked again: the watch goes on, and tells the other ones meanwhile."""
    monkeypatch.setattr(stability_log, "POLL_S", 0.01)
    asked = 0

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        if asked < 5:
            raise RuntimeError("unthought of")
        return True

    async with Running(home, probes={SERVER: probe}):
        await until(lambda: ("ready", "") in kinds(home))
    assert asked == 5
    assert len([record for record in caplog.records if "cannot ask" in record.message]) == 1


def test_a_machine_that_hides_its_start(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its boot then has a name of its own, so that its times are never counted against another one's."""

    def hidden() -> float:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(stability_log.psutil, "boot_time", hidden)
    monkeypatch.setattr(stability_log.sys, "platform", "other")
    assert stability_log.boot_id() != stability_log.boot_id()
    log = StabilityLog(home)
    log.begin()
    log.close()
    assert [(event.kind, event.booted_at) for event in read_history(home).events] == [("up", None)]
