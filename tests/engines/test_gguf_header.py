"""The head of a GGUF file."""

import struct
from pathlib import Path

import gguf
import pytest

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


def test_numbers_and_lists_of_numbers_are_read_by_name(tmp_path: Path) -> None:
    """Whatever stands between them; texts, and names that were not asked for, are left out."""
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "qwen2")
    writer.add_string("qwen2.first", "text")
    writer.add_array("qwen2.tokens", ["a", "b"])
    writer.add_uint32("qwen2.block_count", 3)
    writer.add_array("qwen2.attention.head_count_kv", [4, 2, 4])
    writer.add_float32("qwen2.rope.freq_base", 0.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    asked = {"block_count", "attention.head_count_kv", "first", "tokens", "absent"}
    found = gguf_header.values(tmp_path / "m.gguf", asked)
    assert found == {"block_count": 3, "attention.head_count_kv": [4, 2, 4]}


@pytest.mark.parametrize("size", [0, 3, 10, 40, 90])
def test_values_of_a_damaged_head_are_an_error(tmp_path: Path, size: int) -> None:
    """However little came, it ends in one kind of error."""
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "qwen2")
    writer.add_uint32("qwen2.block_count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"GGUF|cut off"):
        gguf_header.values(tmp_path / "m.gguf", {"block_count"})
