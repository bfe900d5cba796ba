"""Tensors of flash attention as llama.cpp lays them out, and the adapter called with them."""

import ctypes
import dataclasses
from typing import Any

import gguf
import numpy as np
from attention_harness import TYPES, causal, packed, reference

SCALE = 0.2
_NUMBERS = {"f32": gguf.GGMLQuantizationType.F32, "i32": gguf.GGMLQuantizationType.I32, **TYPES}
_MARGIN_BYTES = 256


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_int64 * 4),
        ("data", ctypes.c_void_p),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, _Tensor) for name in ("q", "k", "v", "mask", "sinks", "out")),
        *((name, ctypes.c_float) for name in ("scale", "max_bias", "softcap")),
        *((name, ctypes.c_int32) for name in ("threads", "use_ref", "late", "chunk")),
        ("room", ctypes.c_int64),
        ("work", ctypes.c_void_p),
    )


class _Outcome(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("taken", "arrivals", "chunk", "conversions")),
        ("parts", ctypes.c_int64),
    )


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor: its elements (blocks of packed types) as they lie, and the numbers they stand for. The dimensions are
    ggml's in the order of numpy: streams, heads, positions, numbers."""

    kind: str
    elements: Any
    exact: Any

    def described(self) -> _Tensor:
        block = gguf.GGML_QUANT_SIZES[_NUMBERS[self.kind]][0]
        sizes, steps = self.elements.shape[::-1], self.elements.strides[::-1]
        missing = 4 - len(sizes)
        ne = (sizes[0] * block, *sizes[1:], *[1] * missing)
        nb = (*steps, *[steps[-1] * sizes[-1]] * missing)
        return _Tensor(_NUMBERS[self.kind], (ctypes.c_int64 * 4)(*ne), (ctypes.c_int64 * 4)(*nb), self.address())

    def address(self) -> int:
        return int(self.elements.ctypes.data)


def stored(exact: Any, kind: str, capacity: int = 0, by_head: bool = False) -> Stored:
    """In memory the heads of a position lie together (by_head: the positions of a head), with room for `capacity`
    positions more; there are no numbers there."""
    streams, heads, positions, _ = exact.shape
    rows, means = packed(exact, kind)
    order = (0, 1, 2, 3) if by_head else (0, 2, 1, 3)
    shape = (streams, heads, positions + capacity, rows.shape[3])
    memory = np.full([shape[each] for each in order], 0x7F, np.uint8)
    view = memory.transpose(order)[:, :, :positions]
    view[...] = rows
    return Stored(kind, view.view(f"V{gguf.GGML_QUANT_SIZES[_NUMBERS[kind]][1]}"), means)


@dataclasses.dataclass(frozen=True)
class Operands:
    q: Stored
    k: Stored
    v: Stored
    mask: Stored | None = None
    sinks: Stored | None = None

    def expected(self) -> Any:
        """Streams x positions x heads x numbers, as the result lies."""
        streams, heads, positions, _ = self.q.exact.shape
        stream, head = np.arange(streams)[:, None], np.arange(heads)[None, :]
        k, v = (
            each.exact[stream // (streams // each.exact.shape[0]), head // (heads // each.exact.shape[1])]
            for each in (self.k, self.v)
        )
        mask = sinks = None
        if self.mask is not None:
            said = self.mask.exact
            mask = said[stream % said.shape[0], head % said.shape[1], :positions]
        if self.sinks is not None:
            sinks = self.sinks.exact[None, :, None, None]
        return reference(k, v, self.q.exact, mask, SCALE, sinks).transpose(0, 2, 1, 3)

    def row_bytes(self) -> int:
        """What a row needs to be kept for each part of a context."""
        return 4 * (2 + int(self.v.exact.shape[-1]))

    def rows(self) -> int:
        return int(np.prod(self.q.exact.shape[:3]))


def operands(
    *,
    heads: int = 2,
    group: int = 2,
    positions: int = 1,
    context: int = 100,
    streams: int = 1,
    key_streams: int = 0,
    kinds: tuple[str, str] = ("f16", "f16"),
    sizes: tuple[int, int] = (32, 32),
    mask: Any = "causal",
    sinks: bool = False,
    by_head: bool = False,
) -> Operands:
    """Of random numbers. A mask has four dimensions: streams, heads, rows, positions of the context."""
    random = np.random.default_rng((heads, group, positions, context))

    def normal(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    of = key_streams or streams
    said = causal(positions, context)[None, None] if isinstance(mask, str) else mask
    return Operands(
        stored(normal(streams, heads * group, positions, sizes[0]), "f32", by_head=by_head),
        stored(normal(of, heads, context, sizes[0]), kinds[0], 3, by_head),
        stored(normal(of, heads, context, sizes[1]), kinds[1], 5, by_head),
        None if said is None else Stored("f16", np.ascontiguousarray(said), said),
        Stored("f32", each := normal(heads * group), each) if sinks else None,
    )


@dataclasses.dataclass(frozen=True)
class Done:
    out: Any
    """Streams x positions x heads x numbers."""
    untouched: bool
    """Nothing was written, neither the result nor anything to work with."""
    taken: int
    arrivals: int
    chunk: int
    conversions: int
    parts: int


def done(
    library: ctypes.CDLL,
    given: Operands,
    *,
    threads: int = 1,
    room: int = 1 << 18,
    max_bias: float = 0,
    softcap: float = 0,
    use_ref: bool = False,
    late: int = 0,
    chunk: int = 12345,
) -> Done:
    """What the adapter makes of it; what lies before and behind its memory is as it was."""
    streams, heads, positions, _ = given.q.exact.shape
    shape = (streams, positions, heads, given.v.described().ne[0])
    result = np.full(2 * _MARGIN_BYTES + 4 * int(np.prod(shape)), 0xFF, np.uint8)
    work = np.full(2 * _MARGIN_BYTES + room, 0xFF, np.uint8)
    out = result[_MARGIN_BYTES:-_MARGIN_BYTES].view(np.float32).reshape(shape)
    call = _Call(scale=SCALE, max_bias=max_bias, softcap=softcap, threads=threads, use_ref=use_ref)
    call.late, call.chunk, call.room, call.work = late, chunk, room, work.ctypes.data + _MARGIN_BYTES
    for name in ("q", "k", "v", "mask", "sinks"):
        each = getattr(given, name)
        setattr(call, name, _Tensor() if each is None else each.described())
    # the heads of a position lie together, as llama.cpp goes on with them
    call.out = Stored("f32", out, None).described()
    outcome = _Outcome()
    library.flash_attention(ctypes.byref(call), ctypes.byref(outcome))
    for memory in (result, work):
        assert (memory[:_MARGIN_BYTES] == 0xFF).all()
        assert (memory[-_MARGIN_BYTES:] == 0xFF).all()
    untouched = bool((result == 0xFF).all() and (work == 0xFF).all())
    counts = outcome.taken, outcome.arrivals, outcome.chunk, outcome.conversions, outcome.parts
    return Done(out, untouched, *counts)
