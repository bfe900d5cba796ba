"""Whether an emergency is on: a file that the command line writes and the running server looks at."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from sekisho.guard.config import Mode

EVERY_S = 0.5

_log = logging.getLogger(__name__)


class Emergency(msgspec.Struct, frozen=True):
    """Who declared it, when (seconds since 1970) and why."""

    since: float
    by: str
    reason: str


def emergency_file(team_folder: Path) -> Path:
    return team_folder / "emergency.json"


def read_emergency(path: Path) -> Emergency | None:
    """None where there is no emergency. A file that cannot be read counts as one: whoever put it there meant it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Emergency)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        return Emergency(0.0, "unknown", f"{path.name} cannot be read: {error}")


class EmergencySwitch:
    """Asked at every turn: looks at the file at most every `every_s` seconds. Safe in several threads.

    `on_change` hears of each change, in the thread that noticed it: the book must know."""

    def __init__(
        self,
        path: Path,
        every_s: float = EVERY_S,
        monotonic: Callable[[], float] = time.monotonic,
        on_change: Callable[[Emergency | None], None] | None = None,
    ) -> None:
        self.path = path
        self._every_s = every_s
        self._monotonic = monotonic
        self._on_change = on_change
        self._lock = threading.Lock()
        self._next_look = monotonic() + every_s
        self._emergency: Emergency | None = None
        self._take(self._look())

    def mode(self, configured: Mode) -> Mode:
        """`emergency` while one is on, else what is configured; `off` gives way to an emergency, too."""
        return "emergency" if self.current() is not None else configured

    def current(self) -> Emergency | None:
        now = self._monotonic()
        if now >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._next_look = now + self._every_s
                self._take(self._look())
            finally:
                self._lock.release()
        return self._emergency

    def _look(self) -> Emergency | None:
        try:
            self.path.stat()
        except FileNotFoundError:
            return None
        except OSError:
            return self._emergency
        return read_emergency(self.path)

    def _take(self, found: Emergency | None) -> None:
        before, self._emergency = self._emergency, found
        if found is not None and before is None:
            _log.warning("emergency on, by %s: %s", found.by, found.reason)
        elif found is None and before is not None:
            _log.warning("emergency off")
        if found != before and self._on_change is not None:
            self._on_change(found)
