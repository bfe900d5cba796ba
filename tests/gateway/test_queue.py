"""The fair queue."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import Overloaded
from sekisho.gateway.queue import FairQueue


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_key_with_many_requests_delays_another_by_one_turn() -> None:
    """With one slot and 50 waiting requests of key a, a request of key b is served second."""
    queue, order = FairQueue(1, 100, 60.0), []
    await queue.acquire("a")

    async def work(key: str) -> None:
        await queue.acquire(key)
        order.append(key)
        queue.release()

    tasks = [asyncio.create_task(work("a")) for _ in range(50)]
    await _settle()
    tasks.append(asyncio.create_task(work("b")))
    await _settle()
    queue.release()
    await asyncio.gather(*tasks)
    assert order.index("b") <= 1
    assert Counter(order) == {"a": 50, "b": 1}
    assert (queue.running, queue.waiting) == (0, 0)


async def test_a_full_queue_takes_from_the_longest_line() -> None:
    """When key a fills the queue, key b gets a place and the newest request of a is told that it is overloaded."""
    queue = FairQueue(1, 3, 60.0)
    await queue.acquire("a")
    waiting = [asyncio.create_task(queue.acquire("a")) for _ in range(3)]
    await _settle()
    other = asyncio.create_task(queue.acquire("b"))
    await _settle()
    with pytest.raises(Overloaded) as told:
        await waiting[2]
    assert told.value.retry_after_s
    assert not any(task.done() for task in (*waiting[:2], other))
    with pytest.raises(Overloaded):
        await queue.acquire("a")  # its own line is the longest: nobody gives way
    for task in (*waiting, other):
        task.cancel()
    await asyncio.gather(*waiting, other, return_exceptions=True)
    assert (queue.running, queue.waiting) == (1, 0)


async def test_a_wait_that_is_too_long_is_overloaded() -> None:
    """The wait is bounded, and leaves nothing behind."""
    queue = FairQueue(1, 3, 0.01)
    await queue.acquire("a")
    with pytest.raises(Overloaded):
        await queue.acquire("b")
    assert (queue.running, queue.waiting) == (1, 0)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "cancel", "give"])), max_size=60),
    st.integers(1, 3),
)
def test_slots_are_never_lost_or_doubled(steps: list[tuple[str, str]], slots: int) -> None:
    """After any sequence of waits, cancellations and releases, the slots held are exactly those not given back."""

    async def run() -> None:
        queue, tasks, held = FairQueue(slots, 100, 60.0), [], 0
        for key, step in steps:
            if step == "take":
                tasks.append(asyncio.create_task(queue.acquire(key)))
            elif step == "cancel" and tasks:
                tasks[-1].cancel()
            elif step == "give":
                done = [t for t in tasks if t.done() and not t.cancelled()]
                if done:
                    tasks.remove(done[0])
                    queue.release()
            await _settle()
            held = sum(t.done() and not t.cancelled() for t in tasks)
            assert queue.running == held <= slots
            assert queue.waiting == sum(not t.done() for t in tasks)
            assert queue.waiting == 0 or queue.running == slots
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
