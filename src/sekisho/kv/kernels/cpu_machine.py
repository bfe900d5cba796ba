"""What the processor can do, and the few things that numba cannot say by itself.

A kernel is compiled for one of the machines and one of the kinds of numbers below: the type of what it is given chooses
the code, and only what is used is ever compiled.
"""

from collections.abc import Callable
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np import numpy_support

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Arguments = ParamSpec("_Arguments")
carray: Final[Any] = numpy_support.carray  # the types it is published with do not know what compiled code gives it


def compiled(function: _Function) -> _Function:
    """Machine code at the first call, kept for later processes where numba finds a folder that it can write to. Threads
    run it at the same time. Numba looks for changes only in the file of the function itself: whoever changes another
    one of these files removes `__pycache__`."""
    try:
        kept: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba's answer where there is no such folder
        kept = njit(nogil=True)(function)
    return kept


def instructions(definition: Callable[Concatenate[Any, _Arguments], Any]) -> Callable[_Arguments, Any]:
    """A function for compiled code only, which writes LLVM IR: `numba.extending.intrinsic`."""
    known: Any = intrinsic(definition)
    return known


# --- machines -------------------------------------------------------------------------------------------------------


class Portable(NamedTuple):
    """Any processor that numba knows."""

    lanes: int = 1


class Avx2(NamedTuple):
    """x86 since 2013."""

    lanes: int = 1


class Vnni(NamedTuple):
    """x86 with AVX-512 and its dot products of bytes. Heads are multiples of 16 numbers."""

    lanes: int = 16


class Amx(NamedTuple):
    """`Vnni`, and a matrix unit; at most `cpu_amx.HEADS` query heads share a key/value head."""

    configuration: int  # address of what `cpu_amx.configure` takes
    channels_at_once: int


# --- kinds of dense numbers -----------------------------------------------------------------------------------------


class Float32(NamedTuple):
    itemsize: int = 4


class BFloat16(NamedTuple):
    itemsize: int = 2


class Float16(NamedTuple):
    itemsize: int = 2


class Shape(NamedTuple):
    """Of the query heads that share a key/value head."""

    heads: int
    head_dim: int
    dots_stride: int  # bytes from the high digits of a head's dot products to the low ones, and to the next head's


# --- memory ---------------------------------------------------------------------------------------------------------


@instructions
def at_address(_context: Any, address: Any) -> Any:
    """An int64 address as a pointer that `numba.carray` takes."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, values: Any) -> ir.Value:
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), emit


@instructions
def take_ticket(_context: Any, address: Any) -> Any:
    """The int64 at an address, which grows by one in the same instant: threads share work by it."""

    def emit(_: Any, builder: ir.IRBuilder, __: Any, values: Any) -> ir.Value:
        pointer = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), emit
