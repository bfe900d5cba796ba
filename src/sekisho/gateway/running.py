"""A request that is being worked on: it ends when its client leaves, and can be ended from outside."""

import asyncio
from collections.abc import Callable

from sekisho.core.errors import SekishoError
from sekisho.gateway.http import Request
from sekisho.store import UsageStatus

Record = Callable[[UsageStatus, int, SekishoError | None], None]


def uncancel() -> None:
    """Takes a cancellation that was told apart as done with."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class Running:
    """`abort` ends it with an error from outside (a drain, a cancel request); `aborted` keeps that error. `record` is
    told how it ended where that was not by itself, as `Exchange.record`."""

    __slots__ = ("_aborted", "_record", "_task")

    def __init__(self, record: Record) -> None:
        self._record = record
        self._aborted: SekishoError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def aborted(self) -> SekishoError | None:
        """What ended it from outside."""
        return self._aborted

    def abort(self, error: SekishoError) -> None:
        """Cancels the work; the client gets `error`. Does nothing when the answer is already done."""
        if self._task is not None and not self._task.done() and self._aborted is None:
            self._aborted = error
            self._task.cancel()

    async def done(self, timeout_s: float = 5.0) -> None:
        """Waits until nothing of it runs any more, but not for ever: its client may not be reading."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)

    def watched(self, request: Request) -> "_Watched":
        """`async with` around the work of the current task. A client that goes away ends it in silence; an abort
        raises its error."""
        self._task = asyncio.current_task()
        return _Watched(request, self)

    def left(self, request: Request) -> SekishoError | None:
        """What a cancellation meant: an error to tell, or None where the client is gone. Records the usage."""
        error = self._aborted
        self._record("failed" if error else "cancelled", error.status if error else 499, error)
        if error is None and not request.gone:
            raise asyncio.CancelledError
        return error


class _Watched:
    """While inside, a client that goes away cancels this task; on the way out that is told apart from an abort."""

    __slots__ = ("_request", "_running", "_watcher")

    def __init__(self, request: Request, running: Running) -> None:
        self._request = request
        self._running = running

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watcher = asyncio.get_running_loop().create_task(self._request.watch(task))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self._watcher.cancel()
        if kind is not asyncio.CancelledError:
            return False
        told = self._running.left(self._request)
        uncancel()
        if told is not None:
            raise told
        return True
