"""The head of a GGUF file: enough to say what is wrong with it before llama.cpp fails with less to say.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import glob
import math
import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
# A model in several files may have only metadata in the first.
_FIRST_OF_MANY = re.compile(r"-00001-of-\d{5}\.gguf$")
_STRING, _ARRAY = 8, 9
_SCALAR_LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALAR_BYTES = {kind: struct.calcsize("<" + layout) for kind, layout in _SCALAR_LAYOUTS.items()}
_MOST_VALUES = 4096


def problem(path: Path) -> str | None:
    """Why this is not a GGUF file that llama.cpp could read; None when the head is in order."""
    with path.open("rb") as file:
        head = file.read(24)
        if head[:4] != _MAGIC:
            return "not a GGUF file"
        if len(head) < 24:
            return "cut off: the file ends inside its head"
        version, tensors, pairs = struct.unpack("<IQQ", head[4:])
        if version not in (2, 3):
            return f"GGUF version {version} is not supported"
        if not pairs or (not tensors and not _FIRST_OF_MANY.search(path.name)):
            return "a GGUF file without weights"
        try:
            _keys(file, pairs)
            starts = [_tensor_start(file) for _ in range(tensors)]
        except (EOFError, ValueError, UnicodeDecodeError):
            return "cut off or damaged: its head cannot be read"
        if starts and file.tell() + max(starts) >= path.stat().st_size:
            return "cut off: the file ends before its last weights (an unfinished download?)"
    return None


def has_key(path: Path, suffix: str) -> bool:
    """Whether the metadata has a key that ends so (they begin with the architecture's name)."""
    with path.open("rb") as file:
        pairs = struct.unpack("<IQQ", file.read(24)[4:])[2]
        return any(key.endswith(suffix) for key in _keys(file, pairs))


def values(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Numbers, and lists of numbers, of the metadata, by their keys without the architecture's name. What is not there,
    or of another kind, is left out. Raises OSError, and ValueError for a file that is none."""
    found: dict[str, Any] = {}
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("not a GGUF file")
        try:
            _, _, pairs = struct.unpack("<IQQ", _exactly(file, 20))
            for _ in range(pairs):
                key = _exactly(file, _number(file, "<Q")).decode()
                kind, name = _number(file, "<I"), key.partition(".")[2]
                if name in names and (value := _value(file, kind)) is not None:
                    found[name] = value
                elif name not in names:
                    _skip(file, kind)
        except EOFError:
            raise ValueError("its head is cut off") from None
    return found


def parameters(path: Path) -> int:
    """Values in all tensors of this file. Raises OSError, and ValueError for a file that is none."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("not a GGUF file")
        try:
            _, tensors, pairs = struct.unpack("<IQQ", _exactly(file, 20))
            _keys(file, pairs)
            return sum(_tensor_values(file) for _ in range(tensors))
        except (EOFError, UnicodeDecodeError):
            raise ValueError("its head is cut off or damaged") from None


def parts(path: Path) -> list[Path]:
    """The files that a model lies in, by their names, of which this is the first."""
    found = _FIRST_OF_MANY.search(path.name)
    if found is None:
        return [path]
    many = found[0].removeprefix("-00001")
    return sorted(path.parent.glob(f"{glob.escape(path.name.removesuffix(found[0]))}-[0-9]*{many}"))


def _value(file: BinaryIO, kind: int) -> Any:
    """A number or a list of numbers; None for anything else, which is passed over."""
    if kind in _SCALAR_LAYOUTS:
        return struct.unpack("<" + _SCALAR_LAYOUTS[kind], _exactly(file, _SCALAR_BYTES[kind]))[0]
    start = file.tell()
    inner, count = (_number(file, "<I"), _number(file, "<Q")) if kind == _ARRAY else (_STRING, 0)
    if inner not in _SCALAR_LAYOUTS or count > _MOST_VALUES:
        file.seek(start)
        _skip(file, kind)
        return None
    return list(struct.unpack(f"<{count}{_SCALAR_LAYOUTS[inner]}", _exactly(file, count * _SCALAR_BYTES[inner])))


def _keys(file: BinaryIO, pairs: int) -> list[str]:
    keys = []
    for _ in range(pairs):
        keys.append(_exactly(file, _number(file, "<Q")).decode())
        _skip(file, _number(file, "<I"))
    return keys


def _tensor_start(file: BinaryIO) -> int:
    """Where a tensor's data begins, counted from the end of the head."""
    _exactly(file, _number(file, "<Q"))
    dimensions = _number(file, "<I")
    _exactly(file, 8 * dimensions + 4)
    return _number(file, "<Q")


def _tensor_values(file: BinaryIO) -> int:
    """How many a tensor has."""
    _exactly(file, _number(file, "<Q"))
    dimensions = _number(file, "<I")
    sizes = struct.unpack(f"<{dimensions}Q", _exactly(file, 8 * dimensions))
    _exactly(file, 12)
    return math.prod(sizes)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.seek(_number(file, "<Q"), 1)
    elif kind == _ARRAY:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if inner in _SCALAR_BYTES:
            file.seek(count * _SCALAR_BYTES[inner], 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    elif kind in _SCALAR_BYTES:
        file.seek(_SCALAR_BYTES[kind], 1)
    else:
        raise ValueError(f"unknown type {kind}")


def _number(file: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, _exactly(file, struct.calcsize(layout)))[0])


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count) if count < 1 << 20 else b""
    if len(data) != count:
        raise EOFError
    return data
