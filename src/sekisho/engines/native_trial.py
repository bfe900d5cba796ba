"""Tries a native build out against the wheel, each in processes of its own: does it answer alike, how fast is it."""

import math
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final, get_args

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.config import KvType, ModelConfig
from sekisho.engines.native_attention import OFF_ENV
from sekisho.engines.native_build import ENV, Figure, Speed
from sekisho.engines.native_check import SCHEMA, SCHEMA_KIND, Order, Place, Told
from sekisho.engines.native_compile import Progress

KINDS: Final[tuple[str, ...]] = (*get_args(KvType), SCHEMA_KIND)
FAR_KINDS: Final = ("f16", "q4_0")
_FAR_CONTEXT: Final = 4096
NATS_OFF: Final = 0.5
"""How far the log probability of the wheel's token may be off: another order of sums, and products of 8-bit numbers.
At 4 bits 0.28 was seen with Sekisho's attention and 0.17 with llama.cpp's."""
_DEVICES_S, _ANSWERS_S, _MEASURE_S = 60.0, 300.0, 900.0
_CRASHES: Final = MappingProxyType({-int(each): each.name for each in (signal.SIGSEGV, signal.SIGILL, signal.SIGABRT)})


class TrialFailed(Exception):
    """The trial itself did not work, so that it says nothing about the build."""


class Ended(msgspec.Struct, frozen=True):
    """A child's lines, and how it ended; `code` negative for a signal, None where it took too long."""

    told: dict[str, Told]
    code: int | None
    last: str = ""

    @property
    def crash(self) -> str | None:
        """The name of the signal, where it is one that a wrong build dies of."""
        return None if self.code is None else _CRASHES.get(self.code)

    @property
    def how(self) -> str:
        if self.code is None:
            return "it took too long"
        return self.crash or (f"signal {-self.code}" if self.code < 0 else self.last or f"exit code {self.code}")


class Verdict(msgspec.Struct, frozen=True):
    """`problems` is empty where the build answers like the wheel. `nats_off`: the largest difference seen."""

    problems: tuple[str, ...]
    nats_off: float
    crash: str | None = None


def devices() -> tuple[str, ...]:
    """The graphics cards that the wheel computes on. Raises TrialFailed."""
    ended = _ask(Order("devices", _builtin()), None, _DEVICES_S)
    if "devices" not in ended.told:
        raise TrialFailed(f"the installed llama.cpp does not load: {ended.how}")
    return ended.told["devices"].names


def answers(
    site: Path | None, *, extra_buffers: bool = True, attention: bool = True, kinds: Sequence[str] = KINDS
) -> Ended:
    """Of the built-in model; `site` None: the wheel's. `attention`: Sekisho's, where the build has it."""
    order = Order("answers", _builtin(), kinds=tuple(kinds), extra_buffers=extra_buffers, attention=attention)
    return _ask(order, site, _ANSWERS_S)


def far_answers(site: Path | None, config: ModelConfig, *, extra_buffers: bool = True, attention: bool = True) -> Ended:
    """Of a model as it will run, with its heads and all its threads, after a long prompt; `site` None: the wheel's."""
    far = msgspec.structs.replace(config, context=_FAR_CONTEXT, slots=1)
    order = Order("answers", far, kinds=FAR_KINDS, extra_buffers=extra_buffers, attention=attention, far=True)
    return _ask(order, site, _MEASURE_S)


def compare(wheel: Ended, native: Ended, kinds: Sequence[str] = KINDS) -> Verdict:
    """Raises TrialFailed where the wheel did not answer either. Pure."""
    absent = [kind for kind in kinds if kind not in wheel.told]
    if absent:
        raise TrialFailed(f"the wheel did not answer at {absent[0]}: {wheel.how}")
    problems, most = [], 0.0
    for kind in kinds:
        if kind not in native.told:
            problems.append(f"{kind}: {native.how}")
            break  # what comes after it was not tried
        if kind == SCHEMA_KIND:
            problem = schema_problem(native.told[kind].text)
        else:
            off, problem = difference(wheel.told[kind].places, native.told[kind].places)
            most = max(most, off)
        problems += [f"{kind}: {problem}"] if problem is not None else []
    return Verdict(tuple(problems), most, native.crash)


def difference(reference: Sequence[Place], told: Sequence[Place]) -> tuple[float, str | None]:
    """The largest difference in the log probability of the reference's tokens, as far as both say the same, and what
    is wrong. A token may be another one where the model found both nearly as likely."""
    if len(reference) != len(told) or not told:
        return 0.0, f"{len(told)} tokens, not {len(reference)}"
    most = 0.0
    for expected, place in zip(reference, told, strict=True):
        off = abs(place.logprobs.get(expected.token, -math.inf) - expected.logprobs[expected.token])
        if not off <= NATS_OFF:  # also where it is no number
            return most, f"a token's log probability is off by {off:.2f} nats"
        most = max(most, off)
        if place.token != expected.token:
            break  # what follows has another beginning
    return most, None


def schema_problem(text: str) -> str | None:
    try:
        found = decoded(text.encode(), str)
    except Undecodable:
        return f"an answer held to a schema is {text[:40]!r}"
    return None if found in SCHEMA["enum"] else f"an answer held to a schema is {found[:40]!r}"


def measure(config: ModelConfig, order: Order, site: Path, repeats: int, progress: Progress) -> tuple[Figure, ...]:
    """Both at the KV type of `config`, by turns. Raises TrialFailed."""
    order = msgspec.structs.replace(order, task="speed", config=config)
    wheel, native = list[Told](), list[Told]()
    with ExitStack() as stack:
        runners = [(stack.enter_context(Runner.start(order, each)), each) for each in (None, site)]
        for runner, where in runners:
            library = Path(runner.read().text)
            if (where is not None) != (where is not None and where in library.parents):
                raise TrialFailed(f"{library} was loaded instead of what is in {where or 'the environment'}")
        for count in range(repeats + 1):
            for (runner, _), kept in zip(runners, (wheel, native), strict=True):
                told = runner.measure()
                kept += [told] if count else []  # the first warms up
            progress(f"measure {config.kv_type_k}", count, repeats)
    return tuple(
        figure(speed, config, [getattr(each, speed) for each in wheel], [getattr(each, speed) for each in native])
        for speed in ("prefill", "decode")
    )


def figure(speed: Any, config: ModelConfig, wheel: Sequence[float], native: Sequence[float]) -> Figure:
    """Each pair was measured one after the other, so that what else the machine does acts on both."""
    ratios = [after / before for before, after in zip(wheel, native, strict=True)]
    kinds: Speed = speed
    return Figure(
        speed=kinds,
        model=config.name,
        kv=config.kv_type_k,
        wheel_tokens_per_s=statistics.median(wheel),
        native_tokens_per_s=statistics.median(native),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        repeats=len(ratios),
    )


class Runner:
    """A child that measures when it is asked to."""

    def __init__(self, child: "subprocess.Popen[bytes]", deadline_s: float) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child, self._deadline_s = child, deadline_s
        self._asks: IO[bytes] = child.stdin
        self._lines: IO[bytes] = child.stdout

    @staticmethod
    @contextmanager
    def start(order: Order, site: Path | None) -> "Iterator[Runner]":
        pipe = subprocess.PIPE
        with subprocess.Popen(
            _command(order), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=_environment(site)
        ) as child:
            try:
                yield Runner(child, _MEASURE_S)
            finally:
                child.kill()

    def measure(self) -> Told:
        with suppress(BrokenPipeError):  # it has ended, as `read` tells
            self._asks.write(b"\n")
            self._asks.flush()
        return self.read()

    def read(self) -> Told:
        guard = threading.Timer(self._deadline_s, self._child.kill)
        guard.start()
        try:
            line = self._lines.readline()
        finally:
            guard.cancel()
        if not line:
            raise TrialFailed(f"the process that measures ended: {Ended({}, self._child.wait()).how}")
        return decoded(line, Told)


def _ask(order: Order, site: Path | None, deadline_s: float) -> Ended:
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(_command(order), stdin=quiet, stdout=pipe, stderr=pipe, env=_environment(site)) as child:
        try:
            out, errors = child.communicate(timeout=deadline_s)
            code: int | None = child.returncode
        except subprocess.TimeoutExpired:
            child.kill()
            (out, errors), code = child.communicate(), None
        except BaseException:
            child.kill()
            raise
    lines = [decoded(line, Told) for line in out.splitlines()]
    last = [line for line in errors.decode(errors="replace").splitlines() if line.strip()][-1:]
    return Ended({each.what: each for each in lines}, code, "".join(last))


def _command(order: Order) -> tuple[str, ...]:
    return (sys.executable, "-m", "sekisho.engines.native_check", msgspec.json.encode(order).decode())


def _environment(site: Path | None) -> dict[str, str]:
    """Where Python finds the build before the wheel. All of it is tried out, whatever is turned off here."""
    kept = {name: value for name, value in os.environ.items() if name not in (ENV, OFF_ENV)}
    paths = [str(site)] if site is not None else []
    paths += [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
    return kept | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def _builtin() -> ModelConfig:
    return ModelConfig("builtin", path="builtin", context=256, slots=1, threads=1)
