"""Decode kernels by name, best first; a new one is one file and one line here."""

import importlib
from collections.abc import Callable
from typing import Final

import torch

from sekisho.kv.kernels.base import DecodeKernel
from sekisho.kv.kernels.reference import decode_attention


def _triton() -> DecodeKernel:
    return _attribute("triton_decode")


def _cpu() -> DecodeKernel:
    return _attribute("cpu")


def _reference() -> DecodeKernel:
    return decode_attention


def _attribute(module: str) -> DecodeKernel:
    kernel: DecodeKernel = importlib.import_module(f"sekisho.kv.kernels.{module}").decode_attention
    return kernel


KERNELS: Final[dict[str, tuple[frozenset[str], Callable[[], DecodeKernel]]]] = {
    "triton": (frozenset({"cuda"}), _triton),
    "cpu": (frozenset({"cpu"}), _cpu),
    "reference": (frozenset({"cpu", "cuda", "mps", "xpu"}), _reference),
}
_loaded: dict[str, DecodeKernel] = {}


def kernel_for(device: torch.device) -> DecodeKernel:
    """The best kernel whose packages are there. The choice is made once for each kind of device."""
    if device.type not in _loaded:
        _loaded[device.type] = _best(device.type)
    return _loaded[device.type]


def _best(kind: str) -> DecodeKernel:
    for kinds, load in KERNELS.values():
        if kind in kinds:
            try:
                return load()
            except ImportError:
                continue  # its extra is not installed: the next one computes the same, slower
    return decode_attention


def kernel_named(name: str) -> DecodeKernel:
    """Raises ValueError with the names there are, ImportError where its packages are missing."""
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r}; there are {', '.join(KERNELS)}")
    return KERNELS[name][1]()
