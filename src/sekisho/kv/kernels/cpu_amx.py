"""Dot products in the matrix unit of x86 processors: AMX.

One instruction multiplies the digits of all query heads of a group (16 rows at most, 64 numbers each) with 16 tokens or
channels. A tile of levels is what lies in a page: 16 rows of 16 tokens or channels, four bytes each.
"""

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

from sekisho.kv.formats import BLOCK, PAGE
from sekisho.kv.kernels.cpu_machine import instructions
from sekisho.kv.kernels.cpu_vectors import I8, call, number, of_addresses, pointer

HEADS: Final = 8  # in a group: two rows of digits each
_SUMS: Final = (0, 1, 2, 3)  # tiles
_KEY_DIGITS, _KEYS, _WEIGHT_DIGITS, _VALUES = 4, 5, 6, 7
_VOID: Final = ir.VoidType()
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux asks for a permission before tiles are used


def permitted() -> bool:
    """Whether this process may use tiles; asks the kernel for it."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def channels_at_once(head_dim: int) -> int:
    """The most channels in one tile, 64 at most, that divide a head."""
    return max(each for each in range(4, 65, 4) if head_dim % each == 0)


@instructions
def configure(_context: Any, address: Any) -> Any:
    """Takes the 64 bytes of a configuration for this thread."""
    return of_addresses(lambda builder, values: _at(builder, "llvm.x86.ldtilecfg", values[0]), 1)


@instructions
def release(_context: Any) -> Any:
    """Tiles are no longer used by this thread."""
    return of_addresses(lambda builder, _: call(builder, "llvm.x86.tilerelease", _VOID), 0)


@instructions
def key_dots(_context: Any, levels: Any, digits: Any, head_dim: Any, at_once: Any, dots: Any, stride: Any) -> Any:
    """Of: address of the levels (D/4, PAGE, 4), of the digits (G, 2, D), D, channels in a tile, address of the dots
    (G, 2, PAGE) and bytes from row to row there."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        levels, digits, head_dim, at_once, dots, stride = values
        _clear(builder)
        with cgutils.for_range(builder, builder.udiv(head_dim, at_once)) as loop:
            channel = builder.mul(loop.index, at_once)
            _load(builder, _KEY_DIGITS, builder.add(digits, channel), head_dim)
            source = builder.add(levels, builder.mul(channel, number(PAGE)))
            for tile in _SUMS:
                _load(builder, _KEYS, builder.add(source, number(64 * tile)), number(BLOCK))
                _multiply(builder, tile, _KEY_DIGITS, _KEYS)
        for tile in _SUMS:
            _store(builder, tile, builder.add(dots, number(64 * tile)), stride)

    return of_addresses(emit, 6)


@instructions
def value_dots(_context: Any, levels: Any, digits: Any, head_dim: Any, dots: Any, stride: Any) -> Any:
    """Of: address of the levels (PAGE/4, D, 4), of the digits (G, 2, PAGE), D, address of the dots (G, 2, D) and bytes
    from row to row there."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        levels, digits, head_dim, dots, stride = values
        _load(builder, _WEIGHT_DIGITS, digits, number(PAGE))
        with cgutils.for_range(builder, builder.udiv(head_dim, number(16))) as loop:
            at = builder.mul(loop.index, number(64))
            _load(builder, _VALUES, builder.add(levels, at), builder.mul(head_dim, number(4)))
            call(builder, "llvm.x86.tilezero", _VOID, _tile(0))
            _multiply(builder, 0, _WEIGHT_DIGITS, _VALUES)
            _store(builder, 0, builder.add(dots, at), stride)

    return of_addresses(emit, 5)


def configuration(heads: int, head_dim: int) -> bytes:
    """What `configure` takes: rows and bytes per row of each tile, in the processor's order."""
    at_once = channels_at_once(head_dim)
    shapes = dict.fromkeys((*_SUMS, _WEIGHT_DIGITS), (2 * heads, 64))
    shapes |= {_KEY_DIGITS: (2 * heads, at_once), _KEYS: (at_once // 4, 64), _VALUES: (PAGE // 4, 64)}
    written = bytearray(64)
    written[0] = 1  # the only palette there is
    for tile, (rows, row_bytes) in shapes.items():
        written[16 + 2 * tile : 18 + 2 * tile] = row_bytes.to_bytes(2, "little")
        written[48 + tile] = rows
    return bytes(written)


def _clear(builder: ir.IRBuilder) -> None:
    for tile in _SUMS:
        call(builder, "llvm.x86.tilezero", _VOID, _tile(tile))


def _multiply(builder: ir.IRBuilder, into: int, digits: int, levels: int) -> None:
    call(builder, "llvm.x86.tdpbsud", _VOID, _tile(into), _tile(digits), _tile(levels))


def _load(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    call(builder, "llvm.x86.tileloadd64", _VOID, _tile(tile), pointer(builder, address, I8), stride)


def _store(builder: ir.IRBuilder, tile: int, address: ir.Value, stride: ir.Value) -> None:
    call(builder, "llvm.x86.tilestored64", _VOID, _tile(tile), pointer(builder, address, I8), stride)


def _at(builder: ir.IRBuilder, name: str, address: ir.Value) -> None:
    call(builder, name, _VOID, pointer(builder, address, I8))


def _tile(index: int) -> ir.Constant:
    return ir.Constant(I8, index)
