"""The built-in GGUF as a Hugging Face folder, for engines that read safetensors. Needs `gguf` and `safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sekisho.engines import builtin

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # `gguf.TokenType.CONTROL`


def _hugging_face_name(name: str) -> str:
    """`blk.3.ffn_up.weight` -> `model.layers.3.mlp.up_proj.weight`."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"


def _split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the pairing of Q and K rows that llama.cpp's rotary embedding wants."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF lacks {key}")
    return field.contents()


def _weights(reader: GGUFReader) -> dict[str, np.ndarray]:
    """Every tensor under its Hugging Face name; matrices in float16, norms in float32."""
    import numpy as np
    from gguf import dequantize

    heads = _field(reader, "llama.attention.head_count")
    weights: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = _split_halves(weight, heads)
        kind = np.float32 if weight.ndim == 1 else np.float16
        weights[_hugging_face_name(tensor.name)] = np.ascontiguousarray(weight.astype(kind))
    return weights


def _config(reader: GGUFReader) -> dict[str, object]:
    width, heads = _field(reader, "llama.embedding_length"), _field(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": width // heads,
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float16",
    }


def _tokenizer(reader: GGUFReader) -> dict[str, object]:
    """tokenizer.json for the `tokenizers` library: byte-level BPE with GPT-2's splitting rule."""
    names: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _field(reader, "tokenizer.ggml.merges")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": name, **plain}
            for number, (name, kind) in enumerate(zip(names, kinds, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _tokenizer_config(reader: GGUFReader) -> dict[str, object]:
    names: list[str] = _field(reader, "tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[_field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": names[_field(reader, "tokenizer.ggml.eos_token_id")],
        "pad_token": names[_field(reader, "tokenizer.ggml.padding_token_id")],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _field(reader, "llama.context_length"),
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }


def _generation_config(reader: GGUFReader) -> dict[str, object]:
    return {
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "do_sample": False,
        "max_new_tokens": 256,
    }


def export(directory: Path, source: Path | None = None) -> list[Path]:
    """Write the model (or the GGUF `source` of the same kind) into `directory` and return the files written.

    Raises ModuleNotFoundError without `gguf` or `safetensors`, ValueError for a GGUF of another kind.
    May be called again: files are overwritten.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(source or builtin.path())
    if _field(reader, "general.architecture") != "llama" or _field(reader, "tokenizer.ggml.pre") != "gpt-2":
        raise ValueError("only the built-in kind of GGUF can be exported: llama with the gpt-2 tokenizer rule")
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, content in (
        ("config.json", _config(reader)),
        ("tokenizer.json", _tokenizer(reader)),
        ("tokenizer_config.json", _tokenizer_config(reader)),
        ("generation_config.json", _generation_config(reader)),
    ):
        written.append(directory / name)
        written[-1].write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    written.append(directory / "model.safetensors")
    save_file(_weights(reader), written[-1], metadata={"format": "pt"})
    return written
