"""What the tiered cache and its attention refuse, and how they live with other attentions, modes and compilers."""

import copy
import gc
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from tiny_models import DENSE, EVICTING, SIZES, TIGHT, drawn, read, singly, tiny_llama
from transformers import LlamaConfig, StaticCache
from transformers.masking_utils import create_chunked_causal_mask, create_sliding_window_causal_mask

from sekisho.kv import TieredCache

pytestmark = [pytest.mark.kv, pytest.mark.usefixtures("one_thread")]


def graphs() -> list[Any]:
    """All tensors of this process that hold one."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.grad_fn is not None]


def test_gradients(llama: Any) -> None:
    """What is stored holds no graph; whoever asks for gradients through it is told, and the memory is free again."""
    others = graphs()  # of tests before this one
    cache = TieredCache(TIGHT, config=llama.config)
    tokens = drawn(14, 130)
    for part in (tokens[:, :120], tokens[:, 120:121], tokens[:, 121:]):
        logits = llama(part, cache=cache).logits
        assert logits.requires_grad
        with pytest.raises(RuntimeError, match="no gradient passes through a TieredCache"):
            logits.sum().backward()
    kept = [each for tier in cache.tiers for each in tier.state()[0].values()]
    assert kept
    assert not any(each.requires_grad for each in kept)
    del logits
    assert {id(each) for each in graphs()} <= {id(each) for each in others}


def test_gradients_with_another_attention(llama: Any) -> None:
    """With an attention that is not its own, a prompt's gradients are those without a cache."""
    model = copy.deepcopy(llama)
    model.set_attn_implementation("sdpa")
    tokens, found = drawn(15, 90), []
    for cache in (None, TieredCache(TIGHT, config=model.config)):
        model.zero_grad()
        model(tokens, cache=cache).logits.square().sum().backward()
        found.append([each.grad.clone() for each in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_inference_mode(llama: Any) -> None:
    """A cache that was filled in inference mode goes on outside it, and the other way round."""
    tokens = drawn(16, 200)
    expected = read(llama, TieredCache(TIGHT, config=llama.config), tokens[:, :150], *singly(tokens[:, 150:]))
    cache = TieredCache(TIGHT, config=llama.config)
    found = []
    for number, part in enumerate((tokens[:, :150], *singly(tokens[:, 150:]))):
        with torch.inference_mode(number % 3 == 0):
            found.append(llama(part, cache=cache).logits.detach().clone())
    torch.testing.assert_close(torch.cat(found, 1), expected)
    with torch.inference_mode():
        forked = cache.fork(2)
        forked.crop(-100)
    assert read(llama, forked, drawn(17, 3, rows=2)).shape == (2, 3, 96)


def test_attention_changes_midway(llama: Any) -> None:
    """A model may get another attention implementation between two passes over the same cache."""
    model = copy.deepcopy(llama)
    cache = TieredCache(DENSE, config=model.config)
    tokens = drawn(18, 240)
    found = [read(model, cache, tokens[:, :200])]
    for attention, at in (("sdpa", 200), ("sekisho", 210), ("eager", 220), ("sekisho", 230)):
        model.set_attn_implementation(attention)
        found.append(read(model, cache, tokens[:, at : at + 5], *singly(tokens[:, at + 5 : at + 10])))
    torch.testing.assert_close(torch.cat(found, 1), read(llama, None, tokens), atol=1e-3, rtol=0)


def test_without_a_configuration(llama: Any) -> None:
    """Without the model's configuration layers are made as they come, and the answers are dense, with any attention."""
    tokens = drawn(19, 200)
    expected = read(llama, None, tokens)
    model = copy.deepcopy(llama)
    for attention in ("sekisho", "sdpa"):
        model.set_attn_implementation(attention)
        cache = TieredCache(DENSE)
        found = read(model, cache, tokens[:, :180], *singly(tokens[:, 180:190]), tokens[:, 190:])
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        assert len(copy.deepcopy(cache)) == 2


def test_padding_at_the_right(llama: Any) -> None:
    """Padding at the right, or in the middle of a turn, is refused with what to do, and what follows is not wrong."""
    tokens = drawn(20, 6, rows=2)
    for mask in ([1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1]):
        cache = TieredCache(config=llama.config)
        padded = torch.tensor([[1] * 6, mask])
        with pytest.raises(ValueError, match="padding_side = 'left'"):
            llama(tokens, attention_mask=padded, cache=cache)
        with pytest.raises(RuntimeError, match="in the middle"):
            read(llama, cache, tokens)
        cache.reset()
        torch.testing.assert_close(read(llama, cache, tokens), read(llama, None, tokens))
        with pytest.raises(ValueError, match="padding_side = 'left'"):
            llama(tokens, attention_mask=padded, use_cache=False)


def test_mask_that_does_not_fit(llama: Any) -> None:
    """A mask that contradicts what the cache holds is refused, not guessed at."""
    cache = TieredCache(config=llama.config)
    read(llama, cache, drawn(21, 10, rows=2))
    hidden = torch.ones(2, 11, dtype=torch.long)
    hidden[0, :4] = 0
    with pytest.raises(ValueError, match=r"shows \[6, 10\] tokens"):
        llama(drawn(22, 1, rows=2), attention_mask=hidden, cache=cache)
    cache = TieredCache(config=llama.config)
    read(llama, cache, drawn(21, 10, rows=2))
    with pytest.raises(ValueError, match="does not fit 10 before and 2 new"):
        llama(drawn(22, 2, rows=2), attention_mask=torch.tensor([[1, 1], [0, 1]]), cache=cache)


def test_refusals(llama: Any) -> None:
    """What the attention cannot do is said where it is asked for: weights, dropout, masks, static caches."""
    tokens = drawn(23, 8)
    with pytest.raises(ValueError, match="output_attentions"):
        llama(tokens, output_attentions=True)
    with pytest.raises(ValueError, match="padding mask"):
        llama(tokens, attention_mask=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="no others"):
        llama(tokens, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), use_cache=False)
    with pytest.raises(ValueError, match="no static cache"):
        llama(tokens, cache=StaticCache(config=llama.config, max_cache_len=32))
    with pytest.raises(ValueError, match="dropout"):
        tiny_llama(attention_dropout=0.1).train()(tokens)


def test_chunked_masks(llama: Any) -> None:
    """Chunks are told from sliding windows, which are known, whatever their sizes and the padding."""
    embedded, cache = torch.zeros(2, 9, 4), None
    config = LlamaConfig(**SIZES, attention_chunk_size=4, sliding_window=4)
    config._attn_implementation = llama.config._attn_implementation
    for start in range(4):
        mask = torch.arange(9).expand(2, 9) >= start
        known = create_sliding_window_causal_mask(config, embedded, mask, cache)
        assert known is None if start == 0 else torch.equal(known, mask)
        with pytest.raises(ValueError, match="no others"):
            create_chunked_causal_mask(config, embedded, mask, cache)


def test_evicting_needs_its_attention(llama: Any) -> None:
    """A policy that evicts is refused with an attention that would take what is gone for tokens."""
    model = copy.deepcopy(llama)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="needs the attention 'sekisho'"):
        read(model, TieredCache(EVICTING, config=model.config), drawn(24, 4))
    model.set_attn_implementation("sekisho")
    cache = TieredCache(EVICTING, config=model.config)
    read(model, cache, drawn(24, 245))
    cache.apply(TIGHT)  # evicts nothing more, and brings nothing back
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="needs the attention 'sekisho'"):
        read(model, cache, drawn(25, 1))


class Broken(Exception):
    """What goes wrong in the middle of a pass."""


def test_interrupted_pass(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that failed in some layer leaves a cache that says so, until it is reset."""
    cache, tokens = TieredCache(TIGHT, config=llama.config), drawn(31, 100)
    read(llama, cache, tokens)

    def fail(*_: Any) -> None:
        raise Broken

    with monkeypatch.context() as patched:
        patched.setattr(cache.layers[1].rows, "extend", fail)
        with pytest.raises(Broken):
            read(llama, cache, drawn(32, 1))
    with pytest.raises(RuntimeError, match="in the middle"):
        read(llama, cache, drawn(32, 1))
    cache.reset()
    assert read(llama, cache, tokens).shape == (1, 100, 96)


def test_padded_rows_keep_their_attention(llama: Any) -> None:
    """A padded batch cannot go over to an attention that would not know where its rows begin."""
    model = copy.deepcopy(llama)
    cache = TieredCache(DENSE, config=model.config)
    mask = torch.tensor([[1] * 20, [0] * 11 + [1] * 9])
    with torch.no_grad():
        model(drawn(25, 20, rows=2), attention_mask=mask, cache=cache)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="must go on with it"):
        read(model, cache, drawn(25, 1, rows=2))


def test_another_batch(llama: Any) -> None:
    """A batch of another size than the cache holds is refused with both sizes."""
    cache = TieredCache(config=llama.config)
    read(llama, cache, drawn(26, 5, rows=2))
    with pytest.raises(ValueError, match=r"2 rows .* \(3, 2, 1, 16\) does not fit"):
        read(llama, cache, drawn(26, 1, rows=3))


def test_compiled() -> None:
    """torch.compile changes nothing in what a model with a tiered cache answers."""
    model = tiny_llama(num_hidden_layers=1)
    tokens = drawn(27, 122)
    parts = (tokens[:, :120], *singly(tokens[:, 120:]))
    expected = read(model, TieredCache(TIGHT, config=model.config), *parts)
    compiled = torch.compile(model, backend="eager")
    found = read(compiled, TieredCache(TIGHT, config=model.config), *parts)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
