"""A server that drifts, on a clock of its own, and comparisons of it."""

import asyncio
import math
import random
from collections.abc import Iterable

from sekisho.evaluate.comparison.compare import (
    Comparison,
)
from sekisho.evaluate.comparison.compare_plan import (
    BlockResult,
    ComparePlan,
    Item,
    Margin,
    Observation,
    schedule,
)
from sekisho.evaluate.comparison.compare_verdict import MetricResult

ITEMS = tuple(Item(f"item-{n}", f"prompt {n}", 64) for n in range(80))
SPEED = (Margin("ttft", 0.10), Margin("total", 0.10), Margin("tok_s", 0.10))


class Machine:
    """A server on a clock of its own. Its speed wanders, and falls by a third in an hour; an item has a length of its
    own; whoever asks an item second finds it cached. Arm "new" is `slower` and fails with probability `failing`."""

    def __init__(
        self, seed: int, *, slower: float = 0.0, failing: float = 0.0, wrong: float = 0.0, noise: float = 0.08
    ) -> None:
        self.chance = random.Random(seed)
        self.slower, self.failing, self.wrong, self.noise = slower, failing, wrong, noise
        self.now_s = 0.0
        self.phase = self.chance.uniform(0, 6)
        self.asked: list[tuple[str, str]] = []
        self.cached: set[str] = set()

    async def ask(self, arm: str, item: Item) -> Observation:
        await asyncio.sleep(0)
        self.asked.append((arm, item.id))
        new = arm == "new"
        factor = math.exp(0.4 * self.now_s / 3600 + 0.2 * math.sin(self.now_s / 400 + self.phase))
        factor *= math.exp(self.chance.gauss(0, self.noise)) * (1 + self.slower * new)
        length = 1 + int(item.id[5:]) % 7
        total_s = length * factor * (0.8 if item.id in self.cached else 1.0)
        self.cached.add(item.id)
        self.now_s += total_s
        if self.chance.random() < self.failing * new:
            return Observation(ok=False, faults=("timeout",), total_ms=60_000)
        return Observation(
            ok=True,
            ttft_ms=100 * total_s,
            total_ms=1000 * total_s,
            tok_s=40 / factor,
            correct=self.chance.random() >= self.wrong * new,
        )


def plan(blocks: int = 60, margins: tuple[Margin, ...] = SPEED, seed: int = 1, **more: object) -> ComparePlan:
    return ComparePlan(arms=("old", "new"), items=ITEMS, margins=margins, blocks=blocks, seed=seed, **more)  # type: ignore[arg-type]


def result_of(comparison: Comparison, metric: str) -> MetricResult:
    return next(result for result in comparison.metrics if result.metric == metric)


def canned(plan: ComparePlan, outcomes: Iterable[tuple[Observation, Observation]]) -> tuple[BlockResult, ...]:
    """Finished blocks in which the pairs (A, B) came as told."""
    pairs, found = iter(outcomes), []
    for block in schedule(plan):
        (a1, b1), (a2, b2) = next(pairs), next(pairs)
        found.append(BlockResult(block, (a1, b1, b2, a2) if block.order == "ABBA" else (b1, a1, a2, b2)))
    return tuple(found)


async def never(arm: str, item: Item) -> Observation:
    raise AssertionError(f"asked {arm} {item.id}")


def fine(ttft_ms: float = 100.0, correct: bool | None = None) -> Observation:
    return Observation(ok=True, ttft_ms=ttft_ms, total_ms=1000, tok_s=40, correct=correct)


FAILED = Observation(ok=False, faults=("http_500",))
