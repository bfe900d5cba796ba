"""What the devices do now: this machine for real, cards by what the vendors' tools say, Lemonade over HTTP."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sekisho.control import gpu_temperatures
from sekisho.control.base import DeviceState
from sekisho.control.devices import CpuTimes, Devices, busy_share, cpu_times
from sekisho.control.gpu_temperatures import Warmth
from sekisho.core.clock import ManualClock
from sekisho.ops.gpu_sample import GpuReading, GpuSample

CARD = "0, GPU-aaa, 81559, 40000, 37, NVIDIA H100"


def no_tools(argv: Sequence[str]) -> str | None:
    return None


def smi(answers: list[str | None]) -> Any:
    """`nvidia-smi` as it answers, one reading after the other; the last one again and again."""

    def run(argv: Sequence[str]) -> str | None:
        if argv[0] != "nvidia-smi":
            return None
        if "uuid" in argv[1] and "index" in argv[1]:
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return "0, 71\n" if "temperature" in argv[1] and answers[0] is not None else None

    return run


@pytest.fixture(autouse=True)
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' cards are those that they describe, also on a machine that has some."""
    monkeypatch.setattr("sekisho.ops.gpu_sample._nvml", lambda: None)


def by_id(devices: Sequence[DeviceState]) -> dict[str, DeviceState]:
    return {device.id: device for device in devices}


async def test_this_machine_is_measured() -> None:
    """Memory is within the machine's; the processor's share needs two looks and says so; no sensor is a reason."""
    devices = Devices(ManualClock(), run=no_tools)
    first = by_id(await devices.sample())
    assert first["cpu"].utilisation is None
    assert "no earlier sample" in (first["cpu"].reason or "")
    memory = first["memory"]
    assert memory.used_bytes is not None
    assert memory.total_bytes is not None
    assert 0 < memory.used_bytes <= memory.total_bytes <= psutil.virtual_memory().total
    before = cpu_times()
    while cpu_times().total_s <= before.total_s:
        sum(range(100_000))
    second = by_id(await devices.sample())
    assert second["cpu"].utilisation is not None
    assert 0 <= second["cpu"].utilisation <= 1
    if second["cpu"].temperature_c is None:
        assert second["cpu"].reason == "temperature: no sensor can be read"
    await devices.close()
    await devices.close()


def test_the_share_is_that_of_the_time_between_two_looks() -> None:
    """Where no time passed there is no share."""
    assert busy_share(CpuTimes(10, 100), CpuTimes(13, 104)) == 0.75
    assert busy_share(CpuTimes(10, 100), CpuTimes(10, 100)) is None
    assert busy_share(None, CpuTimes(1, 2)) is None


async def test_a_card_is_shown_with_its_temperature_and_read_every_ten_seconds_at_most() -> None:
    """Looks in between get the same reading."""
    clock, asked = ManualClock(), []
    inner = smi([CARD])

    def run(argv: Sequence[str]) -> str | None:
        asked.append(argv)
        return inner(argv)  # type: ignore[no-any-return]

    devices = Devices(clock, run=run)
    card = by_id(await devices.sample())["GPU-aaa"]
    assert (card.kind, card.name, card.utilisation) == ("gpu", "NVIDIA H100", 0.37)
    assert (card.used_bytes, card.total_bytes, card.temperature_c) == (40_000 << 20, 81_559 << 20, 71.0)
    assert card.reason is None
    once = len(asked)
    clock.advance(9)
    await devices.sample()
    assert len(asked) == once
    clock.advance(2)
    await devices.sample()
    assert len(asked) == 2 * once
    await devices.close()


async def test_a_card_is_gone_after_two_readings_without_it_and_back_with_one() -> None:
    """One reading may fail while the driver is busy: then its figures are unknown and the card is not gone."""
    clock = ManualClock()
    devices = Devices(clock, run=smi([CARD, None, None, CARD]))
    seen = []
    for _ in range(4):
        seen.append(by_id(await devices.sample())["GPU-aaa"])
        clock.advance(11)
    assert [card.present for card in seen] == [True, True, False, True]
    assert seen[1].used_bytes is None
    assert seen[1].reason == "the driver did not tell of it this time"
    assert seen[2].reason == "it was there and is gone"
    await devices.close()


async def test_a_driver_that_answers_nonsense_is_asked_again() -> None:
    """A reading that fails is the reason of every card, makes none of them gone, and is forgotten with the next one."""
    clock, asked = ManualClock(), []

    def read(run: Any) -> GpuReading:
        asked.append(1)
        if len(asked) in (2, 3):
            raise ValueError("odd output")
        return GpuReading((GpuSample(0, "Card", 100, 50, 0.5),), "rocm-smi")

    devices, seen = Devices(clock, run=no_tools, read_cards=read), []
    for _ in range(4):
        while len(asked) == len(seen) or devices._cards_task is not None:
            found = by_id(await devices.sample())["gpu0"]
        seen.append((found.present, found.used_bytes, found.reason or ""))
        clock.advance(11)
    assert [present for present, _, _ in seen] == [True] * 4
    assert [used for _, used, _ in seen] == [50, None, None, 50]
    assert "the cards cannot be read: ValueError: odd output" in seen[1][2]
    asked[:] = [1]
    await devices.sample()
    await devices.close()


@pytest.mark.parametrize(
    ("sensor", "high", "critical", "limit"),
    [
        ("coretemp", 80.0, 100.0, 95.0),
        ("coretemp", 100.0, 100.0, 95.0),
        ("cpu_thermal", 85.0, 85.0, 80.0),
        ("k10temp", 70.0, 90.0, 85.0),
        ("k10temp", 70.0, 70.0, None),
        ("zenpower", None, None, None),
    ],
)
async def test_a_processor_is_hot_a_little_below_its_critical_temperature(
    monkeypatch: pytest.MonkeyPatch, sensor: str, high: float | None, critical: float | None, limit: float | None
) -> None:
    """Its `high`, which laptops reach in ordinary work, is no limit; also not where psutil gives it out as critical."""
    entry = SimpleNamespace(label="", current=84.0, high=high, critical=critical)
    cooler = SimpleNamespace(label="", current=40.0, high=50.0, critical=60.0)
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {sensor: [cooler, entry]}, raising=False)
    devices = Devices(ManualClock(), run=no_tools)
    cpu = by_id(await devices.sample())["cpu"]
    assert (cpu.temperature_c, cpu.hot_c) == (84.0, limit)
    await devices.close()


async def test_a_slow_tool_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look answers without the cards while their tool still runs, and starts no second one."""
    monkeypatch.setattr("sekisho.control.devices.GPU_WAIT_S", 0.01)
    clock, gate, started = ManualClock(), threading.Event(), []

    def read(run: Any) -> GpuReading:
        started.append(1)
        gate.wait()
        return GpuReading((GpuSample(0, "Card", 100, 50, 0.5),), "rocm-smi")

    devices = Devices(clock, run=no_tools, read_cards=read)
    assert "gpu0" not in by_id(await devices.sample())
    clock.advance(60)
    assert "gpu0" not in by_id(await devices.sample())
    gate.set()
    seen: dict[str, DeviceState] = {}
    while "gpu0" not in seen:
        seen = by_id(await devices.sample())
    assert len(started) == 1
    await devices.close()


def test_temperatures_by_tool() -> None:
    """What is not told is missing; AMD's card tells the edge, else the junction."""
    assert gpu_temperatures.parse_smi("0, 41\n1, [N/A]\nnonsense\n") == {0: Warmth(41.0)}
    rocm = '{"card0": {"Temperature (Sensor edge) (C)": "38.0", "Temperature (Sensor junction) (C)": "40.0"}, '
    rocm += (
        '"card1": {"Temperature (Sensor edge) (C)": "N/A", "Temperature (Sensor junction) (C)": "55.5"}, "system": {}}'
    )
    assert gpu_temperatures.parse_rocm(rocm) == {0: Warmth(38.0), 1: Warmth(55.5)}
    assert gpu_temperatures.parse_rocm("") == {}


def test_nvml_tells_temperature_and_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that nvidia-ml-py really has; a card that tells nothing is missing. The driver is the test's."""
    nvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

    def temperature(handle: int, sensor: int) -> int:
        if handle == 1:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        return 65

    for name, value in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetTemperatureThreshold": lambda handle, kind: 90 if kind == 1 else 0,
    }.items():
        assert hasattr(nvml, name)
        monkeypatch.setattr(nvml, name, value)
    assert nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN == 1
    assert gpu_temperatures.read("nvml") == {0: Warmth(65.0, 90.0)}


class Lemonade:
    """A server with Lemonade's `/v1/system-stats` (docs/api/lemonade.md of August 2026)."""

    def __init__(self) -> None:
        self.answer: Any = {
            "cpu_percent": 12.3,
            "memory_gb": 8.4,
            "gpu_percent": 45.0,
            "vram_gb": 2.0,
            "npu_percent": 30.0,
        }
        self.status = 200
        self.asked: list[str | None] = []

    async def stats(self, request: web.Request) -> web.Response:
        self.asked.append(request.headers.get("Authorization"))
        return web.json_response(self.answer, status=self.status)


async def test_lemonade_tells_of_npu_and_gpu_and_its_silence_is_not_their_end() -> None:
    """Figures by its schema, with the key; null after a figure: gone; no answer: unknown, with the reason."""
    lemonade, app = Lemonade(), web.Application()
    app.router.add_get("/v1/system-stats", lemonade.stats)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        devices = Devices(ManualClock(), run=no_tools, lemonade_url=url, lemonade_key="k")
        told = by_id(await devices.sample())
        assert (told["npu"].kind, told["npu"].utilisation) == ("npu", 0.3)
        assert (told["lemonade-gpu"].utilisation, told["lemonade-gpu"].used_bytes) == (0.45, 2 * 2**30)
        assert lemonade.asked == ["Bearer k"]
        lemonade.status = 401
        told = by_id(await devices.sample())
        assert (told["npu"].present, told["npu"].utilisation) == (True, None)
        assert told["npu"].reason == "Lemonade answers HTTP 401"
        lemonade.status, lemonade.answer = 200, ["no", "stats"]
        assert "something else" in (by_id(await devices.sample())["npu"].reason or "")
        lemonade.answer = {
            "cpu_percent": 1.0,
            "memory_gb": 8.4,
            "gpu_percent": None,
            "vram_gb": None,
            "npu_percent": None,
        }
        told = by_id(await devices.sample())
        assert (told["npu"].present, told["lemonade-gpu"].present) == (False, False)
    told = by_id(await devices.sample())
    assert (told["npu"].present, told["npu"].reason) == (False, "Lemonade cannot be asked: ClientConnectorError")
    await devices.close()


async def test_a_lemonade_that_never_answered_makes_no_devices() -> None:
    """Nothing is listed that nobody has told of."""
    devices = Devices(ManualClock(), run=no_tools, lemonade_url="http://127.0.0.1:9")
    assert set(by_id(await devices.sample())) == {"cpu", "memory"}
    await devices.close()
