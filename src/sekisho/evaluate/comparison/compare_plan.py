"""What a comparison of two arms is to do, fixed before the first request: items, blocks, margins, seed.

A block is four requests on two items, A i, B i, B j, A j, or with A and B exchanged, by a coin of the seed. A machine
that warms up or slows down steadily within a block, a cache that one arm fills for the other, and an item that is
long, fall out of its ratio; between blocks anything may happen.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Literal, TypeGuard

import msgspec

from sekisho.core.errors import InvalidRequest

Metric = Literal["ttft", "total", "tok_s", "success", "correct"]
Speed = Literal["ttft", "total", "tok_s"]
Order = Literal["ABBA", "BAAB"]
Arm = Literal["A", "B"]
Unit = Literal["blocks", "prompts", "pairs", "items"]
"""What is counted: of speeds blocks (or prompts, where runs are not interleaved), of shares pairs or items."""

_ARMS: dict[Order, tuple[Arm, Arm, Arm, Arm]] = {"ABBA": ("A", "B", "B", "A"), "BAAB": ("B", "A", "A", "B")}
SPEEDS: tuple[Speed, ...] = ("ttft", "total", "tok_s")
LEAST_BLOCKS = 6
"""Below it no 95 % interval without assumptions exists."""


class Item(msgspec.Struct, frozen=True):
    """A prompt. `expected` is for whoever judges the answer; it is not sent. Where some items have it, those without
    are there for speed alone."""

    id: str
    prompt: str
    max_tokens: int = 256
    expected: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `correct` None: nobody judged it. A time or speed that could not be measured is None."""

    ok: bool
    faults: tuple[str, ...] = ()
    ttft_ms: float | None = None
    total_ms: float | None = None
    tok_s: float | None = None
    correct: bool | None = None

    def speed(self, metric: Speed) -> float | None:
        """None for a failed request: it may have been fast at failing."""
        value = {"ttft": self.ttft_ms, "total": self.total_ms, "tok_s": self.tok_s}[metric]
        return value if self.ok and value is not None and value > 0 else None


class Margin(msgspec.Struct, frozen=True):
    """How much worse B may be: a share of A's time or speed, or a difference of two shares. 0 < `value` < 1."""

    metric: Metric
    value: float


DEFAULT_MARGINS = (
    Margin("ttft", 0.10),
    Margin("total", 0.10),
    Margin("tok_s", 0.05),
    Margin("success", 0.02),
    Margin("correct", 0.05),
)


class ComparePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`arms`: labels of A, what there is, and B, what might take its place. Each metric that has a margin is judged.
    `warmups`: requests to each arm before the first block, not counted. `stop_early`: end when B has surely failed.

    Raises InvalidRequest where it contradicts itself, also when it is read from JSON.
    """

    arms: tuple[str, str]
    items: tuple[Item, ...]
    margins: tuple[Margin, ...] = DEFAULT_MARGINS
    blocks: int = 40
    seed: int = 1
    warmups: int = 1
    stop_early: bool = True

    def __post_init__(self) -> None:
        check_arms(self.arms)
        check_margins(self.margins)
        ids = [item.id for item in self.items]
        if not ids or len(set(ids)) != len(ids) or not all(ids):
            raise InvalidRequest("A comparison needs items, each with an id of its own.", param="items")
        if self.blocks < 1:
            raise InvalidRequest("A comparison needs at least one block.", param="blocks")
        if self.warmups < 0:
            raise InvalidRequest("The number of warm-ups is 0 or more.", param="warmups")

    @property
    def sha256(self) -> str:
        """Of the whole plan: a result that names it was not given its margins afterwards."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Block(msgspec.Struct, frozen=True):
    """`items`: ids of the first and the second item."""

    index: int
    items: tuple[str, str]
    order: Order

    def requests(self) -> Iterator[tuple[Arm, str]]:
        """The four requests in their order: which arm is asked, and with which item."""
        first, second = self.items
        yield from zip(_ARMS[self.order], (first, first, second, second), strict=True)


class BlockResult(msgspec.Struct, frozen=True):
    """A finished block: four observations, in the order of `block.requests()`."""

    block: Block
    observations: tuple[Observation, Observation, Observation, Observation]

    def pairs(self) -> tuple[tuple[str, Observation, Observation], ...]:
        """(item, A's observation, B's observation) for both items."""
        first, second, third, fourth = self.observations
        if self.block.order == "ABBA":
            return (self.block.items[0], first, second), (self.block.items[1], fourth, third)
        return (self.block.items[0], second, first), (self.block.items[1], third, fourth)


def is_speed(metric: Metric) -> TypeGuard[Speed]:
    return metric in SPEEDS


def check_arms(arms: tuple[str, str]) -> None:
    if not all(arms) or arms[0] == arms[1]:
        raise InvalidRequest(
            "The two arms need two different names, such as two models or two addresses.", param="arms"
        )


def check_margins(margins: tuple[Margin, ...]) -> None:
    metrics = [margin.metric for margin in margins]
    if not metrics or len(set(metrics)) != len(metrics):
        raise InvalidRequest("A comparison needs one margin for each metric that is to be judged.", param="margins")
    for margin in margins:
        if not 0 < margin.value < 1:
            raise InvalidRequest(
                f"The margin of {margin.metric} lies between 0 and 1 (0.05 is 5 %), not at {margin.value:g}.",
                param="margins",
            )


def schedule(plan: ComparePlan) -> tuple[Block, ...]:
    """The blocks, the same for the same plan. All items come once before any comes again, newly shuffled."""
    coins = random.Random(plan.seed)
    ids = [item.id for item in plan.items]
    queue: list[str] = []
    blocks = []
    for index in range(plan.blocks):
        while len(queue) < 2:
            queue += coins.sample(ids, len(ids))
        blocks.append(Block(index, (queue.pop(0), queue.pop(0)), coins.choice(("ABBA", "BAAB"))))
    return tuple(blocks)
