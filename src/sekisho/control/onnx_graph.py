"""Tiny ONNX graphs of one matrix product, written without the `onnx` package, and what they must answer.

The bytes are protocol buffers: fields as (number << 3 | kind), kind 0 for whole numbers, 2 for what has a length.
Numbers of fields and types are those of `onnx.proto` (IR version 8, opset 17). Imports numpy and the standard library.
"""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["int4", "int8", "fp16", "fp32"]
KINDS: Final[tuple[Kind, ...]] = ("int4", "int8", "fp16", "fp32")
ROWS, INNER, COLUMNS, BLOCK = 4, 64, 16, 32
IR_VERSION, OPSET = 8, 17
_FLOAT, _UINT8, _INT8, _INT32, _FLOAT16 = 1, 2, 3, 6, 10
_SEED = 20_260_101


class Case(NamedTuple):
    """One graph with its inputs, the right answer, and how far off an answer may be."""

    kind: Kind
    operator: str
    model: bytes
    inputs: dict[str, Any]
    expected: Any
    tolerance: float


def case(kind: Kind) -> Case:
    """The graph of one kind; the same each time. Raises ImportError without numpy."""
    return _CASES[kind]()


def _fp32() -> Case:
    import numpy as np

    left, right = _normal(ROWS, INNER), _normal(INNER, COLUMNS)
    model = _model("MatMul", {"A": (_FLOAT, left.shape)}, {"B": (_FLOAT, right)}, (_FLOAT, (ROWS, COLUMNS)))
    expected = left.astype(np.float64) @ right.astype(np.float64)
    return Case("fp32", "MatMul", model, {"A": left}, expected, 1e-4)


def _fp16() -> Case:
    import numpy as np

    left, right = _normal(ROWS, INNER).astype(np.float16), _normal(INNER, COLUMNS).astype(np.float16)
    model = _model("MatMul", {"A": (_FLOAT16, left.shape)}, {"B": (_FLOAT16, right)}, (_FLOAT16, (ROWS, COLUMNS)))
    expected = left.astype(np.float64) @ right.astype(np.float64)
    return Case("fp16", "MatMul", model, {"A": left}, expected, 0.1)


def _int8() -> Case:
    """Whole numbers: the answer is exact or wrong."""
    import numpy as np

    chance = random.Random(_SEED)
    left = np.array([chance.randrange(256) for _ in range(ROWS * INNER)], np.uint8).reshape(ROWS, INNER)
    right = np.array([chance.randrange(-64, 64) for _ in range(INNER * COLUMNS)], np.int8).reshape(INNER, COLUMNS)
    zero = np.array(128, np.uint8)
    model = _model(
        "MatMulInteger",
        {"A": (_UINT8, left.shape)},
        {"B": (_INT8, right), "zero": (_UINT8, zero)},
        (_INT32, (ROWS, COLUMNS)),
    )
    expected = (left.astype(np.int64) - 128) @ right.astype(np.int64)
    return Case("int8", "MatMulInteger", model, {"A": left}, expected, 0.0)


def _int4() -> Case:
    """Blocks of 32 weights with one scale each, two weights in a byte, the lower half first, zero at 8."""
    import numpy as np

    chance = random.Random(_SEED)
    blocks = INNER // BLOCK
    packed = np.array([chance.randrange(256) for _ in range(COLUMNS * blocks * BLOCK // 2)], np.uint8)
    packed = packed.reshape(COLUMNS, blocks, BLOCK // 2)
    scales = np.array([chance.uniform(0.01, 0.1) for _ in range(COLUMNS * blocks)], np.float32)
    left = _normal(ROWS, INNER)
    model = _model(
        "MatMulNBits",
        {"A": (_FLOAT, left.shape)},
        {"B": (_UINT8, packed), "scales": (_FLOAT, scales)},
        (_FLOAT, (ROWS, COLUMNS)),
        domain="com.microsoft",
        attributes={"K": INNER, "N": COLUMNS, "bits": 4, "block_size": BLOCK},
    )
    weights = np.empty((COLUMNS, blocks, BLOCK))
    weights[..., 0::2], weights[..., 1::2] = packed & 15, packed >> 4
    weights = (weights - 8) * scales.astype(np.float64).reshape(COLUMNS, blocks, 1)
    expected = left.astype(np.float64) @ weights.reshape(COLUMNS, INNER).T
    return Case("int4", "MatMulNBits", model, {"A": left}, expected, 0.05)


_CASES: Final[Mapping[Kind, Callable[[], Case]]] = MappingProxyType(
    {"int4": _int4, "int8": _int8, "fp16": _fp16, "fp32": _fp32}
)


def _normal(rows: int, columns: int) -> Any:
    import numpy as np

    chance = random.Random(_SEED + rows)
    return np.array([chance.gauss(0, 1) for _ in range(rows * columns)], np.float32).reshape(rows, columns)


def _model(
    operator: str,
    inputs: Mapping[str, tuple[int, tuple[int, ...]]],
    constants: Mapping[str, tuple[int, Any]],
    output: tuple[int, tuple[int, ...]],
    *,
    domain: str = "",
    attributes: Mapping[str, int] = MappingProxyType({}),
) -> bytes:
    """A ModelProto of one node; constants follow the inputs in the order of the operator's arguments."""
    names = [*inputs, *constants]
    node = b"".join(_text(1, name) for name in names) + _text(2, "Y") + _text(4, operator) + _text(7, domain)
    for name, value in attributes.items():
        node += _part(5, _text(1, name) + _whole(3, value) + _whole(20, 2))  # 2: an INT
    graph = _part(1, node) + _text(2, "probe")
    graph += b"".join(_part(5, _tensor(name, *constant)) for name, constant in constants.items())
    graph += b"".join(_part(11, _value(name, *told)) for name, told in inputs.items())
    graph += _part(12, _value("Y", *output))
    model = _whole(1, IR_VERSION) + _text(2, "sekisho") + _part(7, graph) + _part(8, _text(1, "") + _whole(2, OPSET))
    return model + (_part(8, _text(1, domain) + _whole(2, 1)) if domain else b"")


def _tensor(name: str, element: int, values: Any) -> bytes:
    dimensions = b"".join(_whole(1, size) for size in values.shape)
    return dimensions + _whole(2, element) + _text(8, name) + _part(9, values.tobytes())


def _value(name: str, element: int, shape: tuple[int, ...]) -> bytes:
    dimensions = b"".join(_part(1, _whole(1, size)) for size in shape)
    return _text(1, name) + _part(2, _part(1, _whole(1, element) + _part(2, dimensions)))


def _part(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())


def _whole(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit while more follow."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
