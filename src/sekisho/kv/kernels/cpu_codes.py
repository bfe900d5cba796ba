"""Codes to levels, in vectors of 64 bytes: a block of 256 codes is four of them.

Levels are unsigned here, 128 more than the codebook's: whoever multiplies takes 128 times the sum of the factors off
again. Processors that look up 16 bytes at once (x86: vpshufb) do so; others compare with each code.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from sekisho.kv.formats import BLOCK, codebook
from sekisho.kv.kernels.cpu_machine import Amx, Avx2, Vnni, instructions
from sekisho.kv.kernels.cpu_vectors import I8, I32, I64, LINE, at, call, load, number, prefetch, store

_WIDTH: Final = 64
_BYTES: Final = ir.VectorType(I8, _WIDTH)
_BLOCK_BYTES: Final = {8: 256, 4: 128, 3: 96, 2: 64}
_Blocks = Callable[[ir.IRBuilder, ir.Value], list[ir.Value]]


@instructions
def unpack_8(_context: Any, machine: Any, address: Any, blocks: Any, levels: Any, ahead: Any) -> Any:
    """See `_unpack`."""
    return _unpack(machine, 8)


@instructions
def unpack_4(_context: Any, machine: Any, address: Any, blocks: Any, levels: Any, ahead: Any) -> Any:
    """See `_unpack`."""
    return _unpack(machine, 4)


@instructions
def unpack_3(_context: Any, machine: Any, address: Any, blocks: Any, levels: Any, ahead: Any) -> Any:
    """See `_unpack`."""
    return _unpack(machine, 3)


@instructions
def unpack_2(_context: Any, machine: Any, address: Any, blocks: Any, levels: Any, ahead: Any) -> Any:
    """See `_unpack`."""
    return _unpack(machine, 2)


def _unpack(machine: Any, bits: int) -> Any:
    """The type and the code of an intrinsic of a machine, the address of the codes, how many blocks, the address for
    the levels, and how far ahead lies what will be read next."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        _, address, blocks, levels, ahead = values
        with cgutils.for_range(builder, blocks) as loop:
            source, into = at(builder, address, loop.index, _BLOCK_BYTES[bits]), at(builder, levels, loop.index, BLOCK)
            for line in range(0, _BLOCK_BYTES[bits], LINE):
                prefetch(builder, builder.add(builder.add(source, ahead), number(line)))
            for place, vector in enumerate(_levels(machine.instance_class, bits)(builder, source)):
                store(builder, vector, into, _WIDTH * place)
        return context.get_dummy_value()

    return types.none(machine, *[types.int64] * 4), generate


def _levels(machine: type, bits: int) -> _Blocks:
    if bits == 8:
        return _levels_8
    look_up = {Amx: _look_up_64, Vnni: _look_up_64, Avx2: _look_up_32}.get(machine)
    return _compared(bits) if look_up is None else _looked_up(bits, look_up)


def _levels_8(builder: ir.IRBuilder, source: ir.Value) -> list[ir.Value]:
    loaded = (load(builder, source, _BYTES, _WIDTH * place) for place in range(4))
    return [builder.xor(each, _all(0x80)) for each in loaded]


def _all(value: int) -> ir.Constant:
    return _constant([value] * _WIDTH)


def _constant(values: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(I8, len(values)), [ir.Constant(I8, value & 255) for value in values])


def _nibbles(builder: ir.IRBuilder, source: ir.Value, offset: int = 0) -> tuple[ir.Value, ir.Value]:
    codes = load(builder, source, _BYTES, offset)
    return builder.and_(codes, _all(15)), builder.lshr(codes, _all(4))


def _high_bits(builder: ir.IRBuilder, source: ir.Value, place: int) -> ir.Value:
    """Whether each of 64 codes of 3 bits is 4 or more."""
    bits = load(builder, source, I64, _WIDTH + 8 * place)
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), _WIDTH))


# --- looking up -----------------------------------------------------------------------------------------------------


_LookUp = Callable[[ir.IRBuilder, Sequence[int], ir.Value], ir.Value]


def _looked_up(bits: int, look_up: _LookUp) -> _Blocks:
    """A nibble holds a code of 4 bits or two of 2 bits: a table for either half spares cutting them apart."""
    levels = [level + 128 for level in codebook(bits)]

    def halves(start: int, side: int) -> list[int]:
        return [levels[start + (nibble >> 2 * side & 3)] for nibble in range(16)]

    def of_nibbles(builder: ir.IRBuilder, source: ir.Value) -> list[ir.Value]:
        codes = [*_nibbles(builder, source), *_nibbles(builder, source, _WIDTH)]
        return [look_up(builder, levels, each) for each in codes]

    def of_halves(builder: ir.IRBuilder, source: ir.Value) -> list[ir.Value]:
        vectors = []
        for place, codes in enumerate(each for each in _nibbles(builder, source) for _ in range(2)):
            vector = look_up(builder, halves(0, place % 2), codes)
            if bits == 3:
                above = look_up(builder, halves(4, place % 2), codes)
                vector = builder.select(_high_bits(builder, source, place), above, vector)
            vectors.append(vector)
        return vectors

    return of_nibbles if bits == 4 else of_halves


def _look_up_64(builder: ir.IRBuilder, table: Sequence[int], codes: ir.Value) -> ir.Value:
    return call(builder, "llvm.x86.avx512.pshuf.b.512", _BYTES, _constant([*table] * 4), codes)


def _look_up_32(builder: ir.IRBuilder, table: Sequence[int], codes: ir.Value) -> ir.Value:
    kind, levels = ir.VectorType(I8, 32), _constant([*table] * 2)
    low, high = (
        call(builder, "llvm.x86.avx2.pshuf.b", kind, levels, _picked(builder, codes, codes, range(start, start + 32)))
        for start in (0, 32)
    )
    return _picked(builder, low, high, range(64))


def _picked(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, places: Sequence[int]) -> ir.Value:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(places)), list(places)))


# --- comparing ------------------------------------------------------------------------------------------------------


def _compared(bits: int) -> _Blocks:
    levels = codebook(bits)

    def level(builder: ir.IRBuilder, codes: ir.Value) -> ir.Value:
        found = _all(levels[0] + 128)
        for code, (below, own) in enumerate(pairwise(levels)):
            above = builder.sext(builder.icmp_signed(">", codes, _all(code)), _BYTES)
            found = builder.add(found, builder.and_(above, _all(own - below)))
        return found

    def blocks(builder: ir.IRBuilder, source: ir.Value) -> list[ir.Value]:
        if bits == 4:
            codes = [*_nibbles(builder, source), *_nibbles(builder, source, _WIDTH)]
        else:
            packed = load(builder, source, _BYTES)
            codes = [builder.and_(builder.lshr(packed, _all(2 * place)), _all(3)) for place in range(4)]
        if bits == 3:
            for place, each in enumerate(codes):
                high = builder.zext(_high_bits(builder, source, place), _BYTES)
                codes[place] = builder.or_(each, builder.shl(high, _all(2)))
        return [level(builder, each) for each in codes]

    return blocks
