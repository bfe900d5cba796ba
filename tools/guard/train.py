"""The linear model out of labelled rows: two softmax heads over hashed features, L-BFGS, then whole numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, diags

from sekisho.core.verdict import DECISIONS
from sekisho.guard import grams
from sekisho.guard.classifier import CATEGORIES, HEADS
from sekisho.guard.text import plain

EVERYDAY_SHARE = 0.5  # how much a line of everyday.txt counts against one of the others, which are harder to tell apart


def everyday(row: Any) -> bool:
    """Whether a row is of the short everyday requests or their harmful contrast (`everyday.txt`)."""
    return "-everyday-" in row.family


def work(row: Any) -> bool:
    """Whether a row is of the harmless work texts."""
    return str(row.family).startswith("allow-work-")


def features(texts: Sequence[str]) -> csr_matrix:
    """(texts, BUCKETS): how often each part occurs, over the root of how many parts there are."""
    indices, values, ends = [], [], [0]
    for text in texts:
        points = grams.codes(plain(text))
        found = np.concatenate([part.ravel() for part in grams.parts(points)[:2]])
        buckets, counts = np.unique(found, return_counts=True)
        kept = buckets != 0
        indices.append(buckets[kept])
        values.append((counts[kept] / np.sqrt(len(found))).astype(np.float32))
        ends.append(ends[-1] + int(kept.sum()))
    return csr_matrix(
        (np.concatenate(values), np.concatenate(indices), np.array(ends)), shape=(len(texts), grams.BUCKETS)
    )


def seen_often(matrix: csr_matrix, groups: np.ndarray, least: int) -> np.ndarray:
    """The buckets that occur in at least `least` different groups."""
    entries = matrix.tocoo()
    pairs = np.unique(entries.col.astype(np.int64) * (int(groups.max()) + 1) + groups[entries.row])
    columns, counts = np.unique(pairs // (int(groups.max()) + 1), return_counts=True)
    return columns[counts >= least]


def rarity(matrix: csr_matrix) -> np.ndarray:
    """(BUCKETS,): how much a part counts for being rare, ln((rows + 1) / (rows with it + 1)) / 4. Multiplied into the
    weights in the end, so that it costs nothing when a text is judged."""
    rows_with = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return (np.log((matrix.shape[0] + 1) / (rows_with + 1)) / 4).astype(np.float32)


def fit(
    matrix: csr_matrix, classes: np.ndarray, heads: int, weights: np.ndarray, penalty: float, rounds: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (columns, heads) and bias (heads,) of one softmax. Deterministic."""
    data = matrix.astype(np.float32).tocsr()
    turned = data.T.tocsr()
    share = (weights / weights.sum()).astype(np.float32)[:, None]
    target = np.zeros((data.shape[0], heads), np.float32)
    target[np.arange(len(classes)), classes] = 1
    width = data.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: width * heads].reshape(width, heads), flat[width * heads :]
        logits = _each(data, weight.astype(np.float32)) + bias.astype(np.float32)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        slope = share * (np.exp(log) - target)
        gradient = np.empty_like(flat)
        gradient[: width * heads] = (_each(turned, slope) + penalty * weight).ravel()
        gradient[width * heads :] = slope.sum(axis=0)
        total = -float((share * target * log).sum(dtype=np.float64))
        return total + penalty / 2 * float((weight**2).sum()), gradient

    found: Any = minimize(
        loss,
        np.zeros(width * heads + heads),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": rounds, "maxcor": 6, "ftol": 1e-6},
    )
    return found.x[: width * heads].reshape(width, heads), found.x[width * heads :]


def _each(matrix: csr_matrix, columns: np.ndarray) -> np.ndarray:
    """`matrix @ columns`, a column at a time: five times as fast in scipy as all at once."""
    return np.stack([matrix @ np.ascontiguousarray(columns[:, n]) for n in range(columns.shape[1])], axis=1)


def quantised(columns: np.ndarray, weights: np.ndarray, sharp: float = 127.0) -> tuple[np.ndarray, np.ndarray]:
    """The table (BUCKETS, HEADS) of int8 and the scale (HEADS,). Bucket 0 stays empty."""
    scale = np.abs(weights).max(axis=0) / sharp
    scale[scale == 0] = 1.0
    table = np.zeros((grams.BUCKETS, HEADS), np.int8)
    table[columns] = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
    table[0] = 0
    return table, scale.astype(np.float32)


def scaled(matrix: csr_matrix, by: np.ndarray) -> csr_matrix:
    return (matrix @ diags(by)).tocsr()


def labels(rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    decisions = np.array([DECISIONS.index(row.decision) for row in rows])
    categories = np.array([CATEGORIES.index(row.category) for row in rows])
    return decisions, categories


def row_weights(rows: Sequence[Any]) -> np.ndarray:
    """A core with many rows counts as the root of their number, a short everyday one half of that; every decision of
    every language weighs the same, and the work texts as much as a decision: a text without evidence is harmless."""
    of_core = Counter(row.core for row in rows)
    weights = np.array([of_core[row.core] ** -0.5 * (EVERYDAY_SHARE if everyday(row) else 1) for row in rows])
    groups: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.lang, "work" if work(row) else row.decision), []).append(place)
    for places in groups.values():
        weights[places] /= weights[places].sum()
    return weights
