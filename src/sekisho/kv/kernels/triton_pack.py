"""Numbers to packed pages on a GPU, in Triton: the bytes of `formats.encode_pages`.

Sums are taken in another order, so that a scale may be rounded to the next half-precision number, and codes of numbers
between two levels with it. Everything else is bit for bit the same.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton gives kernels their arguments; it has no types for pointers.

import contextlib
from functools import cache
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from sekisho.kv import formats
from sekisho.kv.formats import Format, code_bytes, codebook, layout
from sekisho.kv.kernels.triton_codes import PAGE, half_of, level_of

_TILE: Final = 512  # bytes that a program packs
_LAST_LEVEL: Final = {2: 1.5104, 3: 2.1520, 4: 2.7326, 8: 0.0}  # of the best quantiser of a normal variable (Max 1960)
_GREATEST: Final = tl.constexpr(65504.0)  # of half precision
_WHOLE: Final = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, ties to even


@triton.jit
def _divisor(scale: tl.tensor) -> tl.tensor:
    return tl.where(scale == 0, 1.0, scale)


@triton.jit
def _coded(ratio: tl.tensor, edges: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """int32 codes of numbers over their scale. `edges` points at what lies half-way between two levels."""
    if BITS == 8:
        rounded = (tl.minimum(tl.maximum(ratio, -127.0), 127.0) + _WHOLE) - _WHOLE
        code = rounded.to(tl.int32) & 255
    else:
        code = tl.zeros(ratio.shape, tl.int32)
        for edge in tl.static_range(2**BITS - 1):
            code += (ratio > tl.load(edges + edge)).to(tl.int32)
    return code


@triton.jit
def _stored(scale: tl.tensor) -> tl.tensor:
    return tl.minimum(scale, _GREATEST).to(tl.float16)


@triton.jit
def _levels(rows: tl.tensor, by: tl.tensor, edges: tl.tensor, D: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """float32 levels of the codes of rows (tokens, channels) by their scales (tokens,); 0 from channel D on."""
    over = tl.broadcast_to(_divisor(by.to(tl.float32))[:, None], rows.shape)
    code = _coded(tl.div_rn(rows, over), edges, BITS)
    level = level_of(half_of(code << 1 | 0x6400), 1, BITS).to(tl.float32)
    return tl.where(tl.arange(0, rows.shape[1])[None, :] < D, level, 0.0)


@triton.jit
def fit_scales(
    numbers, edges, coding, scales, scales_at, page_halves, start,
    D: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Grid (pages,): each token's scale into the page, and into `coding` (pages, PAGE) that by which its numbers are
    coded. `start`: the first scale over the root of the mean square."""
    page = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, PAGE)
    channel = tl.arange(0, CHANNELS)[None, :]
    place = (page * PAGE + token)[:, None] * D + channel
    rows = tl.load(numbers + place, mask=channel < D, other=0.0).to(tl.float32)
    if BITS == 8:
        by = _stored(tl.max(tl.abs(rows), 1) / 127.0)
        scale = by
    else:
        squares = tl.sum(rows * rows, 1)
        by = _stored(tl.sqrt_rn(squares / D) * start)
        level = _levels(rows, by, edges, D, BITS)
        by = _stored(tl.div_rn(tl.sum(rows * level, 1), tl.sum(level * level, 1)))
        level = _levels(rows, by, edges, D, BITS)
        if VALUES:
            along = tl.sum(rows * level, 1)
            scale = _stored(tl.div_rn(squares, tl.where(along == 0, 1.0, along)))
        else:
            scale = _stored(tl.sqrt_rn(tl.div_rn(squares, tl.sum(level * level, 1))))
    tl.store(coding + page * PAGE + token, by)
    tl.store(scales + page * page_halves + scales_at + token, scale)


@triton.jit
def _codes_at(
    numbers: tl.tensor, coding: tl.tensor, edges: tl.tensor, index: tl.tensor, mask: tl.tensor,
    VALUES: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """int32 codes by their places in the order of the layout; 0 where `mask` does not hold."""
    quad, part = index // 4, index % 4
    if VALUES:
        token, channel = quad // D * 4 + part, quad % D
    else:
        token, channel = quad % PAGE, quad // PAGE * 4 + part
    number = tl.load(numbers + token * D + channel, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(coding + token, mask=mask, other=1.0).to(tl.float32)
    return tl.where(mask, _coded(tl.div_rn(number, _divisor(scale)), edges, BITS), 0)


@triton.jit
def pack_codes(
    numbers, coding, edges, packed, packed_at, page_bytes,
    VALUES: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr, BYTES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (pages, tiles): `TILE` of the `BYTES` bytes of codes of one page's keys or values."""
    page = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    rows, by = numbers + page * PAGE * D, coding + page * PAGE
    there = at < BYTES
    if BITS == 8:
        byte = _codes_at(rows, by, edges, at, there, VALUES, D, BITS)
    elif BITS == 4:
        index = at // 64 * 128 + at % 64
        byte = _codes_at(rows, by, edges, index, there, VALUES, D, BITS)
        byte |= _codes_at(rows, by, edges, index + 64, there, VALUES, D, BITS) << 4
    else:
        block_bytes: tl.constexpr = 96 if BITS == 3 else 64
        block, inside = at // block_bytes, at % block_bytes
        byte = tl.zeros((TILE,), tl.int32)
        for quarter in tl.static_range(4):
            index = block * 256 + 64 * quarter + inside
            code = _codes_at(rows, by, edges, index, there & (inside < 64), VALUES, D, BITS)
            byte |= (code & 3) << (2 * quarter)
        if BITS == 3:
            for bit in tl.static_range(8):
                index = block * 256 + 8 * (inside - 64) + bit
                code = _codes_at(rows, by, edges, index, there & (inside >= 64), VALUES, D, BITS)
                byte |= code >> 2 << bit
    tl.store(packed + page * page_bytes + packed_at + at, byte.to(tl.uint8), mask=there)


@cache
def _edges(bits: int, device: torch.device) -> Tensor:
    """What lies half-way between two levels; of 8 bits, whose codes are rounded, nothing that is looked at."""
    levels = torch.tensor(codebook(bits) if bits != 8 else (0, 0), dtype=torch.float32)
    return ((levels[1:] + levels[:-1]) / 2).to(device)


def encode_pages(keys: Tensor, values: Tensor, form: Format) -> Tensor:
    """See `formats.encode_pages`: (n, PAGE, D) keys and values to (n, page_bytes) uint8."""
    if form.dense or not keys.shape[0]:
        return formats.encode_pages(keys, values, form)
    place = layout(form, keys.shape[2])
    pages = torch.empty(keys.shape[0], place.page_bytes, dtype=torch.uint8, device=keys.device)
    guard = torch.cuda.device(keys.device) if keys.device.type == "cuda" else contextlib.nullcontext()
    with guard:
        _encode(keys.contiguous(), pages, form.key_bits, (place.keys, place.key_scales), values=False)
        _encode(values.contiguous(), pages, form.value_bits, (place.values, place.value_scales), values=True)
    return pages


def _encode(numbers: Tensor, pages: Tensor, bits: int, places: tuple[int, int], *, values: bool) -> None:
    """Keys or values of pages. `places`: where in a page, in bytes, their codes and their scales begin."""
    count, _, head_dim = numbers.shape
    coding = torch.empty(count, formats.PAGE, dtype=torch.float16, device=numbers.device)
    edges = _edges(bits, numbers.device)
    start = _LAST_LEVEL[bits] / 127
    channels = max(16, triton.next_power_of_2(head_dim))
    fit_scales[(count,)](
        numbers, edges, coding, pages.view(torch.float16), places[1] // 2, pages.shape[1] // 2, start,
        D=head_dim, CHANNELS=channels, BITS=bits, VALUES=values, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    total = code_bytes(bits, head_dim)
    pack_codes[(count, triton.cdiv(total, _TILE))](
        numbers, coding, edges, pages, places[0], pages.shape[1],
        VALUES=values, D=head_dim, BITS=bits, BYTES=total, TILE=_TILE, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
