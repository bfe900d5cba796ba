"""Writes a GGUF of Llama-3.2-1B's shape with random Q4_0 weights and a small vocabulary, 0.55 GB.

It talks nonsense at the speed of a real model of that size.

python bench/llama_shape.py build/random-llama-1b-q4_0.gguf
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt

_BLOCK = 32
_SD = 0.02
Weights = Literal["q4_0", "f16"]
_FILE_TYPES = {"q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "f16": gguf.LlamaFileType.MOSTLY_F16}
_MARKS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Llama-3.2-1B, but for the vocabulary."""

    layers: int = 16
    width: int = 2048
    heads: int = 32
    kv_heads: int = 8
    head_size: int = 64
    inner: int = 8192
    context: int = 16384
    rope_base: float = 500_000.0


def write(path: Path, shape: Shape, seed: int = 7, weights: Weights = "q4_0") -> int:
    """`weights`: of the layers; words and norms are not quantised. Returns the number of parameters."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_file_type(_FILE_TYPES[weights])
    words = _vocabulary(writer)
    random = np.random.default_rng(seed)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", _random_f16(random, words, shape.width))
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    count = 2 * words * shape.width
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(shape.width, np.float32))
        for name, (rows, columns) in _matrices(shape).items():
            full = f"blk.{layer}.{name}.weight"
            if weights == "f16":
                writer.add_tensor(full, _random_f16(random, rows, columns))
            else:
                blocks = _random_q4_0(random, rows, columns)
                writer.add_tensor(full, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            count += rows * columns
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def _vocabulary(writer: gguf.GGUFWriter) -> int:
    """A token a byte, in the spelling of GPT-2, and the marks of a chat."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    tokens = [*_MARKS, *(letters[byte] for byte in range(256)), "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(_MARKS) + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
    return len(tokens)


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    own, shared = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return {
        "attn_q": (own, shape.width),
        "attn_k": (shared, shape.width),
        "attn_v": (shared, shape.width),
        "attn_output": (shape.width, own),
        "ffn_gate": (shape.inner, shape.width),
        "ffn_up": (shape.inner, shape.width),
        "ffn_down": (shape.width, shape.inner),
    }


def _random_f16(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.float16]:
    return random.normal(0, _SD, (rows, columns)).astype(np.float16)


def _random_q4_0(random: np.random.Generator, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Blocks of a half-precision scale and 32 even-chance nibbles, whose standard deviation is `_SD`."""
    blocks = rows * columns // _BLOCK
    out = np.empty((blocks, 2 + _BLOCK // 2), np.uint8)
    out[:, :2] = np.full(blocks, _SD / np.sqrt(255 / 12), np.float16).view(np.uint8).reshape(blocks, 2)
    out[:, 2:] = random.integers(0, 256, (blocks, _BLOCK // 2), dtype=np.uint8)
    return out.reshape(rows, -1)


def make(path: Path, shape: Shape, weights: Weights = "q4_0") -> None:
    """Writes it with its folder, and says how large it became."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = write(path, shape, weights=weights)
    print(f"{path}: {count / 1e6:.0f}M parameters, {path.stat().st_size / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    arguments = parser.parse_args()
    make(arguments.path, Shape(layers=arguments.layers))


if __name__ == "__main__":
    main()
