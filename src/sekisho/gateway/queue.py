"""A bounded fair queue in front of one engine.

As many turns run at once as the engine has slots. The rest wait in one line per key, and a free slot goes to the
keys in turn, so that a key with a thousand waiting requests delays another key by at most one of them. When the
queue is full, the newest request of the longest line gives way to a key whose line is shorter.

The engine behind it can be exchanged: `hold` lets nobody in, `renew` begins to count anew for the next worker. Who
waits is not asked to pay for that: a turn waits for at most `timeout_s` while the queue is not held, and the time of a
hold does not count. A hold ends by itself: `roster.Entry` makes a lease of it, which the supervisor must renew.
"""

import asyncio
from collections import OrderedDict, deque

from sekisho.core.errors import Overloaded

Waiter = asyncio.Future[int]


class _Patience:
    """How long one turn waits still; the clock stands while the queue is held. Made where it is entered."""

    def __init__(self, limit_s: float, *, held: bool) -> None:
        self.limit = asyncio.timeout(None if held else limit_s)
        self._left_s = limit_s

    def pause(self) -> None:
        until_s = self.limit.when()
        if until_s is not None and not self.limit.expired():
            self._left_s = max(0.0, until_s - asyncio.get_running_loop().time())
            self.limit.reschedule(None)

    def resume(self) -> None:
        if self.limit.when() is None:
            self.limit.reschedule(asyncio.get_running_loop().time() + self._left_s)


class FairQueue:
    """Belongs to one event loop. `acquire` and `release` come in pairs."""

    def __init__(self, slots: int, limit: int, timeout_s: float) -> None:
        self.slots = slots
        self.limit = limit
        self.timeout_s = timeout_s
        self.waiting = 0
        self._worker = 0  # rises by one with each worker that takes over
        self._present = 0
        self._former = 0
        self._open = asyncio.Event()
        self._open.set()
        self._lines: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._patience: dict[Waiter, _Patience] = {}

    @property
    def running(self) -> int:
        """Who holds a slot, of former workers too."""
        return self._present + self._former

    @property
    def held(self) -> bool:
        return not self._open.is_set()

    async def acquire(self, key_id: str) -> int:
        """Waits for a slot; which worker it is of, for `release`. Raises Overloaded when the queue is full or the wait,
        without the time of holds, took longer than `timeout_s`."""
        if self._has_room and not self.waiting:
            self._present += 1
            return self._worker
        if self.waiting >= self.limit:
            self._make_room(key_id)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key_id, deque()).append(waiter)
        self.waiting += 1
        patience = _Patience(self.timeout_s, held=self.held)
        try:
            async with patience.limit:
                self._patience[waiter] = patience
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())  # the slot was given to us in the moment we left
            else:
                self._leave(key_id, waiter)
            if isinstance(error, TimeoutError):
                why = f"No free slot within {self.timeout_s:g} s: the engine is busy."
                raise Overloaded(why, retry_after_s=5.0) from None
            raise
        finally:
            self._patience.pop(waiter, None)

    def release(self, worker: int | None = None) -> None:
        """Gives back a slot of this worker (None: of the present one); the next key's oldest waiter gets it."""
        if worker is None or worker == self._worker:
            self._present -= 1
            self._fill()
        else:
            self._former -= 1

    def resize(self, slots: int) -> None:
        """More slots are given out at once; with fewer, whoever runs goes on."""
        self.slots = slots
        self._fill()

    def renew(self, slots: int) -> None:
        """Another worker takes over, with all its slots free: whoever runs now goes on, and counts no more."""
        self._worker += 1
        self._former += self._present
        self._present = 0
        self.resize(slots)

    def hold(self) -> None:
        """Nobody is let in until `release_hold`, and nobody's time runs out. May be called again. Without waiters it
        needs no running loop."""
        self._open.clear()
        for patience in self._patience.values():
            patience.pause()

    def release_hold(self) -> None:
        self._open.set()
        self._fill()
        for waiter, patience in self._patience.items():
            if not waiter.done():  # who has a slot by now does not wait
                patience.resume()

    async def opened(self) -> None:
        """Waits until nothing is held."""
        await self._open.wait()

    @property
    def _has_room(self) -> bool:
        return self._present < self.slots and self._open.is_set()

    def _fill(self) -> None:
        """Gives what is free to the keys in turn."""
        while self._has_room and self._lines:
            key_id, line = self._lines.popitem(last=False)
            waiter = line.popleft()
            self.waiting -= 1
            if line:
                self._lines[key_id] = line  # behind all other keys
            if not waiter.done():
                self._present += 1
                waiter.set_result(self._worker)

    def _leave(self, key_id: str, waiter: Waiter) -> None:
        line = self._lines.get(key_id)
        if line is None or waiter not in line:
            return
        line.remove(waiter)
        self.waiting -= 1
        if not line:
            del self._lines[key_id]

    def _make_room(self, key_id: str) -> None:
        longest = max(self._lines, key=lambda key: len(self._lines[key]), default=None)
        own = len(self._lines.get(key_id, ()))
        if longest is None or len(self._lines[longest]) <= own + 1:
            raise Overloaded(
                f"{self.waiting} requests are waiting for this model, which is the limit.", retry_after_s=2.0
            )
        victim = self._lines[longest][-1]
        self._leave(longest, victim)
        if not victim.done():
            victim.set_exception(
                Overloaded("The queue is full and this key has the longest line in it.", retry_after_s=2.0)
            )
