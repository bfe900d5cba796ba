"""Rivals that keep some tokens in full precision and drop the others, so that they stay within a share of the bytes.

Both papers compress a prompt (SnapKV) or every step (H2O). Here the share holds throughout: whenever a layer has more
than its share of the tokens seen so far, it chooses anew among those it still has.
"""

import torch
from torch import Tensor

from sekisho.kv.bench.layers import Call, DenseLayer, Seen, summed_weights

_LATE = 16  # tokens above its share that a layer may have between two choices, when they come one by one


class EvictingLayer(DenseLayer):
    """`share` of the tokens seen are kept, at least `least`."""

    looks = True
    least = 8

    def __init__(self, dtype: torch.dtype, share: float) -> None:
        super().__init__(dtype)
        self.share = share

    @property
    def _allowed(self) -> int:
        return max(self.least, int(self.share * self.seen))

    def look(self, seen: Seen) -> None:
        assert self.dense is not None
        self.note(seen)
        kept, allowed = self.dense[0].shape[2], self._allowed
        if kept > allowed + (_LATE if seen.query.shape[2] == 1 else 0):
            self.keep(self.chosen(allowed, seen.call))

    def note(self, seen: Seen) -> None:
        """What an attention says about the tokens."""

    def chosen(self, count: int, call: Call) -> Tensor:
        """(B, H, count) which tokens to keep, ascending."""
        raise NotImplementedError

    def keep(self, index: Tensor) -> None:
        """Drops all but the tokens of `index` (B, H, count)."""
        assert self.dense is not None
        wide = index.unsqueeze(-1).expand(*index.shape, self.dense[0].shape[3])
        self.dense = self.dense[0].gather(2, wide), self.dense[1].gather(2, wide)


def best_and_last(scores: Tensor, count: int, last: int) -> Tensor:
    """(B, H, count): the `last` tokens and the best of those before, ascending."""
    total = scores.shape[2]
    forced = scores.clone()
    forced[:, :, total - last :] = torch.inf
    return forced.topk(count, 2).indices.sort(2).values


class SnapLayer(EvictingLayer):
    """After SnapKV (Li et al. 2024): the last 32 queries vote by their attention, pooled over 7 neighbours; those 32
    tokens stay."""

    window = 32
    pooled = 7
    least = 40

    def __init__(self, dtype: torch.dtype, share: float) -> None:
        super().__init__(dtype, share)
        self.queries: Tensor | None = None

    def note(self, seen: Seen) -> None:
        new = seen.query[:, :, -self.window :].to(self.stored_dtype)
        joined = new if self.queries is None else torch.cat((self.queries, new), 2)
        self.queries = joined[:, :, -self.window :].contiguous()

    def chosen(self, count: int, call: Call) -> Tensor:
        assert self.dense is not None
        assert self.queries is not None
        votes = summed_weights(self.queries, self.dense[0], call)
        pooled = torch.nn.functional.avg_pool1d(votes, self.pooled, 1, self.pooled // 2, count_include_pad=False)
        return best_and_last(pooled, count, min(self.window, count))


class HeavyHitterLayer(EvictingLayer):
    """After H2O (Zhang et al. 2023): the tokens with most attention so far, summed over all queries, and as many of the
    most recent ones."""

    def __init__(self, dtype: torch.dtype, share: float) -> None:
        super().__init__(dtype, share)
        self.attention: Tensor | None = None

    def note(self, seen: Seen) -> None:
        now = summed_weights(seen.query, seen.keys, seen.call)
        if self.attention is not None:
            now[:, :, : self.attention.shape[2]] += self.attention
        self.attention = now

    def chosen(self, count: int, call: Call) -> Tensor:
        assert self.attention is not None
        return best_and_last(self.attention, count, count // 2)

    def keep(self, index: Tensor) -> None:
        assert self.attention is not None
        super().keep(index)
        self.attention = self.attention.gather(2, index)
