"""Long work shown as it goes: bars at a terminal, a line now and then anywhere else. Always on standard error."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from sekisho.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_S = 30.0  # how often a line tells of long work where there is no terminal


class Bars:
    """`bars.progress` is what long work is handed (`evaluate.progress.Progress`). One bar a name, as they come."""

    def __init__(self, out: Output, *, quiet: bool = False) -> None:
        self._out = out
        self._quiet = quiet
        self._rich: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        if not self._quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                Remaining(),
            )
            self._rich = Progress(*columns, console=self._out.console(error=True))
            self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._rich is not None:
            self._rich.stop()

    def progress(self, what: str, done: int, total: int, now: str = "") -> None:
        """May be called from any thread. `now`: what it is at, shown beside its name."""
        if self._quiet:
            return
        if self._rich is None:
            self._line(what, done, total, now)
            return
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._rich.add_task(what, total=total)
        self._rich.update(task, completed=done, total=total, description=f"{what} {now}".rstrip())

    def _line(self, what: str, done: int, total: int, now: str) -> None:
        now_s, last_s = time.monotonic(), self._told.get(what)
        if last_s is None or (done >= total and last_s != -1.0) or (last_s >= 0 and now_s - last_s >= QUIET_S):
            self._told[what] = -1.0 if done >= total else now_s
            print(f"{what}: {done}/{total} {now}".rstrip(), file=sys.stderr, flush=True)
