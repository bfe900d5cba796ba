"""`sekisho bench`: how quick the model is, at every place on its way to the team."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import retyped
from sekisho.cli.aiming import KeyOption, ModelOption, UrlOption
from sekisho.cli.evaluate_site import Found, Where, environment, held_characters, places, restarter
from sekisho.cli.failure import FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output, plain
from sekisho.cli.progress_bars import Bars

if TYPE_CHECKING:
    from sekisho.evaluate.environment import Section
    from sekisho.evaluate.figures import Figure
    from sekisho.evaluate.speed.bench import Bench
    from sekisho.evaluate.speed.bench_plan import Plan
    from sekisho.evaluate.speed.cold import ColdStart
    from sekisho.ops.home import Home

KEY_LASTS_S = 12 * 3600.0


def register(app: typer.Typer) -> None:
    epilog = example("sekisho bench", "sekisho bench --plan quick --cold 1", ja="モデルの速さを各経路で測ります。")
    app.command("bench", epilog=epilog)(bench)


def bench(
    context: typer.Context,
    url: UrlOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    public: Annotated[str | None, typer.Option("--public", help="The address the team uses, measured too.")] = None,
    plan: Annotated[str, typer.Option("--plan", help="seed, full (80 requests a cell) or quick.")] = "full",
    parallel: Annotated[str | None, typer.Option("--parallel", help="Askers at once, with commas: 1,2,3.")] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="Longest answer × requests, with commas: 256x80,1024x10.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, max=100_000.0, help="Open loop: requests a second.")
    ] = None,
    closed_only: Annotated[bool, typer.Option("--closed-only", help="No open loop.")] = False,
    grid: Annotated[
        str | None, typer.Option("--grid", help="Prompt lengths in tokens × askers: 128,512x1,2,4.")
    ] = None,
    api: Annotated[str, typer.Option("--api", help="chat or responses.")] = "chat",
    warmups: Annotated[int | None, typer.Option("--warmups", min=0)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Every request on a connection of its own.")] = False,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Every answer as long as it may be.")] = False,
    cold: Annotated[int, typer.Option("--cold", min=0, help="Restart the engine so many times first.")] = 0,
    restart_command: Annotated[
        str | None, typer.Option("--restart-command", help="What restarts an engine that is not ours; no shell.")
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, max=86_400.0, help="Seconds that an answer may take.")
    ] = 180.0,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: below the home's runs.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure first token, whole answer and tokens per second at engine, gateway and public address.

    Writes bench.csv, bench.json, summary.txt and a page with charts. Exit code 1 when a request failed.
    """
    import asyncio

    out, place = Output(as_json=as_json), at_home(home)
    place.create()
    changes: dict[str, Any] = {"api": api, "fresh": fresh, "ignore_eos": ignore_eos, "warmups": warmups}
    chosen = _plan(plan, parallel, sizes, rate, closed_only, grid, changes)
    folder = to or place.runs / f"bench-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    where = Where(url=url, key=key, model=model, public=public, restart=restart_command)
    with places(out, place, "bench", where, KEY_LASTS_S) as found, Bars(out, quiet=as_json) as bars:
        starts, whole, sections = asyncio.run(_measure(place, found, chosen, cold, where, timeout_s, bars))
        held = held_characters(place, found)
    figures = _write(folder, whole, starts, sections, held, retyped.command(context))
    samples = whole.samples
    failed = sum(not each.ok for each in samples)
    out.json({"folder": str(folder), "requests": len(samples), "failed": failed, "figures": plain(figures)})
    _show(out, folder, whole, held)
    if failed or not samples:
        raise typer.Exit(FAILED)


def _plan(
    name: str,
    parallel: str | None,
    sizes: str | None,
    rate: float | None,
    closed_only: bool,
    grid: str | None,
    changes: Mapping[str, Any],
) -> "Plan":
    import msgspec

    from sekisho.evaluate.speed.bench_plan import PLANS, Grid, OpenLoop, Size

    if name not in PLANS:
        raise CommandFailed(f"--plan: {name!r} is none", hint=f"one of {', '.join(PLANS)}", exit_code=USAGE)
    if changes["api"] not in ("chat", "responses"):
        raise CommandFailed(f"--api: {changes['api']!r} is none", hint="chat or responses", exit_code=USAGE)
    if rate is not None and closed_only:
        raise CommandFailed("--rate is of the open loop, which --closed-only leaves out", exit_code=USAGE)
    plan = PLANS[name]
    wished: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    if parallel is not None:
        wished["parallels"] = _numbers("--parallel", parallel)
    if sizes is not None:
        pairs = [_numbers("--sizes", part, "x") for part in sizes.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise CommandFailed(f"--sizes: {sizes!r}", hint="as in 256x80,1024x10", exit_code=USAGE)
        wished["sizes"] = tuple(Size(*pair) for pair in pairs)
    if rate is not None:
        wished["open"] = msgspec.structs.replace(plan.open or OpenLoop(), rate=rate)
    if closed_only:
        wished["open"] = None
    if grid is not None:
        lengths, _, askers = grid.partition("x")
        wished["grid"] = Grid(_numbers("--grid", lengths))
        if askers:
            wished["grid"] = Grid(_numbers("--grid", lengths), _numbers("--grid", askers))
    return msgspec.structs.replace(plan, **wished) if wished else plan


def _numbers(option: str, text: str, separator: str = ",") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(separator))
    except ValueError as error:
        raise CommandFailed(f"{option}: {text!r}", hint="whole numbers", exit_code=USAGE) from error


async def _measure(
    place: "Home", found: Found, plan: "Plan", cold: int, where: Where, timeout_s: float, bars: Bars
) -> "tuple[list[ColdStart], Bench, tuple[Section, ...]]":
    from sekisho.evaluate.client.exchange import Limits
    from sekisho.evaluate.speed import bench as benching
    from sekisho.evaluate.speed import cold as starting
    from sekisho.evaluate.speed.samples import Cell

    limits = Limits(silence_s=timeout_s, total_s=timeout_s)
    sections = await environment(place, found, bars.progress)
    starts: list[ColdStart] = []
    if cold:
        restart, why = restarter(place, found, where.restart)
        if restart is None:
            raise CommandFailed(f"--cold: {why}", exit_code=USAGE)
        starts = await starting.measure(
            found.outermost, restart, repetitions=cold, limits=limits, progress=bars.progress
        )

    def ends() -> int | None:
        return benching.ends_of(place) if found.ours else None

    async def one(cell: Cell) -> benching.CellRun:
        target = found.targets[cell.place]
        return await benching.run_cell(cell, plan, target, limits, bars.progress, ends)

    return starts, await benching.run_bench(plan, found.targets, one), sections


def _write(
    folder: Path,
    whole: "Bench",
    starts: "list[ColdStart]",
    sections: "tuple[Section, ...]",
    held: int | None,
    command: str,
) -> "list[Figure]":
    import msgspec

    from sekisho.evaluate import evidence
    from sekisho.evaluate.figures import Figures
    from sekisho.evaluate.report.data import ReportData
    from sekisho.evaluate.report.page import render
    from sekisho.evaluate.report.parts import bench_charts, fault_counts
    from sekisho.evaluate.speed import bench_figures, bench_tables, cold
    from sekisho.evaluate.speed.bench_gap import explain, gaps
    from sekisho.ops.home import write_atomically

    samples = whole.samples
    figures = bench_figures.summarise(whole, command=command, held_characters=held)
    if starts:
        figures += cold.summarise(starts, command=command)
        write_atomically(folder / cold.FILE, msgspec.json.encode(starts))
    write_atomically(folder / "bench.csv", bench_tables.write_csv(samples).encode())
    write_atomically(folder / "bench.json", bench_tables.write_json(whole))
    write_atomically(folder / "summary.txt", bench_tables.summary(samples).encode())
    faults = evidence.tally([(kind, each.detail) for kind in each.faults] for each in samples)
    data = ReportData(
        run=folder.name,
        title=("Benchmark", "ベンチマーク"),
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        figures=Figures(tuple(figures)),
        charts=bench_charts(whole),
        remarks=tuple(("speed", explain(gap, whole, held)) for gap in gaps(whole)),
        faults=fault_counts(faults),
        exchanges=len(samples),
        plan=msgspec.to_builtins(whole.plan),
        environment=sections,
    )
    write_atomically(folder / "bench.html", render(data).encode())
    return figures


def _show(out: Output, folder: Path, whole: "Bench", held: int | None) -> None:
    from sekisho.evaluate.client.faults import MEANINGS
    from sekisho.evaluate.evidence import tally
    from sekisho.evaluate.speed.bench_gap import explain, gaps
    from sekisho.evaluate.speed.bench_tables import summary

    for line in summary(whole.samples).splitlines():
        out.line(line)
    missing = sum(run.cell.requests - len(run.samples) for run in whole.runs if run.cell.loop != "warmup")
    if missing:
        out.warn(out.text("bench_given_up", missing=missing))
    faults = tally([(kind, each.detail) for kind in each.faults] for each in whole.samples)
    for fault in faults:
        meaning, language = MEANINGS[fault.kind], int(out.language == "ja")
        out.line(f"{fault.count} × {meaning.what[language]}. {meaning.next[language]}", style="yellow")
    for gap in gaps(whole):
        out.say("bench_gap", place=gap.place, words=explain(gap, whole, held)[int(out.language == "ja")])
    out.say("bench_written", folder=folder)
