"""Back-off."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.backoff import LONGEST_S, Backoff

SECONDS = st.floats(1e-6, LONGEST_S)


@given(SECONDS, SECONDS, st.floats(1, 1e300), st.integers(0, 2**32), st.integers(1, 60))
def test_every_delay_is_between_the_first_and_the_limit_and_never_shrinks_in_its_base(
    one: float, other: float, factor: float, seed: int, times: int
) -> None:
    """Whatever the figures: finite, from 1.1 x initial to 1.3 x limit, and no delay is below 1.1/1.3 of the one
    before."""
    initial_s, limit_s = sorted((one, other))
    backoff = Backoff(initial_s, limit_s, factor, random.Random(seed))
    delays = [backoff.next_s() for _ in range(times)]
    assert all(math.isfinite(delay) for delay in delays)
    assert min(delays) >= initial_s * 1.1 * (1 - 1e-9)
    assert max(delays) <= limit_s * 1.3 * (1 + 1e-9)
    assert all(later >= earlier * 1.1 / 1.3 * (1 - 1e-9) for earlier, later in pairwise(delays))


def test_it_grows_by_the_factor_up_to_the_limit() -> None:
    """The jitter is not fed back: the base of the n-th delay is initial x factor^n."""
    backoff = Backoff(2.0, 120.0, 1.5, random.Random(1))
    for attempt in range(30):
        base_s = min(2.0 * 1.5**attempt, 120.0)
        assert base_s * 1.1 <= backoff.next_s() <= base_s * 1.3


def test_ten_thousand_attempts_do_not_overflow() -> None:
    """A back-off that has run for a year still answers."""
    backoff = Backoff(1.0, 60.0, 1e308, random.Random(2))
    assert all(backoff.next_s() <= 78.0 for _ in range(10_000))


def test_the_same_chance_gives_the_same_delays_and_reset_starts_over() -> None:
    """Randomness comes from the generator that is handed in alone."""
    one, other = Backoff(1, 60, 2, random.Random(3)), Backoff(1, 60, 2, random.Random(3))
    assert [one.next_s() for _ in range(5)] == [other.next_s() for _ in range(5)]
    assert one.attempts == 5
    one.reset()
    assert one.attempts == 0
    assert one.next_s() <= 1.3


@pytest.mark.parametrize(
    ("initial_s", "limit_s", "factor"),
    [(0, 1, 2), (-1, 1, 2), (2, 1, 2), (1, math.inf, 2), (math.nan, 1, 2), (1, 2, 0.5), (1, 2, math.inf)],
)
def test_figures_that_make_no_back_off_are_refused(initial_s: float, limit_s: float, factor: float) -> None:
    """A delay of nothing, or one that never ends, is a mistake in the settings."""
    with pytest.raises(ValueError, match="must"):
        Backoff(initial_s, limit_s, factor, random.Random(0))
