"""Limits of a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import QuotaSpent, RateLimited
from sekisho.gateway.limits import WINDOW_S, Limits, Meter, Spending

REQUESTS = st.lists(st.tuples(st.floats(0.0, 30.0), st.integers(0, 50), st.integers(0, 80)), max_size=60)


@given(requests=REQUESTS, limit=st.integers(1, 8))
def test_no_window_of_60_seconds_holds_more_requests_than_the_limit(
    requests: list[tuple[float, int, int]], limit: int
) -> None:
    """Whatever the arrival times, any 60 s hold at most `limit` admitted requests, and a refusal names the wait
    after which the same request is admitted."""
    meter, now, admitted = Meter(Limits(requests_per_minute=limit)), 0.0, []
    for pause, estimate, used in requests:
        now += pause
        try:
            reservation = meter.admit(now, estimate, Spending())
        except RateLimited as error:
            now += (error.retry_after_s or 0.0) + 1e-6
            reservation = meter.admit(now, estimate, Spending())
        admitted.append(now)
        meter.settle(reservation, used)
    for start in admitted:
        assert sum(start <= at < start + WINDOW_S for at in admitted) <= limit


@given(requests=REQUESTS, limit=st.integers(50, 200))
def test_the_token_window_equals_a_recount(requests: list[tuple[float, int, int]], limit: int) -> None:
    """The running sum of tokens is what a recount over the last 60 s gives, estimates replaced by real counts."""
    meter, now, admitted = Meter(Limits(tokens_per_minute=limit)), 0.0, []
    for pause, estimate, used in requests:
        now += pause
        before = sum(tokens for at, tokens in admitted if at > now - WINDOW_S)
        try:
            reservation = meter.admit(now, estimate, Spending())
        except RateLimited:
            assert before + estimate > limit
            continue
        assert before + estimate <= limit
        meter.settle(reservation, used)
        admitted.append((now, used))
    _, left = meter.remaining(now)
    assert left == max(0, limit - sum(tokens for at, tokens in admitted if at > now - WINDOW_S))


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4))
def test_parallel_requests_are_counted_exactly(steps: list[bool], limit: int) -> None:
    """Never more than `limit` at once; settling twice frees one place, not two."""
    meter, running = Meter(Limits(parallel=limit)), []
    for start in steps:
        if start:
            if len(running) < limit:
                running.append(meter.admit(0.0, 1, Spending()))
            else:
                with pytest.raises(RateLimited) as told:
                    meter.admit(0.0, 1, Spending())
                assert told.value.error_code == "parallel_limit_exceeded"
        elif running:
            reservation = running.pop()
            meter.settle(reservation, 1)
            meter.settle(reservation, 1)
        assert meter.running == len(running)


def test_a_budget_counts_what_running_requests_have_reserved() -> None:
    """Requests that run at the same time cannot together overrun a budget that one of them would fill."""
    meter = Meter(Limits(budget_tokens=100))
    first = meter.admit(0.0, 60, Spending(tokens=39))
    meter.admit(0.0, 60, Spending(tokens=39))
    with pytest.raises(QuotaSpent) as told:
        meter.admit(0.0, 1, Spending(tokens=39))
    assert (told.value.status, told.value.error_code) == (429, "insufficient_quota")
    meter.settle(first, 10)
    meter.admit(0.0, 0, Spending(tokens=39))


def test_a_spent_cost_budget_refuses() -> None:
    """Cost is compared in millionths: at the budget is spent, one below is not."""
    meter = Meter(Limits(budget_cost_micros=5))
    meter.settle(meter.admit(0.0, 1, Spending(cost_micros=4)), 1)
    with pytest.raises(QuotaSpent):
        meter.admit(0.0, 1, Spending(cost_micros=5))


def test_a_request_that_can_never_fit_is_told_so() -> None:
    """A request larger than the whole window gets no Retry-After, which would make clients try for ever."""
    with pytest.raises(RateLimited) as told:
        Meter(Limits(tokens_per_minute=10)).admit(0.0, 11, Spending())
    assert told.value.retry_after_s is None
    assert told.value.error_code == "request_exceeds_token_limit"
