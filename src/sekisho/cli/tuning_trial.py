"""How `policy tune`, `compare` and `ablate` measure: on workers of their own, shown as they go, until Ctrl+C."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final, TypeVar

from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.output import Output
from sekisho.cli.progress_bars import Bars
from sekisho.cli.tuning_site import Site

if TYPE_CHECKING:
    import asyncio

    from sekisho.control.measured import Measure, Measured
    from sekisho.control.policy import Policy
    from sekisho.control.trial_engine import TrialEngine
    from sekisho.control.trial_quality import Quality
    from sekisho.ops.home import Home

T = TypeVar("T")
_STRANGE: Final = 1000.0


@dataclass(frozen=True)
class Measuring:
    """While a trial runs. After `stop`, `measure` raises OutOfBudget."""

    measure: "Measure"
    stop: "asyncio.Event"
    bars: Bars


class Trial:
    """One command's measurements. `notes`: what to know when reading them."""

    def __init__(self, site: Site, prompt_tokens: int | None, answer_tokens: int, seed: int) -> None:
        """Raises CommandFailed for a text that cannot be read."""
        from sekisho.control.trial_engine import TrialPlan

        self.site = site
        self.plan = TrialPlan(prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, seed=seed)
        self.quality = _quality(site)
        self.notes: tuple[str, ...] = ()

    def warn(self, text: str) -> None:
        self.site.out.warn(text)
        self.notes += (text,)

    def engine(self, base: "Policy", *, spared: Collection[str] = (), max_loss: float | None = None) -> "TrialEngine":
        from sekisho.control.trial_engine import TrialEngine
        from sekisho.core.clock import SystemClock

        return TrialEngine(
            self.site.own, base, self.plan, self.quality, SystemClock(), spared=spared, max_loss=max_loss
        )

    def run(
        self,
        engine: "TrialEngine",
        policies: "Mapping[str, Policy]",
        total: int,
        work: Callable[[Measuring], Awaitable[T]],
    ) -> T:
        """What `work` gives. `policies`: those that it measures, by the names that are shown; `total`: how many
        measurements at most."""
        import asyncio

        from sekisho.control.trial_engine import stoppable

        out = self.site.out

        async def working(bars: Bars) -> T:
            with _interruptible(out) as stop:
                shown = _shown(engine.measure, policies, bars, out.text("tuning_measuring"), total)
                return await work(Measuring(stoppable(shown, stop), stop, bars))

        with _engines_of(self.site.place), Bars(out, quiet=out.as_json) as bars:
            found = asyncio.run(working(bars))
        if self.quality.perplexity is not None and self.quality.perplexity >= _STRANGE:
            self.warn(out.text("tuning_strange", perplexity=f"{self.quality.perplexity:,.0f}"))
        return found


def _quality(site: Site) -> "Quality":
    from sekisho.control.perplexity import texts
    from sekisho.control.perplexity.base import Unmeasured
    from sekisho.control.perplexity.baselines import Baselines
    from sekisho.control.perplexity.measure import Job
    from sekisho.control.trial_quality import Quality
    from sekisho.core.clock import SystemClock

    try:
        text = texts.built_in() if site.text is None else texts.own(site.text)
    except Unmeasured as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error
    return Quality(Job(text), Baselines(site.place.path / "tuning" / "baselines.json"), SystemClock())


@contextmanager
def _engines_of(place: "Home") -> "Iterator[None]":
    """What is started inside runs the same build of llama.cpp as the server's workers."""
    from sekisho.engines import native_build

    former = {name: os.environ.get(name) for name in native_build.environment(place.native_engines)}
    os.environ.update(native_build.environment(place.native_engines))
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interruptible(out: Output) -> "Iterator[asyncio.Event]":
    """Inside a running loop: Ctrl+C sets the event, and nothing else. What runs must look at it."""
    import asyncio

    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)
        print(out.text("tuning_stopping"), file=sys.stderr, flush=True)

    former = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, former)


def _shown(measure: "Measure", policies: "Mapping[str, Policy]", bars: Bars, what: str, total: int) -> "Measure":
    """The same, and a bar says which measurement runs, of how many at most, and of what."""
    import msgspec

    names = {msgspec.json.encode(policy): name for name, policy in policies.items()}
    done = 0

    async def measured(policy: "Policy", effort: float) -> "Measured":
        nonlocal done
        name = names[msgspec.json.encode(policy)]
        bars.progress(what, done, total, name)
        try:
            return await measure(policy, effort)
        finally:
            done += 1
            bars.progress(what, done, total, name)

    return measured
