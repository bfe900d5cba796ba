"""sekisho-mini, the chat model that comes with the package: where it lies and what is known about it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

BUILTIN_NAME = "sekisho-mini"


def path() -> Path:
    """The GGUF file; llama.cpp needs a real file, and wheels are always installed unpacked."""
    return Path(str(files(__package__) / f"{BUILTIN_NAME}.gguf"))


def card() -> dict[str, object]:
    """How the model was made and what was measured on it, as written by `make mini`."""
    text = (files(__package__) / f"{BUILTIN_NAME}.json").read_text(encoding="utf-8")
    loaded: dict[str, object] = json.loads(text)
    return loaded
