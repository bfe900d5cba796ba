"""What a measurement is, and how two of them differ. Pure.

Perplexity is exp of the mean negative log-likelihood (nats) that the model gave to each token of a held-out text, given
those before it in its stretch.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

Kind = Literal["light", "full"]
Precision = Literal["in_force", "full"]
"""Under the policy that holds now, or at 16 bits."""
STRETCH: Final[dict[Kind, int]] = {"light": 768, "full": 1024}
"""Tokens. Long enough for most of them to see a past that no recent window keeps in full precision."""
BLOCK: Final = 32
"""Predictions in one block: losses next to each other are not independent, blocks nearly are."""
_LEAST_BLOCKS: Final = 8
_NORMAL_95: Final = 1.96
_LARGEST_NATS: Final = 700.0  # exp of more is no float


class Unmeasured(Exception):
    """There is no figure. The text says why, and what would help where something would."""


class Stretch(msgspec.Struct, frozen=True):
    """`nll[i]`: of `tokens[i + 1]`, given all before it; nats."""

    tokens: list[int]
    nll: list[float]


class Scores(msgspec.Struct, frozen=True):
    """What a route has seen. `kv`: how the cache kept the past, in the engine's own words."""

    stretches: list[Stretch]
    kv: dict[str, Any]
    software: str = ""


class Measurement(msgspec.Struct, frozen=True):
    """`tokens`: predictions made. `nll_nats`: their mean. `blocks`: sums over `BLOCK` predictions, in order. `at`:
    seconds since 1970. `text_id` names text, part and length of a stretch; `model_hash` the weights; `software` the
    version of what ran them. Only measurements with the same text, weights and route can be compared."""

    model: str
    text_id: str
    tokens: int
    nll_nats: float
    perplexity: float
    route: str
    took_s: float
    at: float
    kv: dict[str, Any]
    model_hash: str = ""
    software: str = ""
    blocks: tuple[float, ...] = ()


class Delta(msgspec.Struct, frozen=True):
    """`value`: perplexity less the baseline's; `relative`: of the baseline's, 0.01 is 1 %. `low`, `high`: 95 % interval
    of `value` over blocks of text, each compared with itself; None with `reason` where there are too few."""

    value: float
    relative: float
    low: float | None
    high: float | None
    tokens: int
    reason: str | None = None


def perplexity(nll_nats: float) -> float:
    """Of a mean. Beyond what a float holds it stays at the largest that one can."""
    return math.exp(min(nll_nats, _LARGEST_NATS))


def flat(scores: Scores) -> list[float]:
    return [each for stretch in scores.stretches for each in stretch.nll]


def measurement(
    scores: Scores, *, model: str, text_id: str, route: str, took_s: float, at: float, model_hash: str = ""
) -> Measurement:
    """Raises `Unmeasured` where no number, or one that is none, came."""
    nll = flat(scores)
    if not nll or not all(math.isfinite(each) for each in nll):
        raise Unmeasured(f"{route}: {'no prediction was made' if not nll else 'a likelihood is not a number'}")
    mean = math.fsum(nll) / len(nll)
    return Measurement(
        model=model,
        text_id=text_id,
        tokens=len(nll),
        nll_nats=mean,
        perplexity=perplexity(mean),
        route=route,
        took_s=took_s,
        at=at,
        kv=scores.kv,
        model_hash=model_hash,
        software=scores.software,
        blocks=blocked(nll),
    )


def blocked(nll: Sequence[float]) -> tuple[float, ...]:
    return tuple(math.fsum(nll[at : at + BLOCK]) for at in range(0, len(nll), BLOCK))


def delta(measured: Measurement, baseline: Measurement) -> Delta:
    """Raises `Unmeasured` for two that cannot be compared."""
    for name in ("text_id", "tokens", "route", "model_hash"):
        if getattr(measured, name) != getattr(baseline, name):
            raise Unmeasured(
                f"the baseline has another {name}: {getattr(baseline, name)!r}, not {getattr(measured, name)!r}"
            )
    value = measured.perplexity - baseline.perplexity
    relative = math.expm1(min(measured.nll_nats - baseline.nll_nats, _LARGEST_NATS))
    differences = [one - other for one, other in zip(measured.blocks, baseline.blocks, strict=True)]
    if len(differences) < _LEAST_BLOCKS:
        reason = f"{measured.tokens} tokens are too few for an interval"
        return Delta(value, relative, None, None, measured.tokens, reason)
    half = _NORMAL_95 * _spread(differences) * math.sqrt(len(differences)) / measured.tokens
    low, high = (
        baseline.perplexity * math.expm1(min(measured.nll_nats - baseline.nll_nats + each, _LARGEST_NATS))
        for each in (-half, half)
    )
    return Delta(value, relative, low, high, measured.tokens)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation, n - 1."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1))
