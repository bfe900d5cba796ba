"""The agent's loops."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.loops import Loop, next_due
from sekisho.core.clock import ManualClock


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.floats(0.01, 100))
def test_the_next_run_is_never_before_now_nor_more_than_a_period_away(
    due_s: float, late_s: float, period_s: float
) -> None:
    """However late a run ended: the next one is at most a period after it, and missed ones are not made up for."""
    now_s = due_s + late_s
    following_s, missed = next_due(due_s, now_s, period_s)
    assert now_s <= following_s <= max(now_s, due_s + period_s)
    assert missed == (0 if late_s < period_s else int((now_s - (due_s + period_s)) // period_s))


async def test_a_run_that_fails_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """The error is counted, told in the figures until a run goes well, and logged once while it stays the same."""
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs in (1, 2, 4):
            raise RuntimeError("no engine")

    loop, told = Loop("fast", 1.0, work, ManualClock()), []
    for _ in range(5):
        await loop.once()
        told.append(loop.figures().last_error)
    no_engine = "RuntimeError: no engine"
    assert told == [no_engine, no_engine, None, no_engine, None]
    assert (loop.figures().runs, loop.figures().failed) == (5, 3)
    assert len([each for each in caplog.records if each.name.startswith("sekisho.")]) == 1


async def test_the_cost_of_a_loop_is_what_its_runs_took_of_one_core() -> None:
    """Processor seconds of the runs over the time the loop has lived."""
    clock, cpu = ManualClock(), [0.0]

    async def work() -> None:
        cpu[0] += 0.02

    loop = Loop("middle", 5.0, work, clock, lambda: cpu[0])
    for _ in range(10):
        await loop.once()
        clock.advance(5.0)
    assert loop.figures().cpu_share == pytest.approx(0.2 / 50)


async def test_cancelling_ends_it() -> None:
    """Also in the midst of a run; what is cancelled is not taken for a failure."""

    async def work() -> None:
        await asyncio.Event().wait()

    loop = Loop("slow", 60.0, work, ManualClock())
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.figures().failed == 0


def test_a_period_of_nothing_is_refused() -> None:
    """It would take the whole processor."""
    with pytest.raises(ValueError, match="above 0"):
        Loop("fast", 0.0, lambda: asyncio.sleep(0), ManualClock())
