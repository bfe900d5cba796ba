"""Findings about models of the engine torch: folders as the hub has them, and packages by their metadata."""

import json
import re
import shutil
import struct
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import gguf, only, patient

from sekisho.engines.config import ModelConfig
from sekisho.ops.doctor import Finding, torch_models
from sekisho.ops.doctor.examination import CHECKS
from sekisho.ops.home import Home

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": PARTS[0], "b": PARTS[1], "c": PARTS[1]}})


def folder(place: Path) -> Path:
    """A model folder that lacks nothing."""
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "llama"}')
    (place / "tokenizer.json").write_text("{}")
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    return place


def split(place: Path) -> None:
    """The weights in two files, with their index."""
    whole = place / "model.safetensors"
    for name in PARTS:
        shutil.copy(whole, place / name)
    whole.unlink()
    (place / "model.safetensors.index.json").write_text(INDEX)


def judged(place: Path, **more: str) -> Finding:
    return only(torch_models.check_model(ModelConfig("m", engine="torch", path=str(place), **more)))  # type: ignore[arg-type]


def test_whole_folders_are_good(tmp_path: Path) -> None:
    """Weights in one file or in several, as safetensors or as torch's own, or under the name that the config has."""
    place = folder(tmp_path / "my model")
    assert judged(place).case == "torch_model.good"
    split(place)
    assert judged(place).case == "torch_model.good"
    (place / "model.safetensors.index.json").rename(place / "other.index.json")
    assert judged(place).case == "torch_model.no_weights"
    (place / "config.json").write_text('{"transformers_weights": "other.index.json"}')
    assert judged(place).case == "torch_model.good"
    other = folder(tmp_path / "older")
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    assert judged(other).case == "torch_model.good"


def cut(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def pointer(place: Path) -> None:
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def without_part(place: Path) -> None:
    split(place)
    (place / PARTS[1]).unlink()


def bad_index(place: Path) -> None:
    split(place)
    (place / "model.safetensors.index.json").write_text("{}")


def dangling(place: Path) -> None:
    (place / "model.safetensors").unlink()
    (place / "model.safetensors").symlink_to("gone")


@pytest.mark.parametrize(
    ("spoil", "case", "why"),
    [
        (shutil.rmtree, "torch_model.no_folder", "no such folder"),
        (lambda place: (place / "config.json").unlink(), "torch_model.no_config", "config.json"),
        (lambda place: (place / "config.json").write_text("{"), "torch_model.bad_config", "config.json cannot be read"),
        (bad_index, "torch_model.bad_config", "model.safetensors.index.json cannot be read"),
        (lambda place: (place / "model.safetensors").unlink(), "torch_model.no_weights", "no weights"),
        (without_part, "torch_model.parts_missing", PARTS[1]),
        (dangling, "torch_model.parts_missing", "model.safetensors"),
        (cut, "torch_model.bad_weights", "cut off"),
        (pointer, "torch_model.bad_weights", "Git LFS"),
        (lambda place: (place / "tokenizer.json").unlink(), "torch_model.no_tokenizer", "tokenizer"),
    ],
)
def test_what_a_folder_lacks(tmp_path: Path, spoil: Callable[[Path], object], case: str, why: str) -> None:
    """Each is an error with its name, its reason and what to do; paths in commands are quoted."""
    place = folder(tmp_path / "my model")
    spoil(place)
    found = judged(place)
    assert (found.case, found.severity) == (case, "error")
    assert why in found.why
    assert found.what == f"m: {place}"
    if "lfs" in found.fix or "hf download" in found.fix:
        assert f"'{place}'" in found.fix
        assert f"'{place}'" in found.fix_ja


def test_a_file_and_a_template(tmp_path: Path) -> None:
    """A GGUF file is judged as for llama.cpp, anything else that is no folder is told, and so is a template that is
    not there."""
    assert judged(gguf(tmp_path / "m.gguf")).case == "model_file.good"
    assert judged(tmp_path / "none.gguf").case == "model_file.bad"
    (tmp_path / "model.bin").write_bytes(b"x")
    assert judged(tmp_path / "model.bin").case == "torch_model.no_folder"
    found = judged(folder(tmp_path / "m"), chat_template=str(tmp_path / "none.jinja"))
    assert (found.case, "chat_template" in found.what) == ("model_file.bad", True)


def install(site: Path, name: str, version: str, *, files: bool = True) -> None:
    """A package that must not be imported."""
    place = site / f"{name}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
    (site / name).mkdir()
    if files:
        (site / name / "__init__.py").write_text("raise RuntimeError('imported')")


def test_packages(tmp_path: Path) -> None:
    """Missing, too old, listed without its files, and in order; nothing of it is imported."""
    site = tmp_path / "site"
    site.mkdir()
    path = [str(site)]
    found = only(torch_models.check_packages(["a", "b"], path))
    assert (found.case, found.severity, found.fix) == ("torch_engine.missing", "error", "pip install 'sekisho[kv]'")
    assert found.what == "a, b: the engine torch needs torch and transformers"
    assert sys.prefix in found.why
    install(site, "torch", "2.13.0+cpu")
    assert only(torch_models.check_packages(["a"], path)).what == "a: the engine torch needs transformers"
    install(site, "transformers", "4.57.1")
    found = only(torch_models.check_packages(["a"], path))
    assert (found.case, found.severity) == ("torch_engine.too_old", "error")
    assert found.what == "a: the engine torch needs transformers 5.24 or newer"
    shutil.rmtree(site / "transformers-4.57.1.dist-info")
    shutil.rmtree(site / "transformers")
    install(site, "transformers", "5.24.0", files=False)
    found = only(torch_models.check_packages(["a"], path))
    assert (found.case, found.fix) == ("torch_engine.broken", "pip install --force-reinstall transformers")
    (site / "transformers" / "__init__.py").touch()
    found = only(torch_models.check_packages(["a"], path))
    assert (found.case, found.severity) == ("torch_engine.good", "ok")
    assert found.what == "the engine torch: torch 2.13.0+cpu, transformers 5.24.0"


def test_the_least_versions_are_those_of_the_extra() -> None:
    """What the check asks for is what `pip install 'sekisho[kv]'` brings."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = dict(re.fullmatch(r"([a-z]+)>=([0-9.]+)", line).groups() for line in project["optional-dependencies"]["kv"])  # type: ignore[union-attr]
    assert {name: asked[name] for name in torch_models.LEAST} == torch_models.LEAST


def test_here_and_without_such_a_model(tmp_path: Path) -> None:
    """The packages are told once for all models of the engine, without loading PyTorch; where no model has that engine,
    nothing is said."""
    assert CHECKS["torch models"] is torch_models.check_torch_models
    home, place = Home(tmp_path), folder(tmp_path / "m")
    models = [ModelConfig(name, engine="torch", path=str(place)) for name in ("one", "two")]
    loaded = set(sys.modules)
    found = torch_models.check_torch_models(patient(home, *models))
    assert [each.id for each in found] == ["torch_engine", "torch_model", "torch_model"]
    assert not {"torch", "transformers"} & (set(sys.modules) - loaded)
    assert torch_models.check_torch_models(patient(home, ModelConfig("m", path="builtin"))) == []
