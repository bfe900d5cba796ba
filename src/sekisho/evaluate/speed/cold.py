"""The cold start: the first request after the engine was really restarted, kept apart from everything measured warm.

Who restarts is given: `ops.engine_door` for an engine of ours, or a command of the team's for any other server.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from time import perf_counter

import msgspec

from sekisho.core.errors import EngineUnavailable, InvalidRequest
from sekisho.evaluate.client.answer_apis import Api
from sekisho.evaluate.client.asking import PATHS, Question
from sekisho.evaluate.client.exchange import Connections, Limits
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.speed import prompts
from sekisho.evaluate.speed.samples import Cell, Request, Sample, Timed, sample
from sekisho.ops.engine_door import Restart

TOKENS = 32
SPACING_S = 20.0
"""Between two restarts: more than four a minute look like a crash loop to our supervisor."""
READY_TIMEOUT_S = 600.0
FILE = "cold.json"
LOOK_LIMITS = Limits(connect_s=2.0, silence_s=5.0)
"""How long a look waits for a server before it counts as down."""
_POLL_S = 0.05
_READY_PATH = "/v1/models"
_WORDS_OF_COMMAND = 300


class Restarted(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the order to stop: until the old process was gone, the new one was there, and it could answer.
    None: it cannot be seen. `never_down`: something answered all the time, so that it may have been no restart."""

    how: str
    ended_s: float | None = None
    started_s: float | None = None
    ready_s: float
    never_down: bool = False


Restarter = Callable[[], Awaitable[Restarted]]


class ColdStart(msgspec.Struct, frozen=True):
    """One restart, its first request, and the second one for comparison. `asked_s`: when the first one left, after the
    order to stop; a little later than `ready_s`, as readiness is asked for in steps."""

    restarted: Restarted
    asked_s: float
    first: Sample
    second: Sample

    @property
    def stop_to_first_byte_s(self) -> float | None:
        """What the first user waits who asks at the moment of the restart."""
        return None if self.first.ttfb_ms is None else self.asked_s + self.first.ttfb_ms / 1e3


async def measure(
    target: Target,
    restart: Restarter,
    *,
    api: Api = "chat",
    repetitions: int = 1,
    tokens: int = TOKENS,
    seed: int = 7,
    limits: Limits | None = None,
    spacing_s: float = SPACING_S,
    progress: Progress = silent,
) -> list[ColdStart]:
    """Restarts and asks, `repetitions` times. Raises what `restart` raises: without a restart there is nothing to
    measure. An answer that fails is a sample that is not ok."""
    if repetitions < 1:
        raise InvalidRequest("A cold start is measured once or more.")
    found: list[ColdStart] = []
    for number in range(repetitions):
        progress("cold", number, repetitions)
        if number:
            await asyncio.sleep(spacing_s)
        begun_s = perf_counter()
        restarted = await restart()
        async with Connections(target, limits) as connections:
            asked_s = perf_counter() - begun_s
            first = await _ask(connections, api, tokens, seed, 2 * number)
            second = await _ask(connections, api, tokens, seed, 2 * number + 1)
        found.append(ColdStart(restarted, round(asked_s, 6), first, second))
    progress("cold", repetitions, repetitions)
    return found


def summarise(starts: Sequence[ColdStart], *, command: str = "") -> list[Figure]:
    """`cold.*`: the slowest of the repetitions, as a morning has one start and not their median. Where one of them
    failed there is no slowest, and no value. The second request's times are in `cold.second_…`. Pure."""
    first, second = _why_null("first", [e.first for e in starts]), _why_null("second", [e.second for e in starts])
    rows: tuple[tuple[str, Sequence[float | None], str], ...] = (
        ("ready_s", [each.restarted.ready_s for each in starts], ""),
        ("ttfb_s", [_s(each.first.ttfb_ms) for each in starts], first),
        ("ttft_s", [_s(each.first.ttft_ms) for each in starts], first),
        ("total_s", [_s(each.first.total_ms) for each in starts], first),
        ("stop_to_first_byte_s", [each.stop_to_first_byte_s for each in starts], first),
        ("second_ttfb_s", [_s(each.second.ttfb_ms) for each in starts], second),
        ("second_ttft_s", [_s(each.second.ttft_ms) for each in starts], second),
    )
    note = "; ".join(dict.fromkeys(_note(each) for each in starts))
    return [_figure(f"cold.{what}", "s", values, why, note, command) for what, values, why in rows]


def by_our_door(restart: Callable[[], Awaitable[Restart]]) -> Restarter:
    """`restart`: `ops.engine_door.restart_engine` with home and model filled in."""

    async def run() -> Restarted:
        done = await restart()
        return Restarted(
            how=f"SIGTERM to the engine's process of {done.model}; the supervisor started it again",
            ended_s=round(done.ended_at - done.told_at, 6),
            started_s=round(done.started_at - done.told_at, 6),
            ready_s=round(done.total_s, 6),
        )

    return run


def by_command(argv: Sequence[str], target: Target, timeout_s: float = READY_TIMEOUT_S) -> Restarter:
    """A command that restarts the server, without a shell: it must end when the old process is gone. The server is
    ready when it tells its models; that is asked while the command still runs, to see it go down.

    The restarter raises EngineUnavailable where the command fails or nothing answers within `timeout_s`.
    """
    if not argv:
        raise InvalidRequest("The command that restarts the server is empty.")

    async def run() -> Restarted:
        begun_s = perf_counter()
        try:
            async with asyncio.timeout(timeout_s), Connections(target, LOOK_LIMITS) as look:
                return await _watched(argv, look, begun_s)
        except TimeoutError:
            why = f"{target.url} did not answer within {timeout_s:g} s of the restart: see the server's log"
            raise EngineUnavailable(why) from None

    return run


async def _watched(argv: Sequence[str], look: Connections, begun_s: float) -> Restarted:
    command = asyncio.create_task(_command(argv))
    down_s: float | None = None
    up_s: float | None = None
    try:
        while True:
            over = command.done()
            is_up = await _is_up(look)
            now_s = perf_counter() - begun_s
            if not is_up:
                down_s, up_s = (now_s if down_s is None else down_s), None
            elif up_s is None:
                up_s = now_s
            if over:
                await command
                if is_up:
                    break
            await asyncio.sleep(_POLL_S)
    finally:
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
    never_down = down_s is None
    ready_s = perf_counter() - begun_s if never_down or up_s is None else up_s
    return Restarted(
        how=f"the command {argv[0]}",
        ended_s=None if down_s is None else round(down_s, 6),
        ready_s=round(ready_s, 6),
        never_down=never_down,
    )


async def _command(argv: Sequence[str]) -> None:
    """Runs it to its end; ends it when this is cancelled. Raises EngineUnavailable."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        raise EngineUnavailable(f"the restart's command cannot be run: {argv[0]}: {error.strerror or error}") from error
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        raise
    if process.returncode:
        words = output.decode(errors="replace").strip()[-_WORDS_OF_COMMAND:]
        raise EngineUnavailable(f"the restart's command {argv[0]} ended with {process.returncode}: {words}")


async def _is_up(look: Connections) -> bool:
    exchange = await look.exchange("GET", _READY_PATH, fresh=True)
    return exchange.trouble is None and exchange.status is not None and exchange.status < 500


async def _ask(connections: Connections, api: Api, tokens: int, seed: int, index: int) -> Sample:
    """One request on a fresh connection."""
    prompt = prompts.pick(0)
    target = connections.target
    said = (("user", prompts.marked(prompt, seed, "cold", index)),)
    body = Question(api=api, said=said, max_tokens=tokens, stream=True).body(target.model)
    cell = Cell(place=target.place, loop="closed", tokens=tokens, requests=1)
    exchange = await connections.exchange("POST", PATHS[api], body, fresh=True)
    timed = Timed(Request(index, prompt.id, prompt.language, body), exchange.started_s, exchange)
    return sample(cell, timed, target, api, exchange.started_s)


def _figure(name: str, unit: Unit, values: Sequence[float | None], why_null: str, note: str, command: str) -> Figure:
    """`values` of all starts; without one of them, or with a reason why not, there is no value."""
    known = [value for value in values if value is not None]
    if not why_null and len(known) < len(values):
        why_null = f"not seen in {len(values) - len(known)} of {len(values)} answers"
    elif not values:
        why_null = "no restart was measured"
    spread = (
        f"{len(known)} starts, median {median(known):.3f} s; the slowest counts; "
        if len(known) > 1 and not why_null
        else ""
    )
    return Figure(
        id=name,
        value=None if why_null else max(known),
        unit=unit,
        n=len(values),
        why_null=why_null,
        note=spread + note,
        command=command,
        file=FILE,
    )


def _why_null(which: str, samples: Sequence[Sample]) -> str:
    failed = [each for each in samples if not each.ok]
    if not failed:
        return ""
    kind = failed[0].faults[0] if failed[0].faults else "failed"
    told = f"{len(failed)} of {len(samples)}: the {which} request after the restart failed"
    return f"{told}: {kind} {failed[0].detail}".strip()


def _note(start: ColdStart) -> str:
    doubt = "; the server answered all the time: was it restarted at all?" if start.restarted.never_down else ""
    return f"restarted by {start.restarted.how}{doubt}"


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3
