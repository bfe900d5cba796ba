"""`<home>/denials.jsonl`: how many requests were turned away, by status and code, counted and written in intervals.

Counts and no more: an address is personal data, and a wrong key may be a right one with a typing error. What was
counted since the last line is lost with a kill -9.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from sekisho.audit.files import Files, append_line
from sekisho.core.clock import Clock, SystemClock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.home import Home

log = logging.getLogger(__name__)

FILE_NAME = "denials.jsonl"
LARGEST_BYTES = 4 << 20
FLUSH_S = 15.0
NOT_A_KEY = frozenset({"missing_api_key", "invalid_api_key", "network_not_allowed"})
"""The codes of callers who are not known here; the other ones are a known key's that may not do something."""
_MOST_CODES = 64

Count = Annotated[int, msgspec.Meta(ge=0)]


class Denied(msgspec.Struct, frozen=True, omit_defaults=True):
    """`open`: a gateway began to count. `count`: so many between `since` and `at` (seconds since 1970), by code."""

    kind: Literal["open", "count"]
    at: Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]
    since: float = 0.0
    counts: dict[str, Count] = {}


class Denials(msgspec.Struct, frozen=True):
    """What is on disk. `counting_since` None: nobody ever counted here."""

    lines: tuple[Denied, ...]
    counting_since: float | None

    def between(self, since: float, until: float) -> dict[str, int]:
        """By code. An interval counts where it ends."""
        sums: dict[str, int] = {}
        for line in self.lines:
            if since <= line.at < until:
                for code, count in line.counts.items():
                    sums[code] = sums.get(code, 0) + count
        return sums


class DenialLog:
    """Of one gateway. `note` is for the event loop and costs nothing; `keep` is a task; `close` writes the rest."""

    def __init__(self, home: Home, clock: Clock | None = None) -> None:
        self._path = home.path / FILE_NAME
        self._clock = clock or SystemClock()
        self._counts: dict[str, int] = {}
        self._since = self._clock.now()
        self._failing = False
        self._opened = False

    def note(self, code: str) -> None:
        """One request was turned away."""
        if code in self._counts or len(self._counts) < _MOST_CODES:
            self._counts[code] = self._counts.get(code, 0) + 1

    async def keep(self) -> None:
        """Writes now and then, until it is cancelled."""
        while True:
            counts, self._counts = self._counts, {}
            if not await asyncio.to_thread(self._write, counts):
                self._restore(counts)
            await asyncio.sleep(FLUSH_S)

    def close(self) -> None:
        """Writes what was counted since. Blocks, raises nothing."""
        counts, self._counts = self._counts, {}
        if not self._write(counts):
            self._restore(counts)

    def _restore(self, counts: dict[str, int]) -> None:
        for code, count in counts.items():
            self._counts[code] = self._counts.get(code, 0) + count

    def _write(self, counts: dict[str, int]) -> bool:
        now = self._clock.now()
        lines = [] if self._opened else [Denied("open", now)]
        if counts:
            lines.append(Denied("count", now, self._since, counts))
        if not lines:
            return True
        try:
            if self._path.exists() and self._path.stat().st_size >= LARGEST_BYTES:
                os.replace(self._path, self._path.with_name(f"{FILE_NAME}.1"))
            append_line(Files(), self._path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        except OSError as error:
            if not self._failing:
                log.error("cannot write %s: %s", self._path, error)
            self._failing = True
            return False
        self._since, self._opened, self._failing = now, True, False
        return True


def read_denials(home: Home) -> Denials:
    """All that is kept, oldest first; torn lines are passed over. Raises OSError."""
    lines: list[Denied] = []
    for path in _paths(home):
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            continue
        for raw in body.splitlines():
            try:
                lines.append(decoded(raw, Denied))
            except Undecodable:
                continue
    return Denials(tuple(lines), lines[0].at if lines else None)


def _paths(home: Home) -> tuple[Path, Path]:
    return home.path / f"{FILE_NAME}.1", home.path / FILE_NAME
