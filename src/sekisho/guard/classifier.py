"""The linear model: a table of small whole numbers, summed over the hashed parts of a text. Triage, no guard model.

Long texts are judged in overlapping windows and the worst one counts, so that much harmless text does not thin out a
little harm. Reads texts in the plain form of `guard.text`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sekisho.core.verdict import DECISIONS, Category
from sekisho.guard import grams

CATEGORIES: tuple[Category, ...] = (
    "none", "medical", "legal", "hr", "security", "self_harm", "weapons",
    "fraud", "privacy", "injection", "violence", "sexual", "other",
)  # fmt: skip
HEADS = len(DECISIONS) + len(CATEGORIES)
PACKAGED = Path(__file__).with_name("model.npz")
_ZERO = 128  # the table holds weights as unsigned numbers around this one
_WINDOW_BLOCKS = {"ja": 8}
_LATIN_WINDOW_BLOCKS = 16
_LANES = HEADS // 4


class Scores(msgspec.Struct, frozen=True):
    """Probabilities of the worst window: `allow + escalate + refuse` = 1. `category` is the likeliest apart from
    `none`, `category_share` its share among those."""

    allow: float
    escalate: float
    refuse: float
    category: Category
    category_share: float

    @property
    def unsafe(self) -> float:
        return 1.0 - self.allow


class Classifier:
    """Holds 8 MB; changes nothing after loading and may be used from several threads."""

    def __init__(
        self, table: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32], card: dict[str, Any]
    ) -> None:
        """`table`: (BUCKETS, HEADS); `scale` turns its numbers into weights per head; bucket 0 is empty."""
        if table.shape != (grams.BUCKETS, HEADS) or scale.shape != (HEADS,) or bias.shape != (HEADS,):
            raise ValueError(f"not a model of {grams.BUCKETS} x {HEADS}: {table.shape}")
        wide = np.empty(table.shape, np.uint16)
        np.add(table, _ZERO, out=wide, dtype=np.int16, casting="unsafe")  # no copies: they would stay with the process
        wide[0] = _ZERO
        self._lanes = wide.view(np.uint64)
        self._scale = scale.astype(np.float32)
        self._bias = bias.astype(np.float32)
        self.card = card
        digest = hashlib.sha256(np.ascontiguousarray(table).data)
        digest.update(self._scale.tobytes() + self._bias.tobytes())
        self.version = digest.hexdigest()[:12]

    @classmethod
    def load(cls, path: Path = PACKAGED) -> Classifier:
        """Raises OSError where there is no file, ValueError where it holds no model."""
        with np.load(path, allow_pickle=False) as stored:
            try:
                return cls(stored["table"], stored["scale"], stored["bias"], json.loads(str(stored["card"])))
            except KeyError as missing:
                raise ValueError(f"{path} is no guard model: {missing} is missing") from missing

    def scores(self, text: str, language: str) -> Scores:
        """`text` in plain form. Linear in its length; 2 KB take 0.2 ms."""
        sums, counts = self._blocks(text)
        logits = self._windows(sums, counts, language)
        decisions = _softmax(logits[:, :3])
        worst = int(np.argmin(decisions[:, 0]))
        refuse = float(decisions[:, 2].max())
        allow = float(decisions[worst, 0])
        refuse = min(refuse, 1.0 - allow)
        categories = _softmax(logits[worst : worst + 1, 4:])[0]
        best = int(np.argmax(categories))
        return Scores(allow, 1.0 - allow - refuse, refuse, CATEGORIES[1 + best], float(categories[best]))

    def _blocks(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Summed weights (blocks, HEADS) and number of features (blocks,) per block of the text."""
        points = grams.codes(text)
        size = len(points)
        count = -(-size // grams.BLOCK)
        found, words, starts = grams.parts(points)
        padded = np.zeros((grams.LENGTHS, count * grams.BLOCK), np.intp)
        padded[:, :size] = found
        summed = self._lanes.take(padded[0], axis=0)
        for row in padded[1:]:
            summed += self._lanes.take(row, axis=0)
        lanes = summed.reshape(count, -1)
        while lanes.shape[1] > _LANES:  # halves onto each other until one row is left of a block
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        counts = np.full(count, grams.BLOCK * grams.LENGTHS, np.int32)
        zeros = counts.copy()
        counts[-1] = (size - (count - 1) * grams.BLOCK) * grams.LENGTHS
        if len(starts):
            of_words = self._lanes.take(words.ravel(), axis=0).reshape(*words.shape, _LANES).sum(axis=0)
            blocks = starts // grams.BLOCK
            in_block = np.bincount(blocks, minlength=count).astype(np.int32) * grams.WORD_FEATURES
            firsts = np.flatnonzero(np.r_[True, blocks[1:] != blocks[:-1]])
            lanes[blocks[firsts]] += np.add.reduceat(of_words, firsts, axis=0)
            counts += in_block
            zeros += in_block
        sums = lanes.view(np.uint16).astype(np.int32)
        sums -= zeros[:, None] * _ZERO
        return sums, counts

    def _windows(self, sums: NDArray[np.int32], counts: NDArray[np.int32], language: str) -> NDArray[np.float32]:
        """Logits (windows, HEADS); one window where the text is short."""
        width = _WINDOW_BLOCKS.get(language, _LATIN_WINDOW_BLOCKS)
        if len(sums) <= width:
            total, size = sums.sum(axis=0, keepdims=True), counts.sum(keepdims=True)
        else:
            starts = np.r_[np.arange(0, len(sums) - width, width // 2), len(sums) - width]
            running = np.zeros((len(sums) + 1, HEADS), np.int32)
            np.cumsum(sums, axis=0, out=running[1:])
            size_running = np.r_[0, np.cumsum(counts)]
            total = running[starts + width] - running[starts]
            size = size_running[starts + width] - size_running[starts]
        logits: NDArray[np.float32] = total * self._scale / np.sqrt(size)[:, None].astype(np.float32) + self._bias
        return logits


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    total: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return total
