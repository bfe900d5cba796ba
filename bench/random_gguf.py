"""Writes a GGUF of llama's shape with random weights: nonsense at the speed of a real model of that size.

Float16 weights, the width and the depth that are asked for; bench/llama_shape.py has those of a published model.

python bench/random_gguf.py build/random-150m.gguf --width 1024 --layers 12
"""

import argparse
from pathlib import Path

from llama_shape import Shape, make

_HEAD_SIZE = 64


def shape(width: int, layers: int) -> Shape:
    """Every head has keys and values of its own."""
    heads, inner = width // _HEAD_SIZE, width * 11 // 4 // 32 * 32
    return Shape(layers, width, heads, heads, _HEAD_SIZE, inner, context=4096, rope_base=10_000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    make(arguments.path, shape(arguments.width, arguments.layers), "f16")


if __name__ == "__main__":
    main()
