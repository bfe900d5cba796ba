"""The interval of a counted share."""

import pytest

from sekisho.core.wilson import wilson


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (1, 20, 0.0089, 0.2361),
        (95, 100, 0.8882, 0.9785),
        (20, 20, 0.8389, 1),
    ],
)
def test_wilson_agrees_with_the_tables(hits: int, count: int, low: float, high: float) -> None:
    """The Wilson score interval at 95 % is the one that statistics tables print."""
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
