"""Perplexity as the torch worker measures it, beside its traffic."""

import asyncio
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from torch_worker_harness import events, say, text

from sekisho.control.perplexity import measure, texts
from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.client import Client
from sekisho.control.perplexity.measure import Job, Target
from sekisho.core.clock import SystemClock
from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_engine import TorchEngine
from sekisho.engines.torch_worker import model
from sekisho.engines.torch_worker.admission import idle_bytes, sequence_bytes
from sekisho.engines.torch_worker.model import Loaded
from sekisho.engines.torch_worker.perplexity import PerplexityBody, Reading, parts
from sekisho.engines.torch_worker.prompts import Prompts
from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.requests import Ask
from sekisho.engines.torch_worker.runner import Runner
from sekisho.engines.torch_worker.sampling import SamplingSettings
from sekisho.kv import KVPolicy, LevelThresholds

pytestmark = [pytest.mark.kv, pytest.mark.timeout(300)]

DENSE = KVPolicy(budget=None, level_thresholds=LevelThresholds(0, 0, 0))
SMALL = KVPolicy(recent_window=16, sinks=4, budget=0.25)
TOKENS = [6 + (7 * each * each + each) % 250 for each in range(500)]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Iterator[Loaded]:
    threads = torch.get_num_threads()
    yield model.load(ModelConfig("m", engine="torch", path=str(tiny_folder), threads=1, devices="cpu"), DENSE)
    torch.set_num_threads(threads)


def runner(loaded: Loaded, policy: KVPolicy, **limits: int) -> Runner:
    chosen = {"slots": 4, "limit_bytes": 2**30, "chunk": 512} | limits
    return Runner(loaded, policy, publish=lambda _: None, **chosen)


def read(running: Runner, policy: KVPolicy) -> list[float]:
    """A whole stretch, a round for each block, as the server has it done."""
    reading = Reading(running, policy, TOKENS)
    running.call(reading.begin)
    done = False
    while not done:
        step = running.call(reading.step)
        running.round()
        done = step.result(0)
    running.call(reading.end)
    running.round()
    return reading.nll


def test_in_full_precision_it_is_what_the_model_says_at_once(loaded: Loaded) -> None:
    """Block by block through the cache: the likelihoods of one pass of transformers' own attention over the text."""
    found = read(runner(loaded, SMALL), DENSE)
    plain = type(loaded.model)(loaded.model.config)
    plain.load_state_dict(loaded.model.state_dict())
    plain.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            logits = plain(torch.tensor([TOKENS]), use_cache=False).logits[0, :-1]
    finally:
        loaded.model.set_attn_implementation("sekisho")  # both models share the configuration
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(TOKENS[1:]), reduction="none")
    assert found == pytest.approx(expected.tolist(), abs=2e-3)


def test_the_policy_acts_once_pages_are_quantised(loaded: Loaded) -> None:
    """What fits into the recent window is exact under any policy; later tokens are not, and eight bits are nearer to
    full precision than four."""
    eight = msgspec.structs.replace(SMALL, budget=0.6)
    exact, near, far = (torch.tensor(read(runner(loaded, SMALL), each)) for each in (DENSE, eight, SMALL))
    assert far[:63].tolist() == pytest.approx(exact[:63].tolist(), abs=1e-4)
    near_rms, far_rms = ((each - exact)[128:].square().mean().sqrt().item() for each in (near, far))
    assert 0 < 2 * near_rms < far_rms


def test_it_gives_way_to_whoever_waits_for_the_memory(loaded: Loaded) -> None:
    """A request that fits only without the measurement: the next block ends it with 409, and the request runs. What
    was held is given back."""
    one = sequence_bytes(loaded.layers, DENSE, 600)
    running = runner(loaded, DENSE, limit_bytes=idle_bytes(loaded.layers, DENSE) + int(1.5 * one))
    reading = Reading(running, DENSE, TOKENS)
    begun, stepped = running.call(reading.begin), running.call(reading.step)
    running.round()
    assert (begun.result(0), stepped.result(0)) == (None, False)
    assert running.held_bytes > 0
    ask = Ask(TOKENS, SamplingSettings(temperature=0), 90, stop=(), ignore_end=True, logprobs=None)
    running.submit(running.plan(ask))
    running.round()
    assert (len(running.waiting), running.admitted) == (1, [])
    refused = running.call(reading.step)
    running.call(reading.end)
    running.round()
    with pytest.raises(Refused, match="measure later"):
        refused.result(0)
    assert running.held_bytes == 0
    assert (len(running.waiting), len(running.admitted)) == (0, 1)


def test_it_does_not_begin_where_there_is_no_room(loaded: Loaded) -> None:
    """Refused before a cache exists, and nothing stays held; a request that waits for a slot alone stops nothing."""
    one = sequence_bytes(loaded.layers, DENSE, len(TOKENS))
    tight = runner(loaded, DENSE, limit_bytes=idle_bytes(loaded.layers, DENSE) + one // 2)
    reading = Reading(tight, DENSE, TOKENS)
    begun = tight.call(reading.begin)
    tight.call(reading.end)
    tight.round()
    with pytest.raises(Refused):
        begun.result(0)
    assert tight.held_bytes == 0
    full = runner(loaded, DENSE, slots=1)
    for _ in range(2):
        ask = Ask([9] * 8, SamplingSettings(temperature=0), 200, stop=(), ignore_end=True, logprobs=None)
        full.submit(full.plan(ask))
    full.round()
    assert len(full.waiting) == 1
    assert len(read(full, DENSE)) == len(TOKENS) - 1


def test_a_text_is_cut_as_everywhere(loaded: Loaded) -> None:
    """By the model's tokenizer, no stretch longer than the context; bad wishes are refused with the field."""
    prompts = Prompts(loaded.encoder, loaded.vocabulary, loaded.context)
    found = parts(PerplexityBody("the lost word " * 100, stretch=200), prompts, 128)
    assert {len(each) for each in found[:-1]} == {128}
    for body, field in ((PerplexityBody("", 64), "text"), (PerplexityBody("text", 1), "stretch")):
        with pytest.raises(Refused) as told:
            parts(body, prompts, 128)
        assert told.value.param == field


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def kv(target: Target) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {target.key}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{target.address}/kv") as answer:
        told: dict[str, Any] = await answer.json()
        return told


async def test_the_worker_measures_beside_its_traffic(
    torch_engine: TorchEngine,
    torch_config: ModelConfig,
    torch_worker_address: tuple[str, str, Path],
    tmp_path: Path,
) -> None:
    """The policy in force differs from 16 bits, a second measurement repeats the first to the last bit, answers that
    run meanwhile say what they say alone, and the cache's memory is free afterwards."""
    url, key, _ = torch_worker_address
    target = Target(torch_config, url.removesuffix("/v1"), key)
    job, kept, clock = Job(texts.built_in(), "light"), Baselines(tmp_path / "b.json"), SystemClock()
    before = (await kv(target))["reserved_bytes"]
    alone = text(await events(torch_engine, say("one two")))
    first = await measure.compared(target, job, clock, kept)
    async with Client(target.address or "", key) as client:
        second, said = await asyncio.gather(
            measure.compared(target, job, clock, kept), events(torch_engine, say("one two"))
        )
        assert text(said) == alone
        assert second.measured.blocks == first.measured.blocks
        assert second.baseline == first.baseline
        assert first.delta.value != 0
        assert first.measured.tokens == 767
        with pytest.raises(Unmeasured, match="unknown field"):
            await client.ask("/perplexity", {"text": "a", "other": 1}, dict, 10)
        # Two clients at once: there is one measurement at a time, the other is told so.
        async with Client(target.address or "", key) as another:
            wish = {"text": 4 * texts.built_in().body}  # long enough that the second comes before the first has ended
            results: list[Any] = await asyncio.gather(
                *(each.ask("/perplexity", wish, dict, 60) for each in (client, another)), return_exceptions=True
            )
        refused = [each for each in results if isinstance(each, Unmeasured)]
        assert len(refused) == 1
        assert "a measurement runs already" in str(refused[0])
    assert (await kv(target))["reserved_bytes"] == before
