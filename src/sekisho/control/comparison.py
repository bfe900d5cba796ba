"""A/B of two policies on one engine: interleaved blocks, paired within each block, exact intervals of the ratios.

A block is A B B A or B A A B (or A B / B A), by a coin: a steady drift of the machine cancels, and under no difference
each block's log-ratio is symmetric about zero, which is all that the interval needs.
"""

from collections.abc import Sequence
from math import exp
from random import Random
from statistics import mean
from typing import Final, Literal

import msgspec

from sekisho.control.measured import FIGURES, FigureName, Measure, Measured, MeasurementFailed, log_ratio
from sekisho.control.policy import Policy
from sekisho.control.subset_means import SubsetMeans, fewest

LEVEL: Final = 0.95
Verdict = Literal["more", "less", "not distinguishable", "too few blocks"]


class ComparisonPlan(msgspec.Struct, frozen=True):
    """`blocks`: at least 6 for an interval of 95 %. `order` `abba` takes four measurements a block, `ab` two."""

    blocks: int = 6
    order: Literal["abba", "ab"] = "abba"
    effort: float = 1.0
    level: float = LEVEL

    @property
    def measurements(self) -> int:
        return self.blocks * len(self.order)


class Block(msgspec.Struct, frozen=True):
    """What was measured, in order. `fault`: why the block does not count."""

    order: str
    first: tuple[Measured, ...]
    second: tuple[Measured, ...]
    fault: str | None = None


class Ratio(msgspec.Struct, frozen=True):
    """B over A (geometric mean) of one figure over `n` blocks. `low` and `high` None: fewer blocks than `needed`.
    `verdict` speaks of the figure's size, not of what is better; each figure is judged by itself."""

    figure: FigureName
    value: float
    n: int
    needed: int
    low: float | None
    high: float | None
    p_value: float
    verdict: Verdict


class Comparison(msgspec.Struct, frozen=True):
    """`stopped`: why there are fewer blocks than planned, else None."""

    plan: ComparisonPlan
    blocks: tuple[Block, ...]
    ratios: tuple[Ratio, ...]
    stopped: str | None = None

    def ratio(self, figure: FigureName) -> Ratio | None:
        return next((each for each in self.ratios if each.figure == figure), None)

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(block.fault for block in self.blocks if block.fault is not None)


class OutOfBudget(Exception):
    """`measure` may raise it: the comparison ends with the blocks that it has."""


async def compare(first: Policy, second: Policy, measure: Measure, plan: ComparisonPlan, chance: Random) -> Comparison:
    """Measures both in turn and compares. A measurement that fails spoils its block, which then does not count; the
    others go on. Raises ValueError for a plan without blocks."""
    if plan.blocks < 1:
        raise ValueError("a comparison needs a block")
    blocks: list[Block] = []
    stopped: str | None = None
    for _ in range(plan.blocks):
        order = plan.order if chance.random() < 0.5 else plan.order.translate(str.maketrans("ab", "ba"))
        try:
            blocks.append(await _block(order, first, second, measure, plan.effort))
        except OutOfBudget as error:
            stopped = str(error)
            break
    return Comparison(plan, tuple(blocks), ratios(blocks, plan.level, chance.getrandbits(32)), stopped)


async def _block(order: str, first: Policy, second: Policy, measure: Measure, effort: float) -> Block:
    sides: dict[str, list[Measured]] = {"a": [], "b": []}
    try:
        for side in order:
            sides[side].append(await measure(first if side == "a" else second, effort))
    except MeasurementFailed as error:
        return Block(order, tuple(sides["a"]), tuple(sides["b"]), f"{side.upper()}: {error}")
    return Block(order, tuple(sides["a"]), tuple(sides["b"]))


def ratios(blocks: Sequence[Block], level: float, seed: int) -> tuple[Ratio, ...]:
    """Of every figure that some whole block has on both sides."""
    whole = [block for block in blocks if block.fault is None]
    found = ((figure, [log for block in whole if (log := _of_block(figure, block)) is not None]) for figure in FIGURES)
    return tuple(_ratio(figure, logs, level, seed) for figure, logs in found if logs)


def _of_block(figure: FigureName, block: Block) -> float | None:
    pairs = [log_ratio(figure, a, b) for a, b in zip(block.first, block.second, strict=True)]
    known = [each for each in pairs if each is not None]
    return mean(known) if pairs and len(known) == len(pairs) else None


def _ratio(figure: FigureName, logs: list[float], level: float, seed: int) -> Ratio:
    means = SubsetMeans(logs, seed)
    bounds = means.bounds(level)
    low, high = (None, None) if bounds is None else (exp(bounds[0]), exp(bounds[1]))
    return Ratio(
        figure, exp(mean(logs)), len(logs), fewest(level), low, high, means.p_other_than(0.0), _verdict(low, high)
    )


def _verdict(low: float | None, high: float | None) -> Verdict:
    if low is None or high is None:
        return "too few blocks"
    return "more" if low > 1 else "less" if high < 1 else "not distinguishable"
