"""Long texts to measure on: a file of the user's, or the project's own documentation. Deterministic."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sekisho.kv.bench.unavailable import Unavailable


def documentation() -> str:
    """The project's English documentation, in a checkout. Raises Unavailable elsewhere."""
    root = next((each for each in Path(__file__).resolve().parents if (each / "docs").is_dir()), None)
    files = [] if root is None else sorted((root / "docs").glob("*.md"))
    texts = [each.read_text(encoding="utf-8") for each in files if not each.name.endswith(".ja.md")]
    if root is None or not texts:
        raise Unavailable("no text to measure on: name a file of plain text, at least a few thousand words")
    return "\n\n".join(texts)


def windows(encode: Callable[[str], list[int]], text: str, tokens: int, most: int) -> list[Tensor]:
    """Up to `most` stretches of `tokens` + 1 token ids, each (1, tokens + 1), spread evenly over the text. Raises
    Unavailable where the text is too short for one."""
    ids = encode(text)
    size = tokens + 1
    if len(ids) < size:
        raise Unavailable(f"the text has {len(ids)} tokens and a stretch needs {size}")
    count = min(most, len(ids) // size)
    last = len(ids) - size
    starts = [round(last * index / max(1, count - 1)) for index in range(count)]
    return [torch.tensor([ids[start : start + size]]) for start in starts]
