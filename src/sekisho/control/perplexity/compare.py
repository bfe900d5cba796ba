"""Whether two routes tell the same about the same tokens. Where they do not, one of them is wrong: a finding."""

from collections.abc import Mapping
from typing import Final

import msgspec

from sekisho.control.perplexity.base import Scores, Unmeasured

TOLERANCE: Final = 0.005
"""Of the mean. Measured with the built-in model on one processor: 0.001 % on 24 positions, 0.4 % at a single one, for
llama.cpp computes one token otherwise than many at once. Wider, for other weights and processors round more."""


class Agreement(msgspec.Struct, frozen=True):
    """`first`, `second`: mean nats over the `positions` that both have; `relative`: their distance, of the larger.
    `largest_nats`: the widest distance at one position."""

    agrees: bool
    first: float
    second: float
    relative: float
    largest_nats: float
    positions: int
    tolerance: float
    why: str


def agree(first: Mapping[int, float], second: Mapping[int, float], tolerance: float = TOLERANCE) -> Agreement:
    """Negative log-likelihoods by position in the same stretch. Raises `Unmeasured` where they share no position."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise Unmeasured("the two routes have no position in common")
    one, other = (sum(each[at] for at in common) / len(common) for each in (first, second))
    larger = max(abs(one), abs(other))
    relative = abs(one - other) / larger if larger else 0.0
    agrees = relative <= tolerance
    word = "agree" if agrees else "disagree"
    return Agreement(
        agrees=agrees,
        first=one,
        second=other,
        relative=relative,
        largest_nats=max(abs(first[at] - second[at]) for at in common),
        positions=len(common),
        tolerance=tolerance,
        why=f"the routes {word}: {one:.4f} and {other:.4f} nats on {len(common)} positions, {relative:.3%} apart "
        f"({tolerance:.3%} allowed)",
    )


def by_position(scores: Scores, stretch: int = 0) -> dict[int, float]:
    """The likelihoods of one stretch, by the place of the token that was predicted."""
    return dict(enumerate(scores.stretches[stretch].nll, start=1))
