"""The tiered cache under `model.generate`: every way of decoding that lets a cache be given."""

import copy
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from tiny_models import DENSE, TIGHT, tiny_llama
from transformers import DynamicCache, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from sekisho.kv import KVPolicy, LevelThresholds, TieredCache

pytestmark = [pytest.mark.kv, pytest.mark.usefixtures("one_thread")]

NEW = 24  # tokens


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def prompts(lengths: list[int], seed: int = 1) -> dict[str, Any]:
    """Rows of random tokens, padded at the left."""
    drawn = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, 96, (length,), generator=drawn) for length in lengths]
    padded = [torch.nn.functional.pad(row, (max(lengths) - len(row), 0)) for row in rows]
    tokens = torch.stack(padded)
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}


def generated(model: Any, cache: Any, inputs: dict[str, Any], **how: Any) -> Any:
    """(rows, tokens) of what was generated; the same seed each time."""
    torch.manual_seed(5)
    options = {"max_new_tokens": NEW, "do_sample": False} | how
    return model.generate(**inputs, cache=cache, **options)


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4},
    "beams, several answers": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "prompt in chunks": {"prefill_chunk_size": 37},
    "chunks of few tokens": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("lengths", [[150], [150, 30, 90]], ids=["one row", "ragged rows"])
@pytest.mark.parametrize("way", WAYS)
def test_dense_is_the_same(model: Any, way: str, lengths: list[int]) -> None:
    """With all pages dense each way of decoding finds the tokens that it finds with transformers' own cache."""
    inputs, how = prompts(lengths), WAYS[way]
    expected = generated(model, DynamicCache(config=model.config), inputs, **how)
    found = generated(model, TieredCache(DENSE, config=model.config), inputs, **how)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("way", ["greedy", "beams", "several samples", "prompt in chunks"])
def test_tight_is_repeatable(model: Any, way: str) -> None:
    """With quantised pages the same call gives the same tokens, and the cache is as small as its policy says."""
    inputs, how = prompts([150, 30, 90]), WAYS[way]
    caches = [TieredCache(TIGHT, config=model.config) for _ in range(2)]
    first, second = (generated(model, cache, inputs, **how) for cache in caches)
    assert torch.equal(first, second)
    assert "dense" not in caches[0].statistics().formats
    assert caches[0].statistics().tokens == sum(caches[0].tiers[0].lengths)


@pytest.mark.parametrize("policy", [DENSE, TIGHT], ids=["dense", "tight"])
def test_rows_of_a_ragged_batch(model: Any, policy: KVPolicy) -> None:
    """Each row of a ragged batch gets the tokens that it gets alone."""
    lengths = [180, 30, 97]
    inputs = prompts(lengths)
    together = generated(model, TieredCache(policy, config=model.config), inputs)
    for row, length in enumerate(lengths):
        alone = {name: each[row : row + 1, -length:] for name, each in inputs.items()}
        single = generated(model, TieredCache(policy, config=model.config), alone)
        assert torch.equal(together[row, -NEW:], single[0, -NEW:])


@pytest.mark.parametrize("policy", [DENSE, TIGHT], ids=["dense", "tight"])
@pytest.mark.parametrize("way", ["prompt lookup", "assistant"])
def test_assisted(model: Any, way: str, policy: KVPolicy) -> None:
    """Drafted tokens that are rejected are taken back: with dense pages the answer is that of greedy decoding."""
    inputs = prompts([70])
    repeated = {name: each.repeat(1, 3) for name, each in inputs.items()}
    how: dict[str, Any] = {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 2}
    if way == "assistant":
        assistant = copy.deepcopy(model)
        torch.manual_seed(6)
        with torch.no_grad():  # an assistant that is often right, and often wrong
            for weight in assistant.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.02 * float(weight.std()))
        how = {"assistant_model": assistant}
    cache = TieredCache(policy, config=model.config)
    found = generated(model, cache, repeated, **how)
    assert found.shape[1] == 210 + NEW
    assert cache.get_seq_length() == 210 + NEW - 1
    if policy is DENSE:
        assert torch.equal(found, generated(model, DynamicCache(config=model.config), repeated))


@pytest.mark.parametrize("lengths", [[150], [150, 40]], ids=["one row", "ragged rows"])
def test_turns(model: Any, lengths: list[int]) -> None:
    """A conversation goes on over one cache: each turn reads only what is new, and answers as if it had read all."""
    inputs = prompts(lengths)
    caches = [TieredCache(DENSE, config=model.config), None]
    found = []
    for cache in caches:
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        for turn in range(3):
            answer = generated(model, cache, {"input_ids": tokens, "attention_mask": mask})
            asked = prompts([11] * len(lengths), seed=turn)["input_ids"]
            tokens = torch.cat((answer, asked), 1)
            mask = torch.nn.functional.pad(mask, (0, NEW + 11), value=1)
        found.append(tokens)
    assert torch.equal(found[0], found[1])
    assert caches[0].get_seq_length() == found[0].shape[1] - 11 - 1


def test_prefix(model: Any) -> None:
    """Many prompts with one beginning: it is read once, forked, and each goes on as if it had read it itself."""
    beginning = prompts([140])["input_ids"]
    ends = prompts([12, 12, 12], seed=2)["input_ids"]
    cache = TieredCache(DENSE, config=model.config)
    with torch.no_grad():
        model(beginning, cache=cache)
    whole = torch.cat((beginning.repeat(3, 1), ends), 1)
    inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    found = generated(model, cache.fork(3), inputs)
    assert torch.equal(found, generated(model, DynamicCache(config=model.config), inputs))
    assert cache.get_seq_length() == 140


class Change(LogitsProcessor):
    """Gives a cache another policy before each of some tokens."""

    def __init__(self, cache: TieredCache, policies: dict[int, KVPolicy]) -> None:
        self.cache, self.policies, self.step, self.used = cache, policies, 0, list[int]()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self.step in self.policies:
            self.cache.apply(self.policies[self.step])
        self.step += 1
        self.used.append(self.cache.statistics().bytes_used)
        return scores


class Enough(StoppingCriteria):
    """Stops, and changes the policy while it is asked."""

    def __init__(self, cache: TieredCache) -> None:
        self.cache = cache

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.cache.apply(KVPolicy(recent_window=32 if input_ids.shape[1] % 2 else 16, sinks=4, budget=0.3))
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 160)


@pytest.mark.parametrize("host_copy", [False, True])
def test_policy_of_a_live_generation(model: Any, host_copy: bool) -> None:
    """A policy may change between two tokens of a running generation, down and up, in ragged batches too."""
    rich = KVPolicy(
        recent_window=16, sinks=4, budget=None, level_thresholds=LevelThresholds(0, 0, 0), host_copy=host_copy
    )
    poor = KVPolicy(recent_window=32, sinks=4, budget=0.25, host_copy=host_copy)
    inputs = prompts([250, 170])
    cache = TieredCache(rich, config=model.config)
    change = Change(cache, {8: poor, 16: rich})
    found = generated(model, cache, inputs, logits_processor=[change])
    expected = generated(model, DynamicCache(config=model.config), inputs)
    assert torch.equal(found[:, :259], expected[:, :259])
    assert change.used[8] < 0.75 * change.used[7]
    assert (change.used[16] > 1.3 * change.used[15]) == host_copy
    assert set(cache.statistics().formats) == {"dense"} or not host_copy


def test_policy_from_a_stopping_criterion(llama: Any) -> None:
    """The policy may also change where transformers asks whether it is enough."""
    cache = TieredCache(TIGHT, config=llama.config)
    found = generated(llama, cache, prompts([150, 90]), stopping_criteria=[Enough(cache)])
    assert found.shape[1] == 160
    assert cache.get_seq_length() == 159


class Told(BaseStreamer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streaming(llama: Any) -> None:
    """Tokens are streamed as they are found."""
    told = Told()
    found = generated(llama, TieredCache(TIGHT, config=llama.config), prompts([100]), streamer=told)
    assert told.tokens == found[0].tolist()
    assert told.ended


def test_without_a_cache(llama: Any) -> None:
    """The attention of the tiers generates without a tiered cache, and without any, what transformers' own does."""
    inputs = prompts([90, 30])
    reference = copy.deepcopy(llama)
    reference.set_attn_implementation("sdpa")
    expected = generated(reference, None, inputs)
    assert torch.equal(generated(llama, None, inputs), expected)
    assert torch.equal(generated(llama, None, inputs, use_cache=False), expected)


def test_meta_device() -> None:
    """A model without weights has a cache made for it, and can be asked for shapes without one."""
    with torch.device("meta"):
        model = tiny_llama()
        tokens = torch.ones(1, 5, dtype=torch.long)
        assert model(tokens, cache=DynamicCache(config=model.config)).logits.shape == (1, 5, 96)
    assert len(TieredCache(config=model.config)) == 2


def test_the_old_name(llama: Any) -> None:
    """Transformers still takes the cache by its former name, and warns."""
    inputs = prompts([90])
    with pytest.warns(FutureWarning, match="past_key_values"):
        found = llama.generate(
            **inputs, past_key_values=TieredCache(DENSE, config=llama.config), max_new_tokens=NEW, do_sample=False
        )
    assert torch.equal(found, generated(llama, None, inputs))
