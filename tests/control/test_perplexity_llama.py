"""Perplexity of the built-in model in a real llama.cpp, in processes of their own."""

import asyncio
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from sekisho.control.perplexity import llama_child, llama_hidden, llama_probabilities, measure, texts
from sekisho.control.perplexity.base import Unmeasured, flat
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.client import Client
from sekisho.control.perplexity.measure import Job, Target
from sekisho.core.clock import SystemClock
from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import KvType, ModelConfig

CONFIG = ModelConfig("m", path="builtin", slots=2, threads=1)
BODY = texts.built_in().body
SHORT = 192


async def nll(kind: KvType, stretch: int = SHORT) -> list[float]:
    return flat(await llama_hidden.score(CONFIG, BODY, stretch, only=0, kv=(kind, kind)))


def distance(one: list[float], other: list[float]) -> float:
    """Root of the mean square, nats."""
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one))


async def test_the_type_of_the_cache_acts_and_fewer_bits_act_more() -> None:
    """Likelihoods under f16 repeat to the last bit; under q8_0 they move, under q4_0 several times as far."""
    plain, again, eight, four = [await nll(kind) for kind in ("f16", "f16", "q8_0", "q4_0")]
    assert plain == again
    assert len(plain) == SHORT - 1
    assert 0 < 2 * distance(eight, plain) < distance(four, plain)


async def test_past_and_present_are_read_back_from_the_cache() -> None:
    """A stretch twice as long gives its first half the same likelihoods: no token sees what comes after it, and the
    size of the batch decides nothing under a quantised cache."""
    short, long = await nll("q4_0"), await nll("q4_0", 2 * SHORT)
    assert distance(short, long[: len(short)]) < 0.05 < distance(short, await nll("f16"))


@pytest.fixture
def kind() -> KvType:
    return "f16"


@pytest.fixture
def worker(kind: KvType, unused_tcp_port: int) -> Iterator[Target]:
    config = msgspec.structs.replace(CONFIG, kv_type_k=kind, kv_type_v=kind)
    key = llama_worker.new_key()
    environment = os.environ | llama_worker.environment(key) | lifeline.environment()
    with subprocess.Popen(
        llama_worker.argv(config, unused_tcp_port),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as child:
        yield Target(config, f"http://127.0.0.1:{unused_tcp_port}", key)
        child.kill()


async def ready(target: Target) -> None:
    async with asyncio.timeout(90), Client(target.address or "", target.key) as client:
        while True:
            try:
                await client.ask("/tokenize", {"content": "a"}, dict, 60)
                return
            except Unmeasured:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["f16", pytest.param("q4_0", marks=pytest.mark.slow)])
async def test_both_routes_agree(worker: Target) -> None:
    """Hidden states of a second llama.cpp and probabilities of the running worker: the same likelihoods within 0.05 %
    of their mean, under f16 and under q4_0; and f16's are not q4_0's."""
    await ready(worker)
    job = Job(texts.built_in(), "light")
    found = await measure.cross_checked(worker, job)
    assert found.agrees, found.why
    assert found.relative < 0.0005
    assert found.positions == 24
    other = "q4_0" if worker.config.kv_type_k == "f16" else "f16"
    wrong = msgspec.structs.replace(worker.config, kv_type_k=other, kv_type_v=other)
    assert not (await measure.cross_checked(msgspec.structs.replace(worker, config=wrong), job)).agrees


async def test_a_worker_that_refuses_is_told(worker: Target) -> None:
    """A wrong key and a token that does not exist are reasons, not figures."""
    await ready(worker)
    assert worker.address is not None
    async with Client(worker.address, "wrong") as client:
        with pytest.raises(Unmeasured, match="401"):
            await llama_probabilities.score(client, [5, 6], [1])
    async with Client(worker.address, worker.key) as client:
        with pytest.raises(Unmeasured):
            await llama_probabilities.score(client, [5, 999_999], [1])


async def test_a_baseline_is_measured_once(tmp_path: Path) -> None:
    """The second comparison takes the first one's baseline; at 16 bits the difference is nothing."""
    kept, clock = Baselines(tmp_path / "b.json"), SystemClock()
    job = Job(texts.built_in(), "light", 1)
    four = msgspec.structs.replace(CONFIG, kv_type_k="q4_0", kv_type_v="q4_0")
    first = await measure.compared(Target(four), job, clock, kept)
    second = await measure.compared(Target(CONFIG), job, clock, kept)
    assert second.baseline == first.baseline
    assert (second.delta.value, second.delta.low, second.delta.high) == (0, 0, 0)
    assert first.delta.value != 0
    assert first.measured.kv == {"key_type": "q4_0", "value_type": "q4_0", "stretch": 768}


async def test_a_deadline_ends_the_child() -> None:
    """No figure, the reason, and no process left behind. The text would take minutes."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Unmeasured, match=r"not done within 0\.01 s"):
        await llama_hidden.score(CONFIG, BODY * 100, SHORT, deadline_s=0.01)
    assert set(psutil.Process().children(recursive=True)) <= before


async def test_a_crash_of_the_child_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by a signal, it is told with its number; so is a file that is no model, with what is wrong with it."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    with pytest.raises(Unmeasured, match="cut off"):
        await llama_hidden.score(msgspec.structs.replace(CONFIG, path=str(bad)), BODY, SHORT)
    killer = tmp_path / "killer"
    killer.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killer.chmod(0o700)
    monkeypatch.setattr(llama_hidden.sys, "executable", str(killer))
    with pytest.raises(Unmeasured, match="ended with signal 11"):
        await llama_hidden.score(CONFIG, BODY, SHORT)


def test_too_little_memory_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is compared with weights and hidden states."""
    path = llama_worker.model_path(CONFIG)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    with pytest.raises(Unmeasured, match=r"1\.0 GiB are free"):
        llama_child._check_room(path, 10**15)
    llama_child._check_room(path, 1000)


def test_llama_cpp_chooses_the_port_at_which_it_is_asked() -> None:
    """One that was free a moment ago may be somebody else's by the time at which the model is loaded."""
    assert llama_child._parameters(CONFIG, llama_worker.model_path(CONFIG), SHORT, "key").port == 0


@pytest.mark.slow
async def test_the_whole_text_at_each_precision(tmp_path: Path) -> None:
    """Six thousand predictions: q8_0 stays within 0.5 % of 16 bits, q4_0 goes further away than q8_0."""
    kept, clock, found = Baselines(tmp_path / "b.json"), SystemClock(), {}
    for kind in ("f16", "q8_0", "q4_0"):
        config = msgspec.structs.replace(CONFIG, kv_type_k=kind, kv_type_v=kind)
        made = await measure.compared(Target(config), Job(texts.built_in(), "full"), clock, kept)
        found[kind] = made.delta
        print(kind, made.measured.perplexity, made.delta, made.measured.took_s)
        assert made.measured.tokens > 5000
    assert found["f16"].value == 0
    assert abs(found["q8_0"].relative) < 0.005
    assert abs(found["q8_0"].relative) < abs(found["q4_0"].relative) < 0.1
