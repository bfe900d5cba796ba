"""The page of `sekisho policy tune`, `compare` and `ablate`: one file, no scripts, in one language."""

from typing import Final

import msgspec
from markupsafe import Markup

from sekisho.control.comparison import Comparison
from sekisho.control.tuner_report import Tried, TuningReport
from sekisho.control.tuner_words import told
from sekisho.evaluate.ablation_run import Ablation, FigureEffects
from sekisho.evaluate.definitions import Language, Words
from sekisho.evaluate.report import charts, tuning_tables
from sekisho.evaluate.report.data import ForestChart, Ratio
from sekisho.evaluate.report.page import POLICY, STYLES, asset, environment, flat
from sekisho.evaluate.report.scatter import Dot, Frame, scatter
from sekisho.evaluate.report.tuning_words import WORDS, said
from sekisho.evaluate.tuning_record import TuningRecord

_FRAME: Final = Frame(
    "tuning-field",
    WORDS["field"],
    WORDS["across"],
    WORDS["up"],
    order=(WORDS["baseline"], WORDS["winner"], WORDS["best"], WORDS["rejected"]),
)


class Part(msgspec.Struct, frozen=True):
    """A picture, a table or both. `words`: columns from the left that are no numbers."""

    title: str
    picture: Markup | None = None
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    words: int = 1


def render(record: TuningRecord, language: Language = "en") -> str:
    """Whatever comes from outside is made visible and escaped."""
    outcome, parts = _contents(record, language)
    title = next(name for name in ("tuning", "comparison", "ablation") if getattr(record, name) is not None)
    return (
        environment()
        .get_template("tuning.html.j2")
        .render(
            language=language,
            policy=POLICY,
            style=Markup("\n".join(map(asset, STYLES))),
            title=said(title, language),
            model=record.model.name,
            outcome=outcome,
            notes=record.notes,
            parts=parts,
            fate=said("fate", language),
            marked=[said(name, language) for name in ("winner", "best")],
            where=said("environment", language),
            environment=_where(record, language),
        )
    )


def _contents(record: TuningRecord, language: Language) -> tuple[list[str], list[Part]]:
    if record.tuning is not None:
        return _tuning(record.tuning, language)
    if record.comparison is not None:
        return _comparison(record.comparison, record, language)
    assert record.ablation is not None
    return _ablation(record.ablation, language)


def _tuning(report: TuningReport, language: Language) -> tuple[list[str], list[Part]]:
    sentence = f"{said(report.outcome, language)}: {told(report.why, language)}"
    rows = [
        (each.name, *tuning_tables.figures(each.figures), tuning_tables.fate(each, report, language))
        for each in tuning_tables.candidates(report)
    ]
    headings = (said("policy", language), *tuning_tables.heads(language), said("fate", language))
    parts = [Part(said("tried", language), Markup(field(report, language)), headings, tuple(rows))]
    if report.comparison is not None:
        parts.append(_ratios(report.comparison, "gain", language))
    return [sentence, *tuning_tables.endings(report, language)], parts


def field(report: TuningReport, language: Language) -> str:
    """Tokens a second against contexts, of every candidate that has both."""
    dots = []
    for each in tuning_tables.candidates(report):
        found = each.figures
        if found.contexts is not None and found.decode_tokens_per_s is not None:
            words = f"{each.name}: {found.contexts}, {found.decode_tokens_per_s:.1f} tok/s"
            family = _family(each, report)
            dots.append(Dot(words, family, float(found.contexts), found.decode_tokens_per_s))
    there = {dot.family for dot in dots}
    frame = msgspec.structs.replace(_FRAME, order=tuple(each for each in _FRAME.order if each in there))
    return scatter(dots, frame, language)


def _family(tried: Tried, report: TuningReport) -> Words:
    if tried is report.baseline:
        return WORDS["baseline"]
    return WORDS["rejected" if tried.dropped is not None else "winner" if report.outcome == "better" else "best"]


def _comparison(comparison: Comparison, record: TuningRecord, language: Language) -> tuple[list[str], list[Part]]:
    named = [f"{letter}: {side.name}" for letter, side in zip("AB", record.sides, strict=False)]
    measured = zip(named, tuning_tables.sides(comparison), strict=False)
    rows = tuple((name, *tuning_tables.figures(each)) for name, each in measured)
    headings = (said("policy", language), *tuning_tables.heads(language))
    spoilt = [said("left_out", language, fault=fault) for fault in comparison.faults]
    ratios = _ratios(comparison, "ratios", language)
    return [*named, *spoilt], [ratios, Part(said("measured", language), None, headings, rows)]


def _ratios(comparison: Comparison, title: str, language: Language) -> Part:
    rows = tuple(
        Ratio(name=WORDS[each.figure], value=each.value, low=each.low, high=each.high, n=each.n)
        for each in comparison.ratios
    )
    chart = ForestChart(id=title, title=WORDS[title], ratios=rows, below=WORDS["slower"], above=WORDS["faster"])
    headings = tuple(said(name, language) for name in ("figure", "ratio", "interval", "blocks", "verdict"))
    cells = tuple(tuple(tuning_tables.ratio_cells(each, language)) for each in comparison.ratios)
    return Part(said(title, language), Markup(charts.forest(chart, language)), headings, cells)


def _ablation(ablation: Ablation, language: Language) -> tuple[list[str], list[Part]]:
    headings = (said("parts", language), *tuning_tables.heads(language))
    rows = tuple(tuple(row) for row in tuning_tables.cells_of(ablation))
    parts = [_effects(each, language) for each in ablation.effects]
    spoilt = [said("left_out", language, fault=fault) for fault in ablation.faults]
    sentence = tuning_tables.extent(ablation, language)
    return [sentence, *tuning_tables.joint(ablation, language), *spoilt], [
        *parts,
        Part(said("measured", language), None, headings, rows),
    ]


def _effects(found: FigureEffects, language: Language) -> Part:
    title = said(found.figure, language)
    if found.missing is not None:
        return Part(f"{title}: {found.missing}")
    ratios = tuple(
        Ratio(
            name=(tuning_tables.effect_name(each),) * 2,
            value=each.ratio,
            low=None if each.interval is None else each.interval.low,
            high=None if each.interval is None else each.interval.high,
            n=each.rounds,
        )
        for each in found.effects
    )
    chart = ForestChart(
        id=f"effects-{found.figure}",
        title=WORDS[found.figure],
        ratios=ratios,
        below=WORDS["slower"],
        above=WORDS["faster"],
    )
    headings = tuple(said(name, language) for name in ("parts", "effect", "interval", "p_value"))
    cells = tuple(tuple(tuning_tables.effect_cells(found.figure, each, language)[1:]) for each in found.effects)
    return Part(title, Markup(charts.forest(chart, language)), headings, cells)


def _where(record: TuningRecord, language: Language) -> list[tuple[str, str]]:
    rows = [(said("made_at", language), record.made_at), (said("command", language), record.command)]
    rows += [(name, value) for section in record.environment for name, value in section.rows]
    model = {name: value for name, value in msgspec.to_builtins(record.model).items() if value not in (None, {}, "")}
    return [*rows, *flat({"model": model, "plan": msgspec.to_builtins(record.plan)})]
