"""One page and one query head: from dot products to logits, to weights, to digits, in registers."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import float32, int8, int32, types
from numba.core import cgutils

from sekisho.kv.formats import PAGE
from sekisho.kv.kernels.cpu_machine import at_address, carray, compiled, instructions
from sekisho.kv.kernels.cpu_vectors import (
    FLOAT,
    FLOATS,
    I8,
    I16,
    I32,
    INTS,
    LANES,
    exponential,
    float_of_half,
    floats,
    ints,
    largest_lane,
    load,
    maximum,
    multiply_add,
    number,
    of_addresses,
    spread,
    store,
    sum_of_lanes,
    sum_of_whole_lanes,
)

NOTHING: Final = -1e30  # the logit of what is not seen: a number, so that differences are numbers
DIGITS_LIMIT: Final = 127 * 256 + 127  # the largest factor that two signed digits make
_PARTS: Final = PAGE // LANES
_LEAST: Final = 1e-30  # smaller factors are zero


@instructions
def read_scales(_context: Any, halves: Any, into: Any) -> Any:
    """Of: address of 2 * PAGE float16, address for as many float32."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        for part in range(2 * _PARTS):
            found = load(builder, values[0], ir.VectorType(I16, LANES), 2 * LANES * part)
            store(builder, float_of_half(builder, found), values[1], 4 * LANES * part)

    return of_addresses(emit, 2)


@instructions
def page_logits(
    _context: Any, dots: Any, stride: Any, scales: Any, worth: Any, total: Any, bias: Any, into: Any
) -> Any:
    """Logits of a page, PAGE float32 at `into`. Of: address of the high digits of the dot products, bytes to the low
    ones; address of the keys' scales; what a factor is worth (float32); 128 times the factors' sum (int32); the bias
    (float32)."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        dots, stride, scales, worth, total, bias, into = values
        factor, offset, added = (spread(builder, each) for each in (worth, total, bias))
        for part in range(_PARTS):
            products = builder.sitofp(_whole(builder, dots, stride, part, offset), FLOATS)
            scale = builder.fmul(load(builder, scales, FLOATS, 4 * LANES * part), factor)
            store(builder, multiply_add(builder, products, scale, added), into, 4 * LANES * part)
        return context.get_dummy_value()

    address = types.int64
    return types.none(address, address, address, types.float32, types.int32, types.float32, address), generate


def _whole(builder: ir.IRBuilder, dots: ir.Value, stride: ir.Value, part: int, offset: ir.Value) -> ir.Value:
    high, low = (load(builder, row, INTS, 4 * LANES * part) for row in (dots, builder.add(dots, stride)))
    return builder.sub(builder.add(builder.shl(high, ints(8)), low), offset)


@instructions
def weigh(_context: Any, logits: Any, first: Any, last: Any) -> Any:
    """PAGE logits at an address to weights, in place, those outside [first, last) to zero: the largest logit, and the
    sum of the weights, the largest of which is 1."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        address, first, last = values
        start, end = (spread(builder, builder.trunc(each, I32)) for each in (first, last))
        parts, largest = [], floats(NOTHING)
        for part in range(_PARTS):
            lanes = ir.Constant(INTS, list(range(LANES * part, LANES * (part + 1))))
            seen = builder.and_(builder.icmp_signed(">=", lanes, start), builder.icmp_signed("<", lanes, end))
            parts.append(builder.select(seen, load(builder, address, FLOATS, 4 * LANES * part), floats(NOTHING)))
            largest = maximum(builder, parts[-1], largest)
        best = largest_lane(builder, largest)
        leader, total = spread(builder, best), floats(0.0)
        for part, logits in enumerate(parts):
            weights = exponential(builder, builder.fsub(logits, leader))
            store(builder, weights, address, 4 * LANES * part)
            total = builder.fadd(total, weights)
        return context.make_tuple(builder, signature.return_type, [best, sum_of_lanes(builder, total)])

    address = types.int64
    return types.UniTuple(types.float32, 2)(address, address, address), generate


@instructions
def weight_digits(_context: Any, weights: Any, scales: Any, digits: Any) -> Any:
    """PAGE weights times the values' scales to factors of 16 bits, as digits (2, PAGE) int8: what a factor of 1 is
    worth, and 128 times their sum. All arguments are addresses."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        weights, scales, digits = values
        parts, largest = [], floats(_LEAST)
        for part in range(_PARTS):
            offset = 4 * LANES * part
            parts.append(builder.fmul(load(builder, weights, FLOATS, offset), load(builder, scales, FLOATS, offset)))
            bits = builder.and_(builder.bitcast(parts[-1], INTS), ints(0x7FFFFFFF))
            largest = maximum(builder, builder.bitcast(bits, FLOATS), largest)
        worth = builder.fdiv(largest_lane(builder, largest), ir.Constant(FLOAT, DIGITS_LIMIT))
        scale = spread(builder, builder.fdiv(ir.Constant(FLOAT, 1.0), worth))
        total = ints(0)
        for part, products in enumerate(parts):
            factors = _rounded(builder, builder.fmul(products, scale))
            total = builder.add(total, factors)
            _store_digits(builder, factors, digits, PAGE, LANES * part)
        whole = builder.shl(sum_of_whole_lanes(builder, total), ir.Constant(I32, 7))
        return context.make_tuple(builder, signature.return_type, [worth, whole])

    address = types.int64
    return types.Tuple((types.float32, types.int32))(address, address, address), generate


@compiled
def query_digits(numbers_at: int, count: int, digits_at: int, limit: int) -> tuple[np.float32, np.int32]:
    """`count` float32 to factors of `limit` at most, as digits (2, count) int8: what a factor of 1 is worth, and 128
    times their sum."""
    numbers = carray(at_address(numbers_at), (count,), float32)
    digits = carray(at_address(digits_at), (2, count), int8)
    largest = float32(_LEAST)
    for place in range(count):
        largest = max(largest, abs(numbers[place]))
    worth = largest / float32(limit)
    total = 0
    for place in range(count):
        factor = int(np.rint(numbers[place] / worth))
        high = (factor + 128) >> 8
        digits[0, place], digits[1, place] = int8(high), int8(factor - 256 * high)
        total += factor
    return worth, int32(128 * total)


def _rounded(builder: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
    """Factors to the nearest whole number."""
    above_zero = builder.fadd(numbers, floats(2.0**15 + 0.5))
    return builder.sub(builder.fptosi(above_zero, INTS), ints(2**15))


def _store_digits(builder: ir.IRBuilder, factors: ir.Value, digits: ir.Value, stride: int, offset: int) -> None:
    high = builder.ashr(builder.add(factors, ints(128)), ints(8))
    low = builder.sub(factors, builder.shl(high, ints(8)))
    store(builder, builder.trunc(high, ir.VectorType(I8, LANES)), digits, offset)
    store(builder, builder.trunc(low, ir.VectorType(I8, LANES)), digits, stride + offset)


@instructions
def gather(_context: Any, dots: Any, stride: Any, worth: Any, total: Any, channels: Any, into: Any) -> Any:
    """Adds what dot products are worth to `channels` float32 at `into`, whole vectors only. Otherwise as
    `page_logits`."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        dots, stride, worth, total, channels, into = values
        factor, offset = spread(builder, worth), spread(builder, total)
        with cgutils.for_range(builder, builder.udiv(channels, number(LANES))) as loop:
            place = builder.mul(loop.index, number(4 * LANES))
            whole = _whole(builder, builder.add(dots, place), stride, 0, offset)
            target = builder.add(into, place)
            added = multiply_add(builder, builder.sitofp(whole, FLOATS), factor, load(builder, target, FLOATS))
            store(builder, added, target)
        return context.get_dummy_value()

    address = types.int64
    return types.none(address, address, types.float32, types.int32, address, address), generate
