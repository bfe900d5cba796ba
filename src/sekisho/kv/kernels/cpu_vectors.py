"""Vectors of 16 lanes in numba: LLVM makes of them what the processor has, on any of them.

Functions emit LLVM IR, which numba compiles into the kernel. Memory is named by its address.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

LANES: Final = 16
LINE: Final = 64  # bytes that memory gives at a time
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT: Final = ir.FloatType()
FLOATS: Final = ir.VectorType(FLOAT, LANES)
INTS: Final = ir.VectorType(I32, LANES)
CONTRACT: Final = ("contract",)  # a product and a sum may be one instruction
Emit = Callable[[ir.IRBuilder, Sequence[ir.Value]], None]


def of_addresses(emit: Emit, count: int) -> Any:
    """The type and the code of an intrinsic that takes `count` int64 and returns nothing."""

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Sequence[ir.Value]) -> ir.Value:
        emit(builder, values)
        return context.get_dummy_value()

    return types.none(*[types.int64] * count), generate


# --- memory ---------------------------------------------------------------------------------------------------------


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
    return builder.load(pointer(builder, address, kind, offset), align=1)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: int = 0) -> None:
    builder.store(value, pointer(builder, address, value.type, offset), align=1)


def pointer(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
    return builder.inttoptr(builder.add(address, number(offset)), kind.as_pointer())


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Asks for a line of memory that will be read soon; any address will do."""
    hints = [ir.Constant(I32, hint) for hint in (0, 2, 1)]  # to read, into the second cache, data
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, I8.as_pointer()), *hints])


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def at(builder: ir.IRBuilder, address: ir.Value, index: ir.Value, stride: ir.Value | int) -> ir.Value:
    """The address of an element."""
    step = number(stride) if isinstance(stride, int) else stride
    return builder.add(address, builder.mul(index, step))


# --- numbers --------------------------------------------------------------------------------------------------------


def call(builder: ir.IRBuilder, name: str, kind: ir.Type, *values: ir.Value) -> ir.Value:
    signature = ir.FunctionType(kind, [each.type for each in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), values)


def floats(value: float) -> ir.Constant:
    return ir.Constant(FLOATS, [ir.Constant(FLOAT, value)] * LANES)


def ints(value: int) -> ir.Constant:
    return ir.Constant(INTS, [ir.Constant(I32, value)] * LANES)


def spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A number in all lanes."""
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ints(0))


def multiply_add(builder: ir.IRBuilder, first: ir.Value, second: ir.Value, third: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(first, second, flags=CONTRACT), third, flags=CONTRACT)


def maximum(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


def sum_of_lanes(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return _folded(builder, vector, lambda one, two: builder.fadd(one, two))


def largest_lane(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return _folded(builder, vector, lambda one, two: maximum(builder, one, two))


def sum_of_whole_lanes(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    return _folded(builder, vector, lambda one, two: builder.add(one, two))


def _folded(builder: ir.IRBuilder, vector: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    width = LANES
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                vector, vector, ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
            )
            for start in (0, width)
        )
        vector = join(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def float_of_half(builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:
    """<16 x i16>, the bits of finite float16, as float32."""
    wide = builder.zext(halves, INTS)
    magnitude = builder.bitcast(builder.shl(builder.and_(wide, ints(0x7FFF)), ints(13)), FLOATS)
    scaled = builder.bitcast(builder.fmul(magnitude, floats(2.0**112)), INTS)
    sign = builder.shl(builder.and_(wide, ints(0x8000)), ints(16))
    return builder.bitcast(builder.or_(scaled, sign), FLOATS)


def float_of_bfloat(builder: ir.IRBuilder, halves: ir.Value) -> ir.Value:
    """<16 x i16>, the bits of bfloat16, as float32."""
    return builder.bitcast(builder.shl(builder.zext(halves, INTS), ints(16)), FLOATS)


def exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e**x of x <= 0, 0 below -87; off by 2e-7 of itself. Series after e**x = 2**n e**r, |r| <= ln 2 / 2 (Cody, Waite
    1980)."""
    bounded = maximum(builder, x, floats(-87.0))
    steps = builder.fptosi(multiply_add(builder, bounded, floats(1.4426950408889634), floats(-0.5)), INTS)
    power = builder.sitofp(steps, FLOATS)
    rest = multiply_add(builder, power, floats(-0.693359375), bounded)
    rest = multiply_add(builder, power, floats(2.12194440e-4), rest)
    series = floats(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        series = multiply_add(builder, series, rest, floats(factor))
    scale = builder.bitcast(builder.shl(builder.add(steps, ints(127)), ints(23)), FLOATS)
    known = builder.fcmp_ordered(">=", x, floats(-87.0))
    return builder.select(known, builder.fmul(series, scale), floats(0.0))
