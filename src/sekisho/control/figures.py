"""What a set of finished requests comes to. Pure functions; what cannot be said of them is None, never 0."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from sekisho.control.base import Sample
from sekisho.core import errors


class Spread(msgspec.Struct, frozen=True):
    """`n` measured values in ms. Percentiles by numpy's linear method (between the two nearest ranks); with fewer than
    20 values p95, and with fewer than 100 p99, is little more than the largest. `std_ms` divides by n - 1."""

    n: int = 0
    mean_ms: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    std_ms: float | None = None
    reason: str | None = None


class OnlineNll(msgspec.Struct, frozen=True):
    """Mean of the last `n` requests' means of -ln p over the tokens that the model itself generated. An early sign that
    something changed, and not the perplexity of a text: it moves with what is asked and how it is sampled. Only
    requests whose client asks for logprobs have it. `newest_age_s`: how long ago the newest of them ended."""

    n: int = 0
    mean_nats: float | None = None
    newest_age_s: float | None = None
    reason: str | None = None


class Figures(msgspec.Struct, frozen=True):
    """Requests that ended in the window, of one model or (None) of all. `reason` says why numbers are None.

    `tokens_per_second`, `requests_per_second`: generated tokens, and requests, of requests that ended in the window,
    over `observed_s`, the part of the window that was really watched. Over many windows each token counts exactly once,
    so that it is without bias; a single window with few long requests swings. `…_since_earliest_start` is the published
    formula, over the time since the earliest start among these requests: too high where requests are rare, too low
    where they are longer than the window.

    `latency` is of requests that ended `ok`, arrival to last byte; `first_token` of those that were streamed. `failed`
    are those that broke on our side; `rejected` the caller's own mistakes; `error_share` is failed over requests.
    """

    model: str | None
    window_s: float
    observed_s: float
    requests: int = 0
    ok: int = 0
    cancelled: int = 0
    rejected: int = 0
    failed: int = 0
    errors: dict[str, int] = {}
    error_share: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    tokens_per_second: float | None = None
    requests_per_second: float | None = None
    tokens_per_second_since_earliest_start: float | None = None
    requests_per_second_since_earliest_start: float | None = None
    latency: Spread = Spread()
    first_token: Spread = Spread()
    online_nll: OnlineNll = OnlineNll()
    reason: str | None = None


def _codes(kind: type[errors.SekishoError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


CALLERS: Final = frozenset(_codes(errors.RequestError))
"""Codes of errors that the caller can mend: they tell nothing about the engine."""


def spread(values_ms: Sequence[float], nothing: str) -> Spread:
    """`nothing`: why there are no values, if there are none."""
    n = len(values_ms)
    if not n:
        return Spread(reason=nothing)
    values = np.asarray(values_ms, dtype=np.float64)
    median, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    std = float(values.std(ddof=1)) if n > 1 else None
    return Spread(n, float(values.mean()), median, p95, p99, std)


def figures(
    ended: Iterable[tuple[float, Sample]],
    *,
    model: str | None,
    window_s: float,
    observed_s: float,
    now_s: float,
    online_nll: OnlineNll,
    reason: str | None,
) -> Figures:
    """`ended`: samples with the moment each ended, on the clock of `now_s`. `reason`: why there may be none."""
    pairs = list(ended)
    samples = [sample for _, sample in pairs]
    why = reason or f"no request ended in the last {observed_s:.0f} s"
    if not samples:
        empty = Spread(reason=why)
        return Figures(model, window_s, observed_s, latency=empty, first_token=empty, online_nll=online_nll, reason=why)
    wrong: dict[str, int] = {}
    for sample in samples:
        if sample.status not in ("ok", "cancelled"):
            wrong[sample.status] = wrong.get(sample.status, 0) + 1
    rejected = sum(count for code, count in wrong.items() if code in CALLERS)
    failed = sum(wrong.values()) - rejected
    output_tokens = sum(sample.output_tokens for sample in samples)
    since_s = now_s - min(ended_s - sample.duration_ms / 1e3 for ended_s, sample in pairs)
    fine = [sample for sample in samples if sample.status == "ok"]
    first_ms = [sample.first_token_ms for sample in samples if sample.first_token_ms is not None]
    return Figures(
        model=model,
        window_s=window_s,
        observed_s=observed_s,
        requests=len(samples),
        ok=len(fine),
        cancelled=sum(sample.status == "cancelled" for sample in samples),
        rejected=rejected,
        failed=failed,
        errors=wrong,
        error_share=failed / len(samples),
        input_tokens=sum(sample.input_tokens for sample in samples),
        output_tokens=output_tokens,
        tokens_per_second=_rate(output_tokens, observed_s),
        requests_per_second=_rate(len(samples), observed_s),
        tokens_per_second_since_earliest_start=_rate(output_tokens, since_s),
        requests_per_second_since_earliest_start=_rate(len(samples), since_s),
        latency=spread([sample.duration_ms for sample in fine], "no request ended well"),
        first_token=spread(first_ms, "no request was streamed"),
        online_nll=online_nll,
        reason=reason,
    )


def _rate(count: int, passed_s: float) -> float | None:
    return count / passed_s if passed_s > 0 else None
