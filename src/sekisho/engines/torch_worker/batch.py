"""The sequences that run: one cache, a row each, one token a step for all of them."""

from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import Tensor

from sekisho.engines.torch_worker.model import Loaded
from sekisho.engines.torch_worker.sequence import News, Sequence
from sekisho.kv.join import join
from sekisho.kv.policy import KVPolicy

Answers = list[tuple[Sequence, list[News]]]


class Batch:
    """Row b of the cache is `running[b]`. Belongs to the runner's thread."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.running: list[Sequence] = []
        self.cache: Any = None

    def join(self, sequence: Sequence) -> None:
        """Takes a sequence in whose prompt is read; its own cache is used up."""
        if self.cache is None:
            self.cache = sequence.cache
        else:
            join(self.cache, sequence.cache)
        sequence.cache = None
        self.running.append(sequence)

    def step(self) -> Answers:
        """Feeds every row its last token and picks the next. Who has ended is still there: see `drop`."""
        logits = self._loaded.step(
            self.cache, [[each.last] for each in self.running], [each.position for each in self.running]
        )
        for each in self.running:
            each.position += 1
        return choose(self.running, logits)

    def drop(self, gone: Rows[Sequence]) -> None:
        """Frees the rows of these sequences; those that do not run here are passed over."""
        kept = [row for row, each in enumerate(self.running) if each not in gone]
        if len(kept) == len(self.running):
            return
        self.running = [self.running[row] for row in kept]
        if not kept:
            self.cache = None
        else:
            self.cache.batch_select_indices(torch.tensor(kept))

    def apply(self, policy: KVPolicy) -> None:
        if self.cache is not None:
            self.cache.apply(policy)


def choose(sequences: Rows[Sequence], logits: Tensor) -> Answers:
    """(B, vocabulary) logits, a row for each sequence. Those that take the best token are answered together, where the
    logits are; the others one by one on the CPU."""
    plain = [row for row, each in enumerate(sequences) if each.takes_best()]
    best = dict(zip(plain, logits[plain].argmax(-1).tolist(), strict=True)) if plain else {}
    answers: Answers = []
    for row, sequence in enumerate(sequences):
        news = sequence.take(best[row]) if row in best else sequence.choose(logits[row].float().cpu())
        answers.append((sequence, news))
    return answers
