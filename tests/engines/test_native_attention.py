"""Sekisho's attention for llama.cpp: the kernel against float64, and how it gets into llama.cpp's sources."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from attention_harness import PROCESSORS, Cached, assert_near, causal, compiled, pointer, reference, runs_clean

from sekisho.engines import native_attention

HARNESS = "attention_harness.cpp"
KINDS = {"f32": 0, "f16": 1, "q8_0": 2, "q4_0": 3, "other": 4}
EVERY_PROCESSOR = ["native", *(pytest.param(each, marks=pytest.mark.slow) for each in PROCESSORS if each != "native")]
Attend = Callable[..., tuple[Any, Any, Any]]


@pytest.fixture(scope="module", params=EVERY_PROCESSOR)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Attend:
    """Attention of one task: weighted sums of values, largest scores, and what to divide by. `sharing` rows after one
    another have a row of the mask in common."""
    library = ctypes.CDLL(str(compiled(tmp_path_factory.mktemp("attention"), HARNESS, request.param, "-O2")))

    def attend(
        keys: Cached, values: Cached, queries: Any, mask: Any, first: int = 0, last: int | None = None, sharing: int = 1
    ) -> tuple[Any, Any, Any]:
        rows, size = queries.shape
        out = np.full((rows, values.size), np.nan, np.float32)
        largest, total = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        number, long = ctypes.c_int, ctypes.c_int64
        library.attend(
            *(pointer(keys.bytes), long(keys.stride), number(keys.size), number(KINDS[keys.kind])),
            *(pointer(values.bytes), long(values.stride), number(values.size), number(KINDS[values.kind])),
            *(number(rows), ctypes.c_float(size**-0.5), pointer(queries), pointer(mask), number(sharing)),
            *(long(len(keys.exact)), long(first), long(len(keys.exact) if last is None else last)),
            *(pointer(each) for each in (out, largest, total)),
        )
        return out, largest, total

    return attend


def caches(kinds: tuple[str, str], sizes: tuple[int, int], positions: int, seed: int = 7) -> tuple[Cached, Cached]:
    random = np.random.default_rng(seed)
    keys, values = (
        Cached(kind, random.normal(size=(positions, size)).astype(np.float32))
        for kind, size in zip(kinds, sizes, strict=True)
    )
    return keys, values


def exact(keys: Cached, values: Cached, queries: Any, mask: Any) -> Any:
    return reference(keys.exact, values.exact, queries, mask, queries.shape[1] ** -0.5)


def questions(rows: int, size: int) -> Any:
    return np.random.default_rng(rows).normal(size=(rows, size)).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 4, 8, 9, 17, 64])
@pytest.mark.parametrize("kinds", [("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "q4_0"), ("f32", "other")])
@pytest.mark.parametrize("positions", [1, 63, 64, 65, 300])
def test_it_is_attention(kernel: Attend, rows: int, kinds: tuple[str, str], positions: int) -> None:
    """At every kind of cache, below, at and above a block of positions and the rows of a task."""
    keys, values = caches(kinds, (64, 64), positions)
    queries = questions(rows, 64)
    mask = causal(rows, positions) if positions >= rows else None
    out, _, total = kernel(keys, values, queries, mask)
    assert_near(out / total[:, None], exact(keys, values, queries, mask), 2e-6)


@pytest.mark.parametrize("sizes", [(32, 32), (128, 128), (96, 80), (576, 512)])
@pytest.mark.parametrize("rows", [3, 20])
def test_heads_may_have_any_size(kernel: Attend, sizes: tuple[int, int], rows: int) -> None:
    """Keys and values each their own."""
    keys, values = caches(("f16", "f16"), sizes, 130)
    queries = questions(rows, sizes[0])
    out, _, total = kernel(keys, values, queries, None)
    assert_near(out / total[:, None], exact(keys, values, queries, None), 2e-6)


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
    assert_near(out / total[:, None], exact(keys, values, queries, mask), 2e-6)


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
    assert_near(out[seen] / total[seen, None], exact(keys, values, queries[seen], None), 2e-6)


@pytest.mark.parametrize("rows", [4, 40])
def test_scores_far_apart_lose_nothing(kernel: Attend, rows: int) -> None:
    """A later block with far larger scores takes over; what is far below counts nothing, and nothing overflows."""
    keys, values = caches(("f32", "f32"), (64, 64), 256)
    queries = questions(rows, 64) * 30
    keys.exact[:] = keys.exact * np.linspace(0.01, 8, 256)[:, None].astype(np.float32)
    keys.bytes[:, :256] = keys.exact.view(np.uint8)
    out, _, total = kernel(keys, values, queries, None)
    assert_near(out / total[:, None], exact(keys, values, queries, None), 1e-4)


def test_parts_of_a_context_make_the_whole(kernel: Attend) -> None:
    """As threads do it that share a context."""
    keys, values = caches(("q4_0", "q4_0"), (64, 64), 256)
    queries = questions(4, 64)
    parts = [kernel(keys, values, queries, None, first, first + 128) for first in (0, 128)]
    most = np.maximum(parts[0][1], parts[1][1])
    out = sum(out * np.exp(largest - most)[:, None] for out, largest, _ in parts)
    total = sum(total * np.exp(largest - most) for _, largest, total in parts)
    assert_near(out / total[:, None], exact(keys, values, queries, None), 2e-6)


@pytest.mark.parametrize(("rows", "sharing"), [(8, 4), (7, 7), (21, 7), (64, 5), (30, 1)])
def test_rows_may_share_a_mask(kernel: Attend, rows: int, sharing: int) -> None:
    """As the heads of a position do: each block of it is looked at once, and holds for all of them."""
    keys, values = caches(("f16", "f16"), (64, 64), 200)
    random = np.random.default_rng(rows)
    mask = np.where(random.random(((rows - 1) // sharing + 1, 200)) < 0.5, -np.inf, 0).astype(np.float16)
    mask[0, :128], mask[-1, 64:] = 0, 0
    mask[0, 128:] = -np.inf
    queries = questions(rows, 64)
    out, _, total = kernel(keys, values, queries, mask, sharing=sharing)
    assert_near(out / total[:, None], exact(keys, values, queries, mask.repeat(sharing, axis=0)[:rows]))


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("nothing", [-0.0, 0.0, 2**-24])
def test_a_mask_adds_what_it_says(kernel: Attend, rows: int, nothing: float) -> None:
    """A negative zero too, and the least number there is: with it, the result is that of no mask."""
    keys, values = caches(("f16", "f16"), (64, 64), 70)
    queries = questions(rows, 64)
    out, _, total = kernel(keys, values, queries, np.full((rows, 70), nothing, np.float16))
    assert_near(out / total[:, None], exact(keys, values, queries, None))


# what is no number


@pytest.mark.parametrize("rows", [1, 4, 16, 64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [5, 70, 99])
def test_what_no_row_sees_is_not_felt(kernel: Attend, rows: int, wrong: float, position: int) -> None:
    """No number in a key, an infinite one in a value: as if others stood there. Nor in a block of which one row
    sees nothing."""
    queries = questions(rows, 64)
    mask = np.zeros((rows, 100), np.float16)
    mask[:, position] = -np.inf
    mask[-1, :64] = -np.inf
    outs = []
    for there in (0.5, wrong):
        keys, values = caches(("f32", "f32"), (64, 64), 100)
        for each in (keys, values):
            each.set(position, there)
        outs.append(kernel(keys, values, queries, mask))
    for whole, changed in zip(*outs, strict=True):
        assert (whole == changed).all()
    assert np.isfinite(outs[0][0]).all()


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_what_one_row_sees_is_felt_by_it_alone(kernel: Attend, rows: int, kind: str) -> None:
    """An infinite value, as one of 16 bits becomes that is too large: the rows before it are as without, in a context
    that begins with it or goes on."""
    queries = questions(rows, 64)
    for positions in (rows, 90):
        mask = causal(rows, positions)
        random = np.random.default_rng(3)
        keys, values = (Cached(kind, random.normal(size=(positions, 64)).astype(np.float32)) for _ in range(2))
        expected = exact(keys, values, queries, mask)
        broken = values.exact.copy()
        broken[-1] = np.inf
        out, _, total = kernel(keys, Cached(kind, broken), queries, mask)
        assert_near(out[:-1] / total[:-1, None], expected[:-1])
        assert np.isinf(out[-1]).all()


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [0, 70, 99])
def test_a_key_that_is_no_number_shows(kernel: Attend, rows: int, masked: bool, position: int) -> None:
    """Where a row sees it, the row is none either: what is broken is not hidden."""
    keys, values = caches(("f32", "f32"), (64, 64), 100)
    keys.set(position, np.nan)
    mask = np.zeros((rows, 100), np.float16)
    mask[:, [3, 80]] = -np.inf
    out, _, total = kernel(keys, values, questions(rows, 64), mask if masked else None)
    assert np.isnan(out / total[:, None]).all()


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_kernel_keeps_to_its_memory(tmp_path: Path, processor: str) -> None:
    """At every number of rows, and of positions below, at and above some blocks."""
    runs_clean(tmp_path, HARNESS, processor, "address,undefined")


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
