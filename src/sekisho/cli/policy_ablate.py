"""`sekisho policy ablate`: what each part of a policy brings, and what two bring together."""

from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli import tuning_reports
from sekisho.cli.failure import FAILED, INTERRUPTED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, example
from sekisho.cli.output import Output
from sekisho.cli.policy_sides import changes_of, check_taken
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
    from sekisho.control.policy import Policy
    from sekisho.evaluate.ablation_run import Ablation, AblationPlan, Part


def register(app: typer.Typer) -> None:
    epilog = example(
        "sekisho policy ablate kv.key_type=q4_0,kv.value_type=q4_0 engine.threads=1",
        "sekisho policy ablate kv4:kv.key_type=q4_0,kv.value_type=q4_0 spec:engine.speculation=ngram",
        ja="方針の要素を組み合わせて計測し、それぞれの効果と相乗効果を示します。",
    )
    app.command("ablate", epilog=epilog)(ablate_policy)


def ablate_policy(
    context: typer.Context,
    parts: Annotated[
        list[str],
        typer.Argument(metavar="[NAME:]FIELD=VALUE,…", help="One part each, on or off, against the present policy."),
    ],
    model: TriedModelOption = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="6 are needed for intervals.")] = 6,
    prompt_tokens: PromptOption = None,
    answer_tokens: AnswerOption = 64,
    text: TextOption = None,
    seed: SeedOption = 1,
    to: ReportOption = None,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure all combinations of parts of a policy, and tell the effect of each and of each two together.

    From five parts on, half of the combinations. Nothing is changed. Writes a JSON report and a page.
    """
    from sekisho.evaluate.ablation_run import AblationPlan

    out = Output(as_json=as_json)
    site = find(out, home, model, agent, text)
    chosen = [_part(each) for each in parts]
    policies, vain = _policies(site, chosen)
    site.check_room(policies.values())
    trial = Trial(site, prompt_tokens, answer_tokens, seed)
    if any("speculation" in each for each in parts):
        trial.warn(out.text("tuning_greedy"))
    engine = trial.engine(site.policies.current, spared=vain)
    plan = AblationPlan(rounds, seed=seed)
    found = trial.run(
        engine, policies, len(policies) * rounds, lambda under: _ablate(site.policies.current, chosen, plan, under)
    )
    made = tuning_reports.record(trial, context, ablation=found)
    _tell(site, found)
    out.json(tuning_reports.write(site, made, "ablate", to))
    if found.stopped is not None:
        raise typer.Exit(INTERRUPTED)


def _part(text: str) -> "Part":
    """`name:FIELD=VALUE,…`; without a name it is its settings, without their sections."""
    from sekisho.evaluate.ablation_run import Part

    before, colon, rest = text.partition(":")
    name, settings = (before.strip(), rest) if colon and "=" not in before else ("", text)
    return Part(name or ",".join(_without_sections(settings)), changes_of(settings))


def _without_sections(settings: str) -> list[str]:
    """`kv.key_type=q4_0` becomes `key_type=q4_0`."""
    pairs = [each.strip().partition("=") for each in settings.split(",") if each.strip()]
    return [f"{field.rpartition('.')[2]}{equals}{value}" for field, equals, value in pairs]


def _policies(site: Site, parts: "list[Part]") -> "tuple[dict[str, Policy], set[str]]":
    """Of all combinations by their names, and the fields that have no effect. Raises CommandFailed."""
    from sekisho.control.measured import MeasurementFailed
    from sekisho.control.policy_changes import PolicyProblem, dotted, merged
    from sekisho.evaluate.ablation_run import combinations_of, name_of

    base, vain = site.policies.current, set[str]()
    try:
        for part in parts:
            vain |= check_taken(site, merged(base, part.changes), frozenset(dotted(part.changes)), part.name)
        names, found = tuple(part.name for part in parts), {}
        for cell in combinations_of(parts):
            policy = base
            for part in parts:
                policy = merged(policy, part.changes) if part.name in cell else policy
            found[name_of(cell, names)] = policy
        return found, vain
    except (ValueError, PolicyProblem, MeasurementFailed) as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error


async def _ablate(base: "Policy", parts: "list[Part]", plan: "AblationPlan", under: Measuring) -> "Ablation":
    """Raises CommandFailed where no round was whole."""
    from sekisho.evaluate.ablation_run import AblationFailed, ablate

    try:
        return await ablate(base, parts, under.measure, plan)
    except AblationFailed as error:
        code = INTERRUPTED if under.stop.is_set() else FAILED
        raise CommandFailed(f"no whole round was measured: {error}", exit_code=code) from error


def _tell(site: Site, found: "Ablation") -> None:
    from sekisho.evaluate.report import tuning_tables
    from sekisho.evaluate.report.tuning_words import said

    out, language = site.out, language_of(site.out)
    out.line(tuning_tables.extent(found, language))
    out.table([said("parts", language), *tuning_tables.heads(language)], tuning_tables.cells_of(found))
    out.line()
    heads = [said(name, language) for name in ("figure", "parts", "effect", "interval", "p_value")]
    out.table(heads, tuning_tables.effects(found.effects, language))
    for line in tuning_tables.joint(found, language):
        out.line(line)
    for each in found.effects:
        if each.missing is not None:
            out.line(each.missing, style="yellow")
    for fault in found.faults:
        out.line(said("left_out", language, fault=fault), style="yellow")
