"""The linear model: tables of small whole numbers, summed over the hashed parts of a text. Triage, no guard model.

One table is for short texts, another for texts of several windows, which was taught what work looks like (mail, code,
tables). The windows overlap and the worst one counts, so that much harmless text does not thin out a little harm.
Reads texts in the plain form of `guard.text`."""

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
PARTS = ("table", "scale", "bias")
HEADS = len(DECISIONS) + len(CATEGORIES)
PACKAGED = Path(__file__).with_name("model.npz")
_ZERO = 128  # the table holds weights as unsigned numbers around this one
_SHORT_BLOCKS = {"ja": 8}  # up to so many blocks a text is judged in one piece
_LATIN_SHORT_BLOCKS = 16
_WINDOWS_A_PIECE = 2  # a window of a longer text is so much shorter than the longest piece
_LANES = HEADS // 4


class Scores(msgspec.Struct, frozen=True):
    """Probabilities of the worst window: `allow + escalate + refuse` = 1. `category` is the likeliest apart from
    `none`, `category_share` its share among those. `windows`: among how many it is the worst."""

    allow: float
    escalate: float
    refuse: float
    category: Category
    category_share: float
    windows: int = 1

    @property
    def unsafe(self) -> float:
        return 1.0 - self.allow


class Table:
    """Weights as they are summed: four heads to a lane of 64 bits."""

    def __init__(self, table: NDArray[np.int8], scale: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """`table`: (BUCKETS, HEADS); `scale` turns its numbers into weights per head; bucket 0 is empty."""
        if table.shape != (grams.BUCKETS, HEADS) or scale.shape != (HEADS,) or bias.shape != (HEADS,):
            raise ValueError(f"not a model of {grams.BUCKETS} x {HEADS}: {table.shape}")
        wide = np.empty(table.shape, np.uint16)
        np.add(table, _ZERO, out=wide, dtype=np.int16, casting="unsafe")  # no copies: they would stay with the process
        wide[0] = _ZERO
        self.lanes = wide.view(np.uint64)
        self.scale = scale.astype(np.float32)
        self.bias = bias.astype(np.float32)
        self.digest = hashlib.sha256(np.ascontiguousarray(table).data)
        self.digest.update(self.scale.tobytes() + self.bias.tobytes())


class Classifier:
    """Holds 8 MB a table; changes nothing after loading and may be used from several threads."""

    def __init__(
        self,
        table: NDArray[np.int8],
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        card: dict[str, Any],
        long: Table | None = None,
    ) -> None:
        """`long`: the table for texts of several windows; the same one where there is none."""
        self._short = Table(table, scale, bias)
        self._long = long or self._short
        self.card = card
        digest = self._short.digest.copy()
        if long is not None:
            digest.update(long.digest.digest())
        self.version = digest.hexdigest()[:12]

    @classmethod
    def load(cls, path: Path = PACKAGED) -> Classifier:
        """Raises OSError where there is no file, ValueError where it holds no model."""
        with np.load(path, allow_pickle=False) as stored:
            try:
                table, scale, bias = (stored[part] for part in PARTS)
                long = Table(*(stored[f"long_{part}"] for part in PARTS)) if "long_table" in stored else None
                return cls(table, scale, bias, json.loads(str(stored["card"])), long)
            except KeyError as missing:
                raise ValueError(f"{path} is no guard model: {missing} is missing") from missing

    def scores(self, text: str, language: str) -> Scores:
        """`text` in plain form. Linear in its length; 2 KB take 0.2 ms."""
        logits = self._logits(text, language)
        decisions = _softmax(logits[:, :3])
        worst = int(np.argmin(decisions[:, 0]))
        refuse = float(decisions[:, 2].max())
        allow = float(decisions[worst, 0])
        refuse = min(refuse, 1.0 - allow)
        categories = _softmax(logits[worst : worst + 1, 4:])[0]
        best = int(np.argmax(categories))
        return Scores(allow, 1.0 - allow - refuse, refuse, CATEGORIES[1 + best], float(categories[best]), len(logits))

    def _logits(self, text: str, language: str) -> NDArray[np.float32]:
        """Logits (windows, HEADS); one window where the text is short."""
        longest = _SHORT_BLOCKS.get(language, _LATIN_SHORT_BLOCKS)
        short = len(text) + 2 <= longest * grams.BLOCK
        table = self._short if short else self._long
        sums, counts = self._blocks(text, table.lanes)
        if short:
            total, size = sums.sum(axis=0, keepdims=True), counts.sum(keepdims=True)
        else:
            total, size = _windows(sums, counts, longest // _WINDOWS_A_PIECE)
        logits: NDArray[np.float32] = total * table.scale / np.sqrt(size)[:, None].astype(np.float32) + table.bias
        return logits

    def _blocks(
        self, text: str, weights: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Summed weights (blocks, HEADS) and number of features (blocks,) per block of the text."""
        taken = self._short.lanes if weights is None else weights
        points = grams.codes(text)
        size = len(points)
        count = -(-size // grams.BLOCK)
        found, words, starts = grams.parts(points)
        padded = np.zeros((grams.LENGTHS, count * grams.BLOCK), np.intp)
        padded[:, :size] = found
        summed = taken.take(padded[0], axis=0)
        for row in padded[1:]:
            summed += taken.take(row, axis=0)
        lanes = summed.reshape(count, -1)
        while lanes.shape[1] > _LANES:  # halves onto each other until one row is left of a block
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        counts = np.full(count, grams.BLOCK * grams.LENGTHS, np.int32)
        zeros = counts.copy()
        counts[-1] = (size - (count - 1) * grams.BLOCK) * grams.LENGTHS
        if len(starts):
            of_words = taken.take(words.ravel(), axis=0).reshape(*words.shape, _LANES).sum(axis=0)
            blocks = starts // grams.BLOCK
            in_block = np.bincount(blocks, minlength=count).astype(np.int32) * grams.WORD_FEATURES
            firsts = np.flatnonzero(np.r_[True, blocks[1:] != blocks[:-1]])
            lanes[blocks[firsts]] += np.add.reduceat(of_words, firsts, axis=0)
            counts += in_block
            zeros += in_block
        sums = lanes.view(np.uint16).astype(np.int32)
        sums -= zeros[:, None] * _ZERO
        return sums, counts


def _windows(
    sums: NDArray[np.int32], counts: NDArray[np.int32], width: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Sums (windows, HEADS) and sizes (windows,) of all windows of `width` blocks, half a window apart."""
    starts = np.r_[np.arange(0, len(sums) - width, width // 2), len(sums) - width]
    running = np.zeros((len(sums) + 1, HEADS), np.int32)
    np.cumsum(sums, axis=0, out=running[1:])
    size_running = np.r_[0, np.cumsum(counts)]
    return running[starts + width] - running[starts], size_running[starts + width] - size_running[starts]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    total: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return total
