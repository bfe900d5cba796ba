"""How warm each graphics card is, by the vendor's index, and where it begins to slow down by itself.

NVIDIA's cards through NVML where `nvidia-ml-py` is installed, else `nvidia-smi`; AMD's through `rocm-smi`.
"""

import importlib
import re
from typing import Any

import msgspec

from sekisho.ops.hardware import RunProbe, parse_rocm_cards, run_probe

SMI_QUERY = ("nvidia-smi", "--query-gpu=index,temperature.gpu", "--format=csv,noheader,nounits")
ROCM_QUERY = ("rocm-smi", "--showtemp", "--json")
_ROCM_SENSORS = ("edge", "junction")  # the edge is what rocm-smi itself shows first


class Warmth(msgspec.Struct, frozen=True):
    """In degrees Celsius."""

    temperature_c: float
    slowdown_c: float | None = None


def read(source: str, run: RunProbe = run_probe) -> dict[int, Warmth]:
    """By the way in which the cards themselves were read (`GpuReading.source`). Blocks. Never raises."""
    if source == "nvml":
        return _nvml()
    if source == "nvidia-smi":
        return parse_smi(run(SMI_QUERY) or "")
    return parse_rocm(run(ROCM_QUERY) or "") if source == "rocm-smi" else {}


def parse_smi(output: str) -> dict[int, Warmth]:
    """A line a card: `0, 41`; `[N/A]` where it is not told."""
    found = {}
    for line in output.splitlines():
        index, _, degrees = (cell.strip() for cell in line.partition(","))
        if _is_number(index) and _is_number(degrees):
            found[int(index)] = Warmth(float(degrees))
    return found


def parse_rocm(output: str) -> dict[int, Warmth]:
    """By `card0` and the like; `Temperature (Sensor edge) (C)` as text."""
    found = {}
    for key, card in parse_rocm_cards(output, []).items():
        number = re.fullmatch(r"card(\d+)", key)
        told = [str(card.get(f"Temperature (Sensor {sensor}) (C)", "")).strip() for sensor in _ROCM_SENSORS]
        degrees = next((text for text in told if re.fullmatch(r"\d+(\.\d+)?", text)), None)
        if number is not None and degrees is not None:
            found[int(number[1])] = Warmth(float(degrees))
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _nvml() -> dict[int, Warmth]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        cards = {index: _nvml_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())}
    except nvml.NVMLError:
        return {}
    finally:
        nvml.nvmlShutdown()
    return {index: warmth for index, warmth in cards.items() if warmth is not None}


def _nvml_card(nvml: Any, index: int) -> Warmth | None:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        degrees = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
    except (nvml.NVMLError, AttributeError):
        return None  # this card or this version of the library does not tell it
    try:
        slowdown = nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    except (nvml.NVMLError, AttributeError):
        slowdown = None
    return Warmth(float(degrees), float(slowdown) if slowdown else None)
