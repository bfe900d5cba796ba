"""A whole evaluation, unattended: every measurement a durable step, in the order in which a team would go.

environment → gates → cold start → benchmark → continuity → sessions → Codex → safety → the rubric's answers

A kill between two steps loses nothing; a kill within one has that step done again, in the long ones from the last
cell or conversation. Scorecard and report are made afterwards (`conclusion`), from the run's folder alone.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate import gpu_check
from sekisho.evaluate.behaviour import codex_run, continuity, continuity_record, gate, gate_report, safety, sessions
from sekisho.evaluate.client.asking import asker
from sekisho.evaluate.client.exchange import Limits
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.evaluate.environment import ENGINE, Load, Section
from sekisho.evaluate.evidence import STEPS, Evidence, tally
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.rubric import answers as rubric_answers
from sekisho.evaluate.rubric.folder import NAME as RUBRIC
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.tasks import TaskSet
from sekisho.evaluate.speed import bench, bench_figures, bench_plan, bench_tables, cold, prompts
from sekisho.evaluate.speed.samples import Cell, Sample
from sekisho.evaluate.verdict import cost

KIND = "evaluation"
ENVIRONMENT_FILE = "environment.json"
CARD_REQUESTS = 10  # of the seed: ten short ones show how the cards share the work
CARD_TOKENS = 256


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is measured, fixed before the first request. `places`: address and model of each. 0 and False leave out.
    `command` is what does it all again. `hourly_price`: of the hardware, in whatever currency. `cards`: look at each
    graphics card's memory around a restart of the engine."""

    name: str
    profile: str
    places: dict[Place, tuple[str, str]]
    bench: bench_plan.Plan
    continuity: tuple[continuity.Plan, ...]
    cold_starts: int
    sessions: int
    codex: bool
    safety: bool
    rubric: bool
    timeout_s: float
    command: str
    hourly_price: float | None = None
    cards: bool = False


class Environment(msgspec.Struct, frozen=True):
    """`environment.json`."""

    sections: tuple[Section, ...]


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation works with, and what is no part of its plan: keys, programs, this machine.

    `restart`: restarts the engine for the cold start. `judge`: whether the guard lets a text pass, as this server's
    guard would. `held_characters`: how many characters the gateway holds back, for explaining its times. `ends`: how
    many of the server's processes have ended unplanned so far, where that can be seen.
    """

    targets: Mapping[Place, Target]
    environment: Callable[[Progress], Awaitable[tuple[Section, ...]]]
    restart: cold.Restarter | None = None
    cannot_restart: str = ""
    judge: safety.Judge | None = None
    codex: Path | None = None
    tasks: TaskSet | None = None
    held_characters: int | None = None
    ends: Callable[[], int | None] = lambda: None
    cards: Callable[[Callable[[], Awaitable[object]]], Awaitable[gpu_check.GpuPhases]] | None = None


class Conditions(msgspec.Struct, frozen=True):
    """`conditions.json`: the machine before and after the benchmark, and what the gateway holds back of a stream."""

    before: Load
    after: Load
    held_characters: int | None = None


Work = Callable[[StepContext], Awaitable[None]]


async def run(journal: Journal, plan: Plan, site: Site, progress: Progress = silent) -> None:
    """Does what of the plan is not done yet. Raises what a step raises; the next run goes on there."""
    await _check_same_engine(journal.folder, site, progress)
    steps = _Steps(journal, plan, site, progress)
    for key, inputs, work in steps.all():
        progress("evaluate", steps.done, steps.count)
        await journal.step(key, inputs, work)
        steps.done += 1
    progress("evaluate", steps.count, steps.count)


async def _check_same_engine(folder: Path, site: Site, progress: Progress) -> None:
    """A run that goes on measures what it began with. Raises InvalidRequest for another engine or model file."""
    try:
        begun = msgspec.json.decode((folder / ENVIRONMENT_FILE).read_bytes(), type=Environment)
    except FileNotFoundError:
        return  # it begins now
    before, now = _engine_rows(begun.sections), _engine_rows(await site.environment(progress))
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        told = "; ".join(f"{name}: {before.get(name, '—')} → {now.get(name, '—')}" for name in changed)
        raise InvalidRequest(f"This run began with another engine or model ({told}). Begin a new one.", param="model")


def _engine_rows(sections: Sequence[Section]) -> dict[str, str]:
    """What names the engine and the model's file; addresses may change with a restart."""
    rows = (row for section in sections if section.name == ENGINE for row in section.rows)
    return {name: value for name, value in rows if name.startswith("model ") or name.endswith(" version")}


def step_keys(plan: Plan) -> tuple[str, ...]:
    """The steps that leave evidence, in their order."""
    keys = [f"gates-{place}" for place in plan.places]
    if plan.cards:
        keys.append("cards")
    if plan.cold_starts:
        keys.append("cold")
    keys.append("bench")
    keys += [f"continuity-{each.mode}" for each in plan.continuity]
    if plan.sessions:
        keys += ["sessions-chat", "sessions-responses"]
    if plan.codex:
        keys.append("codex")
    if plan.safety:
        keys.append("safety")
    return tuple(keys)


class _Steps:
    """The steps as (key, inputs, work). Targets come from the site, with keys; inputs have none."""

    def __init__(self, journal: Journal, plan: Plan, site: Site, progress: Progress) -> None:
        self._journal = journal
        self._plan = plan
        self._site = site
        self._progress = progress
        self._limits = Limits(silence_s=plan.timeout_s, total_s=plan.timeout_s)
        self.done = 0
        self._listed = self._list()
        self.count = len(self._listed)

    def all(self) -> list[tuple[str, Any, Work]]:
        return self._listed

    def _list(self) -> list[tuple[str, Any, Work]]:
        plan = self._plan
        steps: list[tuple[str, Any, Work]] = [("environment", {}, self._environment)]
        steps += [(f"gates-{place}", plan.places[place], self._gates(place)) for place in plan.places]
        if plan.cards:
            steps.append(("cards", {}, self._cards))
        if plan.cold_starts:
            steps.append(("cold", plan.cold_starts, self._cold))
        steps.append(("bench", plan.bench, self._bench))
        steps += [(f"continuity-{each.mode}", each, self._continuity(each)) for each in plan.continuity]
        if plan.sessions:
            steps.append(("sessions-chat", plan.sessions, self._sessions("chat")))
            steps.append(("sessions-responses", plan.sessions, self._sessions("responses")))
        if plan.codex:
            steps.append(("codex", plan.sessions, self._codex))
        if plan.safety:
            steps.append(("safety", {}, self._safety))
        if plan.rubric:
            steps.append(("rubric", {}, self._rubric))
        return steps

    @property
    def _outermost(self) -> Target:
        """The address that the team uses: public, else gateway, else engine."""
        for place in reversed(bench_plan.PLACES):
            if place in self._site.targets:
                return self._site.targets[place]
        raise KeyError("an evaluation needs a target")

    def _command(self, words: str) -> str:
        """What measures a figure again: on our own server by its home, elsewhere by its address."""
        target = self._outermost
        if "gateway" in self._plan.places:
            return f"sekisho {words} --model {self._plan.places['gateway'][1]}"
        return f"sekisho {words} --url {target.url} --key env:NAME --model {target.model}"

    def _leave(self, context: StepContext, key: str, evidence: Evidence) -> None:
        context.write(f"{STEPS}/{key}.json", msgspec.json.encode(evidence))

    async def _environment(self, context: StepContext) -> None:
        sections = await self._site.environment(self._progress)
        body = msgspec.json.encode(Environment(sections))
        context.write(ENVIRONMENT_FILE, msgspec.json.format(body))

    def _gates(self, place: Place) -> Work:
        async def work(context: StepContext) -> None:
            target = self._site.targets[place]
            results = await gate.run_gates(target, progress=self._progress, limits=self._limits)
            file = f"gates-{place}.json"
            context.write(file, msgspec.json.encode(gate_report.as_json(results, target)))
            figures = gate.figures(results, target, command=self._command(f"gate --place {place}"), file=file)
            faults = tally([(fault.kind, fault.detail) for fault in result.faults] for result in results)
            self._leave(
                context, f"gates-{place}", Evidence(figures=tuple(figures), tally=faults, exchanges=len(results))
            )

        return work

    async def _cards(self, context: StepContext) -> None:
        """Each card's memory before and after load and under requests, and what it says of the spread (SPEC G3)."""
        assert self._site.cards is not None

        async def requests() -> None:
            async with asker(self._outermost) as ask:
                for number in range(CARD_REQUESTS):
                    await ask(prompts.pick(number).text, CARD_TOKENS)

        phases = await self._site.cards(requests)
        verdict = gpu_check.judge(phases)
        context.write("cards.json", msgspec.json.encode({"phases": phases, "verdict": verdict}))
        figures = gpu_check.figures(phases, command=self._plan.command, file="cards.json")
        told = [msgspec.structs.replace(each, note=f"{each.note}; {verdict.words[0]}") for each in figures]
        self._leave(context, "cards", Evidence(figures=tuple(told)))

    async def _cold(self, context: StepContext) -> None:
        command = self._command(f"bench --plan {self._plan.name} --cold {self._plan.cold_starts}")
        if self._site.restart is None:
            why = self._site.cannot_restart or "the engine cannot be restarted from here"
            figures = [Figure(id=f"cold.{what}", value=None, unit="s", why_null=why, command=command) for what in _COLD]
            self._leave(context, "cold", Evidence(figures=tuple(figures)))
            return
        starts = await cold.measure(
            self._outermost,
            self._site.restart,
            repetitions=self._plan.cold_starts,
            limits=self._limits,
            progress=self._progress,
        )
        context.write(cold.FILE, msgspec.json.encode(starts))
        samples = [each for start in starts for each in (start.first, start.second)]
        figures = cold.summarise(starts, command=command)
        self._leave(context, "cold", _of_samples(figures, samples))

    async def _bench(self, context: StepContext) -> None:
        plan = self._plan.bench

        async def one(cell: Cell) -> bench.CellRun:
            async def work(inner: StepContext) -> bench.CellRun:
                target = self._site.targets[cell.place]
                return await bench.run_cell(cell, plan, target, self._limits, self._progress, self._site.ends)

            stored = await self._journal.step(f"bench.{cell.key}", cell, work)
            return msgspec.convert(stored, bench.CellRun)

        if context.state is None:
            await context.checkpoint(Load.now())
        before = msgspec.convert(context.state, Load)
        whole = await bench.run_bench(plan, self._site.targets, one)
        after, held = Load.now(before), self._site.held_characters
        context.write("bench.json", bench_tables.write_json(whole))
        context.write("bench.csv", bench_tables.write_csv(whole.samples).encode())
        context.write("conditions.json", msgspec.json.encode(Conditions(before, after, held)))
        figures = bench_figures.summarise(
            whole, command=self._command(f"bench --plan {self._plan.name}"), held_characters=held
        )
        figures.append(cost.hourly_figure(whole, self._plan.hourly_price, self._plan.command))
        self._leave(context, "bench", _of_samples(figures, whole.samples))

    def _continuity(self, plan: continuity.Plan) -> Work:
        async def work(context: StepContext) -> None:
            async def one(key: str, talk: Callable[[], Awaitable[continuity.Held]]) -> continuity.Held:
                async def inner(_: StepContext) -> continuity.Held:
                    return await talk()

                return msgspec.convert(
                    await self._journal.step(f"continuity-{plan.mode}.{key}", plan, inner), continuity.Held
                )

            held = await continuity.run(self._outermost, plan, self._progress, limits=self._limits, step=one)
            file = f"continuity_{plan.mode}.csv"
            context.write(file, continuity_record.as_csv(held).encode())
            command = self._command(
                f"continuity --users {plan.users} --conversations {plan.conversations} --mode {plan.mode}"
            )
            figures = continuity_record.figures(held, plan.mode, command=command, file=file)
            spoken = [each for conversation in held for each in conversation.spoken if each.sent]
            faults = tally([(kind, "") for kind in each.faults] for each in spoken)
            key = f"continuity-{plan.mode}"
            self._leave(context, key, Evidence(figures=tuple(figures), tally=faults, exchanges=len(spoken)))

        return work

    def _sessions(self, mode: sessions.Mode) -> Work:
        async def work(context: StepContext) -> None:
            plan = sessions.SessionPlan(mode=mode, tasks=self._plan.sessions)

            async def one(key: str, play: Callable[[], Awaitable[sessions.SessionResult]]) -> sessions.SessionResult:
                async def inner(_: StepContext) -> sessions.SessionResult:
                    return await play()

                stored = await self._journal.step(f"sessions-{mode}.{key}", plan, inner)
                return msgspec.convert(stored, sessions.SessionResult)

            results = await sessions.run(self._outermost, plan, self._progress, step=one)
            file = f"sessions_{mode}.json"
            context.write(file, msgspec.json.encode(results))
            figures = sessions.figures(results, mode, command=self._plan.command, file=file)
            self._leave(context, f"sessions-{mode}", _of_sessions(figures, results))

        return work

    async def _codex(self, context: StepContext) -> None:
        command = self._plan.command
        if self._site.codex is None:
            why = "the Codex CLI is not on this machine: npm install -g @openai/codex, or --codex PATH"
            figures = [
                Figure(id=f"codex.{name}", value=None, unit=unit, why_null=why, command=command)
                for name, unit in _CODEX.items()
            ]
            self._leave(context, "codex", Evidence(figures=tuple(figures)))
            return
        plan = codex_run.CodexPlan(tasks=self._plan.sessions)

        async def one(key: str, play: Callable[[], Awaitable[sessions.SessionResult]]) -> sessions.SessionResult:
            async def inner(_: StepContext) -> sessions.SessionResult:
                return await play()

            return msgspec.convert(await self._journal.step(f"codex.{key}", plan, inner), sessions.SessionResult)

        results = await codex_run.run_codex(
            self._site.codex, self._outermost, plan, self._progress, step=one, started=context.child
        )
        context.write("codex.json", msgspec.json.encode(results))
        figures = codex_run.figures(results, command=command, file="codex.json")
        self._leave(context, "codex", _of_sessions(figures, results))

    async def _safety(self, context: StepContext) -> None:
        assert self._site.judge is not None
        found = await safety.run(self._outermost, self._site.judge, self._progress, limits=self._limits)
        context.write("safety.json", msgspec.json.encode(found))
        figures = safety.figures(found, command=self._plan.command, file="safety.json")
        self._leave(context, "safety", Evidence(figures=tuple(figures)))

    def _as_one(self, what: str) -> Progress:
        """One bar for work that names each of its parts."""
        return lambda _, done, total: self._progress(what, done, total)

    async def _rubric(self, context: StepContext) -> None:
        """The answers alone: people rate them afterwards."""
        folder = RubricFolder(context.folder)
        tasks = self._site.tasks or folder.tasks()
        begun = folder.begun()
        async with asker(self._outermost) as ask:
            await rubric_answers.collect(
                tasks,
                ask,
                self._as_one("rubric"),
                kept=begun[1] if begun is not None else None,
                keep=folder.keep_answers,
            )
        context.keep(f"{RUBRIC}/tasks.json")
        context.keep(f"{RUBRIC}/answers.json")


_COLD = ("ready_s", "ttfb_s", "ttft_s", "total_s")
_CODEX: dict[str, Unit] = {"tasks": "count", "connection_failures": "count", "cuts": "count", "completed": "share"}


def _of_samples(figures: list[Figure], samples: "list[Sample] | tuple[Sample, ...]") -> Evidence:
    faults = tally([(kind, each.detail if n == 0 else "") for n, kind in enumerate(each.faults)] for each in samples)
    return Evidence(figures=tuple(figures), tally=faults, exchanges=len(samples))


def _of_sessions(figures: list[Figure], results: Sequence[sessions.SessionResult]) -> Evidence:
    faults = tally([(kind, each.detail) for kind in each.faults] for each in results)
    return Evidence(figures=tuple(figures), tally=faults, exchanges=sum(each.requests for each in results))
