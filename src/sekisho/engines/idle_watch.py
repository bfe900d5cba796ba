"""How long a stream may say nothing."""

import asyncio

from sekisho.engines.http_client import Response


class IdleWatch:
    """Closes a response for whose next bytes somebody has waited too long. One timer a stream, not one a read; time
    during which nobody waits (a slow client) does not count."""

    def __init__(self, response: Response, limit_s: float) -> None:
        self.limit_s = limit_s
        self.expired = False
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._since_s: float | None = None
        self._timer = self._loop.call_later(limit_s, self._look)

    def waiting(self) -> None:
        self._since_s = self._loop.time()

    def arrived(self, limit_s: float) -> None:
        self._since_s = None
        if limit_s != self.limit_s:
            self.limit_s = limit_s
            self._timer.cancel()
            self._timer = self._loop.call_later(limit_s, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        due_s = (now_s if self._since_s is None else self._since_s) + self.limit_s
        if due_s <= now_s:
            self.expired = True
            self._response.let_go()
        else:
            self._timer = self._loop.call_at(due_s, self._look)
