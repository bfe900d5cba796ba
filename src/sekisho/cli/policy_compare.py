"""`sekisho policy compare`: two policies on the same machine, in turns."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sekisho.cli import tuning_reports
from sekisho.cli.failure import FAILED, INTERRUPTED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, example
from sekisho.cli.output import Output
from sekisho.cli.policy_sides import check_taken, policy_of
from sekisho.cli.top import AgentOption
from sekisho.cli.tuning_options import (
    AnswerOption,
    PromptOption,
    ReportOption,
    SeedOption,
    TextOption,
    TriedModelOption,
)
from sekisho.cli.tuning_site import Site, find, language_of
from sekisho.cli.tuning_trial import Measuring, Trial

if TYPE_CHECKING:
    from sekisho.control.comparison import Comparison, ComparisonPlan
    from sekisho.control.policy import Policy
    from sekisho.control.trial_engine import TrialEngine
    from sekisho.evaluate.tuning_record import Side

SideArgument = typer.Argument(help="current, a preset, baseline, version:3, or FIELD=VALUE,FIELD=VALUE.")


def register(app: typer.Typer) -> None:
    epilog = example(
        "sekisho policy compare current batch",
        "sekisho policy compare current kv.key_type=q8_0,kv.value_type=q8_0",
        ja="二つの方針を交互に計測し、比を区間付きで示します。",
    )
    app.command("compare", epilog=epilog)(compare_policies)


def compare_policies(
    context: typer.Context,
    first: Annotated[str, SideArgument],
    second: Annotated[str, SideArgument],
    model: TriedModelOption = None,
    blocks: Annotated[int, typer.Option("--blocks", min=1, max=1000, help="6 are needed for intervals.")] = 6,
    order: Annotated[str, typer.Option("--order", help="abba: four measurements a block; ab: two.")] = "abba",
    prompt_tokens: PromptOption = None,
    answer_tokens: AnswerOption = 64,
    text: TextOption = None,
    seed: SeedOption = 1,
    to: ReportOption = None,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure two policies in turns on a worker beside the server, and tell B over A with exact intervals.

    Nothing is changed. Writes a JSON report and a page. Ctrl+C ends it and keeps whole blocks.
    """
    from sekisho.control.comparison import ComparisonPlan

    out = Output(as_json=as_json)
    if order not in ("abba", "ab"):
        raise CommandFailed(f"--order: {order!r} is none", hint="abba or ab", exit_code=USAGE)
    site = find(out, home, model, agent, text)
    trial = Trial(site, prompt_tokens, answer_tokens, seed)
    policies, engine, sides = _engine(trial, (first, second))
    plan = ComparisonPlan(blocks, _order(order))
    found, stopped = trial.run(engine, policies, plan.measurements, lambda under: _compare(policies, plan, seed, under))
    made = tuning_reports.record(trial, context, comparison=found, sides=sides)
    _tell(site, found, sides)
    out.json(tuning_reports.write(site, made, "compare", to))
    if stopped or not found.ratios:
        raise typer.Exit(INTERRUPTED if stopped else FAILED)


def _order(text: str) -> Literal["abba", "ab"]:
    return "ab" if text == "ab" else "abba"


def _engine(trial: Trial, texts: tuple[str, str]) -> "tuple[dict[str, Policy], TrialEngine, tuple[Side, ...]]":
    """Raises CommandFailed for sides that this engine does not tell apart, or cannot take."""
    import msgspec

    from sekisho.control.measured import MeasurementFailed
    from sekisho.control.policy_changes import plain
    from sekisho.control.trial_settings import effective, meant, usual_threads
    from sekisho.evaluate.tuning_record import Side

    site, vain = trial.site, set[str]()
    chosen: list[Policy] = []
    sides: list[Side] = []
    for text in texts:
        policy, named = policy_of(site, text)
        vain |= check_taken(site, policy, named, text)
        try:
            config = effective(meant(policy, site.own), usual_threads(site.own))
        except MeasurementFailed as error:
            raise CommandFailed(f"{text}: {error}", exit_code=USAGE) from error
        chosen.append(policy)
        sides.append(Side(text, plain(policy), msgspec.to_builtins(config)))
    if sides[0].settings == sides[1].settings:
        raise CommandFailed(f"{texts[0]} and {texts[1]} mean the same settings of {site.own.name}", exit_code=USAGE)
    site.check_room(chosen)
    engine = trial.engine(site.policies.current, spared=vain)
    return dict(zip("AB", chosen, strict=True)), engine, tuple(sides)


async def _compare(
    policies: "dict[str, Policy]", plan: "ComparisonPlan", seed: int, under: Measuring
) -> "tuple[Comparison, bool]":
    from random import Random

    from sekisho.control.comparison import compare

    found = await compare(policies["A"], policies["B"], under.measure, plan, Random(seed))
    return found, under.stop.is_set()


def _tell(site: Site, found: "Comparison", sides: "tuple[Side, ...]") -> None:
    from sekisho.evaluate.report import tuning_tables
    from sekisho.evaluate.report.tuning_words import said

    out, language = site.out, language_of(site.out)
    for letter, side in zip("AB", sides, strict=True):
        out.line(f"{letter}: {side.name}")
    heads = [said("figure", language), "A", "B", *(said(name, language) for name in ("ratio", "interval", "verdict"))]
    out.table(heads, tuning_tables.comparison_cells(found, language))
    out.line(said("over_blocks", language, blocks=len(found.blocks) - len(found.faults)))
    for fault in found.faults:
        out.line(said("left_out", language, fault=fault), style="yellow")
