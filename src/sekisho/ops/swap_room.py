"""Whether two workers of one model fit into memory at the same time: measured, and decided from the figures.

The new worker is taken to need what the old one has now, and for llama.cpp, which takes its KV cache at the start, the
difference that the new settings make. Where a figure is missing the answer is no: then the old one is stopped first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from sekisho.engines import kv_size, llama_demotion, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.worker_process import WorkerError
from sekisho.ops import container_memory
from sekisho.ops.gpu_sample import GpuReading, read_gpus

How = Literal["side_by_side", "one_after_other"]
MIB: Final = 2**20


class Memory(msgspec.Struct, frozen=True):
    """One memory: what is free there, and what a second worker would take. None: not known, `why` says why not."""

    name: str
    free_bytes: int | None
    need_bytes: int | None
    why: str | None = None


def choose(memories: tuple[Memory, ...], reserve_bytes: int) -> tuple[How, str]:
    """How to exchange the worker, and why so."""
    for memory in memories:
        if memory.free_bytes is None or memory.need_bytes is None:
            return "one_after_other", f"{memory.name}: {memory.why or 'not measured'}"
        if memory.need_bytes + reserve_bytes > memory.free_bytes:
            return "one_after_other", f"{_told(memory)}, {reserve_bytes / MIB:.0f} MiB are to stay free"
    return "side_by_side", "; ".join(_told(memory) for memory in memories)


def _told(memory: Memory) -> str:
    need, free = memory.need_bytes or 0, memory.free_bytes or 0
    return f"{memory.name}: a second worker needs {need / MIB:.0f} MiB, {free / MIB:.0f} MiB are free"


def measure(
    pid: int | None,
    old: ModelConfig,
    new: ModelConfig,
    *,
    gpus: Callable[[], GpuReading] = read_gpus,
) -> tuple[Memory, ...]:
    """The memories that a second worker would need. Blocks for some milliseconds, with cards up to seconds."""
    extra = extra_bytes(old, new)
    found = [_ram(pid, extra)]
    if may_use_cards(old) or may_use_cards(new):
        found += _cards(pid, extra, gpus())
    return tuple(found)


def _ram(pid: int | None, extra: int | None) -> Memory:
    free = free_bytes()
    if extra is None:
        return Memory("memory", free, None, "how much more the new settings need cannot be told")
    try:
        if pid is None:
            return Memory("memory", free, None, "the old worker does not run, so nothing can be measured")
        return Memory("memory", free, max(0, psutil.Process(pid).memory_info().rss + extra))
    except psutil.Error as error:
        return Memory("memory", free, None, f"the old worker cannot be measured: {error}")


def free_bytes() -> int:
    """Of the machine's memory, or of what the container may have of it."""
    free, container = int(psutil.virtual_memory().available), container_memory.read()
    return free if container is None else min(free, container.free_bytes)


def may_use_cards(config: ModelConfig) -> bool:
    """Whether the settings leave layers to a graphics card, where there is one."""
    return config.gpu_layers != 0 if config.engine == "llama_cpp" else config.devices != "cpu"


def _cards(pid: int | None, extra: int | None, reading: GpuReading) -> list[Memory]:
    """Cards on which the old worker has memory. Where there are cards and it is on none of them as far as the driver
    tells (in a container it knows other process ids), nothing is known."""
    if not reading.gpus:
        return []
    found = []
    for card in reading.gpus:
        for process in card.processes:
            if process.pid != pid:
                continue
            known = card.total_bytes is not None and card.used_bytes is not None
            free = (card.total_bytes or 0) - (card.used_bytes or 0) if known else None
            need = None if process.used_bytes is None or extra is None else max(0, process.used_bytes + extra)
            found.append(Memory(card.name, free, need, "the driver does not tell how much the old worker uses"))
    return found or [Memory("graphics memory", None, None, "the driver does not show the old worker on any card")]


def extra_bytes(old: ModelConfig, new: ModelConfig) -> int | None:
    """What the new worker needs more than the old one, below zero for less; None where that cannot be told. Weights by
    the size of their files; for llama.cpp the KV cache as well."""
    if old.engine != new.engine:
        return None
    weights = 0
    if old.path != new.path or copies(old) != copies(new):
        sizes = [weights_bytes(config) for config in (old, new)]
        if sizes[0] is None or sizes[1] is None:
            return None
        weights = sizes[1] * copies(new) - sizes[0] * copies(old)
    if new.engine != "llama_cpp" or _cache_of(old) == _cache_of(new):
        return weights
    before, after = kv_bytes(old), kv_bytes(new)
    return None if before is None or after is None else weights + after - before


def _cache_of(config: ModelConfig) -> tuple[object, ...]:
    demotes = llama_demotion.asked(config) and config.context
    return config.path, config.context * config.slots, config.kv_type_k, config.kv_type_v, demotes


def copies(config: ModelConfig) -> int:
    """How often a worker counts its weights: what reads prompts beside it maps them once more, and llama.cpp may lay
    them out anew for the processor, for each."""
    return 2 if config.engine == "llama_cpp" and llama_demotion.asked(config) else 1


def kv_bytes(config: ModelConfig) -> int | None:
    """The KV cache that llama.cpp takes for a model, at most (layers with a window take less), with the one at 16 bits
    that prompts are read into before they are stored with fewer; None where the file does not tell."""
    try:
        shape = kv_size.shape(llama_worker.model_path(config), at_most=True)
    except WorkerError:
        return None
    if isinstance(shape, str):
        return None
    size = shape.token_bytes(config.kv_type_k, config.kv_type_v) * config.context * config.slots
    if llama_demotion.asked(config):
        size += shape.token_bytes("f16", "f16") * config.context
    return round(size) or None


def problem(config: ModelConfig) -> str | None:
    """Why no worker could run this, as far as a look at the file tells; None where nothing is known against it."""
    if config.engine != "llama_cpp":
        return None
    try:
        llama_worker.model_path(config)
    except WorkerError as error:
        return str(error)
    return None


def weights_bytes(config: ModelConfig) -> int | None:
    """The bytes of the weights' files; None where they cannot be found."""
    try:
        if config.engine == "llama_cpp":
            return llama_worker.model_path(config).stat().st_size
        path = Path(config.path or "").expanduser()
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files) or None
    except (OSError, WorkerError):
        return None
