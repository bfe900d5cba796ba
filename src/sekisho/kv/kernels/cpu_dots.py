"""Dot products of levels and factors, in vectors: of keys with queries, and of values with weights.

Factors have 16 bits, as two signed digits of 8, high * 256 + low. AVX-512 VNNI multiplies 64 unsigned levels with
digits and adds four neighbours to a sum of 32 bits in one instruction (vpdpbusd), which pages are laid out for.
Elsewhere levels and whole factors meet as 16 bits, two neighbours at a time (x86: vpmaddwd).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from sekisho.kv.formats import BLOCK, PAGE
from sekisho.kv.kernels.cpu_machine import Vnni, instructions
from sekisho.kv.kernels.cpu_vectors import I8, I16, I32, INTS, LANES, at, call, ints, load, number, spread, store

_ABREAST = 4  # vectors of levels at a time: with two queries of two digits, 16 sums for 32 registers
_Rows = list[ir.Value]
# Adds the products of the vectors at an address with the factors at addresses, one for each row, to each row's sums.
_Multiply = Callable[[ir.IRBuilder, ir.Value, _Rows, list[_Rows]], None]


@instructions
def key_dots_1(_context: Any, machine: Any, levels: Any, digits: Any, head_dim: Any, dots: Any, stride: Any) -> Any:
    """See `_key_dots`."""
    return _intrinsic(machine, _key_dots, 1)


@instructions
def key_dots_2(_context: Any, machine: Any, levels: Any, digits: Any, head_dim: Any, dots: Any, stride: Any) -> Any:
    """See `_key_dots`."""
    return _intrinsic(machine, _key_dots, 2)


@instructions
def value_dots_1(_context: Any, machine: Any, levels: Any, digits: Any, head_dim: Any, dots: Any, stride: Any) -> Any:
    """See `_value_dots`."""
    return _intrinsic(machine, _value_dots, 1)


@instructions
def value_dots_2(_context: Any, machine: Any, levels: Any, digits: Any, head_dim: Any, dots: Any, stride: Any) -> Any:
    """See `_value_dots`."""
    return _intrinsic(machine, _value_dots, 2)


def _intrinsic(machine: Any, emit: Callable[..., None], heads: int) -> Any:
    """The type and the code of an intrinsic of a machine and five int64."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        emit(builder, values[1:], heads, _bytewise if machine.instance_class is Vnni else _pairwise)
        return context.get_dummy_value()

    return types.none(machine, *[types.int64] * 5), generate


def _key_dots(builder: ir.IRBuilder, values: Sequence[ir.Value], heads: int, multiply: _Multiply) -> None:
    """Of: address of the levels (D/4, PAGE, 4), of the digits (heads, 2, D), D, address of the dots (heads, 2, PAGE)
    and bytes from row to row there. What is not in digits is in the low one, and the high one zero."""
    levels, digits, head_dim, dots, stride = values
    rows = _rows(builder, digits, head_dim, 2 * heads)
    into, groups = _rows(builder, dots, stride, 2 * heads), builder.udiv(head_dim, number(4))
    with _sums(builder, into, _ABREAST) as sums, cgutils.for_range(builder, groups) as loop:
        factors = [at(builder, row, loop.index, 4) for row in rows]
        multiply(builder, at(builder, levels, loop.index, BLOCK), factors, sums)


def _value_dots(builder: ir.IRBuilder, values: Sequence[ir.Value], heads: int, multiply: _Multiply) -> None:
    """Of: address of the levels (PAGE/4, D, 4), of the digits (heads, 2, PAGE), D, address of the dots (heads, 2, D)
    and bytes from row to row there; whole vectors of channels only. Digits as in `_key_dots`."""
    head_dim = values[2]
    wide = builder.udiv(head_dim, number(LANES * _ABREAST))
    with cgutils.for_range(builder, wide) as loop:
        _channels(builder, values, builder.mul(loop.index, number(LANES * _ABREAST)), _ABREAST, heads, multiply)
    first = builder.mul(wide, number(LANES * _ABREAST))
    with cgutils.for_range(builder, builder.udiv(builder.sub(head_dim, first), number(LANES))) as loop:
        _channels(builder, values, at(builder, first, loop.index, LANES), 1, heads, multiply)


def _channels(
    builder: ir.IRBuilder, values: Sequence[ir.Value], channel: ir.Value, abreast: int, heads: int, multiply: _Multiply
) -> None:
    """The sums of so many vectors of channels over all tokens."""
    levels, digits, head_dim, dots, stride = values
    offset = builder.mul(channel, number(4))
    into = [builder.add(row, offset) for row in _rows(builder, dots, stride, 2 * heads)]
    rows = _rows(builder, digits, number(PAGE), 2 * heads)
    four_tokens = builder.mul(head_dim, number(4))
    with _sums(builder, into, abreast) as sums, cgutils.for_range(builder, number(PAGE // 4)) as loop:
        factors = [at(builder, row, loop.index, 4) for row in rows]
        multiply(builder, at(builder, builder.add(levels, offset), loop.index, four_tokens), factors, sums)


def _rows(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value, count: int) -> _Rows:
    return [at(builder, address, number(row), stride) for row in range(count)]


@contextmanager
def _sums(builder: ir.IRBuilder, into: _Rows, abreast: int) -> Iterator[list[_Rows]]:
    """For each address, `abreast` vectors of sums, zero at first and stored there at the end."""
    sums = [[cgutils.alloca_once(builder, INTS) for _ in range(abreast)] for _ in into]
    for places in sums:
        for each in places:
            builder.store(ints(0), each)
    yield sums
    for address, places in zip(into, sums, strict=True):
        for place, each in enumerate(places):
            store(builder, builder.load(each), address, 4 * LANES * place)


def _bytewise(builder: ir.IRBuilder, levels: ir.Value, factors: _Rows, sums: list[_Rows]) -> None:
    vectors = [load(builder, levels, INTS, 4 * LANES * place) for place in range(len(sums[0]))]
    for factor, into in zip(factors, sums, strict=True):
        four = spread(builder, load(builder, factor, I32))
        for vector, place in zip(vectors, into, strict=True):
            total = call(builder, "llvm.x86.avx512.vpdpbusd.512", INTS, builder.load(place), vector, four)
            builder.store(total, place)


def _pairwise(builder: ir.IRBuilder, levels: ir.Value, factors: _Rows, sums: list[_Rows]) -> None:
    for head in range(0, len(factors), 2):
        even, odd = _factor_pairs(builder, factors[head], factors[head + 1])
        for place, into in enumerate(sums[head + 1]):
            vector = load(builder, levels, INTS, 4 * LANES * place)
            first = _pair_sums(builder, builder.and_(vector, ints(0x00FF00FF)), even)
            second = _pair_sums(builder, builder.and_(builder.lshr(vector, ints(8)), ints(0x00FF00FF)), odd)
            builder.store(builder.add(builder.load(into), builder.add(first, second)), into)


def _factor_pairs(builder: ir.IRBuilder, high: ir.Value, low: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Four factors from their digits: the first and the third, the second and the fourth, as 16 bits in all lanes."""
    bytes_, words = ir.VectorType(I8, 4), ir.VectorType(I16, 4)
    digits = [builder.sext(load(builder, each, bytes_), words) for each in (high, low)]
    eight = ir.Constant(words, [ir.Constant(I16, 8)] * 4)
    factors = builder.add(builder.shl(digits[0], eight), digits[1])
    even, odd = (
        builder.shuffle_vector(factors, factors, ir.Constant(ir.VectorType(I32, 2), [first, first + 2]))
        for first in (0, 1)
    )
    return spread(builder, builder.bitcast(even, I32)), spread(builder, builder.bitcast(odd, I32))


def _pair_sums(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Two numbers of 16 bits in each lane times two others, added."""
    words, wide = ir.VectorType(I16, 2 * LANES), ir.VectorType(I32, 2 * LANES)
    one, other = (builder.sext(builder.bitcast(each, words), wide) for each in (first, second))
    products = builder.mul(one, other)
    even, odd = (
        builder.shuffle_vector(products, products, ir.Constant(INTS, list(range(start, 2 * LANES, 2))))
        for start in (0, 1)
    )
    return builder.add(even, odd)
