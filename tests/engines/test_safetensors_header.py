"""Heads of safetensors files, whole and otherwise."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.engines.safetensors_header import problem

HEAD = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [8, 16]},
    }
).encode()
WHOLE = struct.pack("<Q", len(HEAD)) + HEAD + bytes(16)


def judged(folder: Path, body: bytes) -> str | None:
    file = folder / "model.safetensors"
    file.write_bytes(body)
    return problem(file)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (WHOLE, None),
        (WHOLE + b"x", "damaged"),
        (struct.pack("<Q", 2) + b"{}", None),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
        (struct.pack("<Q", 6) + b'{"a":1', "damaged"),
        (struct.pack("<Q", 7) + b'{"a":1}', "damaged"),
        (struct.pack("<Q", 2**60) + HEAD, "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "pointer"),
    ],
)
def test_what_is_wrong_is_told_apart(tmp_path: Path, body: bytes, fault: str | None) -> None:
    """A whole file is good; one that goes on, says no tensors or is a pointer of Git LFS is not."""
    assert judged(tmp_path, body) == fault


@given(st.integers(0, len(WHOLE) - 1))
def test_wherever_it_was_cut_off(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    """No beginning of a file passes for the whole."""
    assert judged(tmp_path_factory.mktemp("cut"), WHOLE[:length]) == "cut_off"


def test_a_file_of_the_library_is_good(tmp_path: Path) -> None:
    """What the library itself writes has nothing wrong with it."""
    numpy = pytest.importorskip("safetensors.numpy", reason="needs safetensors: pip install 'sekisho[mini]'")
    import numpy as np

    numpy.save_file({"w": np.ones((3, 5), np.float32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert problem(tmp_path / "model.safetensors") is None
