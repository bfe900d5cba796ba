"""What each device does now: processor, memory, graphics cards, NPU. What cannot be read is None, with the reason."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import psutil

from sekisho.control import gpu_temperatures
from sekisho.control.base import DeviceState
from sekisho.control.gpu_temperatures import Warmth
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops import container_memory
from sekisho.ops.gpu_sample import GpuReading, read_gpus
from sekisho.ops.hardware import RunProbe, run_probe, usable_threads

log = logging.getLogger("sekisho.control")

GPU_EVERY_S: Final = 10.0
GONE_AFTER: Final = 2  # readings in a row without a card; one may fail while the driver is busy
GPU_WAIT_S: Final = 0.5  # how long a sample waits for a reading of the cards; slower ones are seen by the next sample
LEMONADE_DEADLINE_S: Final = 2.0
COOLER_BY_C: Final = 5.0  # our limit below the one at which a processor stops
_CPU_SENSORS: Final = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")
_MAY_LACK_CRITICAL: Final = ("k10temp", "zenpower")


LEMONADE_IDS: Final = ("npu", "lemonade-gpu")


class SystemStats(msgspec.Struct, frozen=True):
    """Lemonade's `GET /v1/system-stats`. Per cent and GiB; null where the machine does not tell it."""

    cpu_percent: float | None = None
    memory_gb: float | None = None
    gpu_percent: float | None = None
    vram_gb: float | None = None
    npu_percent: float | None = None


class CpuTimes(msgspec.Struct, frozen=True):
    """Seconds that the processors were busy and existed, since the machine's start."""

    busy_s: float
    total_s: float


class GpuRead(msgspec.Struct, frozen=True):
    reading: GpuReading
    warmth: dict[int, Warmth]


class Devices:
    """Samples all devices; cheap enough for every few seconds. The vendors' tools run in a thread, at most every 10 s.
    Remembers what was there: a device that is gone stays in the list with `present` False. One event loop, one call
    at a time. `lemonade_url`: of a Lemonade server, like `http://127.0.0.1:13305`, with `lemonade_key` where it has
    one."""

    def __init__(
        self,
        clock: Clock,
        *,
        run: RunProbe = run_probe,
        lemonade_url: str | None = None,
        lemonade_key: str | None = None,
        read_cards: Callable[[RunProbe], GpuReading] = read_gpus,
    ) -> None:
        self._clock = clock
        self._run = run
        self._read_cards = read_cards
        self._lemonade_url = lemonade_url.rstrip("/") if lemonade_url is not None else None
        self._lemonade_key = lemonade_key
        self._session: Any = None
        self._seen: dict[str, DeviceState] = {}
        self._times: CpuTimes | None = None
        self._cards: GpuRead | None = None
        self._cards_failed: str | None = None
        self._cards_asked_s: float | None = None
        self._missed: dict[str, int] = {}
        self._cards_task: asyncio.Task[GpuRead] | None = None

    async def sample(self) -> tuple[DeviceState, ...]:
        """All devices now. Never raises."""
        found = [self._cpu(), _memory()]
        await self._look_at_cards()
        if self._cards_failed is not None:
            found += [_unknown(self._seen[id], self._cards_failed) for id in self._missed if id in self._seen]
        elif self._cards is not None:
            found += cards(self._cards)
            found += [self._unseen(id) for id, missed in self._missed.items() if 0 < missed < GONE_AFTER]
        if self._lemonade_url is not None:
            stats, reason = await self._ask_lemonade()
            if reason is None:
                found += from_lemonade(stats, any(device.kind == "gpu" for device in found))
            else:
                found += [_unknown(device, reason) for id, device in self._seen.items() if id in LEMONADE_IDS]
        return self._remembered(found)

    async def close(self) -> None:
        """May be called twice."""
        if self._cards_task is not None:
            self._cards_task.cancel()
            await asyncio.wait({self._cards_task})
            self._take(self._cards_task)
            self._cards_task = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _remembered(self, found: list[DeviceState]) -> tuple[DeviceState, ...]:
        now = {device.id: device for device in found}
        for id, device in self._seen.items():
            if id not in now:
                now[id] = DeviceState(id, device.kind, device.name, present=False, reason="it was there and is gone")
        self._seen = now
        return tuple(now.values())

    def _unseen(self, id: str) -> DeviceState:
        return _unknown(self._seen[id], "the driver did not tell of it this time")

    def _cpu(self) -> DeviceState:
        before, self._times = self._times, cpu_times()
        share = busy_share(before, self._times)
        temperature, hot = _cpu_temperature()
        name = f"{usable_threads()} threads"
        reasons = []
        if share is None:
            reasons.append("utilisation: there is no earlier sample to compare with")
        if temperature is None:
            reasons.append("temperature: no sensor can be read")
        return DeviceState(
            "cpu",
            "cpu",
            name,
            utilisation=share,
            temperature_c=temperature,
            hot_c=hot,
            reason="; ".join(reasons) or None,
        )

    async def _look_at_cards(self) -> None:
        """Starts a reading where the last one is old, and waits for it a little."""
        now_s = self._clock.monotonic()
        if self._cards_task is None and (self._cards_asked_s is None or now_s - self._cards_asked_s >= GPU_EVERY_S):
            self._cards_asked_s = now_s
            self._cards_task = asyncio.create_task(asyncio.to_thread(self._read_all), name="graphics cards")
        if self._cards_task is not None:
            await asyncio.wait({self._cards_task}, timeout=GPU_WAIT_S)
            if self._cards_task.done():
                task, self._cards_task = self._cards_task, None
                self._take(task)

    def _take(self, task: asyncio.Task[GpuRead]) -> None:
        """What a reading found. One that failed tells of no card that it is gone."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            reason = f"the cards cannot be read: {type(error).__name__}: {error}"
            if reason != self._cards_failed:
                log.warning("%s", reason, exc_info=error)
            self._cards_failed = reason
            return
        self._cards, self._cards_failed = task.result(), None
        here = {device.id for device in cards(self._cards)}
        known = here | self._missed.keys()
        self._missed = {id: 0 if id in here else self._missed.get(id, 0) + 1 for id in known}

    def _read_all(self) -> GpuRead:
        reading = self._read_cards(self._run)
        return GpuRead(reading, gpu_temperatures.read(reading.source, self._run))

    async def _ask_lemonade(self) -> tuple[SystemStats, str | None]:
        import aiohttp  # only where there is a Lemonade to ask

        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        headers = {"Authorization": f"Bearer {self._lemonade_key}"} if self._lemonade_key else {}
        url = f"{self._lemonade_url}/v1/system-stats"
        try:
            async with asyncio.timeout(LEMONADE_DEADLINE_S):
                async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                    body = await answer.content.read(65_536)
                    if answer.status != 200:
                        return SystemStats(), f"Lemonade answers HTTP {answer.status}"
            return decoded(body, SystemStats), None
        except TimeoutError:
            return SystemStats(), f"Lemonade did not answer within {LEMONADE_DEADLINE_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = "something else than system stats" if isinstance(error, Undecodable) else type(error).__name__
            return SystemStats(), f"Lemonade cannot be asked: {said}"


def cpu_times() -> CpuTimes:
    """Of all processors together. Not `psutil.cpu_percent`, which shares its memory with whoever else calls it."""
    times: Mapping[str, float] = psutil.cpu_times()._asdict()
    # Linux counts what guests use in `user` and `nice` as well.
    total_s = sum(seconds for name, seconds in times.items() if name not in ("guest", "guest_nice"))
    return CpuTimes(total_s - times.get("idle", 0.0) - times.get("iowait", 0.0), total_s)


def busy_share(before: CpuTimes | None, after: CpuTimes) -> float | None:
    """Busy share between two readings; None where nothing passed between them."""
    if before is None or after.total_s <= before.total_s:
        return None
    return min(1.0, max(0.0, (after.busy_s - before.busy_s) / (after.total_s - before.total_s)))


def cards(read: GpuRead) -> list[DeviceState]:
    """The cards as devices. Their id is the vendor's own, which survives another order of the slots."""
    found = []
    for gpu in read.reading.gpus:
        warmth = read.warmth.get(gpu.index)
        missing = [
            name
            for name, value in (("utilisation", gpu.busy), ("memory", gpu.used_bytes), ("temperature", warmth))
            if value is None
        ]
        found.append(
            DeviceState(
                gpu.uuid or f"gpu{gpu.index}",
                "gpu",
                gpu.name,
                utilisation=gpu.busy,
                used_bytes=gpu.used_bytes,
                total_bytes=gpu.total_bytes,
                temperature_c=warmth.temperature_c if warmth is not None else None,
                hot_c=warmth.slowdown_c if warmth is not None else None,
                reason=f"the driver does not tell: {', '.join(missing)}" if missing else None,
            )
        )
    return found


def from_lemonade(stats: SystemStats, gpu_known: bool) -> list[DeviceState]:
    """The NPU, and the GPU where no driver tells of one. A figure that is null says that there is no such device, or
    none that can be read: it is listed once it has been told."""
    found = []
    if stats.npu_percent is not None:
        found.append(DeviceState("npu", "npu", "NPU", utilisation=_share(stats.npu_percent)))
    if not gpu_known and (stats.gpu_percent is not None or stats.vram_gb is not None):
        used = int(stats.vram_gb * 2**30) if stats.vram_gb is not None else None
        untold = "Lemonade tells neither the size of the memory nor the temperature"
        share = _share(stats.gpu_percent)
        found.append(DeviceState("lemonade-gpu", "gpu", "GPU", utilisation=share, used_bytes=used, reason=untold))
    return found


def _unknown(device: DeviceState, reason: str) -> DeviceState:
    """The same device without figures, as present as it was."""
    return DeviceState(device.id, device.kind, device.name, present=device.present, reason=reason)


def _share(percent: float | None) -> float | None:
    return None if percent is None else min(1.0, max(0.0, percent / 100))


def _memory() -> DeviceState:
    """The machine's, or the container's where its limit is lower."""
    memory = psutil.virtual_memory()
    container = container_memory.read()
    total, used, name = memory.total, memory.total - memory.available, "memory"
    if container is not None and container.limit_bytes < total:
        total, used, name = container.limit_bytes, container.working_set_bytes, "memory of the container"
    return DeviceState("memory", "memory", name, used_bytes=used, total_bytes=total, utilisation=used / total)


def _cpu_temperature() -> tuple[float | None, float | None]:
    """(now, limit) of the warmest sensor of the processor; None where the machine shows none, as most virtual ones. The
    limit is a little below the sensor's critical one. Its `high` is none: laptops tell 70 to 80 degrees there, which
    they reach in ordinary work."""
    read = getattr(psutil, "sensors_temperatures", None)
    if read is None:
        return None, None
    try:
        sensors = read()
    except (OSError, RuntimeError):
        return None, None  # a sensor's file that vanished or cannot be read
    entries = [(name, entry) for name in _CPU_SENSORS for entry in sensors.get(name, ()) if entry.current]
    if not entries:
        return None, None
    name, warmest = max(entries, key=lambda entry: float(entry[1].current))
    critical = warmest.critical
    if name in _MAY_LACK_CRITICAL and critical == warmest.high:
        critical = None  # psutil puts `high` there where the sensor tells no critical one
    return float(warmest.current), float(critical) - COOLER_BY_C if critical else None
