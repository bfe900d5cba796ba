"""`<home>/stability.jsonl`: when the server was up, what ended unplanned, and when it could answer again (SPEC G21).

One line an event, synced, in two files of bounded size. Each has the wall clock and the clock of the machine's boot, so
that a corrected wall clock makes no time negative. `run/alive.json` is the last sign of life: a life that ended without
a goodbye (power cut, kill -9) is told at the next start, with that sign. `evaluate.stability` reads what it means.

    up ─> ready ─> [ended ─> ready]* ─> down          planned stop
                                     ─> (nothing)     told by the next life: lost
"""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import psutil

from sekisho.audit.files import Files, append_line
from sekisho.core import ids
from sekisho.core.clock import Clock, SystemClock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.children_file import ChildStatus, replace_file
from sekisho.ops.home import Home

log = logging.getLogger(__name__)

FILE_NAME = "stability.jsonl"
LARGEST_BYTES = 4 << 20
ALIVE_S = 15.0
POLL_S = 0.5
ANNOUNCED_S = 60.0
SERVER = ""
_NOTE_CHARACTERS = 300
_ENDED = ("waiting", "failing", "misconfigured")

Kind = Literal["up", "ready", "ended", "restarted", "down", "failed", "lost", "gap"]
Probe = Callable[[], Awaitable[bool]]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e11)]


class Moment(msgspec.Struct, frozen=True):
    """`at` is seconds since 1970, `mono` seconds by a clock that never goes back within one `boot`."""

    at: Seconds
    mono: Seconds
    boot: str


class Alive(msgspec.Struct, frozen=True):
    """`alive.json`: `life` was alive then."""

    life: str
    seen: Moment


class StabilityEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`up`: a supervisor began; `booted_at` is when its machine did. `ready`: the server (`child` empty) answers for
    the first time, or a child that ended answers again; `ends` counts its ends meanwhile. `ended`: a child ended and
    nobody wanted it (`exit_code` below zero: the signal). `restarted`: it ended because that was announced. `down`: a
    stop that was asked for; `failed`: the supervisor gave up. `lost`: `life` ended without a goodbye, last seen at
    `last`. `gap`: `count` events could not be written."""

    kind: Kind
    at: Seconds
    mono: Seconds
    boot: str
    life: str
    child: str = SERVER
    exit_code: int | None = None
    ends: int = 0
    note: str = ""
    booted_at: float | None = None
    last: Moment | None = None
    count: int = 0

    @property
    def moment(self) -> Moment:
        return Moment(self.at, self.mono, self.boot)


class History(msgspec.Struct, frozen=True):
    """What is on disk. `damaged` counts lines that are no event (a torn write)."""

    events: tuple[StabilityEvent, ...]
    alive: Alive | None = None
    damaged: int = 0


class _Announced(msgspec.Struct, frozen=True):
    birth: str
    seen: Moment
    why: str


def boot_id() -> str:
    """Names this run of the machine; where the system does not tell, a name that no other moment has."""
    if sys.platform == "linux":
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            pass  # a container may hide it
    booted_at = _booted_at()
    return ids.new("boot") if booted_at is None else f"{booted_at:.0f}"


def _booted_at() -> float | None:
    """Seconds since 1970; None where the system does not tell."""
    try:
        return psutil.boot_time()
    except (psutil.Error, OSError, RuntimeError, ValueError) as error:  # /proc/stat may be hidden, or lack the line
        log.warning("cannot tell when this machine was started: %s", error)
        return None


def now(clock: Clock | None = None) -> Moment:
    clock = clock or SystemClock()
    return Moment(clock.now(), clock.monotonic(), boot_id())


def read_history(home: Home) -> History:
    """All events that are kept, oldest first. Raises OSError."""
    events: list[StabilityEvent] = []
    damaged = 0
    for name in (f"{FILE_NAME}.1", FILE_NAME):
        try:
            lines = (home.path / name).read_bytes().splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            try:
                events.append(decoded(line, StabilityEvent))
            except Undecodable:
                damaged += bool(line.strip())
    return History(tuple(events), _read_alive(home), damaged)


def announce_restart(home: Home, child: str, birth: str, why: str) -> None:
    """Says that this process of a child is about to be ended on purpose, by whoever is not the supervisor: its end is
    written as `restarted`. Holds for `ANNOUNCED_S`. Raises OSError."""
    folder = home.run / "announced"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(folder / f"{child}.json", msgspec.json.encode(_Announced(birth, now(), why[:_NOTE_CHARACTERS])))


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Whatever goes wrong with the log stays in it."""
    try:
        yield
    except Exception:  # the log's rim: behind it stand the server and the tasks that keep its children
        log.exception("the stability log cannot %s", what)


class StabilityLog:
    """Written by the supervisor's process. `begin` first, `changed` from the supervisor's `on_change`, `watch` as a
    task beside it, `goodbye` before an orderly stop, `close` at the end. None of them raises, whatever the disk holds
    or refuses: the server and its children do not depend on what is written about them. What was lost is told once it
    can be."""

    def __init__(self, home: Home, clock: Clock | None = None, boot: str | None = None) -> None:
        self.life = ids.new("life")
        self._home = home
        self._clock = clock or SystemClock()
        self._boot = boot or boot_id()
        self._writer = ThreadPoolExecutor(1, "stability log")  # a sync may take long while a model is read
        self._lost = 0
        self._births: dict[str, str | None] = {}
        self._ends: dict[str, int] = {SERVER: 0}  # who is awaited, and how often it has ended since
        self._ended = False
        self._mute: set[str] = set()  # whose probe failed at the last try

    def begin(self) -> None:
        """Writes that this life began and, where the one before had no end, that it was lost."""
        with _harmless("tell how the life before ended"):
            last = _unfinished(read_history(self._home))
            if last is not None:
                self._put("lost", life=last.life, last=last.seen)
        with _harmless("tell that the server begins"):
            self._put("up", booted_at=_booted_at())
        self._sign()

    def changed(self, status: ChildStatus) -> None:
        """A child's new state. Does not block."""
        with _harmless(f"tell of {status.name}"):
            self._note(status)

    def _note(self, status: ChildStatus) -> None:
        child = status.name
        if status.pid is not None:
            self._births[child] = status.birth
            return
        birth = self._births.pop(child, None)
        if status.state not in _ENDED:
            if status.state == "stopped":
                self._ends.pop(child, None)
            return
        if child in self._ends:
            self._ends[child] += 1
            return
        why = self._announced(child, birth)
        if why is not None:
            self._put("restarted", child=child, exit_code=status.exit_code, note=why)
            return
        self._ends[child] = 1
        note = status.log_tail[-1] if status.log_tail else ""
        self._put("ended", child=child, exit_code=status.exit_code, note=note[:_NOTE_CHARACTERS])

    def ready(self, child: str = SERVER) -> None:
        """It can answer. Written once for each time it was awaited."""
        ends = self._ends.pop(child, None)
        if ends is not None:
            self._put("ready", child=child, ends=ends)

    def awaited(self) -> tuple[str, ...]:
        """Who is not ready and runs."""
        return tuple(child for child in self._ends if child == SERVER or child in self._births)

    async def watch(self, probes: Mapping[str, Probe]) -> None:
        """Asks whoever is awaited until it answers, and gives signs of life; until it is cancelled. A child without a
        probe is ready when it runs."""
        signed_s = self._clock.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            for child in self.awaited():
                if await self._answers(child, probes.get(child)):
                    with _harmless(f"tell that {child or 'the server'} is ready"):
                        self.ready(child)
            if self._clock.monotonic() - signed_s >= ALIVE_S:
                signed_s = self._clock.monotonic()
                self._sign()

    async def _answers(self, child: str, probe: Probe | None) -> bool:
        try:
            answers = probe is None or await probe()
        except Exception:  # a probe is anybody's code, and a failing one has no answer
            if child not in self._mute:  # it is asked twice a second: say it once
                log.exception("cannot ask whether %s answers", child or "the server")
            self._mute.add(child)
            return False
        self._mute.discard(child)
        return answers

    def goodbye(self, *, planned: bool, note: str = "") -> None:
        """The last event of this life; later ones are dropped. Not planned: the supervisor gave up by itself."""
        with _harmless("tell that the server ends"):
            if not self._ended:
                self._put("down" if planned else "failed", note=note[:_NOTE_CHARACTERS])
        self._ended = True

    def close(self) -> None:
        """Waits until everything is on the disk."""
        self._writer.shutdown(wait=True)

    def _put(
        self,
        kind: Kind,
        *,
        life: str = "",
        child: str = SERVER,
        exit_code: int | None = None,
        ends: int = 0,
        note: str = "",
        booted_at: float | None = None,
        last: Moment | None = None,
    ) -> None:
        if self._ended:
            return
        moment = self._moment()
        event = StabilityEvent(
            kind=kind,
            at=round(moment.at, 3),
            mono=round(moment.mono, 3),
            boot=moment.boot,
            life=life or self.life,
            child=child,
            exit_code=exit_code,
            ends=ends,
            note=note,
            booted_at=booted_at,
            last=last,
        )
        self._writer.submit(self._append, event)

    def _append(self, event: StabilityEvent) -> None:
        """In the writer's thread."""
        path = self._home.path / FILE_NAME
        try:
            events = [event]
            if self._lost:
                gap = StabilityEvent(kind="gap", at=event.at, mono=event.mono, boot=event.boot, life=self.life)
                events.insert(0, msgspec.structs.replace(gap, count=self._lost))
            if path.exists() and path.stat().st_size >= LARGEST_BYTES:
                os.replace(path, path.with_name(f"{FILE_NAME}.1"))
            append_line(Files(), path, b"".join(msgspec.json.encode(each) + b"\n" for each in events))
            self._lost = 0
        except Exception as error:  # the thread's outermost frame: nobody else would count the loss
            if not self._lost:
                log.error("cannot write %s: %s", path, error, exc_info=not isinstance(error, OSError))
            self._lost += 1

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self._clock.monotonic(), self._boot)

    def _sign(self) -> None:
        with _harmless("give a sign of life"):
            try:
                self._home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
                replace_file(self._home.run / "alive.json", msgspec.json.encode(Alive(self.life, self._moment())))
            except OSError:
                return  # the next sign, or none: then this life looks shorter than it was

    def _announced(self, child: str, birth: str | None) -> str | None:
        """Why this end was wanted; None where nobody announced it."""
        path = self._home.run / "announced" / f"{child}.json"
        try:
            found = decoded(path.read_bytes(), _Announced)
            path.unlink()
        except (OSError, Undecodable):
            return None
        age_s = self._clock.monotonic() - found.seen.mono
        fresh = found.seen.boot == self._boot and 0 <= age_s <= ANNOUNCED_S
        return found.why if fresh and birth is not None and found.birth == birth else None


def _read_alive(home: Home) -> Alive | None:
    try:
        return decoded((home.run / "alive.json").read_bytes(), Alive)
    except (FileNotFoundError, Undecodable):
        return None


def _unfinished(history: History) -> Alive | None:
    """The last life, and its last sign, where it has no end."""
    ends = ("up", "down", "failed")
    last = next((event for event in reversed(history.events) if event.kind in ends), None)
    if last is None or last.kind != "up":
        return None
    seen = next(e for e in reversed(history.events) if e.life == last.life and e.kind != "lost").moment
    if history.alive is not None and history.alive.life == last.life:
        seen = later(history.alive.seen, seen)
    return Alive(last.life, seen)


def later(first: Moment, second: Moment) -> Moment:
    """Of two moments, by the clock that cannot jump where both are of one boot."""
    if first.boot == second.boot:
        return first if first.mono >= second.mono else second
    return first if first.at >= second.at else second


def elapsed_s(first: Moment, second: Moment) -> float:
    """Seconds from one moment to a later one, never below zero."""
    same = first.boot == second.boot
    return max(0.0, second.mono - first.mono if same else second.at - first.at)
