"""The tiered cache in models of every architecture that it is made for, and its refusal of others."""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

import transformers
from tiny_models import DENSE, SIZES

from sekisho.kv import KVPolicy, LevelThresholds, TieredCache, register
from sekisho.kv.cache import layer_windows

pytestmark = [pytest.mark.kv, pytest.mark.usefixtures("one_thread")]

PROMPT, TURN, DRAFT, END = 180, 210, 220, 232  # tokens: a prompt, a second turn, some at once, then one by one
SLIDING = 100  # tokens: shorter than the prompt, so that pages fall behind it

EIGHT_BITS = KVPolicy(
    recent_window=16, sinks=4, budget=None, ladder=((8, 8),), level_thresholds=LevelThresholds(1, 0, 0)
)
BOTH = ["sliding_attention", "full_attention"]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama in bfloat16": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen2, sliding": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": SLIDING, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": SLIDING, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {"sliding_window": SLIDING, "head_dim": 16, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {"sliding_window": SLIDING, "head_dim": 16, "layer_types": BOTH, "query_pre_attn_scalar": 16},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {"sliding_window": 128, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2, "layer_types": BOTH}
        | {"initializer_range": 0.1},
    ),
    "phi3, heads of 96": (
        "Phi3Config",
        "Phi3ForCausalLM",
        {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.07},
    ),
}


@dataclass(frozen=True)
class Case:
    """`expected` are the logits in float32 with transformers' own cache, `noise` is how far they lie from that with the
    same cache in the model's own numbers."""

    model: Any
    tokens: Any
    expected: Any
    noise: float


def built(name: str) -> Any:
    """A random model, the same for the same name; its attention is transformers' own, written out."""
    config_class, model_class, special = MODELS[name]
    torch.manual_seed(11)
    config = getattr(transformers, config_class)(**(SIZES | special))
    return getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()


def logits(model: Any, cache: Any, tokens: Any) -> Any:
    """(B, END, V): a prompt, a second turn, a few tokens as if they were drafted, then token by token."""
    steps = [(0, PROMPT), (PROMPT, TURN), (TURN, DRAFT), *((at, at + 1) for at in range(DRAFT, END))]
    with torch.no_grad():
        return torch.cat([model(tokens[:, first:end], cache=cache).logits.float() for first, end in steps], 1)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    """One of the models above."""
    model = built(request.param)
    tokens = torch.randint(2, SIZES["vocab_size"], (2, END), generator=torch.Generator().manual_seed(3))
    expected = logits(model, transformers.DynamicCache(config=model.config), tokens)
    if "bfloat16" not in request.param:
        return Case(model, tokens, expected, 0.0)
    model = model.to(torch.bfloat16)
    rounded = logits(model, transformers.DynamicCache(config=model.config), tokens)
    return Case(model, tokens, expected, error(rounded, expected))


def error(found: Any, expected: Any) -> float:
    """The largest difference, relative to how far logits usually lie from their mean."""
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.parametrize("attention", ["sekisho", "eager", "sdpa"])
def test_dense(case: Case, attention: str) -> None:
    """With all pages dense the logits are those of transformers' own cache, whatever the attention implementation."""
    if attention == "sdpa" and not case.model._supports_sdpa:
        pytest.skip("the model itself has no such attention")
    case.model.set_attn_implementation(register() if attention == "sekisho" else attention)
    cache = TieredCache(DENSE, config=case.model.config)
    assert error(logits(case.model, cache, case.tokens), case.expected) < 1e-3 + 2 * case.noise
    assert set(cache.statistics().formats) == {"dense"}
    assert cache.get_seq_length() == END


def test_eight_bits(case: Case) -> None:
    """With all pages in eight bits the logits differ little, and not at all while nothing has been paged out."""
    case.model.set_attn_implementation(register())
    cache = TieredCache(EIGHT_BITS, config=case.model.config)
    found = logits(case.model, cache, case.tokens)
    assert error(found[:, :PROMPT], case.expected[:, :PROMPT]) < 1e-4 + 2 * case.noise
    assert error(found, case.expected) < 0.05 + 2 * case.noise
    assert set(cache.statistics().formats) == {"k8v8"}


def test_default(case: Case) -> None:
    """The default policy gives finite logits that still follow the model's."""
    case.model.set_attn_implementation(register())
    cache = TieredCache(config=case.model.config)
    found = logits(case.model, cache, case.tokens)
    assert torch.isfinite(found).all()
    agreement = torch.nn.functional.cosine_similarity(found[:, TURN:], case.expected[:, TURN:], -1)
    assert float(agreement.mean()) > 0.95


def test_without_tiers(case: Case) -> None:
    """The attention "sekisho" without a tiered cache, or without any cache, is the model's own, sliding layers too."""
    model, tokens, expected = case.model, case.tokens, case.expected
    model.set_attn_implementation(register())
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits.float()
    assert error(whole, expected) < 1e-4 + 2 * case.noise
    stepwise = logits(model, transformers.DynamicCache(config=model.config), tokens)
    assert error(stepwise, expected) < 1e-4 + 2 * case.noise


def test_attention_is_remembered(case: Case) -> None:
    """Each token's attention on pages is noted, in every architecture: from it follows what may become smaller."""
    case.model.set_attn_implementation(register())
    cache = TieredCache(DENSE, config=case.model.config)
    for first, end in ((0, PROMPT), (PROMPT, PROMPT + 1)):
        before = [tier.table.mass.clone() for tier in cache.tiers]
        with torch.no_grad():
            case.model(case.tokens[:, first:end], cache=cache)
    hits = cache.statistics().hits
    assert hits is not None
    assert hits["L0"] > 0
    assert not any(torch.equal(tier.table.mass, mass) for tier, mass in zip(cache.tiers, before, strict=True))


def test_windows() -> None:
    """A layer's window is what its model says: each layer its own."""
    for name, windows in {
        "llama": [None, None],
        "qwen2": [None, None],
        "qwen2, sliding": [None, SLIDING],
        "mistral": [SLIDING, SLIDING],
        "gemma3": [SLIDING, None],
    }.items():
        config_class, _, special = MODELS[name]
        assert layer_windows(getattr(transformers, config_class)(**(SIZES | special))) == windows


@pytest.mark.parametrize(
    ("config_class", "special", "message"),
    [
        ("Qwen3NextConfig", {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ("BambaConfig", {"attn_layer_indices": [1]}, "no layers of the kind"),
        ("Llama4TextConfig", {"attention_chunk_size": 64}, "chunked_attention"),
        ("Gemma3nTextConfig", {"num_kv_shared_layers": 1, "layer_types": BOTH[::-1] + BOTH[1:]}, "of its own"),
        ("T5Config", {}, "encoder"),
        ("BartConfig", {}, "encoder"),
    ],
)
def test_refused(config_class: str, special: dict[str, Any], message: str) -> None:
    """Models with states that are no keys and values, shared ones, chunks or an encoder are refused by name."""
    layers = {"num_hidden_layers": len(special["layer_types"])} if "layer_types" in special else {}
    config = getattr(transformers, config_class)(**(special | layers))
    with pytest.raises(ValueError, match=message):
        TieredCache(config=config)


def test_latent_attention_refused() -> None:
    """Keys and values of different sizes are refused at the first token, with both sizes."""
    config = transformers.DeepseekV3Config(
        **(SIZES | {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}),
        v_head_dim=16,
        first_k_dense_replace=2,
    )
    model = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation=register()).eval()
    with pytest.raises(ValueError, match="must have the same shape"):
        model(torch.arange(2, 8)[None], cache=TieredCache(config=model.config))


def test_encoder_refused() -> None:
    """Layers that see both sides are not computed as if they were causal."""
    config = transformers.BertConfig(**(SIZES | {"num_key_value_heads": None}))
    model = transformers.BertModel._from_config(config, attn_implementation=register()).eval()
    with pytest.raises(ValueError, match="causal"):
        model(torch.arange(2, 8)[None], attention_mask=torch.ones(1, 6, dtype=torch.long))
