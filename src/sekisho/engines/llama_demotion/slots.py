"""Which of the keeper's slots holds what, which are taken, and which suits a prompt best; and whether reading a prompt
at 16 bits is worth its while. Slots are known by what was sent to them: llama.cpp does not tell their tokens."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

TIMES_SLOWER: Final = 5
"""llama.cpp on a processor reads over a quantised cache 5 to 7 times slower than over one at 16 bits (4,096 to 16,384
tokens of a model of 1B); the less there is, the smaller the difference."""
FEWEST: Final = 256
"""Tokens below which the difference is tenths of a second: 57 tokens/s at q8_0 against 70 at 512 tokens."""
OVERHEAD: Final = 128
"""What saving, storing anew and restoring costs beside, in tokens read: about as long as so many take."""
_SIMILAR: Final = 10  # a slot counts as holding a prompt's beginning from a tenth of it on, as in llama.cpp itself


def worth_demoting(rest: int, whole: int) -> bool:
    """`rest`: tokens that the keeper would have to read. `whole`: those that the reader would have to."""
    return rest >= FEWEST and rest * TIMES_SLOWER > whole + OVERHEAD


def as_tokens(numbers: Sequence[int]) -> Tokens:
    """Raises OverflowError for what can be no token."""
    return np.asarray(numbers, np.int32)


def common_prefix(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


_NOTHING: Final = as_tokens(())


class Slot:
    """`tokens`: what it holds for certain. `said`: tokens of the last answer, which follow them and are not known, but
    which a next turn most likely repeats."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens, self.said = _NOTHING, 0
        self.taken, self.used = False, 0

    def held(self, prompt: Tokens) -> int:
        """How many of the prompt's tokens it holds, at most all but the last, which is always read."""
        known = common_prefix(self.tokens, prompt)
        if known == len(self.tokens) > 0:
            known += self.said
        return max(0, min(known, len(prompt) - 1))

    def hold(self, tokens: Tokens, said: int = 0) -> None:
        self.tokens, self.said = tokens, said


class Slots:
    """All slots of the keeper. Belongs to one loop."""

    def __init__(self, count: int) -> None:
        self.all = tuple(Slot(number) for number in range(count))
        self._idle = asyncio.Semaphore(count)
        self._uses = itertools.count(1)

    @asynccontextmanager
    async def taken(self, prompt: Tokens) -> AsyncIterator[Slot]:
        """The slot that suits the prompt best, for as long as the block lasts. Where all are taken, waits in order."""
        async with self._idle:
            slot = self._best(prompt)
            slot.taken = True
            try:
                yield slot
            finally:
                slot.taken, slot.used = False, next(self._uses)

    def _best(self, prompt: Tokens) -> Slot:
        """Of those that are idle the one that holds the longest beginning; among equals, and where none holds enough
        to be kept for it, the one whose last use lies furthest back."""
        enough = len(prompt) / _SIMILAR

        def suits(slot: Slot) -> tuple[int, int]:
            held = slot.held(prompt)
            return held if held > enough else 0, -slot.used

        return max((slot for slot in self.all if not slot.taken), key=suits)

    def forget(self) -> None:
        """Somebody else wrote to slots: of idle ones nothing is known any more."""
        for slot in self.all:
            if not slot.taken:
                slot.hold(_NOTHING)
