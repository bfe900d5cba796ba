"""A bounded fair queue in front of one engine.

As many turns run at once as the engine has slots. The rest wait in one line per key, and a free slot goes to the
keys in turn, so that a key with a thousand waiting requests delays another key by at most one of them. When the
queue is full, the newest request of the longest line gives way to a key whose line is shorter.
"""

import asyncio
from collections import OrderedDict, deque

from sekisho.core.errors import Overloaded

Waiter = asyncio.Future[None]


class FairQueue:
    """Belongs to one event loop. `acquire` and `release` come in pairs."""

    def __init__(self, slots: int, limit: int, timeout_s: float) -> None:
        self.slots = slots
        self.limit = limit
        self.timeout_s = timeout_s
        self.running = 0
        self.waiting = 0
        self._lines: OrderedDict[str, deque[Waiter]] = OrderedDict()

    async def acquire(self, key_id: str) -> None:
        """Waits for a slot. Raises Overloaded when the queue is full or the wait took longer than `timeout_s`."""
        if self.running < self.slots and not self.waiting:
            self.running += 1
            return
        if self.waiting >= self.limit:
            self._make_room(key_id)
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key_id, deque()).append(waiter)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.timeout_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release()  # the slot was given to us in the moment we left
            else:
                self._leave(key_id, waiter)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    f"No free slot within {self.timeout_s:g} s: the engine is busy.", retry_after_s=5.0
                ) from None
            raise

    def release(self) -> None:
        """Gives the slot to the next key's oldest waiter, or back."""
        while self._lines:
            key_id, line = self._lines.popitem(last=False)
            waiter = line.popleft()
            self.waiting -= 1
            if line:
                self._lines[key_id] = line  # behind all other keys
            if not waiter.done():
                waiter.set_result(None)
                return
        self.running -= 1

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
