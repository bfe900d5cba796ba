"""The fair queue."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.clock import ManualClock
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


# --- while a worker is exchanged


async def test_more_slots_wake_who_waits_and_fewer_let_them_end() -> None:
    """Growing lets waiting ones in at once; shrinking takes nothing away and lets nobody in until there is room."""
    queue = FairQueue(1, 10, 60.0)
    tasks = [asyncio.create_task(queue.acquire("a")) for _ in range(4)]
    await _settle()
    assert (queue.running, queue.waiting) == (1, 3)
    queue.resize(3)
    await _settle()
    assert (queue.running, queue.waiting) == (3, 1)
    queue.resize(1)
    for expected in (2, 1):
        queue.release()
        await _settle()
        assert (queue.running, queue.waiting) == (expected, 1)
    queue.release()
    await _settle()
    assert (queue.running, queue.waiting) == (1, 0)
    await asyncio.gather(*tasks)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The time of the test's loop."""
    clock = ManualClock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.monotonic)
    return clock


async def test_a_held_turn_outlasts_its_time_and_free_slots(clock: ManualClock) -> None:
    """While turns are held a free slot is given to nobody and nobody's time runs out, neither who came before nor
    during the hold; then all go on, and so does a call that waited for the end."""
    queue = FairQueue(2, 10, 60.0)
    await queue.acquire("a")
    await queue.acquire("a")
    before = asyncio.create_task(queue.acquire("a"))
    await _settle()
    clock.advance(59.0)
    queue.hold()
    during = asyncio.create_task(queue.acquire("b"))
    opened = asyncio.create_task(queue.opened())
    queue.release()
    queue.release()
    for _ in range(20):  # ten minutes, in which the supervisor renews the hold
        clock.advance(30.0)
        queue.hold()
        await _settle()
    assert (queue.running, queue.waiting, opened.done()) == (0, 2, False)
    queue.release_hold()
    await opened
    assert [await before, await during] == [0, 0]


async def test_the_time_of_a_turn_goes_on_after_the_hold(clock: ManualClock) -> None:
    """Only the hold does not count: what a turn waited before it and waits after it is `timeout_s` at most."""
    queue = FairQueue(1, 10, 60.0)
    await queue.acquire("a")
    task = asyncio.create_task(queue.acquire("a"))
    await _settle()
    for waited_s in (20.0, 39.0):
        clock.advance(waited_s)
        queue.hold()
        clock.advance(600.0)
        await _settle()
        queue.release_hold()
        await _settle()
        assert not task.done()
    clock.advance(2.0)
    with pytest.raises(Overloaded, match="within 60 s: the engine is busy"):
        await task
    assert (queue.running, queue.waiting) == (1, 0)


async def test_a_hold_in_the_moment_of_a_time_out_changes_nothing(clock: ManualClock) -> None:
    """Who is told already that the wait was too long is told that; the hold itself works as ever."""
    queue = FairQueue(1, 10, 60.0)
    await queue.acquire("a")
    task = asyncio.create_task(queue.acquire("a"))
    await _settle()

    async def hold() -> None:
        await asyncio.sleep(0)  # the time-out fires in this round, and is heard of in the next one
        assert not task.done()
        queue.hold()

    clock.advance(61.0)
    await asyncio.create_task(hold())
    with pytest.raises(Overloaded):
        await task
    queue.release_hold()
    queue.release()
    assert await queue.acquire("a") == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["take", "take", "cancel", "give", "hold", "open", "grow", "renew"])
        ),
        max_size=60,
    )
)
def test_slots_are_never_lost_whatever_is_exchanged(steps: list[tuple[str, str]]) -> None:
    """After any sequence of turns, holds, sizes and new workers: each slot is held by who was given it, no more than
    the present worker has are held there, and nobody waits while there is room."""

    async def run() -> None:
        queue = FairQueue(2, 100, 60.0)
        worker, tasks = 0, list[asyncio.Task[int]]()
        for key, step in steps:
            done = [task for task in tasks if task.done() and not task.cancelled()]
            if step == "take":
                tasks.append(asyncio.create_task(queue.acquire(key)))
            elif step == "cancel" and tasks:
                tasks[-1].cancel()
            elif step == "give" and done:
                tasks.remove(done[0])
                queue.release(done[0].result())
            elif step == "hold":
                queue.hold()
            elif step == "open":
                queue.release_hold()
            elif step == "grow":
                queue.resize(1 + queue.slots % 4)
            elif step == "renew":
                worker += 1
                queue.renew(2)
            await _settle()
            held = [task.result() for task in tasks if task.done() and not task.cancelled()]
            assert queue.running == len(held)
            assert queue.waiting == sum(not task.done() for task in tasks)
            assert queue.waiting == 0 or queue.held or held.count(worker) >= queue.slots
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
