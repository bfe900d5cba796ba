"""What was measured on: machine, software, engine, model and the machine's other work. Figures mean nothing without."""

import asyncio
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from sekisho.core.decoding import Undecodable, decoded
from sekisho.evaluate.client.exchange import Connections, Limits
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.progress import Progress, silent
from sekisho.ops.hardware import Hardware, run_probe

_CHUNK_BYTES = 1 << 22
_VERSION_PATHS = ("/version", "/api/version", "/props")  # vLLM, Ollama, llama.cpp's server


ENGINE = ("Engine and model", "エンジンとモデル")


class Section(msgspec.Struct, frozen=True):
    """`rows` are (name, value); what could not be found says so in its value."""

    name: tuple[str, str]
    rows: tuple[tuple[str, str], ...]


def machine(hardware: Hardware) -> Section:
    """Processor, memory and cards."""
    rows = [
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", processor_name() or "not told by the system"),
        ("threads", f"{hardware.threads}" + (f" ({hardware.cores} cores)" if hardware.cores else "")),
        ("memory", _gib(hardware.ram_total_bytes) + (", limited by a cgroup" if hardware.ram_limited_by else "")),
    ]
    for index, gpu in enumerate(hardware.gpus):
        rows.append((f"gpu {index}", f"{gpu.name}, {_gib(gpu.memory_total_bytes)}"))
    if not hardware.gpus:
        rows.append(("gpu", "none seen"))
    driver = run_probe(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    if driver:
        rows.append(("driver", driver.splitlines()[0].strip()))
    return Section(("Machine", "マシン"), tuple(rows))


def software(versions: Mapping[str, str]) -> Section:
    return Section(("Software", "ソフトウェア"), tuple(versions.items()))


def settings(values: Mapping[str, Any]) -> Section:
    """Settings as a flat list; the caller has masked what is secret."""
    return Section(("Settings", "設定"), tuple(_flat("", values)))


async def engine(targets: tuple[Target, ...], model_file: Path | None, progress: Progress = silent) -> Section:
    """What the engine tells of itself, and the model's hash where its file lies on this machine."""
    rows: list[tuple[str, str]] = []
    for target in targets:
        rows.append((target.place, f"{target.url} {target.model}"))
        version = await _version(target)
        if version:
            rows.append((f"{target.place} version", version))
    if model_file is None:
        rows.append(("model file", "not on this machine: no hash"))
    else:
        size, digest = await asyncio.to_thread(sha256, model_file, progress)
        rows += [("model file", f"{model_file.name}, {size} bytes"), ("model sha256", digest)]
    return Section(ENGINE, tuple(rows))


class Load(msgspec.Struct, frozen=True):
    """How busy the machine is with other things. `stolen_share`: processor time that the hypervisor kept, since boot
    or since `earlier`."""

    load_1min: float | None
    cpu_share: float
    stolen_share: float | None
    memory_available_bytes: int
    swap_used_bytes: int
    times: tuple[float, float]  # (all, stolen) seconds since boot

    @staticmethod
    def now(earlier: "Load | None" = None) -> "Load":
        times = psutil.cpu_times()
        whole, stolen = float(sum(times)), float(getattr(times, "steal", 0.0))
        before = earlier.times if earlier else (0.0, 0.0)
        span = whole - before[0]
        share = (stolen - before[1]) / span if span > 0 and hasattr(times, "steal") else None
        return Load(
            load_1min=psutil.getloadavg()[0],
            cpu_share=psutil.cpu_percent() / 100,
            stolen_share=share,
            memory_available_bytes=psutil.virtual_memory().available,
            swap_used_bytes=psutil.swap_memory().used,
            times=(whole, stolen),
        )


def sha256(path: Path, progress: Progress = silent) -> tuple[int, str]:
    """(bytes, digest) of a file of any size, told as it goes."""
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress("hash", done, size)
    return size, digest.hexdigest()


def processor_name() -> str:
    """As the system tells it; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next(named, "") or platform.processor()


async def _version(target: Target) -> str:
    async with Connections(target, Limits(connect_s=3, silence_s=3, total_s=5, max_bytes=1 << 20)) as connections:
        for path in _VERSION_PATHS:
            exchange = await connections.exchange("GET", path)
            if exchange.trouble is not None:
                return ""
            if exchange.status == 200:
                try:
                    told = decoded(exchange.body, _Told)
                except Undecodable:
                    continue
                if told.version or told.build_info:
                    return told.version or told.build_info
    return ""


class _Told(msgspec.Struct):
    version: str = ""
    build_info: str = ""


def _gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.1f} GiB"


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in _flat(f"{prefix}.{key}" if prefix else str(key), inner)]
    if isinstance(value, list | tuple) and value and all(isinstance(inner, Mapping) for inner in value):
        return [row for index, inner in enumerate(value) for row in _flat(f"{prefix}[{index}]", inner)]
    if value in (None, "", [], {}, ()):
        return []
    return [(prefix, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))]
