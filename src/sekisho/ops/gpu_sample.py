"""What each graphics card is doing now: memory, use, and whose processes are on it.

NVIDIA's cards through NVML where `nvidia-ml-py` is installed (NVML is the interface that stays the same), else through
`nvidia-smi`; AMD's through `rocm-smi`. What a driver does not tell is None. In a container the process ids are those of
the host, and names may be missing.
"""

import importlib
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from sekisho.ops.hardware import RunProbe, parse_rocm_cards, run_probe

Source = Literal["nvml", "nvidia-smi", "rocm-smi", "none"]

CARDS_QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,memory.total,memory.used,utilization.gpu,name",
    "--format=csv,noheader,nounits",
)
PROCESSES_QUERY = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,used_memory,process_name",
    "--format=csv,noheader,nounits",
)


class GpuProcess(msgspec.Struct, frozen=True):
    """`used_bytes` None: not told (Windows, or another user's)."""

    pid: int
    name: str
    used_bytes: int | None


class GpuSample(msgspec.Struct, frozen=True):
    """One card at one moment. `index` is the vendor's own. `busy` is a share, 0 to 1."""

    index: int
    name: str
    total_bytes: int | None
    used_bytes: int | None
    busy: float | None = None
    processes: tuple[GpuProcess, ...] = ()
    uuid: str = ""

    @property
    def used_share(self) -> float | None:
        return self.used_bytes / self.total_bytes if self.used_bytes is not None and self.total_bytes else None


class GpuReading(msgspec.Struct, frozen=True):
    """All cards at one moment; none where no driver answers."""

    gpus: tuple[GpuSample, ...] = ()
    source: Source = "none"

    def get(self, index: int) -> GpuSample | None:
        return next((gpu for gpu in self.gpus if gpu.index == index), None)


class Driver(msgspec.Struct, frozen=True):
    """NVIDIA's driver. `cuda`: the newest CUDA it can run, major and minor."""

    version: str
    cuda: tuple[int, int] | None


def read_gpus(run: RunProbe = run_probe) -> GpuReading:
    """Measures now. Blocks for some milliseconds with NVML, for 20 ms to seconds with the vendors' tools. Never
    raises."""
    nvml = _nvml()
    if nvml is not None:
        return GpuReading(nvml, "nvml")
    cards = run(CARDS_QUERY)
    if cards is not None:
        return GpuReading(parse_smi(cards, run(PROCESSES_QUERY) or ""), "nvidia-smi")
    amd = run(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showuse", "--json"])
    if amd is not None:
        return GpuReading(parse_rocm_use(amd), "rocm-smi")
    return GpuReading()


def parse_smi(cards: str, processes: str) -> tuple[GpuSample, ...]:
    """The answers to `CARDS_QUERY` and `PROCESSES_QUERY`: a line a card or process, memory in MiB, use in per cent. A
    field that is not told is `[N/A]`, `[Not Supported]` or the like. Names come last, since they may hold commas."""
    by_card: dict[str, list[GpuProcess]] = {}
    for line in processes.splitlines():
        uuid, pid, used, name = [*(cell.strip() for cell in line.split(",", 3)), "", "", ""][:4]
        if pid.isascii() and pid.isdigit():
            by_card.setdefault(uuid, []).append(GpuProcess(int(pid), _told(name), _mebibytes(used)))
    found = []
    for line in cards.splitlines():
        cells = [cell.strip() for cell in line.split(",", 5)]
        if len(cells) < 6 or not (cells[0].isascii() and cells[0].isdigit()):
            continue
        index, uuid, total, used, busy, name = cells
        share = int(busy) / 100 if busy.isascii() and busy.isdigit() else None
        mine = tuple(by_card.get(uuid, ()))
        found.append(GpuSample(int(index), name, _mebibytes(total), _mebibytes(used), share, mine, uuid))
    return tuple(found)


def parse_rocm_use(output: str) -> tuple[GpuSample, ...]:
    """`rocm-smi`'s JSON: cards by name (`card0`), numbers as text."""
    found = []
    for key, card in parse_rocm_cards(output, []).items():
        number = re.fullmatch(r"card(\d+)", key)
        total, used, busy = (str(card.get(field, "")).strip() for field in _ROCM_FIELDS)
        if number is None or not _is_number(total):
            continue
        name = next((str(card[field]) for field in _ROCM_NAMES if field in card), key)
        share = int(busy) / 100 if _is_number(busy) else None
        found.append(GpuSample(int(number[1]), name, int(total), int(used) if _is_number(used) else None, share))
    return tuple(sorted(found, key=lambda gpu: gpu.index))


_ROCM_FIELDS = ("VRAM Total Memory (B)", "VRAM Total Used Memory (B)", "GPU use (%)")
_ROCM_NAMES = ("Card series", "Card Series", "Card model", "Card Model")


def parse_banner(text: str) -> Driver | None:
    """The head of `nvidia-smi`'s table. Since driver 610 it says `KMD Version` and `CUDA UMD Version`."""
    version = re.search(r"(?:Driver|KMD) Version\s*:\s*([0-9.]+)", text)
    cuda = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+)\.(\d+)", text)
    if version is None:
        return None
    return Driver(version[1], (int(cuda[1]), int(cuda[2])) if cuda else None)


def _mebibytes(cell: str) -> int | None:
    return int(cell) << 20 if _is_number(cell) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _told(name: str) -> str:
    return "" if name.startswith("[") else name


def _nvml() -> tuple[GpuSample, ...] | None:
    """Through NVML; None where the package, the library or the driver is not there."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return tuple(_nvml_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _nvml_card(nvml: Any, index: int) -> GpuSample:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (nvml.NVMLError, AttributeError):
            return None  # this card or this version of the library does not tell it

    # The second version leaves out what the driver keeps for itself, as nvidia-smi's `memory.used` does.
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)) or ask(
        lambda: nvml.nvmlDeviceGetMemoryInfo(handle)
    )
    use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    processes = []
    for process in ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ():
        name = ask(lambda pid=process.pid: nvml.nvmlSystemGetProcessName(pid))  # type: ignore[misc]
        processes.append(GpuProcess(process.pid, _words(name), process.usedGpuMemory))
    return GpuSample(
        index,
        _words(ask(lambda: nvml.nvmlDeviceGetName(handle))),
        memory.total if memory is not None else None,
        memory.used if memory is not None else None,
        use.gpu / 100 if use is not None else None,
        tuple(processes),
        _words(ask(lambda: nvml.nvmlDeviceGetUUID(handle))),
    )


def _words(value: Any) -> str:
    """Older versions of the package answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
