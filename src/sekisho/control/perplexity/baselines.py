"""What was measured at 16 bits: kept for each model file, text and route, for a baseline costs as much as a
measurement. One file, written whole; another model file, another text or another version of the engine asks anew."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from sekisho.control.perplexity.base import Measurement, Unmeasured
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import write_atomically

_SAMPLES, _SAMPLE_BYTES = 64, 65_536
_MOST_KEPT: Final = 512


def fingerprint(config: ModelConfig) -> str:
    """Of the weights: size, head, end and 64 samples between them of each file; of a model elsewhere its address and
    name. Reading all of 40 GB would take minutes. Raises `Unmeasured` where a file cannot be read."""
    digest = hashlib.sha256()
    if config.path is None:
        digest.update(f"{config.url} {config.upstream_model or config.name}".encode())
        return digest.hexdigest()[:24]
    try:
        for path in _weights(config.path):
            _sample(path, digest.update)
    except OSError as error:
        raise Unmeasured(f"the model {config.path}: {(error.strerror or str(error)).lower()}") from None
    return digest.hexdigest()[:24]


def _weights(named: str) -> list[Path]:
    if named == "builtin":
        from sekisho.engines import builtin  # the package of weights is optional

        return [builtin.path()]
    path = Path(named).expanduser()
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if each.suffix in (".safetensors", ".bin", ".json", ".gguf"))


def _sample(path: Path, feed: Callable[[bytes], None]) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        feed(f"{path.name} {size} ".encode())
        last = max(0, size - _SAMPLE_BYTES)
        for step in range(_SAMPLES + 1):
            file.seek(last * step // _SAMPLES)
            feed(file.read(_SAMPLE_BYTES))


class Baselines:
    """Belongs to one thread. A file that cannot be read counts as empty: it is measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = {_key(each): each for each in self._read()}

    def _read(self) -> Iterable[Measurement]:
        try:
            return decoded(self._path.read_bytes(), list[Measurement])
        except (FileNotFoundError, Undecodable):
            return ()

    def get(self, like: Measurement) -> Measurement | None:
        """The baseline to compare this with: same weights, text, route and version of the engine."""
        found = self._kept.get(_key(like))
        return found if found is not None and found.software == like.software else None

    def put(self, baseline: Measurement) -> None:
        """Durable when it returns. Raises OSError."""
        self._kept.pop(_key(baseline), None)
        self._kept[_key(baseline)] = baseline
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        write_atomically(self._path, msgspec.json.encode(list(self._kept.values())))


def _key(of: Measurement) -> tuple[str, str, str]:
    return of.model_hash, of.text_id, of.route
