"""ggml's flash attention by Sekisho's kernel: the adapter, with a part of our own in ggml's place, against float64."""

import ctypes
import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from attention_harness import assert_near, compiled, runs_clean
from attention_op_harness import Operands, Stored, done, operands

from sekisho.engines import native_attention

HARNESS = "attention_op_harness.cpp"
AT_START, IN_CONVERSION = 1, 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("attention"), HARNESS, "native", "-O1")


@pytest.fixture(scope="module")
def library(built: Path) -> ctypes.CDLL:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(native_attention.OFF_ENV, raising=False)
        loaded = ctypes.CDLL(str(built))
        assert done(loaded, operands()).taken == 1  # from here on, the environment is not asked
    return loaded


def check(library: ctypes.CDLL, given: Operands, parts: int = 1, **more: Any) -> Any:
    """It is attention, with a context in so many parts, whoever does it; without parts, to the last bit the same."""
    expected = given.expected()
    results = []
    for threads in (1, 2, 5):
        result = done(library, given, threads=threads, **more)
        assert (result.taken, result.parts) == (threads, parts)
        assert result.arrivals == threads * (1 if parts == 1 else 2)
        assert_near(result.out, expected)
        results.append(result.out)
    if parts == 1:
        assert (results[0] == results[1]).all()
        assert (results[0] == results[2]).all()
    return results[0]


def holes(*shape: int) -> Any:
    """Every row sees about a half, and finite amounts."""
    random = np.random.default_rng(shape)
    return np.where(random.random(shape) < 0.5, -np.inf, random.normal(size=shape)).astype(np.float16)


# heads, streams, rows


@pytest.mark.parametrize("group", [1, 2, 4, 7])
@pytest.mark.parametrize("positions", [1, 5])
def test_heads_share_keys(library: ctypes.CDLL, group: int, positions: int) -> None:
    """Each head of a group reads the keys and values of its group, and its result lies at its own place."""
    check(library, operands(heads=3, group=group, positions=positions))


@pytest.mark.parametrize(("group", "positions"), [(1, 64), (1, 65), (4, 40), (7, 21)])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_prompt_of_many_rows(library: ctypes.CDLL, group: int, positions: int, streams: int) -> None:
    """Also where a task ends within the heads of a position."""
    check(library, operands(group=group, positions=positions, context=130, streams=streams))


@pytest.mark.parametrize("positions", [1, 20])
def test_each_context_has_its_mask(library: ctypes.CDLL, positions: int) -> None:
    """Contexts of other lengths side by side, as several requests at once."""
    mask = holes(3, 1, positions, 150)
    mask[0, ..., 20:] = mask[1, ..., 90:] = -np.inf
    check(library, operands(positions=positions, context=150, streams=3, mask=mask))


@pytest.mark.parametrize(("streams", "key_streams"), [(2, 1), (4, 2)])
def test_contexts_may_share_keys(library: ctypes.CDLL, streams: int, key_streams: int) -> None:
    """Neighbours do."""
    mask = holes(streams, 1, 3, 100)
    check(library, operands(positions=3, streams=streams, key_streams=key_streams, mask=mask))


@pytest.mark.parametrize(("streams", "heads"), [(1, 1), (1, 2), (1, 6), (2, 1), (2, 3), (4, 6)])
@pytest.mark.parametrize("rows", [5, 8])
def test_a_mask_is_for_as_many_heads_and_contexts_as_it_has(
    library: ctypes.CDLL, streams: int, heads: int, rows: int
) -> None:
    """The others take it in turn; rows behind the last position are not read."""
    mask = holes(streams, heads, rows, 100)
    mask[:, :, 5:] = np.nan
    check(library, operands(heads=2, group=3, positions=5, streams=4, mask=mask))


def test_without_a_mask_everything_is_seen(library: ctypes.CDLL) -> None:
    """By every row."""
    check(library, operands(positions=9, mask=None))


@pytest.mark.parametrize(
    ("kinds", "sizes"),
    [
        (("f16", "f16"), (96, 80)),
        (("f16", "f16"), (48, 128)),
        (("q8_0", "q4_0"), (64, 32)),
        (("q4_0", "q8_0"), (32, 96)),
        (("bf16", "f32"), (32, 64)),
        (("f32", "bf16"), (64, 16)),
    ],
)
@pytest.mark.parametrize("positions", [2, 11])
def test_keys_and_values_are_of_any_type_and_size(
    library: ctypes.CDLL, kinds: tuple[str, str], sizes: tuple[int, int], positions: int
) -> None:
    """Those of a type that the kernel does not know are unpacked by ggml."""
    check(library, operands(kinds=kinds, sizes=sizes, positions=positions))


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_heads_lie_apart_or_together(library: ctypes.CDLL, kind: str) -> None:
    """Memory by position or by head: the steps that a tensor names are gone by, and the result is the same."""
    together, apart = (
        check(library, operands(positions=6, streams=2, kinds=(kind, kind), by_head=by_head))
        for by_head in (False, True)
    )
    assert (together == apart).all()


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("positions", [1, 4])
def test_values_may_be_a_part_of_the_keys(library: ctypes.CDLL, kind: str, positions: int) -> None:
    """As where a model keeps one compressed row for both, for all heads."""
    given = operands(heads=1, group=8, positions=positions, kinds=(kind, kind), sizes=(96, 64))
    elements = given.k.elements[..., : given.k.elements.shape[-1] * 64 // 96]
    check(library, dataclasses.replace(given, v=Stored(kind, elements, given.k.exact[..., :64])))


# parts of a context


@pytest.mark.parametrize(("group", "positions"), [(1, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_long_context_is_cut(library: ctypes.CDLL, group: int, positions: int, sinks: bool) -> None:
    """Where there are fewer heads than threads would do; the parts make the whole."""
    given = operands(heads=1, group=group, positions=positions, context=1500, sinks=sinks)
    check(library, given, parts=2)


def test_no_thread_is_idle_nor_a_part_too_small(library: ctypes.CDLL) -> None:
    """Two tasks for a thread, each of 512 positions at least; the last part may be empty."""
    given = operands(heads=1, context=5130)
    expected = given.expected()
    for threads, parts in ((1, 2), (2, 4), (5, 10), (7, 10)):
        result = done(library, given, threads=threads)
        assert (result.parts, result.arrivals) == (parts, 2 * threads)
        assert_near(result.out, expected)
    for heads, context in ((1, 1023), (10, 1500)):
        assert done(library, operands(heads=heads, context=context), threads=5).parts == 1


@pytest.mark.parametrize(("streams", "parts"), [(1, 4), (2, 3)])
def test_rows_and_contexts_keep_their_parts_apart(library: ctypes.CDLL, streams: int, parts: int) -> None:
    """Two heads, two positions and the contexts, all cut."""
    given = operands(heads=2, group=2, positions=2, streams=streams, context=2100, mask=holes(streams, 1, 2, 2100))
    result = done(library, given, threads=5)
    assert (result.taken, result.parts) == (5, parts)
    assert_near(result.out, given.expected())


@pytest.mark.parametrize("sinks", [False, True])
def test_a_part_may_be_unseen(library: ctypes.CDLL, sinks: bool) -> None:
    """By one row the first, by another the last, by the next all: the last is 0."""
    mask = np.zeros((1, 4, 1, 1500), np.float16)
    mask[0, 0, 0, :800] = mask[0, 1, 0, 700:] = mask[0, 2] = -np.inf
    out = check(library, operands(heads=1, group=4, context=1500, mask=mask, sinks=sinks), parts=2)
    assert (out[0, 0, 2] == 0).all()
    assert out[0, 0, [0, 1, 3]].any(axis=1).all()


@pytest.mark.parametrize(("of_parts", "less", "parts"), [(4, 0, 4), (4, 1, 3), (3, 1, 2), (2, 1, 1), (0, 0, 1)])
def test_parts_are_as_many_as_there_is_room_for(library: ctypes.CDLL, of_parts: int, less: int, parts: int) -> None:
    """To the byte; without any, the context stays whole, and nothing is written there."""
    given = operands(heads=1, group=3, context=2100)
    room = of_parts * given.rows() * given.row_bytes() - less
    result = done(library, given, threads=3, room=room)
    assert (result.taken, result.parts) == (3, parts)
    assert_near(result.out, given.expected())


def test_what_is_no_number_in_one_part_shows_in_the_whole(library: ctypes.CDLL) -> None:
    """A broken key is not hidden by the parts without it."""
    for position in (3, 1400):
        given = operands(heads=1, context=1500, kinds=("f32", "f32"), mask=None)
        given.k.exact[0, 0, position, 5] = np.nan
        given.k.elements.view(np.float32)[0, 0, position, 5] = np.nan
        result = done(library, given, threads=2)
        assert result.parts == 2
        assert np.isnan(result.out).all()


# sinks


@pytest.mark.parametrize("positions", [1, 12])
def test_a_sink_takes_its_share(library: ctypes.CDLL, positions: int) -> None:
    """Each head's own, also one far above or below all scores; what no one sees stays 0."""
    given = operands(heads=2, group=3, positions=positions, sinks=True)
    assert given.sinks is not None
    given.sinks.exact[[0, 3]] = 300, -300
    out = check(library, given)
    assert (out[:, :, 0] == 0).all()
    unseen = np.zeros((1, 1, positions, 100), np.float16)
    unseen[:, :, -1] = -np.inf
    out = check(library, operands(positions=positions, mask=unseen, sinks=True))
    assert (out[:, -1] == 0).all()


# threads


@pytest.mark.parametrize("chunk", [0, 1, 3, 1 << 30, -7])
def test_what_the_counter_was_before_does_not_matter(library: ctypes.CDLL, chunk: int) -> None:
    """No thread takes a task before it is set, though the first one, who sets it, comes last; none is done twice."""
    given = operands(heads=3, group=4, positions=20, kinds=("bf16", "bf16"))
    result = done(library, given, threads=3, late=AT_START, chunk=chunk)
    assert_near(result.out, given.expected())
    tasks = 3 * 2  # heads times tiles; in the end each thread asks once in vain
    assert (result.chunk, result.conversions) == (tasks + 3, tasks * (100 + 100))


def test_parts_are_joined_when_all_are_there(library: ctypes.CDLL) -> None:
    """Though one thread is in the middle of its own while the others have done everything else."""
    given = operands(heads=1, group=4, context=1500, kinds=("bf16", "bf16"))
    result = done(library, given, threads=3, late=IN_CONVERSION)
    assert (result.taken, result.parts) == (3, 2)
    assert_near(result.out, given.expected())


# what is not ours


def refused(library: ctypes.CDLL, given: Operands, **more: Any) -> None:
    """By every thread, without a barrier, and nothing was written."""
    result = done(library, given, threads=3, chunk=12345, **more)
    assert (result.taken, result.arrivals, result.chunk) == (0, 0, 12345)
    assert result.untouched


@pytest.mark.parametrize("more", [{"max_bias": 8.0}, {"softcap": 30.0}, {"use_ref": True}])
def test_what_the_kernel_does_not_do_is_left_to_ggml(library: ctypes.CDLL, more: dict[str, Any]) -> None:
    """ALiBi, capped scores, and where ggml's own is asked for."""
    refused(library, operands(), **more)


@pytest.mark.parametrize("sizes", [(40, 32), (32, 40), (8, 8)])
def test_sizes_that_do_not_fill_vectors_are_left_to_ggml(library: ctypes.CDLL, sizes: tuple[int, int]) -> None:
    """Of keys as of values."""
    refused(library, operands(sizes=sizes))


def turned(tensor: Stored) -> Stored:
    """The same numbers, with the positions lying side by side."""
    elements = np.ascontiguousarray(tensor.elements.swapaxes(2, 3)).swapaxes(2, 3)
    return dataclasses.replace(tensor, elements=elements)


@pytest.mark.parametrize("name", ["q", "k", "v", "mask"])
def test_numbers_that_do_not_lie_side_by_side_are_left_to_ggml(library: ctypes.CDLL, name: str) -> None:
    """As in a cache of values that is turned."""
    given = operands(positions=3)
    refused(library, dataclasses.replace(given, **{name: turned(getattr(given, name))}))


@pytest.mark.parametrize(
    ("name", "kind", "elements"),
    [
        *(("q", "f16", np.uint16), ("q", "i32", np.int32)),
        *(("k", "i32", np.int32), ("v", "i32", np.int32)),
        *(("mask", "f32", np.float32), ("mask", "bf16", np.uint16)),
    ],
)
def test_types_that_are_not_known_are_left_to_ggml(library: ctypes.CDLL, name: str, kind: str, elements: Any) -> None:
    """Queries and masks of others than always, keys and values that nothing unpacks."""
    given = operands()
    exact = getattr(given, name).exact
    refused(library, dataclasses.replace(given, **{name: Stored(kind, np.zeros(exact.shape, elements), exact)}))


def test_heads_that_do_not_divide_are_left_to_ggml(library: ctypes.CDLL) -> None:
    """Nor keys and values of different heads or contexts."""
    given, streams = operands(heads=3, group=2, mask=None), operands(heads=3, group=2, streams=2, mask=None)
    four = operands(heads=4, group=1, mask=None)
    refused(library, dataclasses.replace(given, k=four.k, v=four.v))
    refused(library, dataclasses.replace(given, v=operands(heads=2).v))
    refused(library, dataclasses.replace(streams, v=given.v))
    three = operands(heads=3, group=2, streams=3, mask=None)
    refused(library, dataclasses.replace(three, k=streams.k, v=streams.v))


def test_it_can_be_switched_off(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment, at the first operation."""
    monkeypatch.setenv(native_attention.OFF_ENV, "0")
    refused(ctypes.CDLL(str(shutil.copy(built, tmp_path / "off.so"))), operands())
    monkeypatch.setenv(native_attention.OFF_ENV, "1")
    check(ctypes.CDLL(str(shutil.copy(built, tmp_path / "on.so"))), operands())


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_adapter_keeps_to_its_memory(tmp_path: Path, sanitizers: str) -> None:
    """Nor do threads meet there, at sizes around every limit."""
    runs_clean(tmp_path, HARNESS, "native", sanitizers)
