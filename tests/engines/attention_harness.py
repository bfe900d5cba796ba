"""Sekisho's attention for llama.cpp compiled for the tests, and what its parts are compared with: float64."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sekisho.engines import native_attention, native_machine

TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
TYPES |= {"q4_0": gguf.GGMLQuantizationType.Q4_0, "bf16": gguf.GGMLQuantizationType.BF16}
PROCESSORS = {
    "native": frozenset(),
    "x86-64-v4": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "x86-64-v3": {"avx2", "fma", "f16c"},
    "x86-64": {"fma"},  # of no use to it: a mark of an Intel or AMD processor
}
FOLDER = Path(__file__).parent
_WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-maybe-uninitialized")  # the last: gcc's own headers


def _compile(folder: Path, harness: str, processor: str, flags: Sequence[str], result: str) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if not PROCESSORS[processor] <= native_machine.here().features:
        pytest.skip(f"this processor is no {processor}")
    sources = folder / "sources"
    sources.mkdir()
    for name, text in native_attention.files().items():
        (sources / name).write_text(text)
    command = (compiler, "-std=c++17", *_WARNINGS, *flags, f"-march={processor}", f"-I{sources}")
    subprocess.run((*command, str(FOLDER / harness), "-o", str(folder / result)), check=True)
    return folder / result


def compiled(folder: Path, harness: str, processor: str, optimization: str) -> Path:
    """A library of `harness` and the kernel."""
    return _compile(folder, harness, processor, (optimization, "-shared", "-fPIC"), "attention.so")


def runs_clean(folder: Path, harness: str, processor: str, sanitizers: str) -> None:
    """The harness as a program of its own finds nothing wrong, nor do the compiler's sanitizers in it."""
    flags = ("-O1", "-g", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # not everywhere possible
    trial = folder / "trial.cpp"
    trial.write_text("int main() { return 0; }\n")
    compiler = shutil.which("g++") or shutil.which("clang++") or pytest.skip("no C++ compiler")
    tried = subprocess.run((compiler, *flags, str(trial), "-o", str(trial.with_suffix(""))), capture_output=True)
    if tried.returncode or subprocess.run((trial.with_suffix(""),), env=environment, capture_output=True).returncode:
        pytest.skip(f"no sanitizers for {sanitizers} here")
    program = _compile(folder, harness, processor, (*flags, "-DSEKISHO_ALONE"), "alone")
    done = subprocess.run((program,), env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def packed(exact: Any, kind: str) -> tuple[Any, Any]:
    """Numbers as ggml keeps them: bytes, in the last dimension, and what these stand for."""
    if kind not in TYPES:
        return exact.view(np.uint8), exact
    stored = gguf.quants.quantize(exact, TYPES[kind])
    return stored.view(np.uint8), gguf.quants.dequantize(stored, TYPES[kind])


class Cached:
    """Rows of one head as they lie in a cache, with another head's bytes between them, and what they stand for."""

    def __init__(self, kind: str, exact: Any) -> None:
        self.kind, self.size = kind, exact.shape[1]
        rows, self.exact = packed(exact, kind)
        self.stride = rows.shape[1] + 6
        self.bytes = np.full((len(exact), self.stride), 0x7F, np.uint8)
        self.bytes[:, : rows.shape[1]] = rows

    def set(self, position: int, number: float) -> None:
        """One number of a position; of 32 bits only."""
        self.exact[position, 3] = number
        self.bytes[position, 12:16] = np.float32(number).reshape(1).view(np.uint8)


def reference(keys: Any, values: Any, queries: Any, mask: Any, scale: float, sinks: Any = None) -> Any:
    """Attention of rows to positions in 64 bits, over any dimensions before these. A sink is a score of a row
    (... x rows x 1) that has no value; a row that sees nothing is 0."""
    scores = queries.astype(np.float64) @ np.swapaxes(keys.astype(np.float64), -1, -2) * scale
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    if sinks is not None:
        scores = np.concatenate((scores, np.broadcast_to(sinks, (*scores.shape[:-1], 1))), axis=-1)
    most = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(most == -np.inf, 0, most))
    total = weights.sum(axis=-1, keepdims=True)
    return weights[..., : keys.shape[-2]] / np.where(total == 0, 1, total) @ values.astype(np.float64)


def causal(rows: int, positions: int) -> Any:
    """The last row sees everything, each one before it one position less."""
    later = np.arange(positions)[None, :] > positions - rows + np.arange(rows)[:, None]
    return np.where(later, -np.inf, 0).astype(np.float16)


def assert_near(actual: Any, expected: Any, tolerance: float = 3e-6) -> None:
    """At every element; quicker than pytest.approx. What is no number has to be none in both."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def pointer(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)
