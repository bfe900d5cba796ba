"""What one measurement of an engine under a policy gives, and which way each figure is better."""

from collections.abc import Awaitable, Callable, Iterable
from math import log
from statistics import median
from typing import Final, Literal, get_args

import msgspec

from sekisho.control.policy import Policy

FigureName = Literal[
    "decode_tokens_per_s", "prefill_tokens_per_s", "first_token_ms", "memory_bytes", "kv_bytes", "contexts"
]
FIGURES: Final[tuple[FigureName, ...]] = get_args(FigureName)
LESS_IS_BETTER: Final = frozenset({"first_token_ms", "memory_bytes", "kv_bytes"})


class MeasurementFailed(Exception):
    """A policy could not be measured: the engine did not start, did not answer, or took too long. The text says so."""


class Measured(msgspec.Struct, frozen=True):
    """None: not measured, and `notes` says why. `decode_tokens_per_s`: of all contexts together. `first_token_ms`: the
    median over real streams. `memory_bytes`: of the engine's process; `kv_bytes`: of its KV memory alone. `contexts`:
    how many were there at once. `delta_ppl`: perplexity less that at 16 bits, on the same text."""

    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    first_token_ms: float | None = None
    memory_bytes: int | None = None
    kv_bytes: int | None = None
    contexts: int | None = None
    delta_ppl: float | None = None
    notes: tuple[str, ...] = ()


Measure = Callable[[Policy, float], Awaitable[Measured]]
"""Measures an engine under a policy; the second argument is the effort: 1 is the shortest that is of use, 2 about twice
as long. Raises MeasurementFailed. Two measurements never run at once."""


def log_ratio(figure: FigureName, first: Measured, second: Measured) -> float | None:
    """The logarithm of `second` over `first`; None where one of them is missing or not above zero."""
    before, after = getattr(first, figure), getattr(second, figure)
    if before is None or after is None or before <= 0 or after <= 0:
        return None
    return log(after / before)


def log_gain(figure: FigureName, first: Measured, second: Measured) -> float | None:
    """As `log_ratio`, above zero where `second` is the better one."""
    ratio = log_ratio(figure, first, second)
    return -ratio if ratio is not None and figure in LESS_IS_BETTER else ratio


def middle(several: Iterable[Measured]) -> Measured:
    """The median of each figure over those that have it. `delta_ppl` is the worst."""
    every = tuple(several)
    losses = [each.delta_ppl for each in every if each.delta_ppl is not None]
    return Measured(
        decode_tokens_per_s=_median(each.decode_tokens_per_s for each in every),
        prefill_tokens_per_s=_median(each.prefill_tokens_per_s for each in every),
        first_token_ms=_median(each.first_token_ms for each in every),
        memory_bytes=_whole(_median(each.memory_bytes for each in every)),
        kv_bytes=_whole(_median(each.kv_bytes for each in every)),
        contexts=_whole(_median(each.contexts for each in every)),
        delta_ppl=max(losses, default=None),
        notes=tuple(dict.fromkeys(note for each in every for note in each.notes)),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
