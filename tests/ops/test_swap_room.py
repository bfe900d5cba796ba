"""Whether two workers fit beside each other."""

import os
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from sekisho.engines import builtin
from sekisho.engines.config import ModelConfig
from sekisho.ops import swap_room
from sekisho.ops.gpu_sample import GpuProcess, GpuReading, GpuSample
from sekisho.ops.swap_room import MIB, Memory, choose, extra_bytes, kv_bytes, measure, problem

mini = pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`")
SMALL = ModelConfig("m", path="builtin", gpu_layers=0)


def with_(**fields: Any) -> ModelConfig:
    return msgspec.structs.replace(SMALL, **fields)


def no_cards() -> GpuReading:
    return GpuReading()


def card(pid: int, used: int | None) -> GpuReading:
    sample = GpuSample(0, "card", 24_000 * MIB, 10_000 * MIB, processes=(GpuProcess(pid, "python", used),))
    return GpuReading((sample,), "nvml")


def test_room_is_what_remains_after_the_reserve() -> None:
    """The last byte of the reserve decides, in each memory."""
    fits = Memory("memory", 1000 * MIB, 900 * MIB)
    assert choose((fits,), 100 * MIB)[0] == "side_by_side"
    how, why = choose((fits,), 100 * MIB + 1)
    assert how == "one_after_other"
    assert why == "memory: a second worker needs 900 MiB, 1000 MiB are free, 100 MiB are to stay free"
    assert choose((fits, Memory("card", 10 * MIB, 20 * MIB)), 0)[0] == "one_after_other"


@pytest.mark.parametrize("memory", [Memory("card", None, 1, "hidden"), Memory("card", 1, None, "hidden")])
def test_what_is_not_known_does_not_fit(memory: Memory) -> None:
    """The reason is told."""
    assert choose((Memory("memory", 100, 1), memory), 0) == ("one_after_other", "card: hidden")


def test_the_need_is_measured_at_the_old_worker() -> None:
    """Its resident memory, against what the machine has free."""
    before = psutil.Process().memory_info().rss
    (memory,) = measure(os.getpid(), SMALL, with_(threads=1), gpus=no_cards)
    after = psutil.Process().memory_info().rss  # a system that is short of memory takes some away at any moment
    assert memory.need_bytes is not None
    assert 0.8 * min(before, after) < memory.need_bytes < 1.2 * max(before, after)
    assert memory.free_bytes is not None
    assert 0 < memory.free_bytes <= psutil.virtual_memory().total


def test_an_old_worker_that_is_gone_cannot_be_measured() -> None:
    """Neither between two lives nor under a number that nobody has."""
    for pid in (None, 2**22 + 1):
        (memory,) = measure(pid, SMALL, with_(threads=1), gpus=no_cards)
        assert (memory.need_bytes, bool(memory.why)) == (None, True)


@mini
def test_the_cache_is_as_large_as_llama_cpp_says() -> None:
    """36 MiB for four slots of 2048 tokens of the built-in model at 16 bits: the figure of llama.cpp's own log
    (`llama_kv_cache: size`); eight bits take 34 bytes of 64."""
    assert kv_bytes(SMALL) == 36 * MIB
    assert kv_bytes(with_(kv_type_k="q8_0")) == 18 * MIB + 18 * MIB * 34 // 64
    assert kv_bytes(with_(slots=8)) == 72 * MIB


@mini
def test_other_settings_change_the_need_by_their_cache() -> None:
    """Slots, context and types count; threads do not."""
    assert extra_bytes(SMALL, with_(slots=8)) == 36 * MIB
    assert extra_bytes(SMALL, with_(slots=2, kv_type_v="f32")) == -9 * MIB
    assert extra_bytes(SMALL, with_(threads=2)) == 0
    before = measure(os.getpid(), SMALL, SMALL, gpus=no_cards)[0].need_bytes or 0
    after = measure(os.getpid(), SMALL, with_(slots=400), gpus=no_cards)[0].need_bytes or 0
    assert after - before > 3000 * MIB


@mini
def test_what_reads_prompts_beside_a_worker_counts() -> None:
    """A context at 16 bits, and the weights once more; not where another worker has it as well."""
    both = with_(kv_type_k="q8_0", kv_type_v="q8_0")
    demoting = msgspec.structs.replace(both, options={"demote_after_prefill": True})
    assert kv_bytes(demoting) == (kv_bytes(both) or 0) + 9 * MIB
    weights = builtin.path().stat().st_size
    assert extra_bytes(both, demoting) == 9 * MIB + weights
    assert extra_bytes(demoting, both) == -9 * MIB - weights
    assert extra_bytes(demoting, msgspec.structs.replace(demoting, threads=2)) == 0


def test_a_file_that_tells_nothing_leaves_the_need_unknown(tmp_path: Path) -> None:
    """A GGUF without the numbers, another engine, a file that is gone."""
    head = tmp_path / "empty.gguf"
    head.write_bytes(b"GGUF" + bytes(20))
    assert kv_bytes(with_(path=str(head))) is None
    assert extra_bytes(with_(path=str(head)), with_(path=str(head), slots=8)) is None
    assert extra_bytes(SMALL, with_(path="/no/such.gguf")) is None
    assert extra_bytes(SMALL, with_(engine="torch")) is None


def test_other_weights_change_the_need_by_their_size(tmp_path: Path) -> None:
    """For a model folder: all its weight files."""
    for name, size in (("a", 1000), ("b", 3000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(size))
    old, new = (ModelConfig("m", engine="torch", path=str(tmp_path / name)) for name in "ab")
    assert extra_bytes(old, new) == 2000
    assert extra_bytes(old, ModelConfig("m", engine="torch", path=str(tmp_path))) is None


def test_a_card_counts_where_the_old_worker_is_on_it() -> None:
    """What it uses there against what is free there; where the driver hides it, nothing is known."""
    on_card = msgspec.structs.replace(SMALL, gpu_layers=-1)
    me = os.getpid()
    memories = measure(me, on_card, on_card, gpus=lambda: card(me, 9_000 * MIB))
    assert memories[1:] == (Memory("card", 14_000 * MIB, 9_000 * MIB, memories[1].why),)
    assert choose(memories[1:], 5_000 * MIB)[0] == "side_by_side"
    for hidden in (card(me, None), card(1, 9_000 * MIB)):
        memory = measure(me, on_card, on_card, gpus=lambda hidden=hidden: hidden)[1]  # type: ignore[misc]
        assert (memory.need_bytes, choose((memory,), 0)[0]) == (None, "one_after_other")


def test_cards_are_not_asked_for_who_uses_none() -> None:
    """The vendors' tools may take seconds."""

    def never() -> GpuReading:
        raise AssertionError

    assert len(measure(os.getpid(), SMALL, SMALL, gpus=never)) == 1
    on_cpu = ModelConfig("m", engine="torch", path="x", devices="cpu")
    assert len(measure(os.getpid(), on_cpu, on_cpu, gpus=never)) == 1
    assert len(measure(os.getpid(), SMALL, with_(gpu_layers=-1), gpus=no_cards)) == 1


def test_a_file_that_is_no_model_is_seen_before_anything_is_stopped(tmp_path: Path) -> None:
    """The words are those of the worker; what only the worker can judge is left to it."""
    (tmp_path / "x.gguf").write_text("hello")
    assert "not a GGUF file" in (problem(with_(path=str(tmp_path / "x.gguf"))) or "")
    assert "no such file" in (problem(with_(path="/no/such.gguf")) or "")
    assert problem(ModelConfig("m", engine="torch", path="/no/such")) is None
    assert swap_room.MIB == 2**20
