"""`sekisho evaluate`: everything measured, unattended, down to one signed report; and what is done with its runs."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli import compare, evaluate_runs, retyped
from sekisho.cli.aiming import KeyOption, ModelOption, UrlOption
from sekisho.cli.evaluate_site import Found, Where, cards_of, environment, held_characters, places, restarter
from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output
from sekisho.cli.progress_bars import Bars
from sekisho.cli.temporary_key import revoke_left

if TYPE_CHECKING:
    from sekisho.evaluate.evaluation import Plan, Site
    from sekisho.evaluate.rubric.tasks import TaskSet
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

KEY_LASTS_S = 24 * 3600.0

app = typer.Typer(
    help="Measure everything and write one signed report on which a team decides.",
    epilog=example(
        "sekisho evaluate --quick", "sekisho evaluate", ja="すべてを測定し、採否の判断材料を 1 つのレポートにします。"
    ),
    invoke_without_command=True,
)


evaluate_runs.register(app)
compare.register(app)


@app.callback()
def evaluate(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes instead of an hour: shows that all works.")] = False,
    plan: Annotated[
        str, typer.Option("--plan", help="Numbers of the benchmark: full, seed (the two-week guide's), quick.")
    ] = "full",
    url: UrlOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    public: Annotated[str | None, typer.Option("--public", help="The address the team uses, measured too.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Whose thresholds: a100, a40x2, cpu, … Default: the settings'.")
    ] = None,
    cold: Annotated[bool, typer.Option("--cold/--no-cold", help="Restart the engine once, and time it.")] = True,
    restart_command: Annotated[
        str | None, typer.Option("--restart-command", help="What restarts an engine that is not ours; no shell.")
    ] = None,
    users: Annotated[int, typer.Option("--users", min=1, help="Who talk at the same time (continuity).")] = 2,
    conversations: Annotated[int, typer.Option("--conversations", min=1, help="Of each user.")] = 15,
    sessions: Annotated[int, typer.Option("--sessions", min=0, help="Tasks shaped as clients send them.")] = 20,
    codex: Annotated[
        Path | None, typer.Option("--codex", help="The Codex CLI; default: the one on the PATH, if there is one.")
    ] = None,
    rubric: Annotated[bool, typer.Option("--rubric/--no-rubric", help="Collect answers for two raters.")] = True,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="Your own tasks for the raters, as YAML.")] = None,
    hourly_price: Annotated[
        float | None, typer.Option("--hourly-price", min=0.0, max=1e6, help="What the hardware costs an hour.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, max=86_400.0, help="Seconds that an answer may take.")
    ] = 180.0,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with a run; `last` is the newest.")
    ] = None,
    redo: Annotated[
        list[str] | None, typer.Option("--redo", metavar="STEP", help="With --resume: do this step again.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure gates, cold start, speed, continuity, sessions and safety, collect the raters' answers, judge, report.

    A run that was stopped, by Ctrl-C, kill or a power cut, goes on with --resume where it was.
    """
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context)
        return
    from sekisho.evaluate.behaviour.codex_run import find_codex

    out, place = Output(as_json=as_json), at_home(home)
    if resume is None and redo:
        hint = "sekisho evaluate --resume last --redo STEP"
        raise CommandFailed("--redo is for a run that is resumed", hint=hint, exit_code=USAGE)
    if quick and "plan" in retyped.told(context):
        raise CommandFailed("--quick is --plan quick: give one of them", exit_code=USAGE)
    place.create()
    where = Where(url=url, key=key, model=model, public=public, restart=restart_command)
    chosen = find_codex(codex)
    if resume is None:
        from sekisho.evaluate.rubric.tasks import load_tasks

        wished = _Wish(
            bench="quick" if quick else plan,
            profile=profile,
            cold=cold,
            users=users,
            conversations=conversations,
            sessions=sessions,
            codex=chosen is not None,
            rubric=rubric,
            timeout_s=timeout_s,
            hourly_price=hourly_price,
            command=retyped.command(context),
        )
        run = _new_run()
        _run(out, place, run, where, wished, load_tasks(tasks), chosen, ())
        return
    _refuse_unheeded(context)
    run = evaluate_runs.run_folder(place, resume).name
    _run(out, place, run, where, None, None, chosen, tuple(redo or ()))


HEEDED_BY_A_RESUME = frozenset({"resume", "redo", "key", "codex", "restart_command", "home", "as_json"})


def _refuse_misplaced(context: typer.Context) -> None:
    """An option before `report`, `list`, … would be read and not heeded: of another home, for instance."""
    sub = context.invoked_subcommand
    for name in retyped.told(context):
        option = retyped.option_of(context, name)
        hint = f"options of `{sub}` stand behind it: sekisho evaluate {sub} {option} …"
        raise CommandFailed(f"{option} stands before `{sub}`", hint=hint, exit_code=USAGE)


def _refuse_unheeded(context: typer.Context) -> None:
    """A run goes on as it was planned."""
    unheeded = [retyped.option_of(context, name) for name in retyped.told(context) if name not in HEEDED_BY_A_RESUME]
    if unheeded:
        hint = "leave them out, or begin a new run without --resume"
        raise CommandFailed(f"a resumed run keeps its plan: {', '.join(unheeded)}", hint=hint, exit_code=USAGE)


class _Wish:
    """A new run's numbers, before its places are known."""

    def __init__(
        self,
        *,
        bench: str,
        profile: str | None,
        cold: bool,
        users: int,
        conversations: int,
        sessions: int,
        codex: bool,
        rubric: bool,
        timeout_s: float,
        hourly_price: float | None,
        command: str,
    ) -> None:
        self.bench, self.profile, self.cold = bench, profile, cold
        self.users, self.conversations, self.sessions = users, conversations, sessions
        self.codex, self.rubric, self.timeout_s = codex, rubric, timeout_s
        self.hourly_price, self.command = hourly_price, command

    def plan(self, place: "Home", found: Found) -> "Plan":
        from sekisho.cli.scorecard import chosen_profile
        from sekisho.evaluate.behaviour import continuity
        from sekisho.evaluate.evaluation import Plan
        from sekisho.evaluate.speed import bench_plan

        benches = bench_plan.PLANS
        if self.bench not in benches:
            raise CommandFailed(f"--plan: {self.bench!r} is none", hint=f"one of {', '.join(benches)}", exit_code=USAGE)
        talks = tuple(
            continuity.Plan(mode=mode, users=self.users, conversations=self.conversations)
            for mode in ("chat", "responses")
        )
        return Plan(
            name=self.bench,
            profile=chosen_profile(self.profile, found.settings),
            places={name: (target.url, target.model) for name, target in found.targets.items()},
            bench=benches[self.bench],
            continuity=talks,
            cold_starts=1 if self.cold else 0,
            sessions=self.sessions,
            codex=self.codex,
            safety=found.ours,
            rubric=self.rubric,
            timeout_s=self.timeout_s,
            command=self.command,
            hourly_price=self.hourly_price,
            cards=self.cold and cards_of(place, found) is not None,
        )


def _new_run() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


def _run(
    out: Output,
    place: "Home",
    run: str,
    where: Where,
    wish: _Wish | None,
    tasks: "TaskSet | None",
    codex: Path | None,
    redo: Sequence[str],
) -> None:
    """Measures and concludes. `wish` None: the run is there and goes on."""
    import asyncio

    from sekisho.evaluate.conclusion import PLAN_FILE, read_plan
    from sekisho.evaluate.rubric.folder import RubricFolder
    from sekisho.ops.home import write_atomically

    folder = place.runs / run
    if wish is None:
        plan = read_plan(folder)
        where = _as_planned(where, plan)
        tasks = RubricFolder(folder).tasks() if plan.rubric else None
        if not _is_busy(folder):
            revoke_left(place, settings_of(place), run)
    with places(out, place, run, where, KEY_LASTS_S) as found:
        if wish is not None:
            import msgspec

            plan = wish.plan(place, found)
            folder.mkdir(mode=0o700)
            write_atomically(folder / PLAN_FILE, msgspec.json.format(msgspec.json.encode(plan), indent=1))
            if tasks is not None and plan.rubric:
                RubricFolder(folder).keep_tasks(tasks)
        site = _site(place, found, where, tasks, codex)
        with Bars(out, quiet=out.as_json) as bars:
            try:
                asyncio.run(_measure(out, place, found.settings, run, plan, site, bars, redo))
            except BaseException:
                out.warn(out.text("evaluate_broken", run=run))
                raise
    settings = settings_of(place)
    collected = evaluate_runs.records_of(out, place, settings, folder, None) if found.ours else None
    evaluate_runs.tell(out, evaluate_runs.conclude(out, place, folder, collected), plan.rubric)


def _is_busy(folder: Path) -> bool:
    """Whether another process works on the run."""
    from sekisho.evaluate.durable.journal_errors import RunBusy
    from sekisho.evaluate.durable.run_folder import RunFolder

    held = RunFolder(folder)
    try:
        held.acquire()
    except RunBusy:
        return True
    held.release()
    return False


def _as_planned(where: Where, plan: "Plan") -> Where:
    """A run goes on where it began; only keys and the restart command are told anew."""
    if "gateway" in plan.places:
        public = plan.places["public"][0] if "public" in plan.places else None
        return Where(key=where.key, model=plan.places["gateway"][1], public=public, restart=where.restart)
    url, model = list(plan.places.values())[-1]
    return Where(url=url, key=where.key, model=model, restart=where.restart)


def _site(place: "Home", found: Found, where: Where, tasks: "TaskSet | None", codex: Path | None) -> "Site":
    from functools import partial

    from sekisho.cli.guard import of_the_running_server
    from sekisho.cli.guard_figures import usable_guard
    from sekisho.evaluate.behaviour.safety import judge_in_force
    from sekisho.evaluate.evaluation import Site
    from sekisho.evaluate.speed.bench import ends_of

    restart, cannot = restarter(place, found, where.restart)
    judge = None
    if found.ours:
        with usable_guard():
            judge = judge_in_force(of_the_running_server(place) or found.settings.guard, place.guard)
    return Site(
        targets=found.targets,
        environment=partial(environment, place, found),
        restart=restart,
        cannot_restart=cannot,
        judge=judge,
        codex=codex,
        tasks=tasks,
        held_characters=held_characters(place, found),
        ends=partial(ends_of, place) if found.ours else lambda: None,
        cards=cards_of(place, found),
    )


async def _measure(
    out: Output,
    place: "Home",
    settings: "Settings",
    run: str,
    plan: "Plan",
    site: "Site",
    bars: Bars,
    redo: Sequence[str],
) -> None:
    from sekisho.evaluate import evaluation
    from sekisho.evaluate.durable.journal import Journal
    from sekisho.serve import database_url
    from sekisho.store import Store

    store = await Store.open(database_url(place, settings))
    try:
        async with Journal.open(store, place.runs / run, run, evaluation.KIND, plan, plan.name) as journal:
            done = sum(step.state == "done" for step in journal.steps)
            key = "evaluate_resumes" if journal.steps else "evaluate_begins"
            steps = len(evaluation.step_keys(plan))
            out.say(key, run=run, steps=steps, done=done, places=", ".join(plan.places))
            for step in redo:
                await journal.redo(step)
            await evaluation.run(journal, plan, site, bars.progress)
    finally:
        await store.close()
