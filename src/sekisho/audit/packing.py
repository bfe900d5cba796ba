"""Packing closed segments with gzip: the lines inside stay the same bytes, so that hashes, seals and the verifier do
not know of it. Why whole files and not records: docs/decisions/0009-the-book.md."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from sekisho.audit.files import Files, write_all
from sekisho.audit.segment import PACKED_SUFFIX, SUFFIX, segments

_LEVEL = 6
_GZIP_WINDOW = 31  # zlib: largest window, with gzip's header (no name, no time) and check sum
_CHUNK_BYTES = 1 << 20


def pack_closed(files: Files, folder: Path) -> int:
    """Packs every segment but the last; how many. The plain file goes only when the packed one is durable and reads
    back the same. Raises OSError; may be interrupted anywhere and run again."""
    found = segments(folder)
    packed = 0
    for index, path in found.items():
        if index != max(found) and not path.name.endswith(PACKED_SUFFIX):
            _pack(files, path)
            packed += 1
    return packed


def _pack(files: Files, path: Path) -> None:
    target = path.with_name(path.name.removesuffix(SUFFIX) + PACKED_SUFFIX)
    draft = path.with_name(f".{target.name}.packing")
    files.remove(draft)
    descriptor = files.create(draft)
    try:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        with path.open("rb") as plain:
            while block := plain.read(_CHUNK_BYTES):
                write_all(files, descriptor, packer.compress(block))
        write_all(files, descriptor, packer.flush())
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    with path.open("rb") as plain, gzip.open(draft, "rb") as read_back:
        if _digest(plain) != _digest(cast("BinaryIO", read_back)):
            raise OSError(f"{draft.name} does not read back as it was written")
    files.replace(draft, target)
    files.sync_folder(path.parent)
    files.remove(path)


def _digest(file: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := file.read(_CHUNK_BYTES):
        digest.update(block)
    return digest.digest()
