"""What this machine has: memory (as much as the container may use), processors, graphics cards, disk.

What cannot be measured is None, and `notes` say why.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from sekisho.ops import container_memory

PROBE_TIMEOUT_S = 10.0
APPLE_GPU_SHARE = 0.75  # how much of the unified memory macOS lets the GPU take by default (large machines; 2/3 below)
APPLE_SMALL_SHARE = 2 / 3
APPLE_SMALL_BYTES = 36 << 30

RunProbe = Callable[[Sequence[str]], str | None]


class Gpu(msgspec.Struct, frozen=True):
    """`unified`: the memory is the machine's own RAM."""

    name: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    vendor: str
    unified: bool = False


class Hardware(msgspec.Struct, frozen=True):
    """`ram_total_bytes` is what this process may use: the cgroup's limit where it is lower than the machine's RAM."""

    system: str
    cores: int | None
    threads: int
    ram_total_bytes: int
    ram_available_bytes: int
    ram_limited_by: str | None
    gpus: tuple[Gpu, ...]
    disk_free_bytes: int | None
    notes: tuple[str, ...] = ()

    @property
    def vram_free_bytes(self) -> int:
        """Free memory of the cards that have their own, together."""
        return sum(gpu.memory_free_bytes or 0 for gpu in self.gpus if not gpu.unified)


def detect(disk: Path, run: RunProbe | None = None) -> Hardware:
    """Measures now. Takes some 10 ms, up to some seconds where the vendor's tools are slow. Never raises. `run` asks
    these tools (default: `run_probe`)."""
    ask = run or run_probe
    notes: list[str] = []
    memory = psutil.virtual_memory()
    container = container_memory.read()
    total, available, limited_by = memory.total, memory.available, None
    if container is not None and container.limit_bytes < total:
        total, available, limited_by = container.limit_bytes, min(available, container.free_bytes), "cgroup"
    gpus = nvidia_gpus(ask, notes) + amd_gpus(ask, notes) + apple_gpus(total, available)
    if not gpus:
        notes.append("no graphics card seen: models run on the processor")
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cores=psutil.cpu_count(logical=False),
        threads=usable_threads(),
        ram_total_bytes=total,
        ram_available_bytes=available,
        ram_limited_by=limited_by,
        gpus=tuple(gpus),
        disk_free_bytes=_disk_free(disk, notes),
        notes=tuple(notes),
    )


def usable_threads() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Probe(msgspec.Struct, frozen=True):
    """How a vendor's tool ended. `code` None: it did not end in time, or could not be started."""

    code: int | None
    output: str


def try_probe(argv: Sequence[str], timeout_s: float = PROBE_TIMEOUT_S) -> Probe | None:
    """Runs a vendor's tool; None when there is none of that name. Its errors are in `output` too."""
    program = shutil.which(argv[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *argv[1:]], capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(None, f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Probe(None, error.strerror or str(error))
    output = done.stdout if done.returncode == 0 else done.stdout + done.stderr
    return Probe(done.returncode, output.decode(errors="replace"))


def run_probe(argv: Sequence[str]) -> str | None:
    """The output of a vendor's tool; None when it is missing or fails."""
    probe = try_probe(argv)
    return probe.output if probe is not None and probe.code == 0 else None


def nvidia_gpus(run: RunProbe, notes: list[str]) -> list[Gpu]:
    """By `nvidia-smi`, which comes with the driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    output = run(query)
    return parse_nvidia(output, notes) if output is not None else []


def parse_nvidia(output: str, notes: list[str]) -> list[Gpu]:
    """Lines of `name, MiB total, MiB free`. A field that is no number (as on unified-memory boards) is None."""
    gpus = []
    for line in output.splitlines():
        fields = line.rsplit(",", 2)
        if len(fields) < 3:
            continue
        name, total, free = fields[0].strip(), _mebibytes(fields[1]), _mebibytes(fields[2])
        if total is None:
            notes.append(f"{name}: the driver does not tell its memory")
        gpus.append(Gpu(name, total, free, "nvidia"))
    return gpus


def _mebibytes(cell: str) -> int | None:
    return int(cell) << 20 if _is_number(cell.strip()) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def amd_gpus(run: RunProbe, notes: list[str]) -> list[Gpu]:
    """By `rocm-smi`."""
    output = run(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"])
    return parse_rocm(output, notes) if output is not None else []


def parse_rocm(output: str, notes: list[str]) -> list[Gpu]:
    """JSON by card: `VRAM Total Memory (B)` and `VRAM Total Used Memory (B)` as text; names under several keys."""
    gpus = []
    for key, card in sorted(parse_rocm_cards(output, notes).items()):
        total, used = (str(card.get(name, "")) for name in ("VRAM Total Memory (B)", "VRAM Total Used Memory (B)"))
        if not _is_number(total):
            continue
        name = next(
            (str(card[n]) for n in ("Card series", "Card Series", "Card model", "Card Model") if n in card), key
        )
        free = int(total) - int(used) if _is_number(used) else None
        gpus.append(Gpu(name, int(total), free, "amd"))
    return gpus


def parse_rocm_cards(output: str, notes: list[str]) -> dict[str, dict[str, Any]]:
    """The JSON behind whatever warnings stand before it; empty, with a note, where there is none."""
    start = output.find("{")
    try:
        return msgspec.json.decode(output[start:] if start >= 0 else output, type=dict[str, dict[str, Any]])
    except msgspec.DecodeError:
        notes.append("rocm-smi answers something that cannot be read")
        return {}


def apple_gpus(ram_total_bytes: int, ram_available_bytes: int) -> list[Gpu]:
    """Apple silicon: the GPU works in the machine's memory, up to a share of it."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    share = APPLE_GPU_SHARE if ram_total_bytes > APPLE_SMALL_BYTES else APPLE_SMALL_SHARE
    total = int(ram_total_bytes * share)
    return [Gpu("Apple silicon", total, min(total, ram_available_bytes), "apple", unified=True)]


def _disk_free(path: Path, notes: list[str]) -> int | None:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        return shutil.disk_usage(existing).free
    except OSError as error:
        notes.append(f"{existing}: free space cannot be read: {error.strerror}")
        return None
