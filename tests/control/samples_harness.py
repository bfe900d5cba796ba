"""Samples and batches for tests, made in one line."""

from typing import Any

from sekisho.control.base import Sample
from sekisho.control.feed import Batch


def sample(number: int = 1, **changes: Any) -> Sample:
    """A request that ended well: 1 s long, streamed, 10 tokens in and 20 out."""
    values: dict[str, Any] = {
        "model": "m",
        "ended_at": 1_790_000_000.0,
        "duration_ms": 1000.0,
        "first_token_ms": 100.0,
        "input_tokens": 10,
        "output_tokens": 20,
        "status": "ok",
    }
    return Sample(number, **{**values, **changes})


def batch(*samples: Sample, age_s: float = 0.0, **changes: Any) -> Batch:
    return Batch(samples, (age_s,) * len(samples), **changes)
