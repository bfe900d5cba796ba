import json
import shutil
import struct
from pathlib import Path

import pytest

from sekisho.engines import builtin
from sekisho.engines.config import ModelConfig
from sekisho.engines.parameter_count import parameters


def tensors(path: Path, **shapes: list[int]) -> None:
    """A safetensors head, and no weights."""
    head = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    body = json.dumps(head | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body)


def test_the_built_in_model_has_nearly_three_million() -> None:
    """Values in all tensors, whatever they are quantised to."""
    count = parameters(ModelConfig("m", path="builtin"))
    assert isinstance(count, int)
    assert 2.8e6 < count < 2.9e6


def test_a_model_in_several_files_is_counted_whole(tmp_path: Path) -> None:
    """And files of other models beside it are not."""
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "m.gguf"):
        shutil.copy(builtin.path(), tmp_path / name)
    one, two = (parameters(ModelConfig("m", path=str(tmp_path / n))) for n in ("m.gguf", "m-00001-of-00002.gguf"))
    assert isinstance(one, int)
    assert two == 2 * one


def test_a_folder_is_counted_by_its_heads(tmp_path: Path) -> None:
    tensors(tmp_path / "a.safetensors", embedding=[1000, 64], norm=[64])
    tensors(tmp_path / "b.safetensors", bias=[])
    assert parameters(ModelConfig("m", engine="torch", path=str(tmp_path))) == 64_000 + 64 + 1


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "no GGUF and no safetensors"), (b"x" * 64, "not a safetensors file"), (b"\x09" + bytes(15), "damaged")],
)
def test_what_cannot_be_counted_says_why(tmp_path: Path, body: bytes, said: str) -> None:
    """A folder without weights, and files that are none."""
    if body:
        (tmp_path / "a.safetensors").write_bytes(body)
    assert said in str(parameters(ModelConfig("m", engine="torch", path=str(tmp_path))))


def test_a_model_elsewhere_is_not_known(tmp_path: Path) -> None:
    assert "runs elsewhere" in str(parameters(ModelConfig("m", engine="openai_http", url="http://x/v1")))
    assert "no such file" in str(parameters(ModelConfig("m", path=str(tmp_path / "gone.gguf"))))
    (tmp_path / "cut.gguf").write_bytes(builtin.path().read_bytes()[:2000])
    assert "cut off" in str(parameters(ModelConfig("m", path=str(tmp_path / "cut.gguf"))))
