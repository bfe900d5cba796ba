"""What the machine is taken for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.ops.gpu_sample import (
    Driver,
    GpuProcess,
    GpuReading,
    GpuSample,
    parse_banner,
    parse_rocm_use,
    parse_smi,
    read_gpus,
)
from sekisho.ops.hardware import (
    Gpu,
    Probe,
    detect,
    parse_nvidia,
    parse_rocm,
    run_probe,
    try_probe,
)


def test_this_machine(tmp_path: Path) -> None:
    """The real machine has memory, at least one thread and a disk, never more memory than is built in."""
    found = detect(tmp_path / "not" / "made" / "yet")
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes <= psutil.virtual_memory().total
    assert found.threads >= 1
    assert found.disk_free_bytes
    assert found.gpus or any("no graphics card" in note for note in found.notes)
    assert msgspec.json.decode(msgspec.json.encode(found))["threads"] == found.threads


def test_nvidia_lines() -> None:
    """Each card is told with its memory; a board that does not tell it is kept, with the reason."""
    notes: list[str] = []
    gpus = parse_nvidia("NVIDIA H200, 143771, 143000\nNVIDIA GB10, [N/A], [N/A]\n", notes)
    assert gpus[0] == Gpu("NVIDIA H200", 143771 << 20, 143000 << 20, "nvidia")
    assert gpus[1].memory_total_bytes is None
    assert "GB10" in notes[0]


def test_rocm_json() -> None:
    """Warnings in front of the JSON and other entries beside the cards are passed over."""
    output = (
        'WARNING: low power\n{"card0": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": '
        '"1000000", "Card Series": "Radeon RX 7800 XT"}, "system": {"Driver version": "6.7"}}'
    )
    assert parse_rocm(output, []) == [Gpu("Radeon RX 7800 XT", 17163091968, 17162091968, "amd")]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_strange_tool_output_is_no_crash(output: str) -> None:
    """Whatever a vendor's tool prints, there is a list of cards."""
    assert isinstance(parse_nvidia(output, []), list)
    assert isinstance(parse_rocm(output, []), list)


def test_missing_tool_is_no_crash() -> None:
    """A tool that is missing, or that fails, says nothing."""
    assert run_probe(["no-such-tool-here"]) is None
    assert run_probe(["false"]) is None
    assert run_probe(["echo", "yes"]) == "yes\n"


# Two A40s under a model, as driver 550 tells them; the ids are made up.
CARDS = (
    "0, GPU-6c1fbd3c-0000-4f6f-9a55-3f4e2f9c9a10, 46068, 31217, 64, NVIDIA A40\n"
    "1, GPU-6c1fbd3c-0001-4f6f-9a55-3f4e2f9c9a11, 46068, 30871, 0, NVIDIA A40\n"
)
PROCESSES = (
    "GPU-6c1fbd3c-0000-4f6f-9a55-3f4e2f9c9a10, 40170, 30950, /usr/bin/python3.11\n"
    "GPU-6c1fbd3c-0001-4f6f-9a55-3f4e2f9c9a11, 40170, 30604, /usr/bin/python3.11\n"
    "GPU-6c1fbd3c-0001-4f6f-9a55-3f4e2f9c9a11, 812, [N/A], [Insufficient Permissions]\n"
)


def test_cards_by_index_with_their_processes() -> None:
    """Each card has its memory, use and processes; what the driver keeps from us is None, and no name."""
    zero, one = parse_smi(CARDS, PROCESSES)
    assert (zero.index, zero.name, zero.total_bytes, zero.used_bytes) == (0, "NVIDIA A40", 46068 << 20, 31217 << 20)
    assert (zero.busy, one.busy) == (0.64, 0.0)
    assert zero.processes == (GpuProcess(40170, "/usr/bin/python3.11", 30950 << 20),)
    assert one.processes[1] == GpuProcess(812, "", None)


def test_cards_that_do_not_tell() -> None:
    """Unified memory, a card cut in slices, a name with a comma, and what `nvidia-smi` says without a card."""
    odd = (
        "0, GPU-1, [N/A], [N/A], [N/A], NVIDIA GB10\n"
        "1, GPU-2, 143771, 0, [Not Supported], NVIDIA H200, MIG 1g\nNo devices were found\n"
    )
    first, second = parse_smi(odd, "")
    assert (first.total_bytes, first.used_bytes, first.busy, first.used_share) == (None, None, None, None)
    assert (second.name, second.used_bytes, second.busy) == ("NVIDIA H200, MIG 1g", 0, None)


@pytest.mark.parametrize(
    ("banner", "version", "cuda"),
    [
        ("| NVIDIA-SMI 450.57       Driver Version: 450.57       CUDA Version: 11.0     |", "450.57", (11, 0)),
        ("| NVIDIA-SMI 535.104.05    Driver Version: 535.104.05   CUDA Version: 12.2 |", "535.104.05", (12, 2)),
        ("| NVIDIA-SMI 610.57.04   KMD Version: 610.57.04     CUDA UMD Version: 13.3     |", "610.57.04", (13, 3)),
        ("| NVIDIA-SMI 470.82.00    Driver Version: 470.82.00    CUDA Version: N/A      |", "470.82.00", None),
    ],
)
def test_driver_banner(banner: str, version: str, cuda: tuple[int, int] | None) -> None:
    """Both spellings, from 2020 and from driver 610 on, tell the driver and the newest CUDA it runs."""
    assert parse_banner(f"Wed Sep 30 21:53:38\n+------+\n{banner}\n") == Driver(version, cuda)
    assert parse_banner("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") is None


def test_rocm_use() -> None:
    """AMD's cards have index, memory and use."""
    output = (
        '{"card1": {"VRAM Total Memory (B)": "17163091968", "VRAM Total Used Memory (B)": "5000000", "GPU use (%)": '
        '"37", "Card Series": "Radeon RX 7800 XT"}, "card0": {"VRAM Total Memory (B)": "8", "GPU use (%)": "N/A"}, '
        '"system": {"Driver version": "6.7"}}'
    )
    zero, one = parse_rocm_use(output)
    assert (zero.index, zero.used_bytes, zero.busy) == (0, None, None)
    assert one == GpuSample(1, "Radeon RX 7800 XT", 17163091968, 5000000, 0.37)


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_strange_samples_are_no_crash(cards: str, processes: str) -> None:
    """Whatever the tools print, there are samples, perhaps none."""
    assert isinstance(parse_smi(cards, processes), tuple)
    assert isinstance(parse_smi("0, GPU-1, 1, 1, 1, x", processes), tuple)
    assert isinstance(parse_rocm_use(cards), tuple)
    parse_banner(cards)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `nvidia-smi` that answers from files; nothing else is on the path."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + "/bin" + os.pathsep + "/usr/bin")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # so that NVML is not asked
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\ncase "$1" in --query-gpu=*) cat {tmp_path}/cards ;; --query-compute-apps=*) cat {tmp_path}/apps ;;'
        f" *) cat {tmp_path}/banner ;; esac\n"
    )
    program.chmod(0o755)
    return tmp_path


def test_a_reading_through_the_program(smi: Path) -> None:
    """The program on the path is really run, with two questions; without processes there are still the cards."""
    (smi / "cards").write_text(CARDS)
    (smi / "apps").write_text(PROCESSES)
    reading = read_gpus()
    assert (reading.source, len(reading.gpus)) == ("nvidia-smi", 2)
    assert reading.get(1) is not None
    assert reading.get(7) is None
    (smi / "apps").unlink()
    assert [gpu.processes for gpu in read_gpus().gpus] == [(), ()]
    (smi / "cards").unlink()
    assert read_gpus() == GpuReading()


def test_a_tool_that_fails_is_quoted(tmp_path: Path, smi: Path) -> None:
    """Exit code and words of a failing tool are known; one that hangs is given up."""
    told = "Failed to initialize NVML: Driver/library version mismatch"
    program = smi / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{told}'\nexit 18\n")
    assert try_probe(["nvidia-smi"]) == Probe(18, told + "\n")
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    hung = try_probe(["nvidia-smi"], timeout_s=0.2)
    assert hung is not None
    assert hung.code is None
    assert try_probe(["no-such-tool-here"]) is None


NVML = r"""
#include <string.h>
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } use;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
static long cards[2] = {0, 1};
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &cards[index]; return 0; }
int nvmlDeviceGetName(void *device, char *text, unsigned size) { strcpy(text, "NVIDIA A40"); return 0; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) { strcpy(text, "GPU-x"); return 0; }
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *m) {
    m->total = 48305799168ULL; m->reserved = 500; m->used = 1000 + *(long *)device; m->free = 0; return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, use *u) { if (*(long *)device) return 3; u->gpu = 64; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    if (*(long *)device) return 3;
    if (*count < 1) { *count = 1; return 7; }
    *count = 1; found[0].pid = 40170; found[0].used = 900; return 0;
}
int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned size) { strcpy(text, "python3"); return 0; }
const char *nvmlErrorString(int code) { return "not supported"; }
"""


def test_a_reading_through_nvml(tmp_path: Path) -> None:
    """NVIDIA's own Python package, on a library with NVML's functions: two cards, one of which tells less."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a library in place of NVIDIA's")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    script = (
        "import msgspec; from sekisho.ops.gpu_sample import read_gpus; print(msgspec.json.encode(read_gpus()).decode())"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    reading = msgspec.json.decode(done.stdout, type=GpuReading)
    zero, one = reading.gpus
    assert reading.source == "nvml"
    assert (zero.total_bytes, zero.used_bytes, zero.busy) == (48305799168, 1000, 0.64)
    assert zero.processes == (GpuProcess(40170, "python3", 900),)
    assert (one.index, one.used_bytes, one.busy, one.processes) == (1, 1001, None, ())
