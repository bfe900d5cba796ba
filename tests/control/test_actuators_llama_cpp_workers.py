"""What real workers of llama.cpp do with a policy."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from actuator_harness import KEY, WorkerSwapper
from llama_cpp_harness import CONFIG, F16, TOKEN_BYTES

from sekisho.control.actuators import create
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.engines import builtin, kv_size


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerSwapper]:
    """A real llama.cpp with the built-in model and one slot, that can be swapped."""
    swapper = WorkerSwapper(msgspec.structs.replace(CONFIG, slots=1), tmp_path)
    swapper.start(swapper.config)
    yield swapper
    swapper.stop()


@pytest.fixture
async def hand(worker: WorkerSwapper) -> AsyncIterator[Actuator]:
    """The actuator of that worker."""
    actuator = create(worker.config, worker.url, KEY, worker, worker.placed)
    yield actuator
    await actuator.close()


async def completed(swapper: WorkerSwapper, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, **more}
    headers = {"Authorization": f"Bearer {KEY}"}
    url = swapper.url.removesuffix("/v1") + "/completion"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, json=body) as answer:
        assert answer.status == 200, await answer.text()
        told: dict[str, Any] = (await answer.json())["timings"]
        return told


# --- with a real llama.cpp -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "values"), [("f16", "f16"), ("q8_0", "q4_0"), ("bf16", "q5_1"), ("f32", "iq4_nl")])
def test_the_computed_size_is_the_one_that_llama_cpp_allocates(keys: str, values: str) -> None:
    """As its own log tells for 1,024 tokens, to the hundredth of a MiB that it prints."""
    code = (
        "import sys, msgspec, xllamacpp\n"
        "from sekisho.engines import llama_worker\n"
        "from sekisho.engines.config import ModelConfig\n"
        "config = msgspec.json.decode(sys.argv[1], type=ModelConfig)\n"
        "params = llama_worker.parameters(config, llama_worker.model_path(config), 0, 'key')\n"
        "params.verbosity = 4\n"
        "server = xllamacpp.Server(params)\n"
        "sys.stdin.read()\n"
    )
    config = msgspec.structs.replace(CONFIG, slots=1, kv_type_k=keys, kv_type_v=values)
    argv = (sys.executable, "-c", code, msgspec.json.encode(config).decode())
    pattern = re.compile(r"size = +[\d.]+ MiB \( *1024 cells.* K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        told = next((found for line in child.stderr if (found := pattern.search(line))), None)
        child.kill()
    assert told is not None
    shape = kv_size.shape(builtin.path())
    assert isinstance(shape, kv_size.KvShape)
    for values_of_a_token, kind, mib in ((shape.keys, keys, told[1]), (shape.values, values, told[2])):
        assert round(1024 * values_of_a_token * kv_size.KV_BITS[kind] / 8 / 2**20, 2) == float(mib)


async def test_what_the_slots_hold_is_counted(worker: WorkerSwapper, hand: Actuator) -> None:
    """Nothing at first; after a request its prompt and answer, at the types that the swap before brought."""
    assert all(each.done for each in await hand.apply(Policy(KvSection("dynamic"))))
    assert worker.config.kv_type_k == worker.config.kv_type_v == "q8_0"
    empty = (await hand.state()).kv
    assert empty is not None
    assert (empty.used_bytes, empty.limit_bytes) == (0, 1024 * TOKEN_BYTES * 8.5 / 16)
    timings = await completed(worker, "a guard at the gate of a quiet town " * 4)
    state = await hand.state()
    assert state.kv is not None
    assert state.kv.used_bytes is not None
    held = timings["prompt_n"] + timings["predicted_n"]
    assert held - 2 <= state.kv.used_bytes / (TOKEN_BYTES * 8.5 / 16) <= held
    assert (state.running, state.waiting, state.slots) == (0, 0, 1)


async def test_prompts_are_read_at_16_bits_and_that_cache_is_counted(worker: WorkerSwapper, hand: Actuator) -> None:
    """After the swap a long prompt is in both: eight bits in its slot, sixteen with the reader, which has room for one
    context; with the policy taken back it is as before."""
    applied = {each.field: each for each in await hand.apply(Policy(KvSection("dynamic", demote_after_prefill=True)))}
    assert applied["kv.demote_after_prefill"].done
    assert worker.config.options == {"demote_after_prefill": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"prompt": "a guard at the gate of a quiet town " * 25, "max_tokens": 1}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(worker.url + "/completions", json=body) as answer,
    ):
        said = await answer.json()
    assert answer.status == 200, said
    count = said["usage"]["prompt_tokens"]
    assert count > 256
    state = await hand.state()
    assert state.kv is not None
    assert (state.settings["reader_bytes"], state.settings["computed"]) == (1024 * TOKEN_BYTES, ["kv"])
    assert state.kv.limit_bytes == 1024 * TOKEN_BYTES * 8.5 / 16 + 1024 * TOKEN_BYTES
    assert state.kv.used_bytes == pytest.approx(count * TOKEN_BYTES * (1 + 8.5 / 16), abs=2 * TOKEN_BYTES)
    assert state.kv.levels is not None
    assert state.kv.levels["L0"] == count * TOKEN_BYTES
    await hand.apply(Policy())
    assert (worker.config.options, "reader_bytes" in (await hand.state()).settings) == ({}, False)


async def test_speculation_drafts_and_its_rate_is_measured(worker: WorkerSwapper, hand: Actuator) -> None:
    """Off, nothing is drafted and the reason says so. After the swap a text that repeats itself, here because a grammar
    makes it, is drafted from what went before, and what is kept of it is counted."""
    text = " ".join(map(str, range(1, 25))) + " "
    repeating: dict[str, Any] = {"n_predict": 100, "ignore_eos": True, "grammar": f'root ::= ("{text}")*'}
    await completed(worker, text * 4, **repeating)
    before = await hand.state()
    assert before.accept_rate is None
    assert "speculation is off" in (before.reason or "")
    await hand.apply(msgspec.structs.replace(F16, engine=EngineSection(speculation="ngram")))
    assert worker.config.options == {"speculation": "ngram"}
    nothing_yet = await hand.state()
    assert nothing_yet.accept_rate is None
    assert "no token was drafted yet" in (nothing_yet.reason or "")
    timings = await completed(worker, text * 4, **repeating)
    state = await hand.state()
    assert state.settings["drafted_tokens"] == timings["draft_n"] > 50
    assert state.settings["accepted_tokens"] == timings["draft_n_accepted"]
    assert state.accept_rate == timings["draft_n_accepted"] / timings["draft_n"] > 0.8


@pytest.mark.parametrize(("cache_bytes", "found"), [(64 * 2**20, True), (0, False)])
async def test_a_prompt_that_was_read_before_is_read_from_memory(
    worker: WorkerSwapper, hand: Actuator, cache_bytes: int, found: bool
) -> None:
    """Two prompts take turns in one slot: with a cache the first is there again, without one it is read anew."""
    await hand.apply(msgspec.structs.replace(F16, engine=EngineSection(prompt_cache_bytes=cache_bytes)))
    first, second = "the gate opens at dawn and the guard " * 8, "numbers: 1 2 3 4 5 6 7 8 9 and again " * 8
    whole = await completed(worker, first)
    await completed(worker, second)
    again = await completed(worker, first)
    assert whole["cache_n"] == 0
    assert (again["cache_n"] > whole["prompt_n"] // 2) == found


async def test_a_worker_that_cannot_start_so_leaves_the_old_one(
    worker: WorkerSwapper, hand: Actuator, tmp_path: Path
) -> None:
    """The failure tells, and requests go on."""
    serving = worker.url
    worker.config = msgspec.structs.replace(worker.config, chat_template=str(tmp_path / "none"))
    with pytest.raises(ActuatorFailed, match="the swap failed: the worker ended with exit code 78"):
        await hand.apply(Policy(KvSection("dynamic")))
    assert worker.url == serving
    assert (await completed(worker, "still there"))["predicted_n"] > 0
