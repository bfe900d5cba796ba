"""Dense tokens in vectors: dot products with keys, weighted sums of values."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba import float32, types
from numba.core import cgutils

from sekisho.kv.kernels.cpu_machine import BFloat16, Float16, Float32, at_address, carray, compiled, instructions
from sekisho.kv.kernels.cpu_vectors import (
    FLOAT,
    FLOATS,
    I16,
    I32,
    LANES,
    LINE,
    Emit,
    at,
    float_of_bfloat,
    float_of_half,
    floats,
    load,
    multiply_add,
    number,
    of_addresses,
    prefetch,
    spread,
    store,
    sum_of_lanes,
)

_ABREAST: Final = 4  # tokens
_Kind = type[Float32] | type[BFloat16] | type[Float16]


def _read(builder: ir.IRBuilder, kind: _Kind, address: ir.Value) -> ir.Value:
    """16 numbers of a kind at an address, as float32."""
    if kind is Float32:
        return load(builder, address, FLOATS)
    halves = load(builder, address, ir.VectorType(I16, LANES))
    return float_of_bfloat(builder, halves) if kind is BFloat16 else float_of_half(builder, halves)


@instructions
def read_one(_context: Any, kind: Any, address: Any) -> Any:
    """One number of a kind at an address, as float32."""

    def generate(_: Any, builder: ir.IRBuilder, __: Any, values: Sequence[ir.Value]) -> ir.Value:
        if kind.instance_class is Float32:
            return load(builder, values[1], FLOAT)
        halves = spread(builder, load(builder, values[1], I16))
        wide = float_of_bfloat if kind.instance_class is BFloat16 else float_of_half
        return builder.extract_element(wide(builder, halves), ir.Constant(I32, 0))

    return types.float32(kind, types.int64), generate


def _key_dots(kind: _Kind, abreast: int) -> Emit:
    """Of: address of `abreast` keys, of a query, D, address of the dot products."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        keys, query, head_dim, dots = values
        itemsize = kind().itemsize
        stride = builder.mul(head_dim, number(itemsize))
        sums = [cgutils.alloca_once(builder, FLOATS) for _ in range(abreast)]
        for each in sums:
            builder.store(floats(0.0), each)
        with cgutils.for_range(builder, builder.udiv(head_dim, number(LANES))) as loop:
            factors = load(builder, at(builder, query, loop.index, 4 * LANES), FLOATS)
            start = at(builder, keys, loop.index, itemsize * LANES)
            for token, into in enumerate(sums):
                found = _read(builder, kind, at(builder, start, number(token), stride))
                builder.store(multiply_add(builder, found, factors, builder.load(into)), into)
        for token, each in enumerate(sums):
            store(builder, sum_of_lanes(builder, builder.load(each)), dots, 4 * token)

    return emit


def _add_values(kind: _Kind, abreast: int) -> Emit:
    """Of: address of `abreast` values, of their weights, D, address of the sums."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        stored, weights, head_dim, into = values
        itemsize = kind().itemsize
        stride = builder.mul(head_dim, number(itemsize))
        factors = [spread(builder, load(builder, weights, FLOAT, 4 * token)) for token in range(abreast)]
        with cgutils.for_range(builder, builder.udiv(head_dim, number(LANES))) as loop:
            target = at(builder, into, loop.index, 4 * LANES)
            start = at(builder, stored, loop.index, itemsize * LANES)
            total = load(builder, target, FLOATS)
            for token, factor in enumerate(factors):
                found = _read(builder, kind, at(builder, start, number(token), stride))
                total = multiply_add(builder, found, factor, total)
            store(builder, total, target)

    return emit


@instructions
def prefetch_ahead(_context: Any, address: Any, count: Any, ahead: Any) -> Any:
    """Of: an address, a number of bytes, how far ahead of them lies what will be read next."""

    def emit(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        address, count, ahead = values
        first = builder.add(address, ahead)
        with cgutils.for_range(builder, builder.udiv(count, number(LINE))) as loop:
            prefetch(builder, at(builder, first, loop.index, LINE))

    return of_addresses(emit, 3)


@instructions
def key_dots_4(_context: Any, kind: Any, keys: Any, query: Any, head_dim: Any, dots: Any) -> Any:
    """See `_key_dots`."""
    return _of_kind(_key_dots, kind, _ABREAST)


@instructions
def key_dots_1(_context: Any, kind: Any, keys: Any, query: Any, head_dim: Any, dots: Any) -> Any:
    """See `_key_dots`."""
    return _of_kind(_key_dots, kind, 1)


@instructions
def add_values_4(_context: Any, kind: Any, values: Any, weights: Any, head_dim: Any, into: Any) -> Any:
    """See `_add_values`."""
    return _of_kind(_add_values, kind, _ABREAST)


@instructions
def add_values_1(_context: Any, kind: Any, values: Any, weights: Any, head_dim: Any, into: Any) -> Any:
    """See `_add_values`."""
    return _of_kind(_add_values, kind, 1)


def _of_kind(emit: Callable[[_Kind, int], Emit], kind: Any, abreast: int) -> Any:
    """The type and the code of an intrinsic that takes a kind of numbers and four addresses."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        emit(kind.instance_class, abreast)(builder, values[1:])
        return context.get_dummy_value()

    return types.none(kind, *[types.int64] * 4), generate


@compiled
def key_dots(kind: Any, keys: int, count: int, query: int, head_dim: int, dots: int, ahead: int) -> None:
    """`count` keys (D,) of a kind with one query (D,) float32, into float32. Memory is named by its address. What will
    be read next lies `ahead` bytes ahead; 0 if somebody has asked for it already."""
    stride = kind.itemsize * head_dim
    whole = count - count % _ABREAST
    for token in range(0, whole, _ABREAST):
        if ahead:
            prefetch_ahead(keys + token * stride, _ABREAST * stride, ahead)
        key_dots_4(kind, keys + token * stride, query, head_dim, dots + 4 * token)
    for token in range(whole, count):
        key_dots_1(kind, keys + token * stride, query, head_dim, dots + 4 * token)
    if head_dim % LANES:
        factors, sums = carray(at_address(query), (head_dim,), float32), carray(at_address(dots), (count,), float32)
        for token in range(count):
            for channel in range(head_dim - head_dim % LANES, head_dim):
                found = read_one(kind, keys + token * stride + channel * kind.itemsize)
                sums[token] += factors[channel] * found


@compiled
def add_values(kind: Any, values: int, count: int, weights: int, head_dim: int, into: int, ahead: int) -> None:
    """Adds `count` values (D,) of a kind, each times its weight (float32), to (D,) float32. `ahead`: see `key_dots`."""
    stride = kind.itemsize * head_dim
    whole = count - count % _ABREAST
    for token in range(0, whole, _ABREAST):
        if ahead:
            prefetch_ahead(values + token * stride, _ABREAST * stride, ahead)
        add_values_4(kind, values + token * stride, weights + 4 * token, head_dim, into)
    for token in range(whole, count):
        add_values_1(kind, values + token * stride, weights + 4 * token, head_dim, into)
    if head_dim % LANES:
        factors, sums = carray(at_address(weights), (count,), float32), carray(at_address(into), (head_dim,), float32)
        for token in range(count):
            for channel in range(head_dim - head_dim % LANES, head_dim):
                found = read_one(kind, values + token * stride + channel * kind.itemsize)
                sums[channel] += factors[token] * found
