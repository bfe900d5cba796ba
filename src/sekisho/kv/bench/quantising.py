"""Rivals that keep every token in fewer bits."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import QuantizedCache

from sekisho.kv.bench.layers import RivalLayer
from sekisho.kv.bench.unavailable import Unavailable
from sekisho.kv.rotation import rotation


def packed(codes: Tensor, bits: int) -> Tensor:
    """(…, n) codes of `bits` bits, n a multiple of 8 / bits, to (…, n * bits / 8) bytes."""
    together = 8 // bits
    parts = codes.to(torch.uint8).unflatten(-1, (-1, together)).unbind(-1)
    whole = torch.zeros_like(parts[0])
    for index, part in enumerate(parts):
        whole |= part << bits * index
    return whole


def unpacked(whole: Tensor, bits: int) -> Tensor:
    """The inverse of `packed`."""
    mask = 2**bits - 1
    return torch.stack([whole >> bits * index & mask for index in range(8 // bits)], -1).flatten(-2)


class Between:
    """Codes evenly spaced between the least and the largest number of a group; `axis` is the group's dimension."""

    def __init__(self, numbers: Tensor, bits: int, axis: int) -> None:
        least, most = numbers.amin(axis, keepdim=True), numbers.amax(axis, keepdim=True)
        self.bits = bits
        self.step = ((most.float() - least.float()) / (2**bits - 1)).to(torch.float16)
        self.least = least.to(torch.float16)
        divisor = torch.where(self.step == 0, 1, self.step).float()
        codes = ((numbers.float() - self.least.float()) / divisor).round().clamp(0, 2**bits - 1)
        self.codes = packed(codes, bits)

    def numbers(self) -> Tensor:
        """float32, in the shape they came."""
        return unpacked(self.codes, self.bits).float() * self.step.float() + self.least.float()


class KiviLayer(RivalLayer):
    """After KIVI (Liu et al. 2024): keys per channel in groups of `group` tokens, values per token in groups of as many
    channels, codes between the group's least and largest number, a dense window of the last `residual` tokens (and up
    to a group more)."""

    def __init__(self, dtype: torch.dtype, bits: int, group: int, residual: int) -> None:
        super().__init__(dtype)
        self.bits, self.group, self.residual = bits, group, residual
        self.recent: tuple[Tensor, Tensor] | None = None
        self.blocks: list[tuple[Between, Between]] = []

    def store(self, keys: Tensor, values: Tensor) -> None:
        if self.recent is not None:
            keys, values = torch.cat((self.recent[0], keys), 2), torch.cat((self.recent[1], values), 2)
        leaving = max(0, keys.shape[2] - self.residual) // self.group * self.group
        if leaving:
            old_keys = keys[:, :, :leaving].unflatten(2, (-1, self.group))
            old_values = values[:, :, :leaving].unflatten(3, (-1, math.gcd(self.group, values.shape[3])))
            self.blocks.append((Between(old_keys, self.bits, 3), Between(old_values, self.bits, 4)))
        self.recent = keys[:, :, leaving:].clone(), values[:, :, leaving:].clone()

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.recent is not None
        keys = [each.numbers().flatten(2, 3) for each, _ in self.blocks]
        values = [each.numbers().flatten(3, 4) for _, each in self.blocks]
        return torch.cat([*keys, self.recent[0].float()], 2), torch.cat([*values, self.recent[1].float()], 2)


class UniformLayer(RivalLayer):
    """As llama.cpp's q8_0 and q4_0: groups of 32 channels of one token, one float16 scale each, from the number of
    largest magnitude. Every token, the newest too. `rotated`: a Hadamard rotation first, as its newer versions have."""

    group = 32

    def __init__(self, dtype: torch.dtype, bits: int, rotated: bool = False) -> None:
        super().__init__(dtype)
        self.bits, self.rotated = bits, rotated
        self.codes: list[Tensor] | None = None
        self.scales: list[Tensor] | None = None

    def store(self, keys: Tensor, values: Tensor) -> None:
        both = [self._encoded(each) for each in (keys, values)]
        codes, scales = [each[0] for each in both], [each[1] for each in both]
        if self.codes is not None and self.scales is not None:
            codes, scales = (
                [torch.cat(pair, 2) for pair in zip(old, new, strict=True)]
                for old, new in ((self.codes, codes), (self.scales, scales))
            )
        self.codes, self.scales = codes, scales

    def _encoded(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        wide = numbers.float()
        if self.rotated:
            wide = wide @ rotation(wide.shape[-1], wide.device)
        groups = wide.unflatten(3, (-1, math.gcd(self.group, wide.shape[3])))
        largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scales = (largest.abs() / 127 if self.bits == 8 else largest / -(2 ** (self.bits - 1))).to(torch.float16)
        levels = (groups / torch.where(scales == 0, 1, scales).float()).round()
        if self.bits == 8:
            return levels.clamp(-127, 127).to(torch.int8), scales
        half = 2 ** (self.bits - 1)
        return packed(levels.clamp(-half, half - 1) + half, self.bits), scales

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.codes is not None
        assert self.scales is not None
        first, second = (self._decoded(*each) for each in zip(self.codes, self.scales, strict=True))
        return first, second

    def _decoded(self, codes: Tensor, scales: Tensor) -> Tensor:
        levels = codes.float() if self.bits == 8 else unpacked(codes, self.bits).float() - 2 ** (self.bits - 1)
        numbers = (levels * scales.float()).flatten(3)
        return numbers @ rotation(numbers.shape[-1], numbers.device).T if self.rotated else numbers


class LibraryLayer(RivalLayer):
    """A layer of transformers' `QuantizedCache`, which is given 16-bit numbers."""

    def __init__(self, dtype: torch.dtype, inner: Any) -> None:
        super().__init__(dtype)
        self.inner = inner
        self._answer: tuple[Tensor, Tensor] | None = None

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Raises Unavailable for a length that the library cannot pack: HQQ asks for a whole number of bytes."""
        try:
            self._answer = self.inner.update(keys, values)
        except RuntimeError as error:
            raise Unavailable(f"the library does not take {keys.shape[2]} tokens: {error}") from error

    def read(self) -> tuple[Tensor, Tensor]:
        assert self._answer is not None
        answer, self._answer = self._answer, None
        return answer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        answer = super().update(key_states, value_states)
        self._answer = None
        return answer


def library_layers(config: PreTrainedConfig, dtype: torch.dtype, backend: str, **options: int) -> list[RivalLayer]:
    """Raises ImportError where the backend is not installed, ValueError for what it cannot do."""
    return [LibraryLayer(dtype, layer) for layer in QuantizedCache(backend, config, **options).layers]
