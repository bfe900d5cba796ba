"""From hidden states to the likelihood of the token that came: what llama.cpp's last matrix does, in numpy, a part of
the vocabulary at a time, so that a large matrix never lies in memory in 32 bits as a whole.

llama.cpp hands out hidden states after the final norm, so that no norm is left to do; measured, and the same in its
sources for the architectures that end in a norm. What some of them do besides is done here or refused.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sekisho.control.perplexity.base import Unmeasured

Numbers = NDArray[np.float32]
INSTALL: Final = "the package gguf is needed to read the output matrix: pip install 'sekisho[mini]'"
_ROWS_BYTES: Final = 64 * 2**20  # of a part of the vocabulary, in 32 bits
_NAMES: Final = ("output.weight", "token_embd.weight")  # the second where both are one
_OTHER_HEAD: Final = ("output.scale", "output.input_scale", "cls.output.weight")
_OF_MANY: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class OutputMatrix:
    """Reads the head of a GGUF file now and its rows when they are needed. Raises `Unmeasured` where the way from the
    hidden state to the logits is one that we do not know."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError:
            raise Unmeasured(INSTALL) from None
        readers = [GGUFReader(each) for each in _files(path)]
        tensors: dict[str, Any] = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        architecture = _value(readers[0], "general.architecture") or ""
        self.cap: float | None = _value(readers[0], f"{architecture}.final_logit_softcapping")
        scaled = _value(readers[0], f"{architecture}.logit_scale") not in (None, 0.0, 1.0)
        if scaled or architecture.startswith("minicpm") or any(name in tensors for name in _OTHER_HEAD):
            raise Unmeasured(f"{path.name}: {architecture} scales its logits in a way of its own")
        tensor = next((tensors[name] for name in _NAMES if name in tensors), None)
        if tensor is None:
            raise Unmeasured(f"{path.name} has no output matrix")
        self._tensor = tensor
        self.width, self.vocabulary = (int(each) for each in tensor.shape[:2])
        bias = tensors.get("output.bias")
        self._bias: Numbers | None = None if bias is None else np.asarray(bias.data, np.float32)

    def nll(self, states: Numbers, targets: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, width) states and the (n,) tokens that came after them: nats. A running maximum keeps sums in range."""
        if states.shape[1] != self.width:
            raise Unmeasured(f"the hidden states have {states.shape[1]} numbers, the output matrix {self.width}")
        largest = np.full(len(states), -np.inf)
        total = np.zeros(len(states))
        chosen = np.zeros(len(states))
        for first, rows in self._parts():
            logits = self._capped(states @ rows.T, first).astype(np.float64)
            new = np.maximum(largest, logits.max(1))
            total = total * np.exp(largest - new) + np.exp(logits - new[:, None]).sum(1)
            largest = new
            here = np.flatnonzero((targets >= first) & (targets < first + len(rows)))
            chosen[here] = logits[here, targets[here] - first]
        return largest + np.log(total) - chosen

    def _capped(self, logits: Numbers, first: int) -> Numbers:
        if self._bias is not None:
            logits = logits + self._bias[first : first + logits.shape[1]]
        if self.cap:
            logits = np.tanh(logits / self.cap) * self.cap
        return logits

    def _parts(self) -> Iterator[tuple[int, Numbers]]:
        from gguf import dequantize

        step = max(1, _ROWS_BYTES // (4 * self.width))
        data = self._tensor.data
        for first in range(0, self.vocabulary, step):
            try:
                rows = dequantize(data[first : first + step], self._tensor.tensor_type)
            except NotImplementedError:
                raise Unmeasured(f"gguf cannot read weights of the type {self._tensor.tensor_type.name}") from None
            yield first, np.asarray(rows, np.float32)


def _files(path: Path) -> list[Path]:
    """The file, or all of a model in several files, the first one first."""
    found = _OF_MANY.search(path.name)
    if found is None:
        return [path]
    count, stem = int(found[2]), path.name[: found.start()]
    return [path.with_name(f"{stem}-{number:05d}-of-{found[2]}.gguf") for number in range(1, count + 1)]


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    return None if isinstance(value, float) and math.isnan(value) else value
