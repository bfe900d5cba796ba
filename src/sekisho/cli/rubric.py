"""`sekisho rubric`: a fixed set of tasks, its answers, two raters who do not see each other's scores, a verdict."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli import rubric_verdict
from sekisho.cli.aiming import KeyOption, ModelOption, PlaceOption, UrlOption, aimed
from sekisho.cli.failure import ABSENT, FAILED, INTERRUPTED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain
from sekisho.cli.progress_bars import Bars

if TYPE_CHECKING:
    from sekisho.evaluate.client.target import Target
    from sekisho.evaluate.rubric.answers import Answers
    from sekisho.evaluate.rubric.folder import RubricFolder
    from sekisho.evaluate.rubric.sitting import Sitting
    from sekisho.evaluate.rubric.tasks import TaskSet
    from sekisho.ops.home import Home

USUAL_TASKS = 20
KEY_LASTS_S = 6 * 3_600.0  # for a temporary key: 24 long answers of a slow model

app = typer.Typer(
    help="Rate a model's answers by a rubric: two raters, blind to each other.",
    epilog=example("sekisho rubric collect", "sekisho rubric rate RUN --rater hanako", ja="回答を2名で採点します。"),
    no_args_is_help=True,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder in which rubric/ lies.")]
TasksOption = Annotated[
    Path | None, typer.Option("--tasks", help="A YAML file of your own tasks; default: the built-in 20 + 4.")
]


@app.command("tasks", epilog=example("sekisho rubric tasks --tasks ours.yaml", ja="課題を一覧し、検査します。"))
def tasks(file: TasksOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List and check the tasks, and what this home's guard says of each prompt. Wrong lines are told with number."""
    from sekisho.cli.guard import of_the_running_server
    from sekisho.cli.guard_figures import usable_guard
    from sekisho.evaluate.behaviour.safety import judge_in_force
    from sekisho.evaluate.rubric.tasks import load_tasks

    out, place = Output(as_json=as_json), at_home(home)
    found = load_tasks(file)
    with usable_guard():
        judge = judge_in_force(of_the_running_server(place) or settings_of(place).guard, place.guard)
    verdicts = {task.id: judge(task.prompt).decision.upper() for task in found.all}
    parts = {task.id: "calibration" for task in found.calibration}
    listed = [{**plain(t), "part": parts.get(t.id, "task"), "guard": verdicts[t.id]} for t in found.all]
    out.json({"sha256": found.sha256, "tasks": listed})
    columns = out.columns("id", "rubric_part", "language", "rubric_kind", "rubric_guard", "rubric_title")
    rows = [
        (t["id"], out.text(f"rubric_{t['part']}"), t["language"], t["kind"], t["guard"], t["title"]) for t in listed
    ]
    out.table(columns, rows)
    out.say("rubric_counted", tasks=len(found.tasks), calibration=len(found.calibration))
    if len(found.tasks) < USUAL_TASKS:
        out.warn(out.text("rubric_few", tasks=len(found.tasks)))
    if stopped := sum(verdict != "ALLOW" for verdict in verdicts.values()):
        out.warn(out.text("rubric_stopped", count=stopped))


@app.command("collect", epilog=example("sekisho rubric collect --model MODEL", ja="課題への回答を集めます。"))
def collect(
    file: TasksOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Put rubric/ in here; default: a new run. Goes on where it broke off.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="For each answer; a model that thinks needs more.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    place: PlaceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model every task once, and keep the answers for the raters. Exit code 1 where one did not come."""
    import asyncio

    from sekisho.evaluate.rubric.folder import RubricFolder

    out, where = Output(as_json=as_json), at_home(home)
    run = folder or where.runs / f"rubric-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    rubric = RubricFolder(run)
    chosen, kept = _begun(rubric, file)
    with (
        aimed(out, where, "rubric", url=url, key=key, model=model, at=place, lasts_s=KEY_LASTS_S) as target,
        Bars(out, quiet=as_json) as bars,
    ):
        rubric.keep_tasks(chosen)
        answers = asyncio.run(_ask(out, target, rubric, chosen, kept, max_tokens, bars))
    missing = [answer.task for answer in answers.answers if not answer.to_rate]
    out.json(
        {
            "run": run.name,
            "folder": str(run),
            "model": target.model,
            "answers": len(answers.answers),
            "missing": missing,
        }
    )
    out.say("rubric_collected", count=len(answers.answers) - len(missing), folder=rubric.path)
    if missing:
        out.warn(out.text("rubric_unanswered", count=len(missing), tasks=", ".join(missing), folder=run))
    out.say("rubric_rate_next", run=run.name if folder is None else run)
    if missing:
        raise typer.Exit(FAILED)


def _begun(rubric: "RubricFolder", file: Path | None) -> "tuple[TaskSet, Answers | None]":
    """The tasks to ask, and what an earlier run has got of them. Ratings end it: they are about these answers."""
    from sekisho.evaluate.rubric.tasks import load_tasks

    if raters := rubric.raters():
        raise CommandFailed(
            f"{' and '.join(raters)} rated these answers already: they are not asked again",
            hint="name another folder with --out",
            exit_code=USAGE,
        )
    begun = rubric.begun()
    if begun is None:
        return load_tasks(file), None
    return (load_tasks(file) if file else begun[0]), begun[1]


async def _ask(
    out: Output,
    target: "Target",
    rubric: "RubricFolder",
    chosen: "TaskSet",
    kept: "Answers | None",
    max_tokens: int | None,
    bars: Bars,
) -> "Answers":
    from sekisho.evaluate.client.asking import asker
    from sekisho.evaluate.rubric import answers

    name = out.text("rubric_collecting")
    async with asker(target) as ask:
        return await answers.collect(
            chosen,
            ask,
            lambda _, done, total: bars.progress(name, done, total),
            kept=kept,
            keep=rubric.keep_answers,
            max_tokens=max_tokens,
        )


@app.command("rate", epilog=example("sekisho rubric rate RUN --rater hanako", ja="ブラウザで採点します。"))
def rate(
    run: RunArgument,
    rater: Annotated[str, typer.Option("--rater", help="Your name. Each of the two raters has one.")],
    terminal: Annotated[bool, typer.Option("--terminal", help="Rate here instead of in a browser.")] = False,
    number: Annotated[
        int | None, typer.Option("--round", min=1, help="2 and later: rate again what you two disagreed on.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Show the link, and open no browser.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0: any free one.")] = 0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rate the answers, blind: calibration, discussion, then the tasks. Can be paused at any time.

    The page is served on 127.0.0.1 to whoever has its link, until you hand in.
    """
    from sekisho.evaluate.rubric.sheets import rater_name
    from sekisho.evaluate.rubric.sitting import Sitting

    out, place = Output(as_json=as_json), at_home(home)
    if terminal and as_json:
        raise CommandFailed("--terminal talks to a person, --json to a program: one of them", exit_code=USAGE)
    folder, name = rubric_of(place, run), rater_name(rater)
    with folder.at_work(name):
        sitting = Sitting(folder, name, number)
        try:
            if sitting.view().stage != "done":
                _sit(out, sitting, terminal=terminal, browser=not no_browser and not as_json, port=port)
        except KeyboardInterrupt:
            out.say("rubric_paused")
            raise typer.Exit(INTERRUPTED) from None
        view = sitting.view()
    out.json({"run": run, "rater": name, "stage": view.stage, "round": view.round, "other_done": view.other_done})
    if view.stage == "done":
        out.say("rubric_done", rater=name, round=view.round)
        out.say("rubric_see" if view.other_done else "rubric_other_open", run=run)


def _sit(out: Output, sitting: "Sitting", *, terminal: bool, browser: bool, port: int) -> None:
    import asyncio

    if terminal:
        from sekisho.cli.rubric_terminal import Table

        Table(out, sitting).work()
        return
    from sekisho.cli.rubric_browser import opened_in_browser
    from sekisho.evaluate.rubric.rating_page import serve

    with opened_in_browser(browser) as open_link:

        def opened(link: str) -> None:
            if out.as_json:
                out.warn(link)  # standard output is for the one answer at the end
            out.say("rubric_link")
            out.line(f"  {link}", style="bold")
            out.say("rubric_pause")
            open_link(link)

        asyncio.run(serve(sitting, opened, port))


@app.command("verdict", epilog=example("sekisho rubric verdict RUN", ja="採点結果と一致率を表示します。"))
def verdict(
    run: RunArgument,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Show scores side by side although a round is due: it will not be blind.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many answers are adoptable and how far the raters agree. Exit code 1 below 70 % or 80 %."""
    from sekisho.evaluate.rubric.agreement import assess

    out, place = Output(as_json=as_json), at_home(home)
    found = assess(rubric_of(place, run))
    rubric_verdict.show(out, run, found, reveal=reveal)
    if not found.passed:
        raise typer.Exit(FAILED)


def rubric_of(place: "Home", run: str) -> "RubricFolder":
    """The rubric of a run by its id, or of a folder. Raises CommandFailed."""
    from sekisho.evaluate.rubric.folder import NAME, RubricFolder

    paths = [Path(run), Path(run).absolute().parent] if Path(run).name == NAME else [Path(run)]
    if Path(run).name == run:
        paths.insert(0, place.runs / run)
    for path in paths:
        if (path / NAME).is_dir():
            return RubricFolder(path)
    known = sorted((file.parent.parent.name for file in place.runs.glob(f"*/{NAME}/answers.json")), reverse=True)
    hint = f"runs with answers: {', '.join(known[:5])}" if known else "collect answers first: sekisho rubric collect"
    raise CommandFailed(f"{run}: no such run, and no folder with {NAME}/ in it", hint=hint, exit_code=ABSENT)
