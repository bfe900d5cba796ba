"""The rivals: what they keep, what it costs, and how true it is."""

import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from transformers.cache_utils import Cache

from sekisho.kv import TieredCache
from sekisho.kv.bench import prompt as prompts
from sekisho.kv.bench.contenders import CONTENDERS, contender, ours
from sekisho.kv.bench.evicting import EvictingLayer, HeavyHitterLayer, SnapLayer
from sekisho.kv.bench.held import dense_bytes, held_bytes
from sekisho.kv.bench.layers import Call, DenseLayer, RivalLayer, Seen, attend, summed_weights
from sekisho.kv.bench.quantising import KiviLayer, UniformLayer, library_layers, packed, unpacked
from sekisho.kv.bench.unavailable import Unavailable
from sekisho.kv.policy import KVPolicy

pytestmark = pytest.mark.kv


def random(*size: int, seed: int = 0) -> Any:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def told(layer: RivalLayer, count: int, times: int = 1, seed: int = 0) -> tuple[Any, Any]:
    """A layer that has been given 2 heads x `count` tokens of 32 numbers, `times` over; what it was given."""
    given = [[random(1, 2, count, 32, seed=seed + 2 * each + half) for half in range(2)] for each in range(times)]
    for keys, values in given:
        read_keys, read_values = layer.update(keys, values)
        layer.look(Seen(random(1, 4, count, 32, seed=99), read_keys, read_values, Call(32**-0.5)))
    keys, values = (torch.cat([each[half] for each in given], 2) for half in range(2))
    return keys, values


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(0, 99))
def test_packing_loses_nothing(bits: int, bytes_: int, seed: int) -> None:
    """Codes of 1, 2, 4 and 8 bits come back as they were, in bits / 8 bytes each."""
    codes = torch.randint(0, 2**bits, (3, bytes_ * 8 // bits), generator=torch.Generator().manual_seed(seed))
    whole = packed(codes, bits)
    assert whole.shape == (3, bytes_)
    assert torch.equal(unpacked(whole, bits).long(), codes)


@pytest.mark.parametrize(
    "layer",
    [
        DenseLayer(torch.float32),
        KiviLayer(torch.float32, bits=2, group=32, residual=1000),
        SnapLayer(torch.float32, share=1.0),
        HeavyHitterLayer(torch.float32, share=1.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_rival_that_may_keep_everything_is_full_precision(layer: RivalLayer) -> None:
    """Without a byte to save, keys and values come back bit for bit, in their order."""
    keys, values = told(layer, 70, times=3)
    kept_keys, kept_values = layer.read()
    assert torch.equal(kept_keys, keys)
    assert torch.equal(kept_values, values)
    assert layer.get_seq_length() == 210


@settings(max_examples=20)
@given(st.sampled_from([2, 4, 8]), st.sampled_from([32, 64]), st.integers(0, 40), st.integers(1, 150))
def test_kivi_errs_by_half_a_step_at_most(bits: int, group: int, residual: int, count: int) -> None:
    """Old tokens come back within half a step of their group, the window's bit for bit; what is dense is fewer than
    `residual` plus a group."""
    layer = KiviLayer(torch.float32, bits, group, residual)
    keys, values = told(layer, count)
    kept_keys, kept_values = layer.read()
    old = max(0, count - residual) // group * group
    assert kept_keys.shape == keys.shape
    assert torch.equal(kept_keys[:, :, old:], keys[:, :, old:])
    assert count - old < residual + group
    for numbers, kept, axis in ((keys, kept_keys, 2), (values, kept_values, 3)):
        span = numbers[:, :, :old].amax(axis, keepdim=True) - numbers[:, :, :old].amin(axis, keepdim=True) if old else 0
        assert bool(((kept - numbers)[:, :, :old].abs() <= span / (2**bits - 1) * 0.51 + 0.01).all())


@pytest.mark.parametrize("rotated", [False, True])
def test_uniform_codes_err_less_with_more_bits(rotated: bool) -> None:
    """Eight bits err by less than a hundredth of the numbers' size, four by less than a tenth, and both by more than
    nothing; the number of largest magnitude in a group errs least."""
    errors = []
    for bits in (8, 4):
        layer = UniformLayer(torch.float32, bits, rotated)
        keys, _ = told(layer, 40)
        errors.append(float((layer.read()[0] - keys).square().mean().sqrt()))
    assert 0 < errors[0] < 0.01
    assert errors[0] < errors[1] < 0.15


@settings(max_examples=15)
@given(st.sampled_from([SnapLayer, HeavyHitterLayer]), st.floats(0.2, 0.9), st.integers(100, 200), st.integers(1, 40))
def test_eviction_keeps_its_share(kind: type[EvictingLayer], share: float, first: int, more: int) -> None:
    """After any block a layer keeps just its share of all tokens, as they came and in their order, the last ones among
    them, and still counts all."""
    layer = kind(torch.float32, share)
    keys, _ = told(layer, first)
    new = random(1, 2, more, 32, seed=7)
    read_keys, read_values = layer.update(new, new)
    layer.look(Seen(random(1, 4, more, 32, seed=8), read_keys, read_values, Call(32**-0.5)))
    keys = torch.cat((keys, new), 2)
    kept, _ = layer.read()
    allowed = max(layer.least, int(share * (first + more)))
    assert kept.shape[2] == allowed + (kept.shape[2] - allowed if more == 1 else 0)
    assert layer.get_seq_length() == first + more
    assert torch.equal(kept[:, :, -1], keys[:, :, -1])
    for head in range(2):
        same = (kept[0, head][:, None] == keys[0, head][None]).all(-1)
        where = same.float().argmax(1)
        assert bool(same.any(1).all())
        assert bool((where[1:] > where[:-1]).all())


@pytest.mark.parametrize("kind", [SnapLayer, HeavyHitterLayer])
def test_eviction_keeps_what_is_looked_at(kind: type[EvictingLayer]) -> None:
    """A token in the middle on which all queries lie survives; with nothing to look at it does not."""
    for scale, survives in ((30.0, True), (0.0, False)):
        layer = kind(torch.float32, 0.1)
        keys, values = random(1, 1, 600, 32) * 0.01, random(1, 1, 600, 32, seed=1)
        keys[:, :, 123] = 1.0
        query = torch.ones(1, 1, 600, 32) * scale
        if not survives:  # the fewest votes of all
            query = -torch.ones(1, 1, 600, 32) * 30
        read_keys, read_values = layer.update(keys, values)
        layer.look(Seen(query, read_keys, read_values, Call(32**-0.5)))
        kept, _ = layer.read()
        assert bool((kept == 1.0).all(-1).any()) is survives


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 300), st.sampled_from([None, 5, 1000]), st.sampled_from([None, 20.0]))
def test_attention_over_a_past_is_the_end_of_attention_over_all(
    count: int, past: int, window: int | None, softcap: float | None
) -> None:
    """The last tokens' attention, asked for alone, is what it is within the whole; the weights sum to one a query."""
    call = Call(32**-0.5, window, softcap)
    query, keys, values = (
        random(1, 4, past + count, 32),
        random(1, 2, past + count, 32, seed=1),
        random(1, 2, past + count, 32, seed=2),
    )
    whole = attend(query, keys, values, call)
    alone = attend(query[:, :, past:], keys, values, call)
    torch.testing.assert_close(alone, whole[:, :, past:], rtol=1e-4, atol=1e-5)
    weights = summed_weights(query[:, :, past:], keys, call)
    torch.testing.assert_close(weights.sum(2), torch.full((1, 2), float(count)))


def test_attention_knows_sink_logits() -> None:
    """A logit that carries no value takes its part of the weight: with a huge one nothing is left of the values."""
    query, keys, values = (random(1, 2, 9, 32, seed=each) for each in range(3))
    plain = attend(query, keys, values, Call(0.2))
    without = attend(query, keys, values, Call(0.2, sinks=torch.full((2,), -1e9)))
    torch.testing.assert_close(without, plain)
    assert float(attend(query, keys, values, Call(0.2, sinks=torch.full((2,), 1e4))).abs().max()) == 0


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_bytes_are_storages_and_each_counts_once() -> None:
    """A view counts as all that it keeps alive, two names for one storage count once, wherever they lie."""

    class Holder:
        def __init__(self) -> None:
            whole = torch.zeros(1000, dtype=torch.uint8)
            self.slice = whole[:3]
            self.again = {"deep": [(whole, whole.view(torch.int8))]}
            self.other = torch.zeros(10, dtype=torch.float16)
            self.itself = self

    assert held_bytes(Holder()) == 1020


def _expected(name: str, tokens: int) -> float | None:
    """Bytes of a layer's 2 heads x 32 numbers, by hand: codes, scales, dense tokens."""
    numbers = 2 * 2 * 32
    match name:
        case "full":
            return numbers * 2 * tokens
        case "uniform-8bit":
            return numbers * tokens * (8 + 16 / 32) / 8
        case "uniform-4bit" | "uniform-4bit-rotated":
            return numbers * tokens * (4 + 16 / 32) / 8
        case "kivi-4bit-g32" | "kivi-2bit-g32":
            bits = int(name[5])
            old = (tokens - 128) // 32 * 32
            return numbers * (old * (bits + 2 * 16 / 32) / 8 + (tokens - old) * 2)
        case "transformers-fp8-8bit":
            return numbers * tokens
    return None


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_reported_bytes_are_what_the_rival_holds(model: Any, name: str) -> None:
    """Every cache that can be made holds the bytes that its format says, or that it counts itself, and all rivals but
    the dense one fewer than 16 bits take."""
    tokens = 400
    ids = torch.randint(3, 300, (1, tokens), generator=torch.Generator().manual_seed(1))
    prompts.register()
    prompt, _ = prompts.read(model, ids)
    try:
        cache = contender(name).cache(model.config, torch.float16)
    except Unavailable as error:
        pytest.skip(f"{name}: {error}")
    model.set_attn_implementation(contender(name).attention)
    prompts.hand_over(prompt, cache)
    held, dense = held_bytes(cache), dense_bytes(2, 32, 3, tokens)
    assert prompts.share_of(cache, prompt, tokens) == held / dense
    expected = _expected(name, tokens)
    if expected is not None:
        assert held == pytest.approx(3 * expected, abs=200)
    if name == "tiered":  # its own count, which leaves out the rotation and the like
        assert isinstance(cache, TieredCache)
        assert 1 <= held / sum(rows.allocated_bytes for rows in cache.tiers) < 1.1
    elif name != "full":
        assert held < dense


@pytest.mark.parametrize("name", ["kivi-2bit-g32", "snapkv", "h2o", "tiered"])
def test_a_dial_goes_as_far_as_the_target_allows(model: Any, name: str) -> None:
    """At a target the measured share is at most that, and less than a seventh below; an impossible target is refused,
    and the least share that there is told."""
    ids = torch.randint(3, 300, (1, 500), generator=torch.Generator().manual_seed(1))
    prompts.register()
    prompt, _ = prompts.read(model, ids)
    each = ours(KVPolicy(recent_window=16)) if name == "tiered" else contender(name)
    chosen = prompts.settled(each, model, prompt, 0.7)
    cache = chosen.cache(model.config, torch.float16)
    model.set_attn_implementation(chosen.attention)
    prompts.hand_over(prompt, cache)
    assert 0.6 < prompts.share_of(cache, prompt, 500) <= 0.7
    with pytest.raises(Unavailable, match="at least"):
        prompts.settled(each, model, prompt, 0.01)


def test_who_has_no_dial_says_so(model: Any) -> None:
    """A rival whose bytes are fixed takes part at its natural point alone, and an unknown one is told who there is."""
    prompts.register()
    prompt, _ = prompts.read(model, torch.randint(3, 300, (1, 50)))
    with pytest.raises(Unavailable, match="natural point"):
        prompts.settled(contender("full"), model, prompt, 0.5)
    with pytest.raises(ValueError, match="kivi-2bit-g32"):
        contender("nobody")


@pytest.mark.parametrize("name", ["full", "tiered"])
def test_a_prompt_handed_over_is_a_prompt_read(model: Any, name: str) -> None:
    """A cache that was handed a recorded prompt holds what it holds after the model has read that prompt with it."""
    ids = torch.randint(3, 300, (1, 300), generator=torch.Generator().manual_seed(2))
    following = torch.tensor([[5]])
    prompts.register()
    prompt, _ = prompts.read(model, ids)
    each = contender(name)
    model.set_attn_implementation(each.attention)
    read, handed = (each.cache(model.config, torch.float16) for _ in range(2))
    prompts.hand_over(prompt, handed)
    with torch.no_grad():
        model(ids, cache=read)
        expected, found = (model(following, cache=cache).logits for cache in (read, handed))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert isinstance(handed, Cache)
    assert handed.get_seq_length() == read.get_seq_length() == 301
    assert held_bytes(handed) == held_bytes(read)


def test_a_length_that_a_library_cannot_pack_is_told() -> None:
    """HQQ packs two numbers of four bits into a byte: an odd number of groups is no figure, and the run goes on."""
    pytest.importorskip("hqq", reason="needs the group kv")
    from transformers import LlamaConfig

    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}
    options = {"nbits": 4, "axis_key": 1, "axis_value": 1, "q_group_size": 64}
    (layer,) = library_layers(LlamaConfig(num_hidden_layers=1, **sizes), torch.float16, "hqq", **options)
    with pytest.raises(Unavailable, match="does not take 5 tokens"):
        layer.store(random(1, 1, 5, 64).half(), random(1, 1, 5, 64).half())
