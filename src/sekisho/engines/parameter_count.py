"""How many parameters a model has, from the heads of its files: the sizes of all tensors together."""

from pathlib import Path
from typing import Final

from sekisho.engines import gguf_header, safetensors_header
from sekisho.engines.config import ModelConfig

_NO_WEIGHTS: Final = "no GGUF and no safetensors file is there"


def parameters(config: ModelConfig) -> int | str:
    """Or why they cannot be told. All experts of a mixture count. Reads files."""
    if not config.has_worker or config.path is None:
        return f"{config.name} runs elsewhere: its size is not known here"
    try:
        files = _files(config.path)
        return sum(_of_file(file) for file in files) or f"{config.path}: {_NO_WEIGHTS}"
    except OSError as error:
        return f"{config.path}: {(error.strerror or str(error)).lower()}"
    except ValueError as error:
        return f"{config.path}: {error}"


def _files(named: str) -> list[Path]:
    if named == "builtin":
        from sekisho.engines import builtin  # the package of weights is optional

        return [builtin.path()]
    path = Path(named).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    return gguf_header.parts(path)


def _of_file(path: Path) -> int:
    """Raises OSError, ValueError."""
    if path.suffix == ".safetensors":
        return safetensors_header.parameters(path)
    return gguf_header.parameters(path)
