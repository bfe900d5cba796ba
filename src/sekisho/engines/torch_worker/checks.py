"""What can be found wrong with the settings before torch is loaded, which takes seconds. Raises `WorkerError`."""

from pathlib import Path
from typing import Final

from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_worker import BUILTIN
from sekisho.engines.worker_process import WorkerError, readable

DTYPES: Final = ("float32", "float16", "bfloat16")
_PREFILL_CHUNK: Final = 512  # tokens of a prompt between two tokens of those that run
_OPTIONS: Final = frozenset({"dtype", "prefill_chunk"})


def check(config: ModelConfig) -> None:
    """The model's place and the options."""
    place(config)
    unknown = sorted(set(config.options) - _OPTIONS)
    if unknown:
        raise WorkerError(f"options: {', '.join(unknown)} unknown; there are {', '.join(sorted(_OPTIONS))}")
    named = config.options.get("dtype", "auto")
    if named not in ("auto", *DTYPES):
        raise WorkerError(f"options.dtype: {named!r} is none of auto, {', '.join(DTYPES)}")
    prefill_chunk(config)


def prefill_chunk(config: ModelConfig) -> int:
    """How many tokens of a prompt are read at a time."""
    chunk = config.options.get("prefill_chunk", _PREFILL_CHUNK)
    if not isinstance(chunk, int) or chunk < 1:
        raise WorkerError(f"options.prefill_chunk: must be a number of tokens, is {chunk!r}")
    return chunk


def place(config: ModelConfig) -> tuple[Path, Path | None]:
    """The folder, and the GGUF file in it where the model is one."""
    if config.path is None:
        raise WorkerError(f"model {config.name!r} has no `path`")
    if config.path == BUILTIN:
        from sekisho.engines import builtin  # the package of weights is optional

        path = builtin.path()
    else:
        path = Path(config.path).expanduser()
    if path.is_dir():
        readable(path / "config.json", "model folder has no config.json that can be read:")
        return path, None
    if not path.exists():
        raise WorkerError(f"model folder {path}: no such file or directory")
    readable(path, "model file")
    if path.suffix != ".gguf":
        raise WorkerError(f"{path}: neither a model folder nor a GGUF file")
    return path.parent, path
