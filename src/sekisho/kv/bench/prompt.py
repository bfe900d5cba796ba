"""A prompt, read once by the model in full precision and then handed to every contender: queries, keys and values of
each layer as they came. So all of them start from the same state, and none pays for the model's own work again."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sekisho.kv import cache as tiered
from sekisho.kv.bench import layers
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.held import dense_bytes, held_bytes
from sekisho.kv.bench.layers import RecordingLayer, RivalLayer, Seen
from sekisho.kv.bench.unavailable import Unavailable

_PROBED_LAYERS = 3  # that decide about a dial: all layers have the same shape
_TRIES = 12
_CLOSE = 0.01  # of the target: nearer is not looked for


@dataclass(frozen=True)
class Prompt:
    """`seen` by layer; `logits` (1, vocabulary) after the last token. `later`: passes after the prompt, of the first
    layers, by layer; bytes are then compared after these."""

    seen: list[Seen]
    logits: Tensor
    tokens: int
    later: list[list[Seen]] = field(default_factory=list)

    @property
    def kv_heads(self) -> int:
        return int(self.seen[0].keys.shape[1])

    @property
    def head_dim(self) -> int:
        return int(self.seen[0].keys.shape[3])


def register() -> None:
    """Makes both attention implementations known to transformers."""
    layers.register()
    tiered.register()


def read(model: PreTrainedModel, tokens: Tensor) -> tuple[Prompt, Cache]:
    """(1, n) token ids; the prompt, and the cache in the model's own precision."""
    cache = layers.recording_cache(model.config.get_text_config(decoder=True).num_hidden_layers)
    model.set_attn_implementation(layers.ATTENTION)
    with torch.no_grad():
        logits = model(tokens, cache=cache, logits_to_keep=1).logits[:, -1]
    seen = []
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, RecordingLayer)
        if not layer.passes:
            raise Unavailable("the model does not go through transformers' attention interface")
        seen.append(layer.passes[0])
        layer.looks = index < _PROBED_LAYERS
    return Prompt(seen, logits, tokens.shape[1]), cache


def followed(prompt: Prompt, cache: Cache) -> Prompt:
    """The prompt with what the cache of `read` has recorded since."""
    recording: list[Any] = cache.layers[:_PROBED_LAYERS]
    return replace(prompt, later=[layer.passes[1:] for layer in recording])


def storage_dtype(model: PreTrainedModel) -> torch.dtype:
    """What dense tokens are stored in: the model's own type where that has 16 bits, else float16."""
    return model.dtype if model.dtype.itemsize == 2 else torch.float16


def hand_over(prompt: Prompt, cache: Cache, first_layers: int | None = None) -> None:
    """Gives a cache the prompt, as the model's layers would. `first_layers`: only these."""
    with torch.no_grad():
        for index, seen in enumerate(prompt.seen[:first_layers]):
            _give(cache, index, seen)


def _give(cache: Cache, index: int, seen: Seen) -> None:
    """One layer's new tokens. Rivals are shown the attention; the tiers compute it, for they store in doing so."""
    layer = cache.layers[index]
    keys, values = cache.update(seen.keys.view_as(seen.keys), seen.values, index)
    if isinstance(layer, RivalLayer):
        layer.look(Seen(seen.query, keys, values, seen.call))
        return
    module = torch.nn.Identity()  # stands for the model's layer, of which nothing is asked
    call = seen.call
    options = {"scaling": call.scaling, "softcap": call.softcap, "s_aux": call.sinks}
    tiered.tiered_attention(module, seen.query, keys, values, None, sliding_window=call.window, **options)


def share_of(cache: Cache, prompt: Prompt, tokens: int, measured_layers: int | None = None) -> float:
    """Bytes held, of what the tokens take at 16 bits."""
    count = measured_layers or len(prompt.seen)
    rows = int(prompt.seen[0].keys.shape[0])
    return held_bytes(cache) / (rows * dense_bytes(prompt.kv_heads, prompt.head_dim, count, tokens))


def settled(contender: Contender, model: PreTrainedModel, prompt: Prompt, target: float | None) -> Contender:
    """`settled_for` a model."""

    def empty(turned: Contender) -> Cache:
        model.set_attn_implementation(turned.attention)
        return turned.cache(model.config, storage_dtype(model))

    return settled_for(contender, empty, prompt, target)


def settled_for(
    contender: Contender, empty: Callable[[Contender], Cache], prompt: Prompt, target: float | None
) -> Contender:
    """The contender with its dial as high as its measured bytes, after the prompt and what came later, stay within
    `target`; as it is for None. `empty` makes its cache. Raises Unavailable where that cannot be, with the least share
    that it reaches."""
    dial = contender.dial
    if target is None:
        return contender
    if dial is None:
        raise Unavailable("its bytes cannot be chosen; see its natural point")

    tokens = prompt.tokens + sum(seen.query.shape[2] for seen in (prompt.later[0] if prompt.later else []))

    def share(at: float) -> float:
        cache, count = empty(contender.turned(at)), min(_PROBED_LAYERS, len(prompt.seen))
        hand_over(prompt, cache, count)
        with torch.no_grad():
            for index, passes in enumerate(prompt.later[:count]):
                for seen in passes:
                    _give(cache, index, seen)
        return share_of(cache, prompt, tokens, count)

    low, high = (dial.least, share(dial.least)), (dial.most(tokens), 0.0)
    if low[1] > target:
        raise Unavailable(f"holds at least {low[1]:.1%} of the 16-bit bytes at {tokens} tokens")
    high = (high[0], share(high[0]))
    for number in range(_TRIES):
        if high[1] <= target:
            return contender.turned(high[0])
        if low[1] >= target * (1 - _CLOSE):
            break
        # Bytes rise nearly in a straight line with a dial, but some have a floor: halving by turns finds its end.
        line = (target * (1 - _CLOSE / 2) - low[1]) / (high[1] - low[1])
        at = low[0] + (high[0] - low[0]) * (line if number % 2 else 0.5)
        found = (at, share(at))
        low, high = (found, high) if found[1] <= target else (low, found)
    return contender.turned(low[0])
