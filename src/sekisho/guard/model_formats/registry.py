"""The formats by name. A new format is one file and one line here."""

from sekisho.guard.model_formats.base import ModelFormat
from sekisho.guard.model_formats.generic import Generic
from sekisho.guard.model_formats.gpt_oss_safeguard import GptOssSafeguard
from sekisho.guard.model_formats.llama_guard import LlamaGuard
from sekisho.guard.model_formats.qwen3guard import Qwen3Guard

FORMATS: dict[str, ModelFormat] = {
    "qwen3guard": Qwen3Guard(),
    "gpt_oss_safeguard": GptOssSafeguard(),
    "llama_guard": LlamaGuard(),
    "generic": Generic(),
}


def find(name: str) -> ModelFormat:
    """Raises ValueError with the list of names."""
    if name not in FORMATS:
        raise ValueError(f"unknown guard model format {name!r}; there are {', '.join(sorted(FORMATS))}")
    return FORMATS[name]
