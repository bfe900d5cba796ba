"""The supervisor, with real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sekisho.core.clock import ManualClock
from sekisho.ops import process_tree
from sekisho.ops.children_file import is_running, read_children
from sekisho.ops.instance_lock import AlreadyRunning, InstanceLock
from sekisho.ops.restart_policy import RestartPolicy
from sekisho.ops.supervisor import ChildSpec, Supervisor

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups and signals are those of POSIX")

QUICK = RestartPolicy(first_delay_s=0.02, max_delay_s=0.5)


def python(name: str, home: Path, code: str, **fields: object) -> ChildSpec:
    argv = (sys.executable, "-u", "-c", code)
    return ChildSpec(name, argv, home / f"{name}.log", **fields)  # type: ignore[arg-type]


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - other processes, no event to wait for
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_child_that_is_killed_comes_back(tmp_path: Path) -> None:
    """kill -9 of a child: another process of the same name runs soon, counted and told."""
    async with Supervisor(
        tmp_path, [python("a", tmp_path, "import time; time.sleep(600)")], policy=QUICK
    ) as supervisor:
        await until(lambda: supervisor.status("a").pid)
        first = supervisor.status("a").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.status("a").restarts == 1 and supervisor.status("a").state == "running")
        assert supervisor.status("a").pid != first
        assert supervisor.status("a").exit_code == -signal.SIGKILL
    assert supervisor.status("a").state == "stopped"


async def test_a_configuration_error_is_reported_and_not_tried_again(tmp_path: Path) -> None:
    """Exit code 78 ends the tries; the status has the last words of the child."""
    child = python("a", tmp_path, "import sys; print('no such model'); sys.exit(78)")
    async with Supervisor(tmp_path, [child], policy=QUICK) as supervisor:
        await until(lambda: supervisor.status("a").state == "misconfigured")
        status = supervisor.status("a")
        assert (status.restarts, status.exit_code, status.log_tail) == (0, 78, ("no such model",))


async def test_a_crash_loop_is_failing_and_recovers(tmp_path: Path) -> None:
    """Five quick exits are `failing` with the last log lines; a run long enough is `running` again. By a clock that
    stands still every exit is a quick one, however long a process takes to start."""
    code = (
        f"import os, sys, time; print('boom');"
        f"time.sleep(600) if os.path.exists({str(tmp_path / 'mended')!r}) else sys.exit(3)"
    )
    policy = RestartPolicy(first_delay_s=0.01, max_delay_s=0.05, reset_after_s=0.5)
    async with Supervisor(tmp_path, [python("a", tmp_path, code)], policy=policy, clock=ManualClock()) as supervisor:
        await until(lambda: supervisor.status("a").state == "failing" and supervisor.status("a").log_tail)
        assert supervisor.status("a").log_tail == ("boom",)
        (tmp_path / "mended").touch()
        await until(lambda: supervisor.status("a").state == "running")


async def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    """What cannot be started is a crash like any other, with the reason in log and status."""
    spec = ChildSpec("a", (str(tmp_path / "no-such-program"),), tmp_path / "a.log")
    async with Supervisor(tmp_path, [spec], policy=QUICK) as supervisor:
        await until(lambda: supervisor.status("a").log_tail)
        assert "No such file" in supervisor.status("a").log_tail[-1]


async def test_children_stop_in_order_and_the_stubborn_are_killed(tmp_path: Path) -> None:
    """Lower `stop_order` first; one that ignores the signal is killed after its grace, with what it started."""
    polite = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up'); time.sleep(600)"
    stubborn = (
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '600']).pid); time.sleep(600)"
    )
    ended: list[str] = []
    specs = [
        python("last", tmp_path, polite, stop_order=2, grace_s=60.0),
        python("first", tmp_path, polite, stop_order=1, grace_s=60.0),
        python("stubborn", tmp_path, stubborn, stop_order=3, grace_s=0.2),
    ]

    def note(status: object) -> None:
        if status.state == "stopped":  # type: ignore[attr-defined]
            ended.append(status.name)  # type: ignore[attr-defined]

    supervisor = Supervisor(tmp_path, specs, on_change=note)
    await supervisor.start()
    log = tmp_path / "stubborn.log"
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    await until(lambda: all((tmp_path / f"{name}.log").exists() for name in ("first", "last")))
    await asyncio.gather(supervisor.stop(), supervisor.stop())
    assert ended == ["first", "last", "stubborn"]
    assert supervisor.status("first").exit_code == 0
    assert supervisor.status("stubborn").exit_code == -signal.SIGKILL
    await until(lambda: not lives(int(log.read_text())))


async def test_what_a_dead_child_started_does_not_stay(tmp_path: Path) -> None:
    """A child that ends and leaves a grandchild behind is noticed at once, and the grandchild ended."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid); sys.exit(78)"
    async with Supervisor(tmp_path, [python("a", tmp_path, code)]) as supervisor:
        await until(lambda: supervisor.status("a").state == "misconfigured")
        await until(lambda: not lives(int((tmp_path / "a.log").read_text())))


async def test_the_status_file_says_who_runs(tmp_path: Path) -> None:
    """`children.json` names pid and birth of each child, and after an orderly stop that none runs."""
    async with Supervisor(tmp_path, [python("a", tmp_path, "import time; time.sleep(600)")]) as supervisor:
        await until(lambda: supervisor.status("a").pid)
        told = read_children(tmp_path)
        assert told is not None
        assert told.children == supervisor.statuses()
        assert told.children[0].birth == process_tree.birth(told.children[0].pid or 0)
        assert is_running(told)
    told = read_children(tmp_path)
    assert told is not None
    assert [(child.state, child.pid) for child in told.children] == [("stopped", None)]


async def test_one_supervisor_per_home(tmp_path: Path) -> None:
    """A second one is refused with the pid of the first, and may start once the first has gone."""
    async with Supervisor(tmp_path, []):
        with pytest.raises(AlreadyRunning) as caught:
            await Supervisor(tmp_path, []).start()
        assert caught.value.pid == os.getpid()
    lock = InstanceLock(tmp_path / "supervisor.lock")
    lock.acquire()
    lock.release()
    lock.release()


async def test_a_claim_keeps_others_out_before_anything_runs(tmp_path: Path) -> None:
    """Who claimed the home may prepare it in peace; a claim that comes to nothing is let go by `stop`."""
    first, second = Supervisor(tmp_path, [python("a", tmp_path, "pass")]), Supervisor(tmp_path, [])
    await first.claim()
    with pytest.raises(AlreadyRunning):
        await second.claim()
    await first.stop()
    await second.start()
    await second.stop()


async def test_children_come_and_go_while_it_runs(tmp_path: Path) -> None:
    """`add`, `restart` and `remove` touch one child only."""
    sleep = "import time; time.sleep(600)"
    async with Supervisor(tmp_path, [python("a", tmp_path, sleep)]) as supervisor:
        await supervisor.add(python("b", tmp_path, sleep))
        await until(lambda: supervisor.status("a").pid and supervisor.status("b").pid)
        pids = supervisor.status("a").pid, supervisor.status("b").pid
        await supervisor.restart("b")
        await until(lambda: supervisor.status("b").pid)
        assert supervisor.status("a").pid == pids[0]
        assert supervisor.status("b").pid != pids[1]
        await supervisor.remove("b")
        assert [status.name for status in supervisor.statuses()] == ["a"]
        with pytest.raises(ValueError, match="two children"):
            await supervisor.add(python("a", tmp_path, sleep))


# --- kill -9 of the supervisor itself ---------------------------------------------------------------------------------

PLAIN = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
TIED = "from sekisho.ops.child import die_with_parent; die_with_parent(); " + PLAIN
SUPERVISE = """
import asyncio, json, sys
from pathlib import Path
from sekisho.ops.supervisor import ChildSpec, Supervisor
home = Path(sys.argv[1])
specs = [ChildSpec(n, (sys.executable, "-c", c), home / f"{n}.log") for n, c in json.loads(sys.argv[2]).items()]
async def main():
    async with Supervisor(home, specs):
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def killed_supervisor(home: Path, children: dict[str, str], *, guardian_too: bool = False) -> list[int]:
    """Runs a supervisor, kills it with -9 once all children and grandchildren run, and gives the pids of those. With
    the guardian: first that, while the supervisor is stopped, which would start another one."""
    argv = (sys.executable, "-c", SUPERVISE, str(home), json.dumps(children))
    with subprocess.Popen(argv) as supervisor:  # noqa: ASYNC220 - starting blocks for milliseconds
        logs = [home / f"{name}.log" for name in children]
        await until(lambda: all(log.exists() and log.read_text().endswith("\n") for log in logs))
        told = read_children(home)
        assert told is not None
        pids = [child.pid for child in told.children if child.pid] + [int(log.read_text()) for log in logs]
        assert all(map(lives, pids))
        if guardian_too:
            supervisor.send_signal(signal.SIGSTOP)
            end_guardian(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
    return pids


async def test_kill_9_of_the_supervisor_leaves_nobody(tmp_path: Path) -> None:
    """Children and grandchildren of a supervisor that is killed end by themselves, whether or not they know of it."""
    pids = await killed_supervisor(tmp_path, {"plain": PLAIN, "tied": TIED})
    assert len(pids) == 4
    await until(lambda: not any(map(lives, pids)))


@pytest.fixture
def patient_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for the end of what was left; on a busy machine longer than two seconds."""
    monkeypatch.setattr(process_tree.end, "__defaults__", (60.0,))


def end_guardian(supervisor: int) -> None:
    (guardian,) = (
        process
        for process in psutil.Process(supervisor).children()
        if any("guardian.py" in argument for argument in process.cmdline())
    )
    guardian.kill()


async def test_a_tied_child_needs_no_guardian(tmp_path: Path, patient_end: None) -> None:
    """A child that called `die_with_parent` ends even when the guardian is killed together with the supervisor."""
    pids = await killed_supervisor(tmp_path, {"tied": TIED}, guardian_too=True)
    await until(lambda: not lives(pids[0]))
    async with Supervisor(tmp_path, []):  # which ends the grandchild, that knew of nothing
        assert not any(map(lives, pids))


async def test_the_next_supervisor_ends_what_was_left(tmp_path: Path, patient_end: None) -> None:
    """Survivors of a killed supervisor and guardian are ended at the next start, grandchildren included."""
    pids = await killed_supervisor(tmp_path, {"plain": PLAIN}, guardian_too=True)
    assert all(map(lives, pids))
    async with Supervisor(tmp_path, []):
        assert not any(map(lives, pids))


async def test_a_recycled_process_id_is_left_alone(tmp_path: Path) -> None:
    """A process that has the pid of a child of old, but was born at another time, is nobody's leftover."""
    with subprocess.Popen(["sleep", "600"]) as bystander:  # noqa: ASYNC220 - as above
        child = {"name": "a", "state": "running", "pid": bystander.pid, "birth": "another boot/1"}
        old = {"run": "run_old", "supervisor_pid": 1, "supervisor_birth": "x", "children": [child]}
        (tmp_path / "children.json").write_text(json.dumps(old))
        async with Supervisor(tmp_path, []):
            assert lives(bystander.pid)
        bystander.kill()


async def test_a_broken_status_file_is_no_obstacle(tmp_path: Path) -> None:
    """A `children.json` that cannot be read is as none."""
    for body in (b"{", b'{"run": "\xff"}'):
        (tmp_path / "children.json").write_bytes(body)
        assert read_children(tmp_path) is None
        async with Supervisor(tmp_path, []):
            assert read_children(tmp_path) is not None


async def test_an_onlooker_that_raises_ends_no_child(tmp_path: Path) -> None:
    """Whoever is told of the states may fail: the child is kept, and started again."""

    def fail(_: object) -> None:
        raise RuntimeError("unthought of")

    async with Supervisor(
        tmp_path, [python("a", tmp_path, "import time; time.sleep(600)")], policy=QUICK, on_change=fail
    ) as supervisor:
        await until(lambda: supervisor.status("a").pid)
        os.kill(supervisor.status("a").pid or 0, signal.SIGKILL)
        await until(lambda: supervisor.status("a").restarts == 1 and supervisor.status("a").pid)


def test_a_process_started_by_hand_is_not_tied() -> None:
    """Without a parent that asked, `die_with_parent` does nothing: standard input may end and the program goes on."""
    code = "import time; from sekisho.ops.child import die_with_parent as d; print(d()); time.sleep(0.1); print('on')"
    done = subprocess.run((sys.executable, "-c", code), stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"on"]


def test_birth_tells_processes_apart() -> None:
    """The same process has the same birth whenever asked; a gone one has none."""
    with subprocess.Popen(["sleep", "600"]) as child:
        born = process_tree.birth(child.pid)
        time.sleep(0.05)
        assert born == process_tree.birth(child.pid) is not None
        child.kill()
    assert process_tree.birth(child.pid) is None
