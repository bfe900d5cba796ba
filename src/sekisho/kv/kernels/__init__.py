"""Decode kernels and page encoders, best first; a new one is one file and one line here."""

import importlib
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from sekisho.kv import formats
from sekisho.kv.formats import Format
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

Encoder = Callable[[Tensor, Tensor, Format], Tensor]
_ENCODERS: Final = {"cuda": "triton_pack", "cpu": "cpu_pack"}  # modules by kind of device
_encoders: dict[str, Encoder] = {}


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


def encoder_for(device: torch.device) -> Encoder:
    """The fastest `formats.encode_pages` whose packages are there; the choice is made once for each kind of device."""
    if device.type not in _encoders:
        _encoders[device.type] = _fastest_encoder(device.type)
    return _encoders[device.type]


def _fastest_encoder(kind: str) -> Encoder:
    if kind in _ENCODERS:
        try:
            encoder: Encoder = importlib.import_module(f"sekisho.kv.kernels.{_ENCODERS[kind]}").encode_pages
            return encoder
        except ImportError:
            return formats.encode_pages  # its extra is not installed: torch computes the same, slower
    return formats.encode_pages
