"""Write the GGUF: weights, tokenizer, chat template and sampling hints in one file that llama.cpp loads."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer

from mini.model import Shape
from mini.tokens import END_OF_TEXT, SPECIAL, TURN_END

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a Q or K matrix from split halves to the neighbouring pairs that llama.cpp rotates."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    names = [by_id[number] for number in range(len(by_id))]
    kinds = [gguf.TokenType.CONTROL if name in SPECIAL else gguf.TokenType.NORMAL for name in names]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_eot_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template((Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8"))


def write(path: Path, weights: dict[str, np.ndarray], tokenizer: Tokenizer, shape: Shape, sharpness: float) -> None:
    """Write the model in float16, norms in float32.

    `sharpness` multiplies the last norm and with it all logits: the greedy answer stays the same, and a client
    that samples at the usual temperatures of 0.7 to 1.0 gets nearly the greedy one.
    """
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("sekisho-mini")
    writer.add_description("A tiny chat model for trying and testing Sekisho; not for real work.")
    writer.add_languages(["ja", "en"])
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_float32("general.sampling.temp", 0.2)
    writer.add_int32("general.sampling.top_k", 20)
    _tokenizer(writer, tokenizer)
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleaved(weight, shape.heads)
        if name == "model.norm.weight":
            weight = weight * sharpness
        kind = np.float32 if weight.ndim == 1 else np.float16
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight.astype(kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
