"""`sekisho policy tune`: the policy that reaches a target within limits, found by measuring."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import tuning_reports
from sekisho.cli.failure import ABSENT, FAILED, INTERRUPTED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, example
from sekisho.cli.output import Output
from sekisho.cli.policy_answers import tell
from sekisho.cli.policy_fields import assigned, nested
from sekisho.cli.quantities import names
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
    from sekisho.control.tuner_limits import Budget, Limits
    from sekisho.control.tuner_report import TuningReport
    from sekisho.control.tuner_space import Space
    from sekisho.control.tuner_target import Goal, Target

_GOAL = re.compile(r"\s*([a-z_]+)\s*(>=|<=)\s*([0-9.]+)\s*([a-zA-Z]*)\s*")


def register(app: typer.Typer) -> None:
    epilog = example(
        "sekisho policy tune",
        'sekisho policy tune --goal "contexts>=3x" --max-delta-ppl 0.5 --minutes 60 --apply',
        ja="実際に計測して、制限内で最もよい方針を探します。",
    )
    app.command("tune", epilog=epilog)(tune_policy)


def tune_policy(
    context: typer.Context,
    model: TriedModelOption = None,
    goal: Annotated[
        list[str] | None,
        typer.Option("--goal", help="To be reached: contexts>=3x, first_token_ms<=500, memory_bytes<=8GiB."),
    ] = None,
    improve: Annotated[
        str, typer.Option("--improve", help="The figure to make better, once the goals are reached.")
    ] = "decode_tokens_per_s",
    max_delta_ppl: Annotated[
        float, typer.Option("--max-delta-ppl", min=0.0, help="Perplexity may rise by so much.")
    ] = 0.5,
    max_prefill_slowdown: Annotated[
        float, typer.Option("--max-prefill-slowdown", min=0.0, help="Prompts may take so many times as long; 0: any.")
    ] = 1.2,
    memory: Annotated[str | None, typer.Option("--memory", help="The worker may take so much: 8GiB.")] = None,
    kv_budget: Annotated[
        str | None, typer.Option("--kv-budget", help="For all contexts together; default: what they take now.")
    ] = None,
    context_tokens: Annotated[int | None, typer.Option("--context", min=256, help="Tokens of each context.")] = None,
    axes: Annotated[
        str | None, typer.Option("--axes", help="What to choose: kv,prompt,threads (default), slots, speculation.")
    ] = None,
    measurements: Annotated[int, typer.Option("--measurements", min=1, help="At most so many.")] = 60,
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="At most so long.")] = 30.0,
    prompt_tokens: PromptOption = None,
    answer_tokens: AnswerOption = 32,
    text: TextOption = None,
    seed: SeedOption = 1,
    to: ReportOption = None,
    apply: Annotated[bool, typer.Option("--apply", help="Bring what is better to the engines, asking first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Apply without asking.")] = False,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for the policy that serves best here, by measuring on a worker of its own beside the server.

    Nothing is changed without --apply. Writes a JSON report and a page. Ctrl+C ends it and keeps what was measured.
    """
    out = Output(as_json=as_json)
    target, limits = _target(improve, goal or []), _limits(max_delta_ppl, max_prefill_slowdown, memory)
    wanted = _Wanted(target, limits, _budget(measurements, minutes))
    budget_bytes = None if kv_budget is None else _size("--kv-budget", kv_budget)
    site = find(out, home, model, agent, text)
    _check_apply(site, apply, yes)
    space = _space(site, names(axes), context_tokens, budget_bytes)
    site.check_room(_policies(space).values())
    trial = Trial(site, prompt_tokens, answer_tokens, seed)
    report = _searched(trial, space, wanted)
    made = tuning_reports.record(trial, context, tuning=report)
    _tell(site, space, report)
    answer = tuning_reports.write(site, made, "tune", to)
    out.json({**answer, "applied": _offer(site, report, apply, yes)})
    if report.outcome in ("stopped", "not measured"):
        raise typer.Exit(INTERRUPTED if report.outcome == "stopped" else FAILED)


# --- what is wanted -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    target: "Target"
    limits: "Limits"
    budget: "Budget"


def _target(improve: str, goals: Sequence[str]) -> "Target":
    from sekisho.control.measured import FIGURES
    from sekisho.control.tuner_target import Target

    if improve not in FIGURES:
        raise CommandFailed(f"--improve: {improve!r} is none", hint=f"one of {', '.join(FIGURES)}", exit_code=USAGE)
    return Target(improve, tuple(goal_of(each) for each in goals))


def goal_of(text: str) -> "Goal":
    """`contexts>=3x`: a multiple of what is now; `memory_bytes<=8GiB`: in its own unit. Raises CommandFailed."""
    from sekisho.control.measured import FIGURES, LESS_IS_BETTER
    from sekisho.control.tuner_target import Goal

    found = _GOAL.fullmatch(text)
    if found is None or found[1] not in FIGURES:
        hint = f"as in contexts>=3x or first_token_ms<=500, of {', '.join(FIGURES)}"
        raise CommandFailed(f"--goal: {text!r} is not understood", hint=hint, exit_code=USAGE)
    figure: Any = found[1]
    sign = "<=" if figure in LESS_IS_BETTER else ">="
    if found[2] != sign:
        word = "less" if figure in LESS_IS_BETTER else "more"
        raise CommandFailed(f"--goal: of {figure} {word} is better", hint=f"{figure}{sign}…", exit_code=USAGE)
    try:
        if found[4].lower() == "x":
            return Goal(figure, times=float(found[3]))
        sized = figure.endswith("_bytes") and found[4]
        if found[4] and not sized:
            raise ValueError(f"no unit {found[4]!r}")
        return Goal(figure, value=float(_size("--goal", found[3] + found[4])) if sized else float(found[3]))
    except ValueError as error:
        raise CommandFailed(f"--goal: {text!r}: {error}", hint="as in contexts>=3x", exit_code=USAGE) from error


def _limits(max_delta_ppl: float, slowdown: float, memory: str | None) -> "Limits":
    from sekisho.control.tuner_limits import Limits

    return Limits(max_delta_ppl, slowdown or None, None if memory is None else _size("--memory", memory))


def _budget(measurements: int, minutes: float) -> "Budget":
    from sekisho.control.tuner_limits import Budget

    try:
        return Budget(measurements, minutes * 60.0)
    except ValueError as error:
        raise CommandFailed(f"--measurements: {error}", exit_code=USAGE) from error


def _size(option: str, text: str) -> int:
    from sekisho.control.policy_problem import PolicyProblem
    from sekisho.control.units import memory_bytes

    try:
        return memory_bytes(int(text) if text.isdecimal() else text, option)
    except PolicyProblem as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error


def _check_apply(site: Site, apply: bool, yes: bool) -> None:
    """Before the time is spent: whether it could be applied in the end."""
    if not apply:
        return
    if site.agent is None:
        raise CommandFailed(f"--apply: no agent runs from {site.place.path}", hint="sekisho up", exit_code=ABSENT)
    if not yes and (site.out.as_json or not sys.stdin.isatty()):
        raise CommandFailed("--apply: nobody is there to be asked", hint="add --yes", exit_code=USAGE)


# --- the search -----------------------------------------------------------------------------------------------------


def _space(site: Site, chosen: list[str], context: int | None, budget_bytes: int | None) -> "Space":
    """What to choose between, upon the policy to start from. Raises CommandFailed."""
    import msgspec

    from sekisho.control import trial_settings
    from sekisho.control.measured import MeasurementFailed
    from sekisho.control.tuner_axes import Fitting, axes, present_budget, with_slots
    from sekisho.control.tuner_space import Space

    own, base = site.own, site.policies.current
    if context is not None:
        base = msgspec.structs.replace(base, engine=msgspec.structs.replace(base.engine, context=context))
    try:
        offered = axes(own.engine, chosen)
        trial_settings.meant(base, own)
        if own.engine != "llama_cpp":
            if budget_bytes is not None:
                raise ValueError(f"--kv-budget: {own.engine} takes memory as it needs it (kv_limit_mib)")
            return Space(base, offered)
        known = trial_settings.shape(own, at_most=True)
        if isinstance(known, str):
            raise ValueError(known)
        room = present_budget(own, base, known) if budget_bytes is None else budget_bytes
        may_keep = any(axis.name == "slots" for axis in offered)
        fitting = Fitting(own, base, known, room, may_keep=may_keep)
        if budget_bytes is not None:
            slots = fitting.slots(base)
            if not slots:
                raise ValueError("--kv-budget: it does not hold one context of the present policy")
            base = with_slots(base, slots)
            fitting = Fitting(own, base, known, room, may_keep=may_keep)
        return Space(base, offered, fitting)
    except (ValueError, MeasurementFailed) as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error


def _policies(space: "Space") -> "dict[str, Policy]":
    return {"baseline": space.base} | {each.name: each.policy for each in space.candidates.values()}


def _searched(trial: Trial, space: "Space", wanted: _Wanted) -> "TuningReport":
    if any(axis.name == "speculation" for axis in space.axes):
        trial.warn(trial.site.out.text("tuning_greedy"))
    engine = trial.engine(space.base, max_loss=wanted.limits.max_delta_ppl)
    most = wanted.budget.measurements
    return trial.run(engine, _policies(space), most, lambda under: _search(trial, space, wanted, under))


async def _search(trial: Trial, space: "Space", wanted: _Wanted, under: Measuring) -> "TuningReport":
    """What losses are known is measured first, so that it does not count as a measurement's time."""
    from random import Random

    import msgspec

    from sekisho.control.tuner import tune
    from sekisho.control.tuner_reasons import Stopped
    from sekisho.core.clock import SystemClock

    clock, chance = SystemClock(), Random(trial.plan.seed)
    begun_s = clock.monotonic()
    await _weigh(trial, space, under)
    left_s = max(1.0, wanted.budget.seconds - (clock.monotonic() - begun_s))
    left = msgspec.structs.replace(wanted.budget, seconds=left_s)
    report = await tune(space, under.measure, wanted.target, wanted.limits, left, chance, clock)
    if under.stop.is_set():
        why = Stopped(report.measurements)
        report = msgspec.structs.replace(report, outcome="stopped", why=why, policy=space.base)
    return report


async def _weigh(trial: Trial, space: "Space", under: Measuring) -> None:
    """The loss of every kind of cache that needs no worker of its own to be measured."""
    from contextlib import suppress

    from sekisho.control.comparison import OutOfBudget
    from sekisho.control.perplexity.base import Unmeasured
    from sekisho.control.trial_engine import until
    from sekisho.control.trial_quality import BESIDE
    from sekisho.control.trial_settings import meant

    own = trial.site.own
    if own.engine not in BESIDE:
        return
    kinds = {}
    for each in space.candidates.values():
        config = meant(each.policy, own)
        kinds[config.kv_type_k, config.kv_type_v] = config
    what = trial.site.out.text("tuning_quality")
    for done, (types, config) in enumerate(kinds.items()):
        under.bars.progress(what, done, len(kinds), "/".join(types))
        with suppress(Unmeasured):  # the measurements will say so
            try:
                await until(under.stop, trial.quality.loss(config))
            except OutOfBudget:
                return
        under.bars.progress(what, done + 1, len(kinds), "/".join(types))


# --- what it found --------------------------------------------------------------------------------------------------


def _choices(name: str) -> str:
    """`kv=q8_0 threads=2` without the axes, which stand in the heading."""
    return " ".join(part.rpartition("=")[2] for part in name.split(" "))


def _tell(site: Site, space: "Space", report: "TuningReport") -> None:
    from sekisho.control.tuner_words import told
    from sekisho.evaluate.report import tuning_tables
    from sekisho.evaluate.report.tuning_words import said

    out, language = site.out, language_of(site.out)
    rows = [(_choices(each.name), *tuning_tables.figures(each.figures)) for each in tuning_tables.candidates(report)]
    axes = " ".join(axis.name for axis in space.axes)
    out.table([axes, *tuning_tables.heads(language)], rows)
    out.line()
    out.line(f"{said(report.outcome, language)}: {told(report.why, language)}", style="bold")
    if report.comparison is not None:
        cells = [tuning_tables.ratio_cells(each, language) for each in report.comparison.ratios]
        out.table([said(name, language) for name in ("figure", "ratio", "interval", "blocks", "verdict")], cells)
    for line in tuning_tables.endings(report, language):
        out.line(line)
    dropped = {each.name: each.dropped for each in report.tried if each.dropped is not None}
    if dropped:
        out.say("tuning_dropped")
    for name, reason in dropped.items():
        out.line(f"  {name}: {told(reason, language)}")
    if report.outcome == "not measured" and any(each.observations for each in (report.baseline, *report.tried)):
        _advise(out, report)


def _advise(out: Output, report: "TuningReport") -> None:
    """How much longer it would have needed."""
    least, seconds = report.budget.least, report.seconds
    minutes = round(max(2.0 * report.budget.seconds, 1.5 * least * seconds / report.measurements) / 60.0) or 1
    out.say(
        "tuning_too_short", measurements=report.measurements, seconds=f"{seconds:.0f}", least=least, minutes=minutes
    )


def _offer(site: Site, report: "TuningReport", apply: bool, yes: bool) -> dict[str, Any] | None:
    """Applies what is better, and gives the agent's answer; or says how."""
    from sekisho.control.policy_changes import difference
    from sekisho.control.tuner_words import told

    out = site.out
    if report.outcome != "better":
        if apply:
            out.say("tuning_nothing_to_apply")
        return None
    changed = difference(site.policies.current, report.policy)
    fields = [assigned(field, new) for field, (_, new) in changed.items()]
    if not apply:
        model = "" if site.alone else f" --model {site.own.name}"
        out.say("tuning_apply_with", command=f"sekisho policy set{model} {' '.join(fields)}")
        return None
    if not yes and not typer.confirm(out.text("tuning_apply_now"), err=True):
        out.say("tuning_not_applied")
        return None
    assert site.agent is not None  # looked at before anything was measured
    body = nested(fields) | {"why": f"tuned: {told(report.why)}"} | ({} if site.alone else {"model": site.own.name})
    with out.waiting("policy_waiting"):
        answer: dict[str, Any] = site.agent.post("/v1/policy", body)
    tell(out, answer)
    return answer
