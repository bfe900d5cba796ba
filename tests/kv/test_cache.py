"""The tiered cache as a model drives it: ragged batches, turns, taking back, copies, files."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings
from msgspec import structs
from tiny_models import DENSE, EVICTING, SIZES, TIGHT, drawn, read, singly, tiny_llama
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from sekisho.kv import KVPolicy, LevelThresholds, StorageError, TieredCache, register

pytestmark = [pytest.mark.kv, pytest.mark.usefixtures("one_thread")]


class Ragged:
    """A batch of rows that are padded at the left in each turn, as chat templates make them."""

    def __init__(self, model: Any, cache: Any, rows: int) -> None:
        self.model, self.cache = model, cache
        self.mask = torch.zeros(rows, 0, dtype=torch.long)

    @torch.no_grad()
    def turn(self, parts: list[Any]) -> list[Any]:
        """Logits of each row's tokens, (n, V)."""
        longest = max(len(part) for part in parts)
        tokens = torch.stack([torch.nn.functional.pad(part, (longest - len(part), 0)) for part in parts])
        real = [torch.nn.functional.pad(torch.ones_like(part), (longest - len(part), 0)) for part in parts]
        self.mask = torch.cat((self.mask, torch.stack(real)), 1)
        at = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -longest:]
        found = self.model(tokens, attention_mask=self.mask, position_ids=at, cache=self.cache).logits
        return [row[longest - len(part) :] for row, part in zip(found, parts, strict=True)]


def grown(model: Any, policy: KVPolicy, lengths: list[tuple[int, ...]], alone: int | None = None) -> tuple[Any, Any]:
    """A cache after turns of `lengths[turn][row]` tokens, and the logits by row; `alone`: of one row by itself."""
    rows = range(len(lengths[0])) if alone is None else [alone]
    cache = TieredCache(policy, config=model.config)
    batch = Ragged(model, cache, len(rows))
    turns = []
    for number, counts in enumerate(lengths):
        if any(counts[row] for row in rows):
            turns.append(batch.turn([drawn(100 * number + row, counts[row])[0] for row in rows]))
    return cache, [torch.cat(parts) for parts in zip(*turns, strict=True)]


@pytest.mark.parametrize("policy", [DENSE, TIGHT, EVICTING], ids=["dense", "tight", "evicting"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_rows_are_independent(kind: str, policy: KVPolicy, request: pytest.FixtureRequest) -> None:
    """In a ragged batch each row has the logits and the pages that it has alone, over several turns and tokens."""
    model = request.getfixturevalue(kind)
    lengths = [(230, 90, 5), (20, 40, 70), *[(1, 1, 1)] * 8, (20, 3, 2)]
    together, logits = grown(model, policy, lengths)
    for row in range(3):
        alone, expected = grown(model, policy, lengths, row)
        torch.testing.assert_close(logits[row], expected[0], atol=2e-3, rtol=0)
        for batched, single in zip(together.tiers, alone.tiers, strict=True):
            count = single.table.counts[0]
            assert batched.lengths[row] == single.lengths[0]
            assert batched.table.counts[row] == count
            assert torch.equal(batched.table.formats[row, :, :count], single.table.formats[0])


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_dense_rows_match_a_plain_pass(llama: Any, data: st.DataObject) -> None:
    """Whatever the turns, with dense pages each row's logits are those of one pass over its tokens."""
    count = data.draw(st.integers(1, 3), "rows")
    lengths = data.draw(
        st.lists(st.tuples(*[st.one_of(st.just(1), st.integers(1, 150))] * count), min_size=1, max_size=4), "turns"
    )
    _, logits = grown(llama, DENSE, lengths)
    for row in range(count):
        tokens = torch.cat([drawn(100 * number + row, counts[row]) for number, counts in enumerate(lengths)], 1)
        with torch.no_grad():
            expected = llama(tokens, use_cache=False).logits[0]
        torch.testing.assert_close(logits[row], expected, atol=2e-3, rtol=0)


def test_padding_token_by_token(llama: Any) -> None:
    """Padding is not stored where a padded prompt is read token by token either."""
    tokens, mask = drawn(33, 4, rows=2), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    cache = TieredCache(DENSE, config=llama.config)
    at = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        for end in range(1, 5):
            last = slice(end - 1, end)
            found = llama(tokens[:, last], attention_mask=mask[:, :end], position_ids=at[:, last], cache=cache).logits
    assert [tier.lengths for tier in cache.tiers] == [[4, 2]] * 2
    for row, part in ((0, tokens[:1]), (1, tokens[1:, 2:])):
        torch.testing.assert_close(found[row], read(llama, None, part)[0, -1:], atol=1e-3, rtol=0)


def test_evicted_pages_are_not_seen(llama: Any) -> None:
    """What is evicted takes no part in the attention, of one token, of a few or of a turn: all give the same."""
    prompt, tokens = drawn(1, 245).split([225, 20], 1)
    cache = TieredCache(EVICTING, config=llama.config)
    read(llama, cache, prompt)
    assert cache.statistics().levels["L3"] > 0
    ways = ((tokens,), tokens.split(10, 1), singly(tokens))
    turn, few, one_by_one = (read(llama, copy.deepcopy(cache), *parts) for parts in ways)
    torch.testing.assert_close(turn, one_by_one, atol=2e-3, rtol=0)
    torch.testing.assert_close(few, one_by_one, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("policy", [DENSE, TIGHT], ids=["dense", "tight"])
def test_crop(kind: str, policy: KVPolicy, request: pytest.FixtureRequest) -> None:
    """Tokens that were taken back leave no trace: what follows is as if they had never been there."""
    model = request.getfixturevalue(kind)
    tokens, rejected = drawn(2, 330), drawn(3, 40)
    cache = TieredCache(policy, config=model.config)
    read(model, cache, tokens[:, :300])
    untouched = copy.deepcopy(cache)
    read(model, cache, rejected[:, :9], *singly(rejected[:, 9:12]))
    cache.crop(-12)
    assert cache.get_seq_length() == 300
    found, expected = (read(model, each, tokens[:, 300:310], *singly(tokens[:, 310:])) for each in (cache, untouched))
    torch.testing.assert_close(found, expected, atol=2e-3 if policy is DENSE else 0.2, rtol=0)


def test_crop_near_a_window(mistral: Any) -> None:
    """A few tokens can be taken back at any length: a sliding window leaves nothing behind too early."""
    tokens = drawn(29, 300)
    expected = read(mistral, None, tokens)
    policy = structs.replace(DENSE, recent_window=36)  # 64 less than the window: pages fall behind it as they are made
    cache = TieredCache(policy, config=mistral.config)
    read(mistral, cache, tokens[:, :220])
    for first in range(220, 290, 3):
        read(mistral, cache, drawn(30, 10))
        cache.crop(-10)
        found = read(mistral, cache, tokens[:, first : first + 3])
        torch.testing.assert_close(found, expected[:, first : first + 3], atol=2e-3, rtol=0)


def test_crop_beyond_a_window() -> None:
    """Where the sliding window of one layer would reach back to what is gone, no layer takes anything back."""
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=100, max_window_layers=1)
    model = Qwen2ForCausalLM._from_config(config, attn_implementation=register()).eval()
    cache = TieredCache(DENSE, config=config)
    read(model, cache, drawn(4, 400))
    with pytest.raises(ValueError, match="too many to take back from a window of 100"):
        cache.crop(-250)
    assert [tier.lengths for tier in cache.tiers] == [[400], [400]]
    with pytest.raises(ValueError, match="minus the number"):
        cache.crop(10)


def test_crop_to_nothing(llama: Any) -> None:
    """A cache from which all was taken back, or that was reset, begins anew."""
    tokens = drawn(5, 120)
    expected = read(llama, TieredCache(TIGHT, config=llama.config), tokens)
    for empty in (lambda cache: cache.crop(-200), lambda cache: cache.reset()):
        cache = TieredCache(TIGHT, config=llama.config)
        read(llama, cache, drawn(6, 200))
        empty(cache)
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(read(llama, cache, tokens), expected)


def test_fork(llama: Any) -> None:
    """Continuations of one prompt share its pages, do not disturb one another, and leave the first cache as it is."""
    prompt = drawn(7, 300)
    cache = TieredCache(TIGHT, config=llama.config)
    read(llama, cache, prompt)
    forked = cache.fork(4)
    pools = [sum(pool.allocated_bytes for pool in each.tiers[0].table.pools.values()) for each in (cache, forked)]
    assert pools[1] <= pools[0]
    endings = drawn(8, 6, rows=4)
    together = read(llama, forked, *singly(endings))
    for row in range(4):
        single = read(llama, copy.deepcopy(cache), *singly(endings[row : row + 1]))
        torch.testing.assert_close(together[row], single[0], atol=1e-4, rtol=0)
    assert (cache.get_seq_length(), forked.get_seq_length(), forked.batch_size) == (300, 306, 4)


def test_select(llama: Any) -> None:
    """Rows can be reordered, repeated and dropped between two passes, by index or by mask."""
    prompts, ends = drawn(9, 150, rows=3), drawn(10, 4, rows=3)
    cache = TieredCache(DENSE, config=llama.config)
    read(llama, cache, prompts)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    found = read(llama, cache, ends)
    expected = read(llama, None, torch.cat((prompts[[2, 0, 0]], ends), 1))[:, -4:]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    cache.batch_select_indices(torch.tensor([False, True, True]))
    assert cache.batch_size == 2
    found = read(llama, cache, ends[:2])
    expected = read(llama, None, torch.cat((prompts[[0, 0]], ends[1:], ends[:2]), 1))[:, -4:]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("host_copy", [False, True])
def test_policy_changes(llama: Any, host_copy: bool) -> None:
    """Between two tokens a policy may change. Down: less memory. Up: with copies in host memory the logits are exact
    again, without them what was lost stays lost and nothing grows."""
    tokens = drawn(11, 400)
    expected = read(llama, DynamicCache(config=llama.config), tokens)
    rich = KVPolicy(
        recent_window=16, sinks=4, budget=None, level_thresholds=LevelThresholds(0, 0, 0), host_copy=host_copy
    )
    poor = KVPolicy(recent_window=16, sinks=4, budget=0.25, host_copy=host_copy)
    cache = TieredCache(rich, config=llama.config)
    read(llama, cache, tokens[:, :300])
    whole = cache.statistics().bytes_used
    cache.apply(poor)
    assert cache.statistics().bytes_used < 0.5 * whole
    lossy = read(llama, cache, *singly(tokens[:, 300:320]))
    assert float((lossy - expected[:, 300:320]).abs().max()) > 1e-2
    cache.apply(rich)
    statistics = cache.statistics()
    again = read(llama, cache, *singly(tokens[:, 320:330]))
    if host_copy:
        assert set(statistics.formats) == {"dense"}
    else:
        assert statistics.bytes_used < 0.5 * whole
        assert float((again - expected[:, 320:330]).abs().max()) > 1e-2
    assert (statistics.host_bytes > 0) == host_copy


def test_save_and_load(llama: Any, tmp_path: Path) -> None:
    """A cache that was saved goes on as if it had never been away, padding included."""
    lengths = [(230, 90), (1, 1)]
    cache, _ = grown(llama, TIGHT, lengths)
    cache.save(tmp_path / "cache")
    loaded = TieredCache.load(tmp_path / "cache", llama.config)
    ends = []
    for each in (cache, loaded):
        batch = Ragged(llama, each, 2)
        batch.mask = torch.tensor([[1] * 231, [0] * 140 + [1] * 91])
        ends.append([batch.turn([drawn(12, 1)[0]] * 2) for _ in range(4)])
    for found, expected in zip(ends[1], ends[0], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert loaded.policy == TIGHT


def test_load_for_another_model(llama: Any, mistral: Any, tmp_path: Path) -> None:
    """A cache of one model does not load for another; one that has not been through a model is not saved."""
    with pytest.raises(ValueError, match="whole model"):
        TieredCache(config=llama.config).save(tmp_path / "cache")
    cache, _ = grown(llama, TIGHT, [(100,)])
    cache.save(tmp_path / "cache")
    with pytest.raises(StorageError, match="windows"):
        TieredCache.load(tmp_path / "cache", mistral.config)
    larger = tiny_llama(num_key_value_heads=4)
    loaded = TieredCache.load(tmp_path / "cache", larger.config)
    with pytest.raises(ValueError, match="1 rows of 2 heads of 16"):
        read(larger, loaded, drawn(13, 1))


def test_half_precision_statistics(llama: Any) -> None:
    """In 16 bits a long cache with the default policy takes about a quarter of what the tokens would."""
    model = copy.deepcopy(llama).to(torch.bfloat16)
    cache = TieredCache(config=model.config)
    read(model, cache, drawn(28, 900))
    statistics = cache.statistics()
    assert statistics.layers == 2
    assert statistics.tokens == 900
    assert statistics.ratio is not None
    assert statistics.ratio < 0.4  # tables and scales weigh more than usual beside heads of 16 numbers
