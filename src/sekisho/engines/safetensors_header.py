"""The head of a safetensors file: enough to say that it was cut off, without PyTorch.

Format: https://huggingface.co/docs/safetensors/index#format
"""

import math
from pathlib import Path
from typing import Final, Literal

import msgspec

from sekisho.core.decoding import Undecodable, decoded

Fault = Literal["pointer", "cut_off", "damaged"]
_LFS: Final = b"version "  # so a Git LFS pointer begins: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_LONGEST: Final = 100_000_000  # the library reads no longer head


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]
    shape: tuple[int, ...] = ()


def problem(path: Path) -> Fault | None:
    """`pointer`: it only says where Git LFS has the file. `cut_off`: it ends too early. None: head and size are in
    order. Raises OSError."""
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if first == _LFS:
            return "pointer"
        if len(first) == 8 and length > _LONGEST:
            return "damaged"
        head = file.read(length)
    if len(first) < 8 or len(head) < length:
        return "cut_off"
    try:
        parts = decoded(head, dict[str, msgspec.Raw])
        ends = [decoded(bytes(part), _Tensor).data_offsets[1] for name, part in parts.items() if name != "__metadata__"]
    except Undecodable:
        return "damaged"
    missing = 8 + length + max(ends, default=0) - path.stat().st_size
    return "cut_off" if missing > 0 else "damaged" if missing < 0 else None


def parameters(path: Path) -> int:
    """Values in all tensors of this file. Raises OSError, and ValueError for a file that is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST:
            raise ValueError("not a safetensors file")
        head = file.read(length)
    try:
        parts = decoded(head, dict[str, msgspec.Raw])
        tensors = [decoded(bytes(part), _Tensor) for name, part in parts.items() if name != "__metadata__"]
    except Undecodable as error:
        raise ValueError("its head is cut off or damaged") from error
    return sum(math.prod(tensor.shape) for tensor in tensors)
