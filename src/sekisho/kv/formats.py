"""How a page of keys and values lies in memory, in each format: the layout that all kernels share.

A page is `PAGE` consecutive tokens of one key/value head. A format is a pair of widths, for keys and for values: 16
(dense, in the model's own type) or 8, 4, 3, 2 bits (codes). A page is one run of bytes,

    key codes | value codes | key scales | value scales        scales: float16, one per token

and a dense page is keys (PAGE, D) and then values (PAGE, D), row by row.

Codes index a codebook of int8 levels: evenly spaced for 8 bits, the levels that fit a normal distribution best (Lloyd
1957, Max 1960) below, because a rotated row is nearly normal. A number is `scale * level`. The order of codes is made
for dot products of four bytes at a time. Keys: (D/4 channel groups, PAGE tokens, 4 channels); values: (PAGE/4 token
groups, D channels, 4 tokens). In that order they are packed by blocks of 256:

    8 bits   256 bytes, a code each (two's complement)
    4 bits   128 bytes: byte j of half w holds code 128w + j below and code 128w + 64 + j above
    2 bits    64 bytes: byte j holds codes j, 64 + j, 128 + j, 192 + j from the lowest bits up
    3 bits    96 bytes: the two low bits as above, then 32 bytes of high bits: bit i of byte b belongs to code 8b + i
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

PAGE: Final = 64  # tokens
BLOCK: Final = 256  # codes
DENSE_BITS: Final = 16
WIDTHS: Final = (8, 4, 3, 2)
_BLOCK_BYTES: Final = {8: 256, 4: 128, 3: 96, 2: 64}
# The levels above zero of the best quantiser of a standard normal variable; the others mirror them.
_NORMAL_LEVELS: Final = {
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}


@dataclass(frozen=True, order=True)
class Format:
    """Bits per key number and per value number. `id` fits a byte and never changes its meaning."""

    key_bits: int
    value_bits: int

    def __post_init__(self) -> None:
        known = (self.key_bits == self.value_bits == DENSE_BITS) or (
            self.key_bits in WIDTHS and self.value_bits in WIDTHS
        )
        if not known:
            raise ValueError(f"no format has keys of {self.key_bits} and values of {self.value_bits} bits: {_KNOWN}")

    @property
    def dense(self) -> bool:
        return self.key_bits == DENSE_BITS

    @property
    def id(self) -> int:
        return 0 if self.dense else 1 + 4 * WIDTHS.index(self.key_bits) + WIDTHS.index(self.value_bits)

    def __str__(self) -> str:
        return "dense" if self.dense else f"k{self.key_bits}v{self.value_bits}"


_KNOWN: Final = f"both 16 (dense), or each one of {', '.join(map(str, WIDTHS))}"
DENSE: Final = Format(DENSE_BITS, DENSE_BITS)
EVICTED: Final = -1  # the format id of a page that is no longer there
FORMATS: Final[Mapping[int, Format]] = MappingProxyType(
    {each.id: each for each in (DENSE, *(Format(key, value) for key in WIDTHS for value in WIDTHS))}
)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a page begin, in bytes, and how long it is."""

    keys: int
    values: int
    key_scales: int
    value_scales: int
    page_bytes: int


def layout(form: Format, head_dim: int, dense_itemsize: int = 2) -> Layout:
    """Raises ValueError where `head_dim` is not a multiple of four."""
    if head_dim % 4:
        raise ValueError(f"a head of {head_dim} numbers cannot be packed: it must be a multiple of four")
    if form.dense:
        half = PAGE * head_dim * dense_itemsize
        return Layout(0, half, 2 * half, 2 * half, 2 * half)
    keys, values = (code_bytes(bits, head_dim) for bits in (form.key_bits, form.value_bits))
    scales = PAGE * 2
    return Layout(0, keys, keys + values, keys + values + scales, keys + values + 2 * scales)


def code_bytes(bits: int, head_dim: int) -> int:
    """Bytes of one plane of codes, keys or values, of one page."""
    return PAGE * head_dim // BLOCK * _BLOCK_BYTES[bits]


@cache
def codebook(bits: int) -> tuple[int, ...]:
    """The int8 levels by code. For 8 bits the code is the level itself, as a byte of two's complement."""
    if bits == 8:
        return tuple(code if code < 128 else code - 256 for code in range(256))
    above = _NORMAL_LEVELS[bits]
    scaled = [round(127 * level / above[-1]) for level in above]
    return tuple([-level for level in reversed(scaled)] + scaled)


@cache
def level_table(bits: int, device: torch.device) -> Tensor:
    """The codebook as int8, on a device."""
    return torch.tensor(codebook(bits), dtype=torch.int8, device=device)


# --- numbers to codes -----------------------------------------------------------------------------------------------


def quantise(rows: Tensor, bits: int, *, of_keys: bool = False) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of `rows`) and scales (float16, without the last dimension) of rows of numbers, a scale
    each. The codes are those of the least squared error, found in two rounds. That error alone would make every row too
    short (by 12 % at two bits), and logits and sums with it. So the scale of a value keeps its product with the true
    one, and that of a key (`of_keys`) its length, half-way: noise on a logit raises its exponential. Numbers must be
    finite. Works in float32."""
    rows = rows.float()
    if bits == 8:
        scales = _half(rows.abs().amax(-1) / 127)
        levels = (rows / _divisor(scales).unsqueeze(-1)).round().clamp(-127, 127)
        return levels.to(torch.int8).view(torch.uint8), scales
    table = level_table(bits, rows.device).float()
    edges = (table[1:] + table[:-1]) / 2
    scales = _half(rows.square().mean(-1).sqrt() * (_NORMAL_LEVELS[bits][-1] / 127))
    codes = torch.empty(0)
    for _ in range(2):
        codes = torch.bucketize(rows / _divisor(scales).unsqueeze(-1), edges)
        levels = table[codes]
        scales = _half((rows * levels).sum(-1) / levels.square().sum(-1))
    squares = rows.square().sum(-1)
    if of_keys:
        return codes.to(torch.uint8), _half((squares / levels.square().sum(-1)).sqrt())
    along = (rows * levels).sum(-1)  # not below zero: a level has its number's sign
    return codes.to(torch.uint8), _half(squares / torch.where(along == 0, torch.ones_like(along), along))


def _half(scales: Tensor) -> Tensor:
    return scales.clamp(max=torch.finfo(torch.float16).max).to(torch.float16)


def _divisor(scales: Tensor) -> Tensor:
    wide = scales.float()
    return torch.where(wide == 0, torch.ones_like(wide), wide)


def dequantise(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the codes say, `scale * level`, computed in `dtype`."""
    return level_table(bits, codes.device)[codes.long()].to(dtype) * scales.to(dtype).unsqueeze(-1)


# --- codes to bytes -------------------------------------------------------------------------------------------------


def pack(codes: Tensor, bits: int) -> Tensor:
    """(…, n) codes, n a multiple of 256, in the order of the layout, to (…, bytes) uint8."""
    blocks = codes.unflatten(-1, (-1, BLOCK))
    match bits:
        case 8:
            packed = blocks
        case 4:
            halves = blocks.unflatten(-1, (2, 2, 64))
            packed = (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2)
        case 2:
            packed = _pack_quarters(blocks)
        case _:
            packed = torch.cat((_pack_quarters(blocks & 3), _pack_bits(blocks >> 2)), -1)
    return packed.flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    blocks = packed.unflatten(-1, (-1, _BLOCK_BYTES[bits]))
    match bits:
        case 8:
            codes = blocks
        case 4:
            halves = blocks.unflatten(-1, (2, 64))
            codes = torch.stack((halves & 15, halves >> 4), -2).flatten(-3)
        case 2:
            codes = _unpack_quarters(blocks)
        case _:
            codes = _unpack_quarters(blocks[..., :64]) | _unpack_bits(blocks[..., 64:]) << 2
    return codes.flatten(-2)


def _pack_quarters(blocks: Tensor) -> Tensor:
    first, second, third, fourth = blocks.unflatten(-1, (4, 64)).unbind(-2)
    return first | second << 2 | third << 4 | fourth << 6


def _unpack_quarters(packed: Tensor) -> Tensor:
    return torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1)


def _pack_bits(bits: Tensor) -> Tensor:
    octets = bits.unflatten(-1, (-1, 8))
    places = 1 << torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (octets * places).sum(-1, dtype=torch.uint8)


def _unpack_bits(packed: Tensor) -> Tensor:
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return (packed.unsqueeze(-1) >> places & 1).flatten(-2)


# --- pages ----------------------------------------------------------------------------------------------------------


def encode_pages(keys: Tensor, values: Tensor, form: Format) -> Tensor:
    """(n, PAGE, D) keys and values, already centred and rotated (dense: as they are), to (n, page_bytes) uint8."""
    if form.dense:
        return torch.cat([each.contiguous().view(torch.uint8).flatten(1) for each in (keys, values)], 1)
    key_codes, key_scales = quantise(keys, form.key_bits, of_keys=True)
    value_codes, value_scales = quantise(values, form.value_bits)
    parts = (
        pack(key_codes.unflatten(2, (-1, 4)).transpose(1, 2).flatten(1), form.key_bits),
        pack(value_codes.unflatten(1, (-1, 4)).transpose(2, 3).flatten(1), form.value_bits),
        key_scales.view(torch.uint8),
        value_scales.view(torch.uint8),
    )
    return torch.cat(parts, 1)


def decode_pages(
    pages: Tensor, form: Format, head_dim: int, dtype: torch.dtype, dense_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(n, page_bytes) uint8 to (n, PAGE, D) keys and values, centred and rotated as they were encoded."""
    place = layout(form, head_dim, dense_dtype.itemsize)
    if form.dense:
        rows = pages.view(dense_dtype).unflatten(1, (2, PAGE, head_dim)).to(dtype)
        return rows[:, 0], rows[:, 1]
    key_codes = unpack(pages[:, : place.values], form.key_bits).unflatten(1, (-1, PAGE, 4)).transpose(1, 2).flatten(2)
    value_codes = unpack(pages[:, place.values : place.key_scales], form.value_bits)
    value_codes = value_codes.unflatten(1, (-1, head_dim, 4)).transpose(2, 3).flatten(1, 2)
    key_scales = pages[:, place.key_scales : place.value_scales].contiguous().view(torch.float16)
    value_scales = pages[:, place.value_scales :].contiguous().view(torch.float16)
    return (
        dequantise(key_codes, key_scales, form.key_bits, dtype),
        dequantise(value_codes, value_scales, form.value_bits, dtype),
    )
