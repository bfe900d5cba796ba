"""Sekisho's attention for llama.cpp: the kernel against float64, and how it gets into llama.cpp's sources."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from sekisho.engines import native_attention, native_machine

KINDS = {"f32": 0, "f16": 1, "q8_0": 2, "q4_0": 3, "other": 4}
TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
TYPES |= {"q4_0": gguf.GGMLQuantizationType.Q4_0}
PROCESSORS = {
    "native": frozenset(),
    "x86-64-v4": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "x86-64-v3": {"avx2", "fma", "f16c"},
    "x86-64": {"fma"},  # of no use to it: a mark of an Intel or AMD processor
}
Attend = Callable[..., tuple[Any, Any, Any]]


def compiled(folder: Path, processor: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    if not PROCESSORS[processor] <= native_machine.here().features:
        pytest.skip(f"this processor is no {processor}")
    sources = folder / "sources"
    sources.mkdir()
    for name, text in native_attention.files().items():
        (sources / name).write_text(text)
    library = folder / "attention.so"
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-Wno-maybe-uninitialized")  # the last: gcc's own headers
    flags = ("-std=c++17", "-O2", *warnings, "-shared", "-fPIC", f"-march={processor}")
    harness = Path(__file__).parent / "attention_harness.cpp"
    subprocess.run((compiler, *flags, f"-I{sources}", str(harness), "-o", str(library)), check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(
    scope="module",
    params=["native", *(pytest.param(each, marks=pytest.mark.slow) for each in PROCESSORS if each != "native")],
)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attend:
    """Attention of one task: weighted sums of values, largest scores, and what to divide by."""
    library = compiled(tmp_path_factory.mktemp("attention"), request.param)

    def attend(
        keys: "Cached", values: "Cached", queries: Any, mask: Any, first: int = 0, last: int | None = None
    ) -> tuple[Any, Any, Any]:
        rows, size = queries.shape
        out = np.full((rows, values.size), np.nan, np.float32)
        largest, total = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        scale = ctypes.c_float(size**-0.5)
        library.attend(
            *(pointer(keys.bytes.ctypes.data), long(keys.stride), number(keys.size), number(KINDS[keys.kind])),
            *(pointer(values.bytes.ctypes.data), long(values.stride), number(values.size), number(KINDS[values.kind])),
            *(number(rows), scale, pointer(queries.ctypes.data)),
            *(pointer(mask.ctypes.data if mask is not None else None), long(len(keys.exact))),
            *(long(first), long(len(keys.exact) if last is None else last)),
            *(pointer(each.ctypes.data) for each in (out, largest, total)),
        )
        return out, largest, total

    return attend


class Cached:
    """Rows of one head as they lie in a cache, with another head's bytes between them, and what they stand for."""

    def __init__(self, kind: str, exact: Any) -> None:
        self.kind, self.size = kind, exact.shape[1]
        if kind in TYPES:
            packed = gguf.quants.quantize(exact, TYPES[kind]).view(np.uint8).reshape(len(exact), -1)
            self.exact = gguf.quants.dequantize(gguf.quants.quantize(exact, TYPES[kind]), TYPES[kind])
        else:
            packed, self.exact = exact.view(np.uint8), exact
        self.stride = packed.shape[1] + 6
        self.bytes = np.full((len(exact), self.stride), 0x7F, np.uint8)
        self.bytes[:, : packed.shape[1]] = packed


def caches(kinds: tuple[str, str], sizes: tuple[int, int], positions: int, seed: int = 7) -> tuple[Cached, Cached]:
    random = np.random.default_rng(seed)
    keys, values = (
        Cached(kind, random.normal(size=(positions, size)).astype(np.float32))
        for kind, size in zip(kinds, sizes, strict=True)
    )
    return keys, values


def reference(keys: Cached, values: Cached, queries: Any, mask: Any) -> Any:
    scores = queries.astype(np.float64) @ keys.exact.T.astype(np.float64) * queries.shape[1] ** -0.5
    if mask is not None:
        scores = scores + mask.astype(np.float64)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ values.exact.astype(np.float64)


def questions(rows: int, size: int) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, size)).astype(np.float32)


def causal(rows: int, positions: int) -> Any:
    """The last row sees everything, each one before it one position less."""
    later = np.arange(positions)[None, :] > positions - rows + np.arange(rows)[:, None]
    return np.where(later, -np.inf, 0).astype(np.float16)


@pytest.mark.parametrize("rows", [1, 4, 8, 9, 17, 64])
@pytest.mark.parametrize("kinds", [("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "q4_0"), ("f32", "other")])
@pytest.mark.parametrize("positions", [1, 63, 64, 65, 300])
def test_it_is_attention(kernel: Attend, rows: int, kinds: tuple[str, str], positions: int) -> None:
    """At every kind of cache, below, at and above a block of positions and the rows of a task."""
    keys, values = caches(kinds, (64, 64), positions)
    queries = questions(rows, 64)
    mask = causal(rows, positions) if positions >= rows else None
    out, _, total = kernel(keys, values, queries, mask)
    assert out / total[:, None] == pytest.approx(reference(keys, values, queries, mask), abs=2e-6)


@pytest.mark.parametrize("sizes", [(32, 32), (128, 128), (96, 80), (576, 512)])
@pytest.mark.parametrize("rows", [3, 20])
def test_heads_may_have_any_size(kernel: Attend, sizes: tuple[int, int], rows: int) -> None:
    """Keys and values each their own."""
    keys, values = caches(("f16", "f16"), sizes, 130)
    queries = questions(rows, sizes[0])
    out, _, total = kernel(keys, values, queries, None)
    assert out / total[:, None] == pytest.approx(reference(keys, values, queries, None), abs=2e-6)


@pytest.mark.parametrize("rows", [4, 32])
def test_a_mask_may_say_anything(kernel: Attend, rows: int) -> None:
    """Holes, whole blocks unseen, another one for each row, and finite amounts."""
    keys, values = caches(("q8_0", "q8_0"), (64, 64), 400)
    random = np.random.default_rng(1)
    mask = np.where(random.random((rows, 400)) < 0.5, -np.inf, random.normal(size=(rows, 400))).astype(np.float16)
    mask[:, 64:192] = -np.inf
    mask[0, :256] = -np.inf
    mask[1:, 300:] = 0
    queries = questions(rows, 64)
    out, _, total = kernel(keys, values, queries, mask)
    assert out / total[:, None] == pytest.approx(reference(keys, values, queries, mask), abs=2e-6)


@pytest.mark.parametrize("rows", [2, 16])
def test_a_row_that_sees_nothing_is_told(kernel: Attend, rows: int) -> None:
    """By a largest score that no score can have; the others are as they would be."""
    keys, values = caches(("f16", "f16"), (64, 64), 100)
    mask = np.zeros((rows, 100), np.float16)
    mask[1] = -np.inf
    queries = questions(rows, 64)
    out, largest, total = kernel(keys, values, queries, mask)
    assert largest[1] <= -1e29
    seen = [row for row in range(rows) if row != 1]
    assert out[seen] / total[seen, None] == pytest.approx(reference(keys, values, queries[seen], None), abs=2e-6)


@pytest.mark.parametrize("rows", [4, 40])
def test_scores_far_apart_lose_nothing(kernel: Attend, rows: int) -> None:
    """A later block with far larger scores takes over; what is far below counts nothing, and nothing overflows."""
    keys, values = caches(("f32", "f32"), (64, 64), 256)
    queries = questions(rows, 64) * 30
    keys.exact[:] = keys.exact * np.linspace(0.01, 8, 256)[:, None].astype(np.float32)
    keys.bytes[:, :256] = keys.exact.view(np.uint8)
    out, _, total = kernel(keys, values, queries, None)
    assert out / total[:, None] == pytest.approx(reference(keys, values, queries, None), abs=1e-4)


def test_parts_of_a_context_make_the_whole(kernel: Attend) -> None:
    """As threads do it that share a context."""
    keys, values = caches(("q4_0", "q4_0"), (64, 64), 256)
    queries = questions(4, 64)
    parts = [kernel(keys, values, queries, None, first, first + 128) for first in (0, 128)]
    most = np.maximum(parts[0][1], parts[1][1])
    out = sum(out * np.exp(largest - most)[:, None] for out, largest, _ in parts)
    total = sum(total * np.exp(largest - most) for _, largest, total in parts)
    assert out / total[:, None] == pytest.approx(reference(keys, values, queries, None), abs=2e-6)


# among llama.cpp's sources

OPERATORS = """#include "ops.h"

#include <cmath>

// ggml_compute_forward_flash_attn_ext

static void other(int n) {
}

void ggml_compute_forward_flash_attn_ext(
        const ggml_compute_params * params,
        ggml_tensor * dst) {
    switch (dst->op_params[3]) {
    }
}
"""


def llama(folder: Path, operators: str = OPERATORS) -> Path:
    sources = folder / "ggml" / "src" / "ggml-cpu"
    sources.mkdir(parents=True)
    (sources / "ops.cpp").write_text(operators)
    return sources


def test_llama_cpp_asks_there_first(tmp_path: Path) -> None:
    """The call stands before everything else of the function, the sources beside it; once more changes nothing."""
    sources = llama(tmp_path)
    asked: list[tuple[str, ...]] = []

    def check(command: Any) -> bool:
        asked.append(tuple(command))
        return True

    assert native_attention.add(tmp_path, "c++", (), check)
    changed = (sources / "ops.cpp").read_text()
    includes, _, body = changed.partition("// ggml_compute")
    assert includes.splitlines()[-2:] == ['#include "sekisho_attention_op.hpp"', ""]
    function = body.partition("ggml_tensor * dst) {\n")[2]
    assert function.startswith("#ifdef SEKISHO_ATTENTION\n    if (sekisho::flash_attention(params, dst)) {")
    assert {each.name for each in sources.glob("*.hpp")} == set(native_attention.files())
    written = (sources / "ops.cpp").stat().st_mtime_ns
    assert native_attention.add(tmp_path, "c++", (), check)
    assert (sources / "ops.cpp").read_text() == changed
    assert (sources / "ops.cpp").stat().st_mtime_ns == written
    assert asked[0][0] == "c++"
    assert native_attention.without_call(changed) == OPERATORS


def test_a_compiler_that_refuses_it_gets_llama_cpps_own(tmp_path: Path) -> None:
    """As where a later llama.cpp names things otherwise: the build goes on without."""
    sources = llama(tmp_path)
    assert not native_attention.add(tmp_path, "c++", (), lambda command: False)
    assert [each.name for each in sources.iterdir()] == ["ops.cpp"]
    assert (sources / "ops.cpp").read_text() == OPERATORS
    assert not native_attention.add(tmp_path, "no-such-compiler")


def test_a_compiler_may_name_the_processor_its_own_way(tmp_path: Path) -> None:
    """It is asked in both, with the flags of the build."""
    llama(tmp_path)
    asked: list[tuple[str, ...]] = []

    def check(command: Any) -> bool:
        asked.append(tuple(command))
        return "-mcpu=native" in command

    assert native_attention.add(tmp_path, "c++", ("-include", "barrier.h"), check)
    assert [each[1] for each in asked] == ["-march=native", "-mcpu=native"]
    assert all("barrier.h" in each for each in asked)


def test_bytes_that_are_no_text_stay_as_they_are(tmp_path: Path) -> None:
    """Sources of another kind than known, not an error."""
    sources = llama(tmp_path)
    (sources / "ops.cpp").write_bytes(OPERATORS.encode() + b"// \xff\n")
    assert not native_attention.add(tmp_path, "c++", (), lambda command: True)
    assert (sources / "ops.cpp").read_bytes().endswith(b"\xff\n")


@pytest.mark.parametrize(
    "operators",
    [OPERATORS.replace("void ggml_compute_forward_flash_attn_ext(", "void renamed("), OPERATORS * 2, "int main();\n"],
)
def test_sources_of_another_shape_stay_as_they_are(tmp_path: Path, operators: str) -> None:
    """No guess where the function is not found, or more than once."""
    sources = llama(tmp_path, operators)
    assert not native_attention.add(tmp_path, "c++", (), lambda command: True)
    assert (sources / "ops.cpp").read_text() == operators


def test_other_sources_are_another_build() -> None:
    """The fingerprint is of what is compiled."""
    assert native_attention.ENTRY in native_attention.files()
    assert len(native_attention.fingerprint()) == 64
