"""An event loop whose time is a ManualClock: sleeping moves the clock on and takes no time, work in threads does not
move it. What runs on such a loop is deterministic, so that its tests may say how many seconds something took."""

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sekisho.core.clock import ManualClock

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Waits for nothing but threads; where only time could bring something, it brings the time."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self.loop.at_work:
            return super().select(1.0)
        self.loop.clock.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`at_work`: threads on which time waits."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.at_work = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.clock.monotonic()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        self.at_work += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def sleep_in_thread(self, seconds: float) -> None:
        """For a thread of the executor: it waits in virtual time."""
        over = threading.Event()

        def end() -> None:
            self._count(+1)
            over.set()

        def begin() -> None:
            self._count(-1)
            self.call_later(seconds, end)

        self.call_soon_threadsafe(begin)
        over.wait()

    def _count(self, by: int) -> None:
        self.at_work += by


def in_virtual_time(work: Callable[[ManualClock], Coroutine[Any, Any, T]]) -> T:
    """Runs it to its end on a loop of its own."""
    clock = ManualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        try:
            return runner.run(work(clock))
        finally:
            loop.at_work += 1  # closing joins threads, with a deadline that must not pass meanwhile
