"""Rows of the reports on tuning, for the page and for a terminal: the same cells."""

from collections.abc import Iterable
from typing import Final

from sekisho.control.comparison import Comparison, Ratio
from sekisho.control.measured import FigureName, Measured, middle
from sekisho.control.tuner_report import Tried, TuningReport
from sekisho.control.tuner_words import told
from sekisho.evaluate.ablation_run import Ablation, FigureEffects
from sekisho.evaluate.definitions import Language
from sekisho.evaluate.factorial import Effect
from sekisho.evaluate.report.tuning_words import said

DASH: Final = "—"
SHOWN: Final = (
    "contexts",
    "decode_tokens_per_s",
    "prefill_tokens_per_s",
    "first_token_ms",
    "kv_bytes",
    "memory_bytes",
    "delta_ppl",
)
"""The figures of a measurement, in the order of their columns."""
_FORMS: Final = {"contexts": "d", "delta_ppl": "+.3g"}
_WITH_DECIMALS: Final = 100.0


def cell(name: str, value: float | None) -> str:
    """Sizes in MiB."""
    if value is None:
        return DASH
    shown = value / 2**20 if name.endswith("bytes") else value
    return format(shown, _FORMS.get(name, ",.1f" if shown < _WITH_DECIMALS else ",.0f"))


def figures(measured: Measured) -> list[str]:
    return [cell(name, getattr(measured, name)) for name in SHOWN]


def heads(language: Language) -> list[str]:
    return [said(name, language) for name in SHOWN]


def fate(tried: Tried, report: TuningReport, language: Language) -> str:
    if tried is report.baseline:
        return said("baseline", language)
    if tried.dropped is not None:
        return told(tried.dropped, language)
    return said("winner" if report.outcome == "better" else "best", language)


def candidates(report: TuningReport) -> tuple[Tried, ...]:
    """The baseline, then the others: those that went on longest first, the best of them first."""
    ranked = sorted(report.tried, key=lambda each: (each.dropped is not None, -len(each.observations), -_score(each)))
    return (report.baseline, *ranked)


def _score(tried: Tried) -> float:
    return tried.score if tried.score is not None else float("-inf")


def ratio_cells(ratio: Ratio, language: Language) -> list[str]:
    """Figure, ratio, interval, blocks, verdict."""
    interval = DASH if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} – {ratio.high:.3f}"
    name = said(ratio.figure, language)
    return [name, f"× {ratio.value:.3f}", interval, str(ratio.n), said(ratio.verdict, language)]


def sides(comparison: Comparison) -> tuple[Measured, Measured]:
    """Medians of A and of B over whole blocks."""
    whole = [block for block in comparison.blocks if block.fault is None]
    first = middle(each for block in whole for each in block.first)
    return first, middle(each for block in whole for each in block.second)


def cells_of(ablation: Ablation) -> list[list[str]]:
    """Of each combination: its parts and the medians."""
    return [[name, *figures(middle(measured))] for name, measured in ablation.cells.items()]


def comparison_cells(comparison: Comparison, language: Language) -> list[list[str]]:
    """Figure, A, B, ratio, interval, verdict; of the loss no ratio."""
    first, second = sides(comparison)
    ratios = {each.figure: ratio_cells(each, language) for each in comparison.ratios}
    rows = []
    for name in SHOWN:
        ratio = ratios.get(name, [DASH] * 5)  # type: ignore[call-overload]
        values = [cell(name, getattr(each, name)) for each in (first, second)]
        rows.append([said(name, language), *values, *ratio[1:3], ratio[4]])
    return rows


def effect_cells(figure: FigureName, effect: Effect, language: Language) -> list[str]:
    """Figure, parts, effect, interval, p."""
    interval = DASH if effect.interval is None else f"{effect.interval.low:.3f} – {effect.interval.high:.3f}"
    return [
        said(figure, language),
        effect_name(effect),
        f"× {effect.ratio:.3f}",
        interval,
        f"{effect.p_holm:.3f}",
    ]


def effect_name(effect: Effect) -> str:
    return " × ".join(effect.factors)


def effects(found: Iterable[FigureEffects], language: Language) -> list[list[str]]:
    return [effect_cells(each.figure, effect, language) for each in found for effect in each.effects]


def extent(ablation: Ablation, language: Language) -> str:
    share = said("half", language) if ablation.half else said("all", language) if language == "en" else ""
    count = 2 ** len(ablation.parts)
    return said("extent", language, share=share, count=count, parts=len(ablation.parts), rounds=ablation.rounds)


def joint(ablation: Ablation, language: Language) -> list[str]:
    """What the effects of several parts are, where there are any."""
    return [said("together", language)] if len(ablation.parts) > 1 else []


def endings(report: TuningReport, language: Language) -> list[str]:
    """What stands under a tuning: goals that are missed, the noise, what it took."""
    lines = [said("missed", language, goal=told(goal, language)) for goal in report.missed]
    noise = [
        said("at_effort", language, sd=f"{each.score_sd:.3f}", effort=f"{each.effort:g}")
        for each in report.noise
        if each.score_sd is not None
    ]
    if noise:
        lines.append(said("noise", language, each=", ".join(noise)))
    spent = {"measurements": report.measurements, "seconds": f"{report.seconds:.0f}", "untried": report.untried}
    return [*lines, said("spent", language, **spent)]
