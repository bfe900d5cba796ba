"""llama.cpp's files of one slot: read, stored at other KV types, written. So a prompt can be read at 16 bits, which is
fast, and kept at 8 or 4, which is small.

Layout (llama.cpp `src/llama-context.cpp`, `src/llama-kv-cache.cpp`, file version 4, little endian):

    u32 magic, version; u32 n, i32 × n      what the server keeps beside (its tokens)
    u32 streams                             one per slot, or one for all
    per stream: u32 cells; if any:
        per cell i32 position, u32 1, i32 slot
        u32 transposed, u32 layers, u32 turn of keys, u32 turn of values
        per layer i32 type, u64 bytes a row, rows     keys
        per layer i32 type, u64 bytes a row, rows     values, where not transposed

Where a type is quantised and the head size is a multiple of 64, llama.cpp stores each head turned by a Hadamard matrix
(pull request 21038): for values 64 wide, for keys as wide as the largest power of two that divides the head. The turn
is that width, 0 for none.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

StoredType = Literal["f16", "q8_0", "q4_0"]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAGIC: Final = 0x67677371
VERSION: Final = 4
TYPES: Final[dict[int, StoredType]] = {1: "f16", 2: "q4_0", 8: "q8_0"}
_NUMBERS: Final = {name: number for number, name in TYPES.items()}
_BLOCK: Final = 32
_HADAMARD: Final = 64
_MOST: Final = 1 << 24


class SlotFileProblem(ValueError):
    """These bytes are no slot file that we know. The text says what is wrong and where."""


class Plane(msgspec.Struct, frozen=True):
    """The keys or the values of one layer: a row per cell."""

    type: StoredType
    rows: Bytes


class SlotFile(msgspec.Struct, frozen=True):
    """`head`: what stands before the streams. `cells`: 12 bytes each. `streams`: of the context that wrote it. Turns
    are widths of Hadamard matrices, 0 for none."""

    head: bytes
    streams: int
    cells: bytes
    keys: tuple[Plane, ...]
    values: tuple[Plane, ...]
    key_turn: int = 0
    value_turn: int = 0

    @property
    def length(self) -> int:
        return len(self.cells) // 12


class _Reader:
    def __init__(self, body: memoryview) -> None:
        self._body, self.at = body, 0

    def numbers(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize("<" + form)
        return struct.unpack("<" + form, self.piece(size))

    def number(self, form: str = "I", most: int = _MOST) -> int:
        (value,) = self.numbers(form)
        if not 0 <= value <= most:
            raise SlotFileProblem(f"{value} at byte {self.at} cannot be")
        return value

    def piece(self, size: int) -> memoryview:
        piece = self._body[self.at : self.at + size]
        if len(piece) != size:
            raise SlotFileProblem(f"ends at byte {len(self._body)}, in the middle")
        self.at += size
        return piece

    @property
    def ended(self) -> bool:
        return self.at == len(self._body)


def read(body: bytes | memoryview) -> SlotFile:
    """The planes share the memory of `body`. Raises SlotFileProblem for another version, another layout, or what is cut
    off."""
    whole = memoryview(body)
    reader = _Reader(whole)
    magic, version = reader.numbers("II")
    if (magic, version) != (MAGIC, VERSION):
        raise SlotFileProblem(
            f"a slot file of version {VERSION} begins otherwise (here: {magic:#x}, version {version})"
        )
    reader.piece(4 * reader.number())
    head = bytes(whole[: reader.at])
    streams = reader.number(most=4096)
    found: SlotFile | None = None
    for _ in range(streams):
        cells = reader.number()
        if cells and found is not None:
            raise SlotFileProblem("holds more than one sequence")
        if cells:
            found = _stream(reader, cells, head, streams)
    if found is None or not reader.ended:
        raise SlotFileProblem("holds no cells" if found is None else f"goes on after byte {reader.at}")
    return found


def _stream(reader: _Reader, count: int, head: bytes, streams: int) -> SlotFile:
    cells = bytes(reader.piece(12 * count))
    owners = np.frombuffer(cells, np.int32).reshape(count, 3)[:, 1]
    if (owners != 1).any():
        raise SlotFileProblem("has cells of more than one sequence, or positions of more than one dimension")
    transposed, layers, key_turn, value_turn = reader.numbers("IIII")
    if transposed or not 0 < layers < 4096:
        raise SlotFileProblem("keeps its values transposed (flash attention is off)" if transposed else "has no layers")
    keys = tuple(_plane(reader, count) for _ in range(layers))
    values = tuple(_plane(reader, count) for _ in range(layers))
    return SlotFile(head, streams, cells, keys, values, key_turn, value_turn)


def _plane(reader: _Reader, count: int) -> Plane:
    kind = reader.number("i")
    if kind not in TYPES:
        raise SlotFileProblem(f"has KV type {kind}; known are {', '.join(TYPES.values())}")
    size = reader.number("Q")
    return Plane(TYPES[kind], np.frombuffer(reader.piece(size * count), np.uint8).reshape(count, size))


def write(slot: SlotFile, streams: int) -> bytes:
    """For a context with so many streams: as many as it has slots, or one where slots share their memory."""
    return b"".join(pieces(slot, streams))


def pieces(slot: SlotFile, streams: int) -> Iterator[bytes | memoryview]:
    """What `write` joins, for a file that is better not held in memory once more."""
    yield slot.head + struct.pack("<II", streams, slot.length) + slot.cells
    yield struct.pack("<IIII", 0, len(slot.keys), slot.key_turn, slot.value_turn)
    for plane in (*slot.keys, *slot.values):
        yield struct.pack("<iQ", _NUMBERS[plane.type], plane.rows.shape[1])
        yield plane.rows.reshape(-1).data
    yield bytes(4 * (streams - 1))


def stored_at(slot: SlotFile, key_type: StoredType, value_type: StoredType, key_size: int, value_size: int) -> SlotFile:
    """A slot of 16 bits at other types. `key_size`, `value_size`: of a head. Raises SlotFileProblem where it is not at
    16 bits: what was rounded once is not rounded again."""
    key_turn = 0 if key_type == "f16" else _largest_power(key_size)
    value_turn = 0 if value_type == "f16" or value_size % _HADAMARD else _HADAMARD
    return msgspec.structs.replace(
        slot,
        keys=_planes(slot.keys, key_type, key_turn),
        values=_planes(slot.values, value_type, value_turn),
        key_turn=key_turn,
        value_turn=value_turn,
    )


def _largest_power(size: int) -> int:
    """The largest power of two that divides it, if that is 64 or more; else 0: not turned."""
    power = size & -size
    return power if power >= _HADAMARD else 0


def _planes(planes: Sequence[Plane], kind: StoredType, turned_by: int) -> tuple[Plane, ...]:
    if any(plane.type != "f16" for plane in planes):
        raise SlotFileProblem("is not at 16 bits")
    return tuple(plane if kind == "f16" else _quantised(plane, kind, turned_by) for plane in planes)


def _quantised(plane: Plane, kind: StoredType, turned_by: int) -> Plane:
    values = plane.rows.view(np.float16).astype(np.float32)
    if values.shape[1] % _BLOCK:
        raise SlotFileProblem(f"has rows of {values.shape[1]} values, not a multiple of {_BLOCK}")
    if turned_by:
        values = (values.reshape(-1, turned_by) @ hadamard(turned_by)).reshape(values.shape)
    blocks = values.reshape(-1, _BLOCK)
    packed = _q8_0(blocks) if kind == "q8_0" else _q4_0(blocks)
    return Plane(kind, packed.reshape(len(values), -1))


def hadamard(size: int) -> Floats:
    """Sylvester's, made orthonormal; its own inverse. `size` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def _q8_0(blocks: Floats) -> Bytes:
    """A half-precision scale and 32 signed bytes."""
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    whole = np.rint(blocks * _inverse(scales)).astype(np.int8)
    return np.hstack([scales.astype(np.float16).view(np.uint8), whole.view(np.uint8)])


def _q4_0(blocks: Floats) -> Bytes:
    """A half-precision scale, then 32 nibbles with 8 for zero: the first sixteen low, the others high."""
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scales = furthest / np.float32(-8)
    nibbles = np.minimum(15, (blocks * _inverse(scales) + np.float32(8.5)).astype(np.int8)).astype(np.uint8)
    half = _BLOCK // 2
    packed = nibbles[:, :half] | nibbles[:, half:] << 4
    return np.hstack([scales.astype(np.float16).view(np.uint8), packed])


def _inverse(scales: Floats) -> Floats:
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
