"""The head of a GGUF file."""

import struct
from pathlib import Path

from sekisho.engines import gguf_header


def test_only_the_first_part_of_a_split_model_may_have_no_weights(tmp_path: Path) -> None:
    """The same bytes are a fault in a file that claims to be a whole model."""
    key = b"split.count"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key + struct.pack("<IH", 2, 3)
    whole, part = tmp_path / "model.gguf", tmp_path / "model-00001-of-00003.gguf"
    whole.write_bytes(head)
    part.write_bytes(head)
    assert gguf_header.problem(whole) == "a GGUF file without weights"
    assert gguf_header.problem(part) is None
