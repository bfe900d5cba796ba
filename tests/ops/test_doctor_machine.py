"""Findings about memory, cards and limits."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import Programs, cases, only, patient

from sekisho.ops.doctor import Finding, machine
from sekisho.ops.hardware import Hardware
from sekisho.ops.home import Home, RunState, write_state

GIB = 1 << 30


def hardware(total_gib: float, free_gib: float, limited: bool = False) -> Hardware:
    limit = "cgroup" if limited else None
    return Hardware("Linux", 2, 4, int(total_gib * GIB), int(free_gib * GIB), limit, (), None)


def test_memory() -> None:
    """Enough, nearly used up, and too little for any model; a container's limit is said to be one."""
    assert only(machine.judge_memory(hardware(64, 32), 0)).case == "memory.good"
    pressed = only(machine.judge_memory(hardware(64, 6), 0))
    assert (pressed.case, "91%" in pressed.what) == ("memory.pressed", True)
    assert only(machine.judge_memory(hardware(64, 6.5), 0)).case == "memory.good"
    assert only(machine.judge_memory(hardware(2, 0.5), 0)).case == "memory.low"
    limited = only(machine.judge_memory(hardware(4, 2, limited=True), 0))
    assert ("container" in limited.what, "コンテナー" in limited.what_ja) == (True, True)


def test_swap() -> None:
    """1024 MiB is too much, a little less is not."""
    assert cases(machine.judge_memory(hardware(64, 32), (1024 << 20) - 1)) == []
    found = machine.judge_memory(hardware(64, 32), 1024 << 20)
    assert (cases(found), "1024 MiB" in found[1].what) == (["memory.swap"], True)


def test_this_machine(tmp_path: Path) -> None:
    """What is measured here becomes findings."""
    ids = [finding.id for finding in machine.check_machine(patient(Home(tmp_path)))]
    assert ids[0] == "memory"
    assert "limits" in ids


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return Programs(tmp_path / "bin", monkeypatch)


def smi(lines: str) -> str:
    """`nvidia-smi` that tells these cards, and one process on the second."""
    return (
        f'case "$1" in --query-gpu=*) printf "{lines}" ;; '
        '--query-compute-apps=*) echo "GPU-1, 4711, 46000, /usr/bin/python3" ;; *) echo ok ;; esac'
    )


def test_cards(tmp_path: Path, cards: Programs) -> None:
    """A card with room, one that is 95 % full with who fills it, and one that does not tell."""
    nobody = patient(Home(tmp_path))
    assert only(machine.check_cards(nobody)).case == "gpu.none"
    lines = (
        "0, GPU-0, 49140, 46682, 3, NVIDIA A40\\n1, GPU-1, 49140, 46683, 99, NVIDIA A40\\n"
        "2, GPU-2, [N/A], [N/A], [N/A], NVIDIA GB10\\n"
    )
    cards.put("nvidia-smi", smi(lines))
    room, full, untold = machine.check_cards(nobody)
    assert [room.case, full.case, untold.case] == ["gpu.good", "gpu.full", "gpu.untold"]
    assert "/usr/bin/python3 (4711)" in full.why
    assert "95%" in full.what


def test_a_driver_that_does_not_answer(tmp_path: Path, cards: Programs) -> None:
    """After an update of the driver without a restart, nvidia-smi fails: its own words are told, with the fix."""
    cards.put("nvidia-smi", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    found = only(machine.check_cards(patient(Home(tmp_path))))
    assert (found.case, found.severity, "mismatch" in found.why) == ("gpu.driver", "error", True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_too_few_open_files(tmp_path: Path) -> None:
    """A shell with `ulimit -n 256` cannot start a server for 200 clients; with 4096, as the fix says, it can."""
    script = (
        "import sys; sys.path[:0] = eval(sys.argv[1]); import msgspec; from pathlib import Path\n"
        "from sekisho.ops.doctor import machine; from sekisho.ops.home import Home\n"
        "print(msgspec.json.encode(machine.check_open_files(Home(Path(sys.argv[2])))).decode())"
    )
    command = [sys.executable, "-c", script, repr(sys.path), str(tmp_path)]

    def under(limit: int) -> Finding:
        shell = ["sh", "-c", f'ulimit -S -n {limit}; exec "$@"', "sh", *command]
        done = subprocess.run(shell, capture_output=True, text=True, check=True)
        return only(msgspec.json.decode(done.stdout, type=list[Finding]))

    few = under(256)
    assert (few.case, "256" in few.what, "ulimit -n 4096" in few.fix) == ("limits.files", True, True)
    assert under(4096).case == "limits.good"


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="the system does not tell another process' limits")
def test_the_running_server_counts(tmp_path: Path) -> None:
    """The limit of the process that serves is looked at, not that of this shell."""
    home = Home(tmp_path).create()
    server = subprocess.Popen(["sh", "-c", "ulimit -S -n 300; exec sleep 60"], stdin=subprocess.DEVNULL)
    try:
        while psutil.Process(server.pid).name() != "sleep":
            os.sched_yield()
        process = psutil.Process(server.pid)
        write_state(home, RunState(process.pid, process.create_time(), "http://127.0.0.1:1", "1"))
        found = only(machine.check_open_files(home))
        assert (found.case, "the running server" in found.what, "稼働中" in found.what_ja) == (
            "limits.files",
            True,
            True,
        )
    finally:
        server.kill()
        server.wait()
