"""The three steps that take the time, each as suits the machine: codes to levels, dot products of keys, of values.

Memory is named by its address. Levels are uint8, 128 more than the codebook's. Factors and dot products are two digits,
high * 256 + low; sums over levels are 128 times the sum of the factors too large.
"""

from typing import Any

from numba import int8, int32, uint8
from numba.extending import overload

from sekisho.kv.formats import PAGE
from sekisho.kv.kernels import cpu_amx, cpu_codes, cpu_dots
from sekisho.kv.kernels.cpu_machine import Amx, Shape, Vnni, at_address, carray, compiled
from sekisho.kv.kernels.cpu_vectors import LANES


def start(machine: Any) -> None:
    """What a thread does before the steps."""
    raise NotImplementedError("only for compiled code")


def stop(machine: Any) -> None:
    """What a thread does after the steps."""
    raise NotImplementedError("only for compiled code")


def key_dots(machine: Any, levels: int, digits: int, shape: Shape, dots: int) -> None:
    """Levels (D/4, PAGE, 4), digits (G, 2, D) int8: each token's dot product with each query, (G, 2, PAGE) int32."""
    raise NotImplementedError("only for compiled code")


def value_dots(machine: Any, levels: int, digits: int, shape: Shape, dots: int) -> None:
    """Levels (PAGE/4, D, 4), digits (G, 2, PAGE) int8: weighted sums over the tokens, (G, 2, D) int32."""
    raise NotImplementedError("only for compiled code")


@compiled
def unpack(machine: Any, bits: int, address: int, blocks: int, levels: int, ahead: int) -> None:
    """Codes of `bits` bits, `blocks` times 256 of them, to levels. What will be read next lies `ahead` bytes ahead."""
    if bits == 8:
        cpu_codes.unpack_8(machine, address, blocks, levels, ahead)
    elif bits == 4:
        cpu_codes.unpack_4(machine, address, blocks, levels, ahead)
    elif bits == 3:
        cpu_codes.unpack_3(machine, address, blocks, levels, ahead)
    else:
        cpu_codes.unpack_2(machine, address, blocks, levels, ahead)


@overload(start)  # type: ignore[untyped-decorator]
def _start(machine: Any) -> Any:
    def tiles(machine: Any) -> None:
        cpu_amx.configure(machine.configuration)

    return tiles if _is(machine, Amx) else _nothing


@overload(stop)  # type: ignore[untyped-decorator]
def _stop(machine: Any) -> Any:
    def tiles(machine: Any) -> None:
        cpu_amx.release()

    return tiles if _is(machine, Amx) else _nothing


def _nothing(machine: Any) -> None:
    pass


@overload(key_dots)  # type: ignore[untyped-decorator]
def _key_dots(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> Any:
    def one(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        row, step = shape.head_dim, shape.dots_stride
        for head in range(shape.heads):
            cpu_dots.key_dots_1(machine, levels, digits + 2 * head * row, row, dots + 2 * head * step, step)

    def two(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        row, step = shape.head_dim, shape.dots_stride
        for head in range(0, shape.heads - 1, 2):
            cpu_dots.key_dots_2(machine, levels, digits + 2 * head * row, row, dots + 2 * head * step, step)
        if shape.heads % 2:
            head = shape.heads - 1
            cpu_dots.key_dots_1(machine, levels, digits + 2 * head * row, row, dots + 2 * head * step, step)

    def tiles(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        cpu_amx.key_dots(levels, digits, shape.head_dim, machine.channels_at_once, dots, shape.dots_stride)

    return tiles if _is(machine, Amx) else two if _is(machine, Vnni) else one


@overload(value_dots)  # type: ignore[untyped-decorator]
def _value_dots(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> Any:
    def one(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        wide, step = shape.head_dim, shape.dots_stride
        for head in range(shape.heads):
            cpu_dots.value_dots_1(machine, levels, digits + 2 * head * PAGE, wide, dots + 2 * head * step, step)
        if wide % LANES:
            _last_value_dots(levels, digits, shape, dots)

    def two(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        wide, step = shape.head_dim, shape.dots_stride
        for head in range(0, shape.heads - 1, 2):
            cpu_dots.value_dots_2(machine, levels, digits + 2 * head * PAGE, wide, dots + 2 * head * step, step)
        if shape.heads % 2:
            head = shape.heads - 1
            cpu_dots.value_dots_1(machine, levels, digits + 2 * head * PAGE, wide, dots + 2 * head * step, step)

    def tiles(machine: Any, levels: Any, digits: Any, shape: Any, dots: Any) -> None:
        cpu_amx.value_dots(levels, digits, shape.head_dim, dots, shape.dots_stride)

    return tiles if _is(machine, Amx) else two if _is(machine, Vnni) else one


@compiled
def _last_value_dots(levels_at: int, digits_at: int, shape: Shape, dots_at: int) -> None:
    """`value_dots` for the channels that fill no vector: the whole in the low digit."""
    wide = shape.head_dim
    levels = carray(at_address(levels_at), (PAGE // 4, wide, 4), uint8)
    digits = carray(at_address(digits_at), (shape.heads, 2, PAGE // 4, 4), int8)
    dots = carray(at_address(dots_at), (shape.heads, 2, shape.dots_stride // 4), int32)
    for head in range(shape.heads):
        for channel in range(wide - wide % LANES, wide):
            total = 0
            for four in range(PAGE // 4):
                for token in range(4):
                    factor = digits[head, 0, four, token] * 256 + digits[head, 1, four, token]
                    total += levels[four, channel, token] * factor
            dots[head, 0, channel], dots[head, 1, channel] = 0, total


def _is(machine: Any, kind: type) -> bool:
    """Whether numba's type of a machine is of this kind."""
    return machine.instance_class is kind
