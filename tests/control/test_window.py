"""The figures of the last seconds."""

import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples_harness import batch, sample

from sekisho.control.feed import Batch
from sekisho.control.figures import CALLERS, Spread, spread
from sekisho.control.window import Window
from sekisho.core.clock import ManualClock

MILLISECONDS = st.floats(min_value=0, max_value=1e7, allow_nan=False)


def watched(clock: ManualClock, seconds: float = 60.0) -> Window:
    """A window that has been watched for as long as it is."""
    window = Window(seconds, clock)
    window.take(Batch(known_s=1e6))
    return window


# --- nothing is invented ---------------------------------------------------------------------------------------------


def test_without_requests_every_figure_is_none() -> None:
    """No request ended: no rate, no latency and no share is 0; a reason stands in their place."""
    figures = watched(ManualClock()).figures()
    assert figures.requests == 0
    for value in (
        figures.tokens_per_second, figures.requests_per_second, figures.error_share, figures.output_tokens,
        figures.input_tokens, figures.tokens_per_second_since_earliest_start,
        figures.requests_per_second_since_earliest_start, figures.online_nll.mean_nats,
    ):  # fmt: skip
        assert value is None
    for part in (figures.latency, figures.first_token):
        assert part == Spread(reason="no request ended in the last 60 s")
    assert figures.reason == "no request ended in the last 60 s"


def test_before_the_feed_answers_nothing_is_watched() -> None:
    """An agent that has not reached the gateway says so, and not that nothing happens."""
    clock = ManualClock()
    window = Window(60.0, clock)
    clock.advance(30)
    assert (window.figures().observed_s, window.figures().reason) == (0.0, "the feed of requests has not answered yet")
    window.take(Batch(reason="the gateway does not answer"))
    assert window.figures().reason == "the gateway does not answer"


def test_a_first_token_that_nobody_measured_is_not_estimated() -> None:
    """Requests that were not streamed count for the latency alone; where none was, the figure is None with a reason."""
    window = watched(ManualClock())
    window.add(sample(first_token_ms=None))
    assert (window.figures().latency.n, window.figures().first_token.n) == (1, 0)
    assert window.figures().first_token == Spread(reason="no request was streamed")
    window.add(sample(first_token_ms=70.0))
    assert (window.figures().first_token.n, window.figures().first_token.median_ms) == (1, 70.0)


def test_one_value_has_no_spread() -> None:
    """Of one request there is a mean and no deviation."""
    assert spread([5.0], "") == Spread(1, 5.0, 5.0, 5.0, 5.0, None)


# --- what the figures are --------------------------------------------------------------------------------------------


@given(st.lists(MILLISECONDS, min_size=2, max_size=200))
def test_latency_is_what_its_definitions_say(values: list[float]) -> None:
    """Mean and deviation are the textbook's (by another implementation), percentiles numpy's linear ones."""
    found = spread(values, "")
    assert found.n == len(values)
    assert found.mean_ms == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-9)
    assert found.std_ms == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-3)
    assert found.median_ms == pytest.approx(statistics.median(values), rel=1e-9, abs=1e-9)
    assert found.p95_ms == pytest.approx(float(np.quantile(values, 0.95, method="linear")), rel=1e-9, abs=1e-9)
    assert found.p99_ms == pytest.approx(float(np.quantile(values, 0.99, method="linear")), rel=1e-9, abs=1e-9)
    assert found.median_ms <= found.p95_ms <= found.p99_ms <= max(values)


def test_rates_are_over_the_window_that_was_watched() -> None:
    """Ten requests with 200 tokens in a full window of 60 s; the published formula, over the time since the earliest
    start, stands beside under its own name."""
    clock = ManualClock()
    window = watched(clock)
    for number in range(10):
        window.add(sample(number))
        clock.advance(1.0)
    figures = window.figures()
    assert figures.observed_s == 60.0
    assert figures.tokens_per_second == pytest.approx(200 / 60)
    assert figures.requests_per_second == pytest.approx(10 / 60)
    assert figures.tokens_per_second_since_earliest_start == pytest.approx(200 / 11)
    assert figures.requests_per_second_since_earliest_start == pytest.approx(10 / 11)
    assert (figures.input_tokens, figures.output_tokens) == (100, 200)


def test_a_window_that_is_younger_than_its_length_divides_by_its_age() -> None:
    """An agent and a gateway that began 5 s ago: 20 tokens are 4 a second, not a third."""
    clock = ManualClock()
    window = Window(60.0, clock)
    clock.advance(5.0)
    window.take(batch(sample(), known_s=5.0))
    assert window.figures().tokens_per_second == pytest.approx(4.0)


@pytest.mark.parametrize(("every_s", "long_s"), [(100.0, 2.0), (30.0, 45.0), (5.0, 90.0)])
def test_the_rate_is_without_bias(every_s: float, long_s: float) -> None:
    """Poisson traffic, rare and short or dense and longer than the window: over many windows the mean of ours is the
    true rate; the published formula is far from it."""
    chance, clock = random.Random(7), ManualClock()
    window = watched(clock)
    ours, published, tokens = [], [], 0
    windows = 4000
    next_s = chance.expovariate(1 / every_s)
    for _ in range(windows):
        left_s = 60.0
        while next_s <= left_s:
            clock.advance(next_s)
            left_s -= next_s
            window.add(sample(duration_ms=1e3 * chance.uniform(0.5, 1.5) * long_s))
            tokens += 20
            next_s = chance.expovariate(1 / every_s)
        clock.advance(left_s - 1e-9)
        next_s -= left_s
        figures = window.figures()
        ours.append(figures.tokens_per_second or 0.0)
        published.append(figures.tokens_per_second_since_earliest_start or 0.0)
        clock.advance(1e-9)
    true = tokens / (windows * 60.0)
    assert statistics.fmean(ours) == pytest.approx(true, rel=1e-6)
    assert abs(statistics.fmean(published) / true - 1) > 0.2


def test_errors_of_the_caller_are_not_the_engines() -> None:
    """Failed, rejected, cancelled and well ended are counted apart; only failures on our side make the share."""
    window = watched(ManualClock())
    for status in ("ok", "ok", "cancelled", "engine_failed", "context_length_exceeded", "failed", "engine_failed"):
        window.add(sample(status=status))
    figures = window.figures()
    assert (figures.requests, figures.ok, figures.cancelled, figures.rejected, figures.failed) == (7, 2, 1, 1, 3)
    assert figures.errors == {"engine_failed": 2, "context_length_exceeded": 1, "failed": 1}
    assert figures.error_share == pytest.approx(3 / 7)
    assert figures.latency.n == 2
    assert {"invalid_api_key", "context_length_exceeded", "insufficient_quota"} <= CALLERS
    assert not {"engine_failed", "engine_timeout", "overloaded", "internal_error"} & CALLERS


def test_models_are_told_apart_and_together() -> None:
    """Each model has its own figures, and all have theirs."""
    window = watched(ManualClock())
    window.add(sample(model="a", output_tokens=60))
    window.add(sample(model="b", output_tokens=120))
    assert window.models() == ("a", "b")
    assert [each.output_tokens for each in window.samples()] == [60, 120]
    assert [window.figures(name).output_tokens for name in ("a", "b", None)] == [60, 120, 180]
    assert window.figures("c").tokens_per_second is None


# --- time ------------------------------------------------------------------------------------------------------------


def test_what_is_older_than_the_window_is_out() -> None:
    """A request counts for as long as the window is, from the moment at which it ended."""
    clock = ManualClock()
    window = watched(clock)
    window.add(sample(1), age_s=50.0)
    window.add(sample(2))
    assert window.figures().requests == 2
    clock.advance(10.0)
    assert window.figures().requests == 1
    clock.advance(50.0)
    assert window.figures().requests == 0
    assert window.samples() == ()


@given(st.floats(min_value=-1e8, max_value=1e8), st.floats(min_value=0, max_value=59))
def test_a_jump_of_the_wall_clock_changes_nothing(jump_s: float, passed_s: float) -> None:
    """Set back or forward by seconds or years, the window is neither emptied nor frozen."""
    still, moved = ManualClock(), ManualClock()
    windows = [watched(still), watched(moved)]
    for clock, window in zip((still, moved), windows, strict=True):
        window.take(batch(sample(ended_at=clock.now()), age_s=0.5))
        clock.advance(passed_s)
    moved.jump(jump_s)
    assert windows[0].figures() == windows[1].figures()
    for clock in (still, moved):
        clock.advance(60.0)
    assert [window.figures().requests for window in windows] == [0, 0]


def test_while_the_gateway_is_away_rates_do_not_sink() -> None:
    """What nobody watched is not taken for silence: the rate stays that of the watched part, until that has left the
    window; then it is None, with the reason."""
    clock = ManualClock()
    window = watched(clock)
    window.take(batch(*(sample(number) for number in range(6))))
    before = window.figures().tokens_per_second
    clock.advance(1.0)
    window.take(Batch(reason="the gateway does not answer: refused"))
    clock.advance(29.0)
    window.take(Batch(reason="the gateway does not answer: refused"))
    figures = window.figures()
    assert (figures.observed_s, figures.reason) == (31.0, "the gateway does not answer: refused")
    assert before == pytest.approx(120 / 60)
    assert figures.tokens_per_second == pytest.approx(120 / 31)
    clock.advance(31.0)
    assert window.figures().observed_s == 0.0
    assert window.figures().tokens_per_second is None
    window.take(Batch())
    assert window.figures().reason == "no request ended in the last 60 s"
    assert window.figures().observed_s == 60.0


def test_samples_that_were_missed_shorten_the_watched_part() -> None:
    """Where the gateway forgot some before they were fetched, rates are over the time since the first that is left."""
    clock = ManualClock()
    window = watched(clock)
    window.take(Batch((sample(900), sample(901)), (10.0, 5.0), missed=300))
    assert window.figures().observed_s == 10.0
    assert window.figures().requests_per_second == pytest.approx(0.2)


def test_a_window_must_have_a_sensible_length() -> None:
    """Neither nothing nor more than an hour."""
    for seconds in (0.0, -1.0, 3601.0, float("nan")):
        with pytest.raises(ValueError, match="the window must be"):
            Window(seconds, ManualClock())


# --- online NLL ------------------------------------------------------------------------------------------------------


def test_online_nll_is_the_mean_of_the_last_hundred_that_have_it() -> None:
    """By model and over all, whatever has left the window; requests without a figure do not count."""
    clock = ManualClock()
    window = watched(clock)
    assert window.figures().online_nll.reason
    for number in range(150):
        window.add(sample(number, mean_nll=float(number)))
        window.add(sample(number, model="other"))
    clock.advance(600.0)
    found = window.figures("m").online_nll
    assert (found.n, found.mean_nats) == (100, pytest.approx(statistics.fmean(range(50, 150))))
    assert found.newest_age_s == pytest.approx(600.0)
    assert window.figures().online_nll.n == 100
    assert window.figures("other").online_nll.mean_nats is None
