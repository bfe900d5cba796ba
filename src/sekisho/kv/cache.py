"""The tiered cache as Hugging Face transformers (5.24 and later) see it.

    cache = TieredCache(KVPolicy(), config=model.config)
    model.set_attn_implementation(register())      # once: attention straight from the tiers
    model.generate(**inputs, cache=cache)

With any other attention implementation the cache answers with dense keys and values: correct, and slow. The padding of
ragged batches is then kept like tokens, for a cache is not told of it; our attention function is, and keeps none.
"""

import copy
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

from sekisho.kv.attention import (
    ATTENTION,
    Call,
    Padding,
    causal,
    decode,
    decode_few,
    evicted,
    extends_few,
    padding_mask,
    prefill,
)
from sekisho.kv.formats import PAGE
from sekisho.kv.kernels import kernel_for
from sekisho.kv.policy import KVPolicy
from sekisho.kv.rows import HeadShape, TieredRows
from sekisho.kv.statistics import CacheStatistics, statistics
from sekisho.kv.storage import OtherShape, load, save

_MARK: Final = "_sekisho_layer"
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


def register() -> str:
    """Makes `attn_implementation="sekisho"` known to transformers; its name. May be called twice."""
    AttentionInterface.register(ATTENTION, tiered_attention)
    AttentionMaskInterface.register(ATTENTION, padding_mask)
    return ATTENTION


def _storing(
    method: Callable[Concatenate["TieredLayer", _Given], _Answer],
) -> Callable[Concatenate["TieredLayer", _Given], _Answer]:
    """What is stored outlives the pass that brings it: it belongs to no autograd graph and is no inference tensor,
    which nobody could write to later. Compilers leave it alone."""

    @wraps(method)
    def apart(self: "TieredLayer", *args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        with torch.inference_mode(False), torch.no_grad():
            return method(self, *args, **kwargs)

    outside: Callable[Concatenate[TieredLayer, _Given], _Answer] = torch.compiler.disable(apart)
    return outside


class TieredLayer(CacheLayerMixin):
    """One layer: `rows` holds the tokens, or None before the first. `seen` counts padding as well."""

    is_croppable = True
    is_sliding = False

    def __init__(self, policy: KVPolicy, config: PreTrainedConfig | None, window: int | None) -> None:
        super().__init__()
        self.policy, self.window = policy, window
        self.rows: TieredRows | None = None
        self.seen = 0
        self._config = config
        self._awaited = False  # tokens were announced by `update` and are not stored yet

    @_storing
    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The model's configuration is shared: it says which attention the model has now."""
        twin = type(self)(self.policy, self._config, self.window)
        twin.rows, twin.seen, twin.is_initialized = copy.deepcopy(self.rows, memo), self.seen, self.is_initialized
        return twin

    @property
    def attends_itself(self) -> bool:
        """Whether the model's attention function is ours."""
        return self._config is not None and self._config._attn_implementation == ATTENTION

    @property
    def batch_size(self) -> int:
        """Rows; AttributeError before the first token, as in layers of transformers."""
        if self.rows is None:
            raise AttributeError("a layer without tokens has no batch size")
        return self.rows.batch

    @_storing
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Raises ValueError for keys and values of different sizes (multi-head latent attention)."""
        if key_states.shape != value_states.shape:
            raise ValueError(
                f"keys {tuple(key_states.shape)} and values {tuple(value_states.shape)} must have the same shape"
            )
        heads, head_dim = key_states.shape[1], key_states.shape[3]
        shape = HeadShape(heads, head_dim, key_states.dtype, key_states.device)
        self.rows = TieredRows(shape, self.policy, self.window)
        self.rows.add_rows(key_states.shape[0])
        self.is_initialized = True

    @torch.compiler.disable
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """With our attention function: the new tokens as they came, marked, to be stored by it. Else they are stored
        and all tokens answered, dense. Raises RuntimeError where an earlier pass ended in the middle."""
        if self._awaited:
            raise RuntimeError(
                "an earlier pass left this cache in the middle (an error, or an attention that is not its own): "
                "call reset() and begin anew"
            )
        if self.rows is None:
            self.lazy_initialization(key_states, value_states)
        else:
            self._check_shape(self.rows, key_states)
        if not self.attends_itself:
            keys, values = self._store(key_states, value_states)
            return torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)
        self._awaited = True
        setattr(key_states, _MARK, self)
        return key_states, value_states

    @staticmethod
    def _check_shape(rows: TieredRows, keys: Tensor) -> None:
        batch, heads, _, head_dim = keys.shape
        if (batch, heads, head_dim) != (rows.batch, rows.shape.kv_heads, rows.shape.head_dim):
            held = f"{rows.batch} rows of {rows.shape.kv_heads} heads of {rows.shape.head_dim} numbers"
            raise ValueError(f"the cache holds {held}; {tuple(keys.shape)} does not fit")

    @_storing
    def _store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What was there before, dense."""
        assert self.rows is not None
        if self.policy.evict or bool(evicted(self.rows).any()):
            raise ValueError(f"a policy that evicts needs the attention {ATTENTION!r}, which knows what is gone")
        if any(length != self.seen for length in self.rows.lengths):
            raise ValueError(f"a padded batch that began with the attention {ATTENTION!r} must go on with it")
        before = self.rows.materialise()
        self.rows.extend(keys, values)
        self.seen += keys.shape[2]
        return before

    @_storing
    def attend(self, query: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None, call: Call) -> Tensor:
        """Stores the tokens of `update` and answers their attention, (B, heads, n, D). `padding` (B, tokens) as the
        model has it. Raises ValueError for padding that is not at the left."""
        assert self.rows is not None
        if not self._awaited:
            raise ValueError("layers that share keys and values with another layer are not known to the tiered cache")
        count = query.shape[2]
        skips = [0] * self.rows.batch
        if padding is not None:
            noted = Padding.of(padding, self.seen, count)
            noted.check(self.rows.lengths)
            skips = noted.skips
        if count == 1 and self.seen and not any(skips):
            output = decode(self.rows, query, keys, values, call, kernel_for(query.device))
        elif self.seen and extends_few(self.rows, query, skips, call):
            output = decode_few(self.rows, query, keys, values, call, kernel_for(query.device))
        else:
            output = prefill(self.rows, query, keys, values, skips, call)
        self.seen += count
        self._awaited = False
        return output

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """The cache does its own moving between memories (`host_copy`)."""

    def prefetch(self) -> None:
        """See `offload`."""

    def reset(self) -> None:
        self.rows, self.seen, self.is_initialized, self._awaited = None, 0, False, False

    @_storing
    def crop(self, tokens_to_remove: int) -> None:
        """See `TieredCache.crop`, which asks `check_crop` first."""
        if self.rows is not None and tokens_to_remove:
            self.rows.drop_last(-tokens_to_remove)
            self.seen = max(0, self.seen + tokens_to_remove)

    def check_crop(self, count: int) -> None:
        """Raises ValueError where the sliding window would reach back to what is no longer there."""
        if self.rows is None or self.window is None:
            return
        rows = self.rows
        for length, sinks, forgotten in zip(rows.lengths, rows.sink_lengths, rows.table.forgotten, strict=True):
            if forgotten and length - count - self.window < sinks + forgotten * PAGE:
                raise ValueError(f"{count} tokens are too many to take back from a window of {self.window} tokens")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copies share their pages until they differ."""
        if self.rows is not None:
            self._select([row for row in range(self.rows.batch) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.rows is not None:
            self._select((indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices).tolist())

    @_storing
    def _select(self, rows: list[int]) -> None:
        assert self.rows is not None
        if rows != list(range(self.rows.batch)):
            self.rows.select(rows)

    @_storing
    def apply(self, policy: KVPolicy) -> None:
        """See `TieredCache.apply`."""
        self.policy = policy
        if self.rows is not None:
            self.rows.apply(policy)


class TieredCache(Cache):
    """A cache for one model. `config`: the model's, which says how many layers there are and which of them see only a
    window; without it, layers are made as they come and tokens are answered dense. One policy for all layers; `apply`
    changes it between two tokens. Raises ValueError for models whose layers are not all attention with keys and values
    of their own. Not for several threads."""

    layers: list[Any]  # `TieredLayer`s, but transformers promises that any layer may be put there

    def __init__(self, policy: KVPolicy | None = None, config: PreTrainedConfig | None = None) -> None:
        self.policy = policy or KVPolicy()
        if config is None:
            make: Any = self._new_layer  # transformers only calls it
            super().__init__(layer_class_to_replicate=make)
            return
        text = config.get_text_config(decoder=True)
        super().__init__(layers=[TieredLayer(self.policy, text, window) for window in layer_windows(text)])

    def _new_layer(self) -> TieredLayer:
        return TieredLayer(self.policy, None, None)

    @property
    def tiers(self) -> list[TieredRows]:
        """The rows of each layer that has seen a token."""
        return [layer.rows for layer in self.layers if layer.rows is not None]

    def apply(self, policy: KVPolicy) -> None:
        """From the next token on another policy, in every layer; pages that are there change at once where they can."""
        self.policy = policy
        for layer in self.layers:
            layer.apply(policy)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last tokens of each sequence back; `tokens_to_remove` is zero or negative, as transformers has it.
        Raises ValueError, and changes nothing, where a sliding window would reach back to what is no longer there."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, not {tokens_to_remove}")
        for layer in self.layers:
            layer.check_crop(-tokens_to_remove)
        super().crop(tokens_to_remove)

    def fork(self, copies: int) -> "TieredCache":
        """Another cache in which each sequence stands `copies` times, one copy beside the other; they share their
        pages. For many continuations of one prompt: this cache stays as it is."""
        forked = copy.deepcopy(self)
        forked.batch_repeat_interleave(copies)
        return forked

    def statistics(self) -> CacheStatistics:
        """What the cache holds now, all layers together."""
        return statistics(self.tiers)

    def save(self, path: Path) -> None:
        """To a file, bit for bit. Raises ValueError where not every layer has tokens, OSError as `storage.save`."""
        if not self.layers or len(self.tiers) != len(self.layers):
            raise ValueError("a cache is saved after a pass through the whole model")
        save(path, self.tiers, self.policy, self.get_seq_length())

    @classmethod
    def load(cls, path: Path, config: PreTrainedConfig, device: torch.device | str = "cpu") -> Self:
        """A cache that was saved, for the same model. Raises `storage.StorageError`, OSError as `storage.load`."""
        with torch.inference_mode(False):
            stored = load(path, torch.device(device))
        cache = cls(stored.policy, config)
        windows = [layer.window for layer in cache.layers]
        if [rows.window for rows in stored.tiers] != windows:
            raise OtherShape(f"{path} holds layers with windows other than the model's, {windows}")
        for layer, rows in zip(cache.layers, stored.tiers, strict=True):
            layer.rows, layer.seen, layer.is_initialized = rows, stored.seen, True
        return cache


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """How many tokens back each layer sees; None: all. Raises ValueError for layers that are no plain attention."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("the tiered cache is for decoders alone, not for models with an encoder")
    kinds, arguments = get_layer_types_and_kwargs(config)
    if "dummy" in kinds:
        raise ValueError("the tiered cache needs keys and values of its own in every layer; here some layers have none")
    strange = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if strange:
        raise ValueError(f"the tiered cache has no layers of the kind {', '.join(strange)}")
    return [each.get("sliding_window") for each in arguments]


class _NoGradient(torch.autograd.Function):
    """Says so, where somebody asks for gradients through what is stored; an answer without any would be wrong."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, query: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("no gradient passes through a TieredCache: train without one, use_cache=False")


@torch.compiler.disable
def tiered_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of `register`: (B, n, heads, D) and no weights. `attention_mask`: from `padding_mask`.
    Without a `TieredCache` it is plain causal attention. Raises ValueError for what it cannot do."""
    _refuse_unknown(module, attention_mask, dropout, kwargs)
    call = Call(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, s_aux)
    layer: TieredLayer | None = getattr(key, _MARK, None)
    if layer is None:
        starts = [0] * query.shape[0]
        if attention_mask is not None:
            starts = Padding.of(attention_mask, 0, key.shape[2]).skips
        output = causal(query, key, value, starts, sliding_window, call)
    else:
        if sliding_window != layer.window:
            raise ValueError(f"the layer has a window of {sliding_window} tokens, its cache one of {layer.window}")
        output = layer.attend(query, key, value, attention_mask, call)
        if torch.is_grad_enabled() and query.requires_grad:
            output = _NoGradient.apply(output, query)
    return output.transpose(1, 2).contiguous(), None


def _refuse_unknown(module: torch.nn.Module, mask: Tensor | None, dropout: float, options: dict[str, Any]) -> None:
    reason = None
    is_causal = options.get("is_causal")
    if mask is not None and mask.ndim != 2:
        reason = f"takes a padding mask (B, tokens), not {tuple(mask.shape)}"
    elif dropout:
        reason = "is for inference and has no dropout: call model.eval()"
    elif options.get("output_attentions"):
        reason = "gives no attention weights: output_attentions needs attn_implementation='eager'"
    elif options.get("position_bias") is not None:
        reason = "has no position bias"
    elif not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        reason = "is causal: layers that see both sides (vision, encoders) need another attn_implementation"
    if reason is not None:
        raise ValueError(f"the attention {ATTENTION!r} {reason}")


__all__ = ["ATTENTION", "TieredCache", "TieredLayer", "layer_windows", "register", "tiered_attention"]
