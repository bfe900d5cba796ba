"""The model and its tokenizer, loaded and tried. Raises `WorkerError` with one line for whatever cannot be served."""

import copy
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_worker import default_threads
from sekisho.engines.torch_worker.admission import LayerShape
from sekisho.engines.torch_worker.checks import DTYPES, place
from sekisho.engines.torch_worker.sampling import SamplingDefaults
from sekisho.engines.worker_process import WorkerError, readable
from sekisho.kv.formats import PAGE
from sekisho.kv.policy import KVPolicy

_PROBE_IDS: Final = 3  # so many ids every vocabulary has


@dataclass(frozen=True)
class Loaded:
    """What runs. `context`: what the settings and the model's own positions allow. `ends`: tokens that end an answer.
    `encoder` and `decoder` are the same tokenizer twice, for two threads."""

    name: str
    model: Any
    encoder: Any
    decoder: Any
    device: torch.device
    context: int
    vocabulary: int
    ends: frozenset[int]
    layers: tuple[LayerShape, ...]
    defaults: SamplingDefaults
    parameters: int
    size_bytes: int

    def cache(self, policy: KVPolicy) -> Any:
        """An empty cache for this model."""
        from sekisho.kv.cache import TieredCache

        return TieredCache(policy, config=self.model.config)

    def step(self, cache: Any, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """(B, n) token ids, each row's first at position `starts[b]`; the logits of the last ones, (B, vocabulary)."""
        ids = torch.tensor(tokens, device=self.device)
        first = torch.tensor(starts, device=self.device)
        positions = first[:, None] + torch.arange(ids.shape[1], device=self.device)
        return _forward(self.model, ids, positions, cache)

    def embedding(self, tokens: Sequence[int]) -> list[float]:
        """The mean of the last layer's states, of length 1."""
        ids = torch.tensor([list(tokens)], device=self.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float().mean(0)
        vector: list[float] = torch.nn.functional.normalize(states, dim=0).tolist()
        return vector


def load(config: ModelConfig, policy: KVPolicy) -> Loaded:
    """Reads weights and tokenizer from disk, never from a network, and tries the model."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    disable_progress_bar()
    folder, file = place(config)
    device = _device(config)
    source = {"gguf_file": file.name} if file is not None else {}
    files = [file] if file is not None else [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    size = sum(each.stat().st_size for each in files)
    torch.set_num_threads(config.threads or default_threads(size))
    _check_memory(folder if file is None else file, size, device)
    tokenizer = _tokenizer(config, folder, source)
    model = _model(config, folder, source, device)
    layers = _probe(config, model, policy, device)
    text = model.config.get_text_config(decoder=True)
    parameters = list(model.parameters())
    return Loaded(
        name=config.name,
        model=model,
        encoder=tokenizer,
        decoder=copy.deepcopy(tokenizer),
        device=device,
        context=min(config.context, getattr(text, "max_position_embeddings", None) or config.context),
        vocabulary=text.vocab_size,
        ends=_ends(model, tokenizer),
        layers=layers,
        defaults=_defaults(model.generation_config),
        parameters=sum(each.numel() for each in parameters),
        size_bytes=sum(each.numel() * each.element_size() for each in parameters),
    )


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _device(config: ModelConfig) -> torch.device:
    asked = config.devices or ("cuda" if torch.cuda.is_available() else "cpu")
    name = f"cuda:{asked}" if asked.isdecimal() else asked
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise WorkerError(f"devices: {asked!r} cannot be used ({_line(error)}); say cpu, or one card as in 0") from None
    return device


def _check_memory(path: Path, size: int, device: torch.device) -> None:
    free = free_bytes(device)
    if size > free:
        raise WorkerError(
            f"{path.name} needs at least {size / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free", final=False
        )


def _faults() -> tuple[type[Exception], ...]:
    """What loading raises over files that are broken or not what they should be."""
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError)


def _tokenizer(config: ModelConfig, folder: Path, source: dict[str, str]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **source)
    except _faults() as error:
        raise WorkerError(f"{folder}: the tokenizer cannot be loaded: {_line(error)}") from error
    if config.chat_template is not None:
        template = Path(config.chat_template).expanduser()
        readable(template, "chat template")
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    return tokenizer


def _model(config: ModelConfig, folder: Path, source: dict[str, str], device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    named = str(config.options.get("dtype", "auto"))
    # Few processors multiply bfloat16 faster than float32, and some much more slowly.
    automatic = torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, named) if named in DTYPES else automatic
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, **source
        )
    except _faults() as error:
        raise WorkerError(f"{folder}: the model cannot be loaded: {_line(error)}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise WorkerError(f"{folder}: {len(missing)} weights are missing, {missing[0]} first")
    return model.to(device).eval()


def _probe(config: ModelConfig, model: Any, policy: KVPolicy, device: torch.device) -> tuple[LayerShape, ...]:
    """Reads a prompt of at least a page and says one token: looks whether every layer keeps them in its tiers, and
    has kernels made before somebody waits for them."""
    from sekisho.kv.cache import TieredCache, register

    count = min(config.context, policy.sinks + policy.recent_window + PAGE)
    try:
        model.set_attn_implementation(register())
        cache = TieredCache(policy, config=model.config)
        positions = torch.arange(count + 1, device=device)[None]
        ids = positions % _PROBE_IDS
        with torch.inference_mode():
            _forward(model, ids[:, :count], positions[:, :count], cache)
            _forward(model, ids[:, count:], positions[:, count:], cache)
    except (ValueError, RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise WorkerError(f"{config.name}: the tiered cache cannot serve this model: {_line(error)}") from error
    if len(cache.tiers) < len(cache.layers) or any(tier.lengths != [count + 1] for tier in cache.tiers):
        raise WorkerError(f"{config.name}: this model's attention goes past the tiered cache")
    return tuple(
        LayerShape(
            tier.shape.kv_heads,
            tier.shape.head_dim,
            tier.shape.dtype.itemsize,
            tier.window,
            tier.shape.device.type == "cpu",
        )
        for tier in cache.tiers
    )


def _forward(model: Any, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
    cache_name, last_only = _arguments(type(model).forward)
    extra: dict[str, Any] = {cache_name: cache, **last_only}
    logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=True, **extra).logits
    return logits[:, -1]


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, dict[str, int]]:
    """What a kind of model calls its cache, and how it is asked for the last token's logits alone, if it can be."""
    named = inspect.signature(forward).parameters
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in named else {}
    return "cache" if "cache" in named else "past_key_values", last_only


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    told = getattr(model.generation_config, "eos_token_id", None)
    ends = [told] if isinstance(told, int) else list(told or ())
    return frozenset(each for each in (*ends, tokenizer.eos_token_id) if each is not None)


def _defaults(told: Any) -> SamplingDefaults:
    plain = SamplingDefaults()
    if not getattr(told, "do_sample", False):
        return plain
    return SamplingDefaults(
        temperature=told.temperature if told.temperature is not None else plain.temperature,
        top_p=told.top_p or plain.top_p,
        top_k=told.top_k or plain.top_k,
    )


def _line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
