"""`sekisho evaluate compare A B`: may B take A's place? A verdict with margins that were set before."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import evaluate_runs, retyped
from sekisho.cli.aiming import KeyOption, aimed
from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain
from sekisho.cli.progress_bars import Bars

if TYPE_CHECKING:
    from sekisho.evaluate.client.target import Target
    from sekisho.evaluate.comparison.compare import Comparison
    from sekisho.evaluate.comparison.compare_plan import ComparePlan, Margin
    from sekisho.ops.home import Home

KEY_LASTS_S = 12 * 3600.0
KIND = "comparison"
PLAN_FILE = "compare_plan.json"
STYLES = {"adopt": "bold green", "limited": "bold yellow", "reject": "bold red"}


def register(app: typer.Typer) -> None:
    epilog = example(
        "sekisho evaluate compare swallow-q4 swallow-q8",
        "sekisho evaluate compare RUN_A RUN_B",
        ja="2 つを対で比べます。",
    )
    app.command("compare", epilog=epilog)(compare)


def compare(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="What there is: a model, URL#MODEL, or a run's id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What might take its place.")],
    margin: Annotated[
        list[str] | None,
        typer.Option(
            "--margin", help="How much worse B may be; default ttft=10%, total=10%, tok_s=5%, success=2%, correct=5%."
        ),
    ] = None,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Of four requests each.")] = 100,
    items: Annotated[
        Path | None, typer.Option("--items", help='Lines of {"id", "prompt", "max_tokens", "expected"}.')
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of order and keywords.")] = 1,
    key: KeyOption = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="RUN", help="Go on with this comparison.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask both in interleaved blocks and say whether B may take A's place, by margins that are fixed before the first
    request. Two finished runs are compared by what can be paired. Exit code 0 for adopt, 1 otherwise."""
    out, place = Output(as_json=as_json), at_home(home)
    place.create()
    margins = _margins(margin or [])
    if all(_is_run(place, each) for each in (a, b)):
        found = _of_runs(place, (a, b), margins, seed)
        folder = place.runs / f"compare-{_stamp()}"
        folder.mkdir(mode=0o700)
    else:
        if resume is not None:
            _refuse_unheeded(context)
        folder, found = _live(out, place, (a, b), margins, blocks, items, max_tokens, seed, key, resume)
    _write(out, place, folder, found, retyped.command(context))
    out.json({"run": folder.name, "report": str(folder / "report.html"), **plain(found)})
    _show(out, found)
    out.say("evaluate_report", report=folder / "report.html")
    raise typer.Exit(0 if found.verdict == "adopt" else FAILED)


def _refuse_unheeded(context: typer.Context) -> None:
    """Margins and items of a comparison that has begun are what they were."""
    heeded = {"a", "b", "key", "resume", "home", "as_json"}
    unheeded = [retyped.option_of(context, name) for name in retyped.told(context) if name not in heeded]
    if unheeded:
        hint = "leave them out, or begin a new comparison without --resume"
        raise CommandFailed(f"a resumed comparison keeps its plan: {', '.join(unheeded)}", hint=hint, exit_code=USAGE)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())


def _is_run(place: "Home", name: str) -> bool:
    return (place.runs / name / "plan.json").is_file()


def _margins(options: list[str]) -> "tuple[Margin, ...]":
    from sekisho.evaluate.comparison.compare_plan import DEFAULT_MARGINS, Margin

    known = {each.metric: each for each in DEFAULT_MARGINS}
    for option in options:
        name, equals, value = option.partition("=")
        if value == "off" and known.pop(name, None) is not None:  # type: ignore[call-overload]
            continue
        metric = next((each for each in known if each == name), None)
        try:
            share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            metric = None
            share = 0.0
        if metric is None or not equals:
            hint = f"as in ttft=10% or ttft=off; metrics: {', '.join(each.metric for each in DEFAULT_MARGINS)}"
            raise CommandFailed(f"--margin: {option!r}", hint=hint, exit_code=USAGE)
        known[metric] = Margin(metric, share)
    return tuple(known.values())


def _of_runs(place: "Home", runs: tuple[str, str], margins: "tuple[Margin, ...]", seed: int) -> "Comparison":
    from sekisho.evaluate.comparison.compare import compare_runs
    from sekisho.evaluate.comparison.compare_live import gates_passed, samples_of_run
    from sekisho.evaluate.comparison.compare_plan import is_speed

    folders = [evaluate_runs.run_folder(place, run) for run in runs]
    first, second = map(samples_of_run, folders)
    shares = tuple(margin for margin in margins if not is_speed(margin.metric))  # speeds of two days prove nothing
    if not shares:
        raise CommandFailed("two runs are compared by success and correct answers alone", exit_code=USAGE)
    return compare_runs(first, second, arms=runs, margins=shares, seed=seed, gates_ok=gates_passed(folders[1]))


def _live(
    out: Output,
    place: "Home",
    arms: tuple[str, str],
    margins: "tuple[Margin, ...]",
    blocks: int,
    items: Path | None,
    max_tokens: int,
    seed: int,
    key: str | None,
    resume: str | None,
) -> "tuple[Path, Comparison]":
    import asyncio

    from sekisho.evaluate.comparison.compare import shortfalls
    from sekisho.evaluate.comparison.compare_live import built_in_items, read_items
    from sekisho.evaluate.comparison.compare_plan import ComparePlan

    if resume is not None:
        folder, plan = place.runs / resume, _planned(place, resume)
        if plan.arms != arms:
            why = f"{resume} compares {plan.arms[0]} with {plan.arms[1]}"
            raise CommandFailed(why, hint="name these two", exit_code=USAGE)
    else:
        chosen = read_items(items) if items is not None else built_in_items(seed, max_tokens)
        folder = place.runs / f"compare-{_stamp()}"
        plan = ComparePlan(arms=arms, items=chosen, margins=margins, blocks=blocks, seed=seed)
    with _targets(out, place, plan.arms, key) as targets, Bars(out, quiet=out.as_json) as bars:
        for words in shortfalls(plan):
            out.warn(words[int(out.language == "ja")])
        _keep_plan(folder, plan)
        try:
            return folder, asyncio.run(_measure(place, folder, plan, targets, bars))
        except BaseException:
            out.warn(out.text("compare_broken", run=folder.name))
            raise


def _planned(place: "Home", run: str) -> "ComparePlan":
    import msgspec

    from sekisho.evaluate.comparison.compare_plan import ComparePlan

    try:
        return msgspec.json.decode((place.runs / run / PLAN_FILE).read_bytes(), type=ComparePlan)
    except OSError as error:
        raise CommandFailed(f"there is no comparison {run}", exit_code=ABSENT) from error


def _keep_plan(folder: Path, plan: "ComparePlan") -> None:
    """Before the first request: margins that were set afterwards would be worth nothing."""
    import msgspec

    from sekisho.ops.home import write_atomically

    folder.mkdir(mode=0o700, exist_ok=True)
    write_atomically(folder / PLAN_FILE, msgspec.json.format(msgspec.json.encode(plan), indent=1))


@contextmanager
def _targets(out: Output, place: "Home", arms: tuple[str, str], key: str | None) -> "Iterator[dict[str, Target]]":
    with ExitStack() as stack:
        found: dict[str, Target] = {}
        for arm in arms:
            url, mark, model = arm.rpartition("#")
            aim = aimed(
                out, place, "compare", url=url if mark else None, key=key, model=model or None, lasts_s=KEY_LASTS_S
            )
            found[arm] = stack.enter_context(aim)
        yield found


async def _measure(
    place: "Home", folder: Path, plan: "ComparePlan", targets: "dict[str, Target]", bars: Bars
) -> "Comparison":
    import msgspec

    from sekisho.evaluate.client.exchange import Connections
    from sekisho.evaluate.comparison.compare import run_comparison
    from sekisho.evaluate.comparison.compare_live import LiveArms, gates_open
    from sekisho.evaluate.comparison.compare_plan import BlockResult
    from sekisho.evaluate.durable.journal import Journal
    from sekisho.evaluate.durable.step_context import StepContext
    from sekisho.serve import database_url
    from sekisho.store import Store

    store = await Store.open(database_url(place, settings_of(place)))
    connections = {arm: Connections(target) for arm, target in targets.items()}
    try:
        async with Journal.open(store, folder, folder.name, KIND, plan) as journal:

            async def work(context: StepContext) -> Any:
                finished = msgspec.convert(context.state or [], list[BlockResult])

                async def keep(result: BlockResult) -> None:
                    finished.append(result)
                    await context.checkpoint(finished)

                ok = await gates_open(targets[plan.arms[1]])
                ask = LiveArms(connections).ask
                return await run_comparison(plan, ask, bars.progress, finished=tuple(finished), keep=keep, gates_ok=ok)

            from sekisho.evaluate.comparison.compare import Comparison

            return msgspec.convert(await journal.step("compare", plan.sha256, work), Comparison)
    finally:
        for each in connections.values():
            each.close()
        await store.close()


def _write(out: Output, place: "Home", folder: Path, found: "Comparison", command: str) -> None:
    """compare.json, figures.json and the signed page."""
    import msgspec

    from sekisho.evaluate.comparison import compare as comparing
    from sekisho.evaluate.comparison.compare_live import comparison_part, verdict_part
    from sekisho.evaluate.figures import Figures
    from sekisho.evaluate.report.data import ReportData
    from sekisho.evaluate.report.file import write_report
    from sekisho.ops.home import write_atomically

    figures = Figures(comparing.figures(found, command=command, file="compare.json"))
    write_atomically(folder / "compare.json", msgspec.json.format(msgspec.json.encode(found), indent=1))
    write_atomically(folder / "figures.json", msgspec.json.format(msgspec.json.encode(figures), indent=1))
    data = ReportData(
        run=folder.name,
        title=(f"{found.arms[1]} against {found.arms[0]}", f"{found.arms[0]} に対する {found.arms[1]}"),
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        figures=figures,
        verdict=verdict_part(found),
        comparison=comparison_part(found),
    )
    key, language = evaluate_runs.signing_key_of(place), evaluate_runs.report_language(out)
    write_report(folder, data, key, language)


def _show(out: Output, found: "Comparison") -> None:
    language = int(out.language == "ja")
    verdict = out.text(f"compare_{found.verdict}")
    words = out.text("compare_verdict", a=found.arms[0], b=found.arms[1], verdict=verdict)
    out.line(words, style=STYLES[found.verdict])
    for reason in found.reasons:
        out.line(f"  {reason[language]}")
    for metric in found.metrics:
        for reason in metric.reasons:
            out.line(f"  {reason[language]}")
