"""The quality loop at its rim: when to measure, the measurement beside the traffic, and what its verdict leads to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from sekisho.control import quality_ladder
from sekisho.control.api.events import EventBus
from sekisho.control.base import ActuatorFailed, Signals
from sekisho.control.giving_way import GaveWay, GivingWay, requests
from sekisho.control.history import QUALITY, History
from sekisho.control.notification import Alert
from sekisho.control.perplexity.base import Kind, Unmeasured
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.compare import Agreement
from sekisho.control.perplexity.measure import Compared, Job, Target, compared, counts_itself, cross_checked
from sekisho.control.perplexity.texts import Text
from sekisho.control.policy import Policy
from sekisho.control.policy_book import PolicyBookError
from sekisho.control.policy_changes import PolicyProblem
from sekisho.control.policy_service import Cause, PolicyService
from sekisho.control.quality import Finding, Quality, State, Verdict
from sekisho.control.quality_online import EarlySign
from sekisho.control.quality_schedule import Schedule, ScheduleSettings
from sekisho.control.view import QualityView
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.home import write_atomically

log = logging.getLogger("sekisho.control")

BY = "agent quality"
WHOLE = "the KV cache is at 16 bits: there is nothing to compare it with"

Compare = Callable[[Target, Job, Clock, Baselines], Awaitable[Compared]]
Check = Callable[[Target, Job], Awaitable[Agreement]]
Ended = Literal["measured", "unmeasured", "broken_off"]
_STATUS: Final = {**dict.fromkeys(("good", "recovered", "step_back"), "within_threshold"), "unclear": "unclear"}
"""Of the published interface, by the verdict's level; all others are an alert."""


class QualitySettings(msgspec.Struct, frozen=True):
    """`text`: what is measured on. `acts` False advises only, and so does True until a person has set a policy.
    `enabled` False measures on request only."""

    folder: Path
    text: Text
    schedule: ScheduleSettings
    enabled: bool = True
    acts: bool = True
    step_back_after: int | None = None


class _Watched:
    """One model's schedule, state and last figures."""

    def __init__(self, model: str, settings: QualitySettings, clock: Clock) -> None:
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in model)
        self.model = model
        self.schedule = Schedule(settings.folder / f"{name}.schedule.json", clock, settings.schedule)
        self._state_file = settings.folder / f"{name}.state.json"
        self.quality = Quality(
            step_back_after=settings.step_back_after, may_act=settings.acts, state=self._read_state()
        )
        self.early = EarlySign()
        doubtful = self.quality.state.bad > 0 or self.quality.state.phase == "confirming"
        self.want: Kind | None = "light" if doubtful else None
        self.light_number = 0
        self.version: int | None = None
        self.seen_sample = 0
        self.view = QualityView()

    def _read_state(self) -> State | None:
        try:
            return decoded(self._state_file.read_bytes(), State)
        except (OSError, Undecodable):
            return None

    def keep(self) -> None:
        write_atomically(self._state_file, msgspec.json.encode(self.quality.state))


class QualityWatch:
    """`watch` is a watcher of the slow loop, `give_way` one of the middle loop. One measurement runs at a time, beside
    the loops; `close` ends it."""

    def __init__(
        self,
        settings: QualitySettings,
        targets: Mapping[str, Callable[[], Target]],
        policies: PolicyService,
        history: History,
        bus: EventBus,
        tell: Callable[[Alert], None],
        clock: Clock,
        compare: Compare = compared,
        acts: Callable[[], bool] | None = None,
        check: Check = cross_checked,
        kv_types: Callable[[], Collection[str] | None] = lambda: None,
    ) -> None:
        """`targets`: by model, what would be measured now. `acts`: whether it may act now (None: the settings').
        `kv_types`: those that llama.cpp really runs here, None: not known."""
        self._compare = compare
        self._check = check
        self._acts = acts if acts is not None else lambda: settings.acts
        self._settings = settings
        self._targets = targets
        self._policies = policies
        self._history = history
        self._bus = bus
        self._tell = tell
        self._clock = clock
        self._baselines = Baselines(settings.folder / "baselines.json")
        self._watched = {model: _Watched(model, settings, clock) for model in targets}
        self._task: asyncio.Task[Any] | None = None
        self._turn = asyncio.Lock()
        self._giving_way = GivingWay()
        self._kv_types = kv_types

    async def close(self) -> None:
        """May be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def view_of(self, model: str | None) -> QualityView:
        """The last figures of a model; of None, those of the one that lost most."""
        if model is not None:
            watched = self._watched.get(model)
            return self._shown(watched) if watched is not None else QualityView(reason="it cannot be measured here")
        views = [self._shown(watched) for watched in self._watched.values()]
        measured = [view for view in views if view.delta_ppl is not None]
        if not measured:
            return views[0] if views else QualityView()
        return max(measured, key=lambda view: view.delta_ppl or 0.0)

    def _shown(self, watched: _Watched) -> QualityView:
        next_full = watched.schedule.next_full() if self._settings.enabled else None
        return msgspec.structs.replace(watched.view, next_full=next_full)

    # --- when ---------------------------------------------------------------------------------------------------------

    async def watch(self, signals: Signals) -> None:
        """Begins a measurement where one is due and may run."""
        for watched in self._watched.values():
            self._follow(watched, signals)
        if not self._settings.enabled or (self._task is not None and not self._task.done()):
            return
        for watched in self._watched.values():
            kind = watched.want or watched.schedule.due()
            if kind is None or not _ready(watched.model, signals) or self._is_whole(watched):
                continue
            if watched.schedule.may_run(any(requests(state) for state in signals.engines)):
                run = self._scheduled(watched, kind, gives_way=not watched.schedule.insists(kind))
                self._task = asyncio.create_task(run, name=f"quality of {watched.model}")
                return

    async def give_way(self, signals: Signals) -> None:
        """Breaks a scheduled measurement off for traffic, unless it was put off often enough."""
        self._giving_way.look(signals)

    def _is_whole(self, watched: _Watched) -> bool:
        """Whether 16 bits would be measured against 16 bits, and no step waits for its confirmation. The run stays due
        for a policy that is worth it."""
        rung = _rung(self._targets[watched.model](), self._policies.current(watched.model))
        if rung != "fp16" or watched.quality.state.phase in ("confirming", "exhausted"):
            return False
        watched.view = QualityView(last_run=watched.view.last_run, last_full=watched.view.last_full, reason=WHOLE)
        return True

    def _follow(self, watched: _Watched, signals: Signals) -> None:
        """A policy that somebody else changed begins anew; answers that became less likely ask for a run."""
        version = self._policies.book.version
        versions = self._policies.book.versions()
        ours = bool(versions) and versions[-1].by == BY
        if watched.version is not None and version != watched.version:
            watched.early.reset()
            if not ours:
                watched.quality.policy_changed()
                watched.keep()
                watched.want = watched.want or "light"
        watched.version = version
        for sample in signals.samples:
            if sample.model != watched.model or sample.number <= watched.seen_sample or sample.mean_nll is None:
                continue
            sign = watched.early.add(sample.mean_nll)
            if sign is not None:
                watched.want = sign.want
                self._policies.note(_cause(sign), sign.action, watched.model)
        numbers = [sample.number for sample in signals.samples if sample.model == watched.model]
        watched.seen_sample = max([watched.seen_sample, *numbers])

    async def _scheduled(self, watched: _Watched, kind: Kind, *, gives_way: bool) -> None:
        """A failure is logged and tried again by the schedule."""
        try:
            async with self._turn:
                await self._measured(watched, kind, gives_way=gives_way)
        except (PolicyProblem, OSError) as error:
            log.warning("the quality of %s: %s", watched.model, error)

    # --- what ---------------------------------------------------------------------------------------------------------

    async def measure(self, model: str | None, kind: str) -> dict[str, Any]:
        """Measures now, one after the other, to its end, and does what the verdict asks for. Raises PolicyProblem for a
        model that cannot be measured here, and OSError."""
        watched = self._watched.get(model) if model is not None else next(iter(self._watched.values()), None)
        if watched is None:
            names = ", ".join(self._watched) or "none"
            raise PolicyProblem("model", f"its perplexity cannot be measured here; it can of: {names}")
        wanted: Kind = "full" if kind == "full" else "light"
        async with self._turn:
            return await self._measured(watched, wanted, gives_way=False)

    async def _measured(self, watched: _Watched, kind: Kind, *, gives_way: bool) -> dict[str, Any]:
        target = self._targets[watched.model]()
        job = Job(self._settings.text, kind, watched.light_number)
        watched.light_number += kind == "light"
        wanted, watched.want = watched.want, None
        watched.schedule.began(kind)
        found: Compared | None = None
        reason: str | None = None
        try:
            with self._policies.measuring():
                found = await self._compared(target, job, gives_way)
        except GaveWay as error:
            watched.schedule.broken_off()
            watched.want = watched.want or wanted
            if watched.view.delta_ppl is None:
                watched.view = msgspec.structs.replace(watched.view, reason=str(error))
            return await self._keep(watched, kind, "broken_off", reason=str(error))
        except Unmeasured as error:
            reason = str(error)
            watched.schedule.failed(kind)
        except BaseException:
            watched.schedule.failed(kind)
            raise
        else:
            watched.schedule.done(kind)
        self._show(watched, kind, found, reason)
        agreement = await self._cross_checked(watched.model, target, job) if found is not None else None
        verdict = await self._judge(watched, target, Finding(kind, found.delta if found else None, reason))
        if found is not None:
            watched.view = msgspec.structs.replace(watched.view, status=_STATUS.get(verdict.level, "alert"))
        ended: Ended = "unmeasured" if found is None else "measured"
        return await self._keep(
            watched, kind, ended, compared=found, agreement=agreement, reason=reason, verdict=verdict
        )

    async def _compared(self, target: Target, job: Job, gives_way: bool) -> Compared:
        work = self._compare(target, job, self._clock, self._baselines)
        if not gives_way:
            return await work
        return await self._giving_way.run(work, target.config.name if counts_itself(target.config) else None)

    async def _keep(self, watched: _Watched, kind: Kind, ended: Ended, **told: Any) -> dict[str, Any]:
        """The record of one measurement, written down and told. `ended`: how it ended."""
        empty = dict.fromkeys(("compared", "agreement", "reason", "verdict"))
        record = {"model": watched.model, "kind": kind, "ended": ended} | empty | told
        await asyncio.to_thread(self._history.append, QUALITY, record)
        self._bus.publish("quality", self._clock.now(), record)
        return record

    async def _cross_checked(self, model: str, target: Target, job: Job) -> Agreement | None:
        """In a full run of an engine with two routes: whether the process that measures and the worker that serves see
        the same. Where they do not, the figure is not to be trusted, and people are told."""
        if job.kind != "full":
            return None
        try:
            agreement = await self._check(target, job)
        except Unmeasured as error:
            log.info("%s is measured by one route: %s", model, error)
            return None
        if not agreement.agrees:
            facts = {"relative": agreement.relative, "limit": agreement.tolerance}
            self._tell(Alert("quality.routes_disagree", model, "warning", agreement.why, self._clock.now(), facts))
        return agreement

    def _show(self, watched: _Watched, kind: Kind, found: Compared | None, reason: str | None) -> None:
        if found is None:
            watched.view = msgspec.structs.replace(watched.view, status="not measured", reason=reason)
            return
        watched.view = QualityView(
            found.baseline.perplexity,
            found.measured.perplexity,
            found.delta.value,
            kind,
            found.measured.route,
            found.measured.text_id,
            found.measured.tokens,
            found.measured.at,
            found.measured.at if kind == "full" else watched.view.last_full,
            reason=found.delta.reason,
        )

    # --- and then -----------------------------------------------------------------------------------------------------

    async def _judge(self, watched: _Watched, target: Target, finding: Finding) -> Verdict:
        policy = self._policies.current(watched.model)
        limit = policy.quality.max_delta_ppl
        may_act = self._acts() and self._policies.book.set_by_person
        back_after, state = self._settings.step_back_after, watched.quality.state
        watched.quality = Quality(step_back_after=back_after, may_act=may_act, state=state)
        verdict = watched.quality.observe(finding, limit, self._steps(target, policy))
        while True:
            watched.want = verdict.want
            watched.keep()
            if verdict.alert:
                self._tell(self._alert(watched.model, verdict))
            if verdict.changes is None:
                self._policies.note(_cause(verdict), verdict.action, watched.model)
                return verdict
            refused = await self._change(watched.model, verdict)
            watched.version = self._policies.book.version
            if refused is None:
                return verdict
            policy = self._policies.current(watched.model)
            steps = self._steps(self._targets[watched.model](), policy)
            verdict = watched.quality.not_applied(refused, limit, steps)

    def _steps(self, target: Target, policy: Policy) -> tuple[quality_ladder.Step, ...]:
        known = self._kv_types() if target.config.engine == "llama_cpp" else None
        return quality_ladder.steps(_rung(target, policy), policy, known)

    def _alert(self, model: str, verdict: Verdict) -> Alert:
        severity: Literal["critical", "warning"] = "critical" if verdict.level == "critical" else "warning"
        facts = {"value": verdict.value, "limit": verdict.limit, "changes": verdict.changes}
        return Alert(verdict.rule, model, severity, verdict.why, self._clock.now(), facts)

    async def _change(self, model: str, verdict: Verdict) -> str | None:
        """Why the engine did not take it; None where it did."""
        assert verdict.changes is not None
        try:
            change = await self._policies.change(verdict.changes, _cause(verdict), by=BY, model=model)
        except (PolicyProblem, ActuatorFailed, PolicyBookError) as error:
            return str(error)
        if change.outcome != "failed":
            return None
        return "; ".join(dict.fromkeys(each.reason for each in change.applied if each.reason)) or "no reason was given"


def _cause(verdict: Verdict) -> Cause:
    loop: Literal["slow"] = "slow"
    return Cause(loop, verdict.rule, verdict.signal, verdict.why, verdict.value, verdict.limit)


def _rung(target: Target, policy: Policy) -> quality_ladder.Rung:
    if target.config.engine == "torch":
        return quality_ladder.rung_of_tiers(policy)
    return quality_ladder.rung_of_types(target.config.kv_type_k, target.config.kv_type_v)


def _ready(model: str, signals: Signals) -> bool:
    return any(state.model == model and state.state == "ready" for state in signals.engines)
