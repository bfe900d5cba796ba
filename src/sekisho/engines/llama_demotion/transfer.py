"""A slot file at 16 bits to one as the keeper stores, deleted as soon as it is read."""

import mmap
import os
from pathlib import Path

import msgspec

from sekisho.engines import slot_file
from sekisho.engines.slot_file import SlotFileProblem, StoredType


class Storing(msgspec.Struct, frozen=True):
    """How the keeper stores: its types, the sizes of a head, and its slots."""

    key_type: StoredType
    value_type: StoredType
    key_size: int
    value_size: int
    slots: int


def store_anew(source: Path, target: Path, storing: Storing) -> None:
    """Takes a moment: for a thread. Raises SlotFileProblem, and OSError."""
    with source.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise SlotFileProblem("is empty")
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last plane that lies in it
    source.unlink()
    slot = slot_file.read(memoryview(body))
    kinds, sizes = (storing.key_type, storing.value_type), (storing.key_size, storing.value_size)
    stored = slot_file.stored_at(slot, *kinds, *sizes)
    with target.open("xb") as file:
        file.writelines(slot_file.pieces(stored, storing.slots))
