"""Numbers to packed pages on the CPU, without a compiler on the machine: the bytes of `formats.encode_pages`, by numba.

Sums are taken in another order, so that a scale may be rounded to the next half-precision number, and codes of numbers
between two levels with it. Everything else is bit for bit the same.

Below eight bits, levels are whole numbers that mirror each other. So a byte says on which side of every edge a number
lies: twice the number over its scale, made whole. Bytes are compared a vector at a time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sekisho.kv import formats
from sekisho.kv.formats import BLOCK, PAGE, Format, codebook, layout
from sekisho.kv.kernels.cpu_machine import compiled

_LEAST_PAGES: Final = 16  # worth a thread
_LAST_LEVEL: Final = {2: 1.5104, 3: 2.1520, 4: 2.7326, 8: 0.0}  # of the best quantiser of a normal variable (Max 1960)
_GREATEST: Final = 65504.0  # of half precision
_LEAST_NORMAL: Final = 2.0**-14  # of half precision: what is smaller is a multiple of 2**-24
_EDGES: Final = 7  # between levels above zero, at most
_QUARTER: Final = BLOCK // 4
_ONES: Final = np.uint64(0x0101010101010101)
_GATHER: Final = np.uint64(0x0102040810204080)  # a product with it brings the lowest bits of 8 bytes into the last one
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Steps(NamedTuple):
    """The levels above zero of less than eight bits, all as uint8."""

    level: Any  # the least one
    code: Any  # of it
    every: Any  # bit of a code
    edges: Any  # `_EDGES`: twice what lies half-way between two levels; at the end some that are never reached
    gaps: Any  # `_EDGES`: from a level to the next


class Plane(NamedTuple):
    """Keys or values: how they are coded, and where in a page, in bytes, their codes and scales lie."""

    bits: int
    of_keys: bool
    codes: int
    codes_end: int
    scales: int
    start: Any  # float32: the first scale over the root of the mean square
    steps: Steps


class Side(NamedTuple):
    """The numbers of n pages, keys or values, and where they go."""

    numbers: Any  # (n, PAGE, D) float32
    bits: Any  # (n, PAGE, D) int32: the same
    pages: Any  # (n, bytes) uint8
    halves: Any  # (n, bytes / 2) uint16: the same


class Scratch(NamedTuple):
    """A thread's own memory for one page, as the types that it is looked at (which cost time to compile)."""

    sizes: Any  # (PAGE * D,) uint8: with `signs`, what `_over` finds
    signs: Any  # (PAGE * D,) uint8: 0, or 255 for numbers not above zero
    levels: Any  # (PAGE * D,) int8
    level_rows: Any  # (PAGE, D) int8: the same
    codes: Any  # (PAGE * D,) uint8
    code_rows: Any  # (PAGE, D) int8: the same
    code_quads: Any  # (PAGE * D / 4,) uint32: the same
    ordered: Any  # (PAGE * D,) uint8: codes in the order of the layout
    ordered_quads: Any  # (PAGE * D / 4,) uint32: the same
    ordered_octets: Any  # (PAGE * D / 8,) uint64: the same
    squares: Any  # (PAGE,) float32
    scales: Any  # (PAGE,) float32
    scale_bits: Any  # (PAGE,) int32: the same


def encode_pages(keys: Tensor, values: Tensor, form: Format) -> Tensor:
    """See `formats.encode_pages`: (n, PAGE, D) keys and values to (n, page_bytes) uint8. On all of torch's threads."""
    if form.dense or not keys.shape[0]:
        return formats.encode_pages(keys, values, form)
    count, _, head_dim = keys.shape
    place = layout(form, head_dim)
    pages = torch.empty(count, place.page_bytes, dtype=torch.uint8)
    work = (
        (_side(keys, pages), _plane(form.key_bits, True, place.keys, place.values, place.key_scales)),
        (_side(values, pages), _plane(form.value_bits, False, place.values, place.key_scales, place.value_scales)),
    )
    shares = max(1, min(torch.get_num_threads(), count // _LEAST_PAGES))
    edges = [count * share // shares for share in range(shares + 1)]

    def pack(first: int, end: int) -> None:
        scratch = _scratch(head_dim)
        for side, plane in work:
            _pack_pages(side, plane, scratch, first, end)

    if shares == 1:
        pack(0, count)
    else:
        with ThreadPoolExecutor(shares, thread_name_prefix="sekisho-kv-pack") as threads:
            for done in [threads.submit(pack, *stretch) for stretch in pairwise(edges)]:
                done.result()
    return pages


def _side(numbers: Tensor, pages: Tensor) -> Side:
    plain, into = numbers.detach().float().contiguous().numpy(), pages.numpy()
    return Side(plain, plain.view(np.int32), into, into.view(np.uint16))


def _scratch(head_dim: int) -> Scratch:
    sizes, signs, levels, codes, ordered = (np.empty(PAGE * head_dim, np.uint8) for _ in range(5))
    level_rows, code_rows = (each.view(np.int8).reshape(PAGE, head_dim) for each in (levels, codes))
    squares, scales = (np.empty(PAGE, np.float32) for _ in range(2))
    return Scratch(
        sizes, signs, levels.view(np.int8), level_rows, codes, code_rows, codes.view(np.uint32), ordered,
        ordered.view(np.uint32), ordered.view(np.uint64), squares, scales, scales.view(np.int32),
    )  # fmt: skip


@cache
def _plane(bits: int, of_keys: bool, codes: int, codes_end: int, scales: int) -> Plane:
    start = np.float32(_LAST_LEVEL[bits] / 127)
    return Plane(bits, of_keys, codes, codes_end, scales, start, _steps(bits))


def _steps(bits: int) -> Steps:
    """Of eight bits, whose codes are rounded, something that is not looked at."""
    levels = codebook(bits)[1 << bits - 1 :]
    edges, gaps = np.full(_EDGES, 255, np.uint8), np.zeros(_EDGES, np.uint8)
    for place, (below, above) in enumerate(pairwise(levels) if bits != 8 else ()):
        edges[place], gaps[place] = below + above, above - below
    first, code, every = (np.uint8(each & 255) for each in (levels[0], 1 << bits - 1, (1 << bits) - 1))
    return Steps(first, code, every, tuple(edges), tuple(gaps))


# --- pages ----------------------------------------------------------------------------------------------------------


@compiled
def _pack_pages(side: Side, plane: Plane, scratch: Scratch, first: int, end: int) -> None:
    """The keys or the values of pages from `first` to `end`."""
    head_dim = side.numbers.shape[2]
    for page in range(first, end):
        scales = side.halves[page, plane.scales // 2 : plane.scales // 2 + PAGE]
        packed = side.pages[page, plane.codes : plane.codes_end]
        if plane.bits == 8:
            _quantise_evenly(side.numbers[page], side.bits[page], scratch, scales)
        else:
            _quantise(side.numbers[page], plane, scratch, scales)
        if plane.of_keys:
            _order_keys(scratch.code_quads, scratch.ordered_quads, head_dim // 4)
        else:
            _order_values(scratch.codes, scratch.ordered, head_dim)
        if plane.bits == 8:
            for place in range(packed.size):
                packed[place] = scratch.ordered[place]
        elif plane.bits == 4:
            _pack_4(scratch.ordered, packed)
        else:
            _pack_quarters(scratch.ordered, packed, BLOCK * plane.bits // 8)
        if plane.bits == 3:
            _pack_high_bits(scratch.ordered_octets, packed)


# --- numbers to codes: see `formats.quantise` -------------------------------------------------------------------------


def _reduction(function: _Function) -> _Function:
    """As `compiled`, for sums in whatever order is fastest."""
    allowed = {"reassoc", "contract", "nsz"}
    try:
        kept: Any = njit(nogil=True, cache=True, fastmath=allowed)(function)
    except RuntimeError:  # see `compiled`
        kept = njit(nogil=True, fastmath=allowed)(function)
    return kept


@compiled
def _quantise_evenly(rows: Any, bits: Any, scratch: Scratch, halves: Any) -> None:
    """Codes of 8 bits into the scratch, scales into `halves`."""
    for token in range(PAGE):
        scratch.scale_bits[token] = _largest(bits[token])
    for token in range(PAGE):
        scratch.scales[token] /= np.float32(127)
    _round_scales(scratch.scales, scratch.scale_bits, halves)
    for token in range(PAGE):
        _round(rows[token], _divisor(scratch.scales[token]), scratch.code_rows[token])


@compiled
def _quantise(rows: Any, plane: Plane, scratch: Scratch, halves: Any) -> None:
    """Codes of fewer bits into the scratch, scales into `halves`."""
    squares, scales = scratch.squares, scratch.scales
    for token in range(PAGE):
        squares[token] = _squares(rows[token])
        scales[token] = np.sqrt(squares[token] / np.float32(rows.shape[1])) * plane.start
    for last in (False, True):
        _round_scales(scales, scratch.scale_bits, halves)
        for token in range(PAGE):
            begin = token * rows.shape[1]
            _over(rows[token], _divisor(scales[token]), scratch.sizes[begin:], scratch.signs[begin:])
        _compare(scratch, plane.steps)
        for token in range(PAGE):
            along, length = _products(rows[token], scratch.level_rows[token])
            if not last:
                scales[token] = along / length
            elif plane.of_keys:
                scales[token] = np.sqrt(squares[token] / length)
            else:
                scales[token] = squares[token] / _divisor(along)
    _round_scales(scales, scratch.scale_bits, halves)


@compiled
def _divisor(scale: float) -> Any:
    return scale if scale != 0 else np.float32(1)


@compiled
def _round_scales(scales: Any, bits: Any, halves: Any) -> None:
    """To half precision, ties to even: in place, and their bits into `halves` (PAGE,) uint16. `bits`: the scales as
    int32."""
    for token in range(PAGE):
        scale = scales[token]
        if not scale < np.float32(_GREATEST):
            scale = np.float32(_GREATEST)
        if scale < np.float32(_LEAST_NORMAL):
            scale = scale + np.float32(0.5) - np.float32(0.5)  # floats from a half to one are 2**-24 apart
            scales[token] = scale
            halves[token] = np.int32(scale * np.float32(2**24))
        else:
            scales[token] = scale
            kept = bits[token] + 0xFFF + (bits[token] >> 13 & 1) >> 13
            bits[token] = kept << 13
            halves[token] = kept - (112 << 10)


@compiled
def _over(row: Any, scale: Any, sizes: Any, signs: Any) -> None:
    """Sizes and signs: a number above zero is above an edge if its size is at least twice the edge; one below zero is
    below the edge's mirror image or at it, as `bucketize` has it."""
    for channel in range(row.size):
        twice = row[channel] / scale * np.float32(2)
        twice = twice if twice > np.float32(-254) else np.float32(-254)
        twice = twice if twice < np.float32(255) else np.float32(255)
        whole = np.int32(np.ceil(twice) - np.float32(1))
        sign = np.int32(whole >> np.int32(31))
        sizes[channel] = np.int32(whole ^ sign)
        signs[channel] = sign


@compiled
def _compare(scratch: Scratch, steps: Steps) -> None:
    """Levels and codes of sizes and signs."""
    sizes, signs, levels, codes = scratch.sizes, scratch.signs, scratch.levels, scratch.codes
    edges, gaps = steps.edges, steps.gaps
    for place in range(codes.size):
        size, sign, code, level = sizes[place], signs[place], steps.code, steps.level
        for edge in range(_EDGES):
            above = size >= edges[edge]
            code = np.uint8(code + np.uint8(above))
            level = np.uint8(level + (gaps[edge] if above else np.uint8(0)))
        levels[place] = np.uint8(np.uint8(level ^ sign) - sign)
        codes[place] = np.uint8(np.uint8(code ^ sign) & steps.every)  # of the mirror image: all bits turned


@compiled
def _round(row: Any, scale: Any, levels: Any) -> None:
    for channel in range(row.size):
        level = row[channel] / scale
        level = level if level > np.float32(-127) else np.float32(-127)
        level = level if level < np.float32(127) else np.float32(127)
        levels[channel] = np.int32(np.rint(level))


@compiled
def _largest(bits: Any) -> Any:
    """The bits of the largest magnitude: as whole numbers, floats above zero have the same order."""
    largest = np.int32(0)
    for channel in range(bits.size):
        magnitude = np.int32(bits[channel] & np.int32(0x7FFFFFFF))
        largest = magnitude if magnitude > largest else largest
    return largest


@_reduction
def _squares(row: Any) -> Any:
    total = np.float32(0)
    for channel in range(row.size):
        total += row[channel] * row[channel]
    return total


@_reduction
def _products(row: Any, levels: Any) -> Any:
    """Sums of numbers times levels, and of squared levels."""
    along = length = np.float32(0)
    for channel in range(row.size):
        level = np.float32(levels[channel])
        along += row[channel] * level
        length += level * level
    return along, length


# --- codes to bytes -------------------------------------------------------------------------------------------------


@compiled
def _order_keys(quads: Any, ordered: Any, groups: int) -> None:
    """(PAGE, D) codes to (D/4, PAGE, 4); as uint32, four codes each."""
    for group in range(groups):
        for token in range(PAGE):
            ordered[group * PAGE + token] = quads[token * groups + group]


@compiled
def _order_values(codes: Any, ordered: Any, head_dim: int) -> None:
    """(PAGE, D) codes to (PAGE/4, D, 4)."""
    for start in range(0, PAGE * head_dim, 4 * head_dim):
        rows, into = codes[start : start + 4 * head_dim], ordered[start : start + 4 * head_dim]
        for channel in range(head_dim):
            into[4 * channel] = rows[channel]
            into[4 * channel + 1] = rows[channel + head_dim]
            into[4 * channel + 2] = rows[channel + 2 * head_dim]
            into[4 * channel + 3] = rows[channel + 3 * head_dim]


@compiled
def _pack_4(ordered: Any, packed: Any) -> None:
    for half in range(0, packed.size, _QUARTER):
        low, high, into = (
            ordered[2 * half : 2 * half + _QUARTER],
            ordered[2 * half + _QUARTER : 2 * half + 2 * _QUARTER],
            packed[half : half + _QUARTER],
        )
        for place in range(_QUARTER):
            into[place] = low[place] | high[place] << 4


@compiled
def _pack_quarters(ordered: Any, packed: Any, block_bytes: int) -> None:
    for block in range(packed.size // block_bytes):
        codes = ordered[BLOCK * block : BLOCK * (block + 1)]
        into = packed[block_bytes * block : block_bytes * block + _QUARTER]
        for place in range(_QUARTER):
            low = codes[place] & 3 | (codes[place + _QUARTER] & 3) << 2
            high = codes[place + 2 * _QUARTER] & 3 | (codes[place + 3 * _QUARTER] & 3) << 2
            into[place] = low | high << 4


@compiled
def _pack_high_bits(octets: Any, packed: Any) -> None:
    """Octets: (PAGE * D / 8,) uint64, 8 codes each, the first in the lowest byte."""
    for block in range(octets.size * 8 // BLOCK):
        codes = octets[block * BLOCK // 8 : (block + 1) * BLOCK // 8]
        into = packed[(_QUARTER + BLOCK // 8) * block + _QUARTER : (_QUARTER + BLOCK // 8) * (block + 1)]
        for place in range(BLOCK // 8):
            into[place] = (codes[place] >> np.uint64(2) & _ONES) * _GATHER >> np.uint64(56)
