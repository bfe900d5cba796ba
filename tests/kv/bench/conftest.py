"""A small random model, and a folder of it, for the measurements' tests. Torch is asked for only where it is used."""

from pathlib import Path
from typing import Any

import pytest

WORDS = 300


@pytest.fixture(scope="session")
def model() -> Any:
    """Three layers, four heads over two key/value heads of 32 numbers, 512 tokens of context."""
    torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 3,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as Hugging Face keeps it, with a tokenizer that knows 300 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    where = tmp_path_factory.mktemp("model")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"word{number}": number + 3 for number in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model.save_pretrained(where)
    wrapped.save_pretrained(where)
    return where
