"""Figures as tables of one language: a row each, or side by side where they differ by place, parallelism or moment."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from sekisho.evaluate.client.faults import MEANINGS
from sekisho.evaluate.definitions import (
    GROUPS,
    Defined,
    Group,
    Language,
    Words,
    define,
    definitions,
    field_words,
    interval_words,
    method_words,
    pick,
    value_words,
)
from sekisho.evaluate.figures import Figure, Figures
from sekisho.evaluate.report.data import IntervalChart, Mark


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One figure as it is read. `exact`: the value without rounding. `state`: `pass`, `fail` for what held or did not,
    `open` for what was not measured. `notes`: numbers of the table's notes."""

    id: str
    value: str
    exact: str = ""
    interval: str = ""
    n: int | None = None
    state: str = ""
    notes: tuple[int, ...] = ()


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`cells` as many as the table has columns; None where nothing was to be measured. `means` is empty where the
    section's `terms` tell it once for all its tables."""

    name: str
    means: str
    cells: tuple[Cell | None, ...]


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """`over`: what several columns share. `n`: the number of observations that all cells of the column share; they do
    not repeat it."""

    over: str = ""
    name: str
    n: int | None = None


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """`notes` are numbered from 1. `methods`: what the intervals are. `commands` measure its figures again, `files`
    hold their raw data. `columns` is empty for a plain list of one value a row."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    methods: tuple[str, ...]
    commands: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def spans(self) -> tuple[tuple[str, int], ...]:
        """The upper row of the head, and how many columns each covers; empty where there is none."""
        overs = [(over, len(list(those))) for over, those in groupby(self.columns, key=lambda column: column.over)]
        return tuple(overs) if any(over for over, _ in overs) else ()


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One group of figures. `terms`: (name, meaning) of what its tables measure, where several share them."""

    group: Group
    title: str
    tables: tuple[Table, ...]
    terms: tuple[tuple[str, str], ...] = ()


def sections(figures: Figures, language: Language) -> tuple[Section, ...]:
    """All figures, by group in the order of the definitions. A later figure of the same id counts."""
    last = {figure.id: figure for figure in figures.all}
    known = [(define(figure_id), figure) for figure_id, figure in last.items()]
    found = []
    for group, title in GROUPS.items():
        those = _ordered([each for each in known if each[0].group == group])
        if those:
            terms = sorted((defined for defined, _ in those if _is_cell(defined)), key=_rank)
            told = {pick(defined.name, language): pick(defined.means, language) for defined in terms}
            found.append(
                Section(
                    group=group,
                    title=pick(title, language),
                    tables=_tables(those, language),
                    terms=tuple(told.items()),
                )
            )
    return tuple(found)


Known = tuple[Defined, Figure]
Heading = tuple[str, str]

PLACES = ("engine", "gateway", "public")
METRICS = ("ttft", "total", "tok_s", "success", "correct")
WIDEST = 6
"""Columns that fit on paper."""
_BESIDE = {
    "gate": "place",
    "bench": "place",
    "continuity": "mode",
    "sessions": "mode",
    "gpu": "moment",
    "compare": "metric",
}
"""Which field of an id makes the columns, by the id's first part."""
_TOO_FEW = re.compile(r"an interval for (P[\d.]+) needs at least (\d+) values, not (\d+)")
_LOOPS: dict[str, Words] = {
    "closed": (
        "closed loop (the next request leaves when an answer has come)",
        "閉ループ（応答を受け取ってから次を送る）",
    ),
    "open": ("open loop (requests leave on a schedule)", "開ループ（予定の時刻に送る）"),
    "grid": ("lengths of prompts, closed loop", "入力の長さ別、閉ループ"),
}


def _ordered(those: list[Known]) -> list[Known]:
    """By table, then as the definitions stand."""
    return sorted(those, key=lambda known: (_table_order(known[0]), _rank(known[0])))


def _rank(defined: Defined) -> int:
    """The place of a figure's name among the definitions; a grid's figures are named as the benchmark's."""
    names = [definition.en for definition in definitions()]
    return names.index(defined.name[0]) if defined.pattern else len(names)


def _is_cell(defined: Defined) -> bool:
    """One of the benchmark's cells, which have a table for each place."""
    return "level" in defined.fields


def _tables(those: Sequence[Known], language: Language) -> tuple[Table, ...]:
    """One table a title, and no table wider than paper."""
    tables: dict[str, list[Known]] = {}
    for each in those:
        tables.setdefault(_table_title(each[0], language), []).append(each)
    found: list[Table] = []
    for title, known in tables.items():
        headings = _headings(known, language)
        for start in range(0, max(len(headings), 1), WIDEST):
            some = headings[start : start + WIDEST]
            inside = [each for each in known if not headings or _heading(each[0], language) in some]
            found.append(_table(title, inside, some, language))
        alone = [each for each in known if headings and _heading(each[0], language) not in headings]
        if alone:
            found.append(_table("", alone, (), language))
    return tuple(found)


def _table_order(defined: Defined) -> tuple[int, int]:
    place = defined.fields.get("place", "")
    if not _is_cell(defined):
        return 9, 0
    loop = defined.fields.get("loop", "grid")
    return ("closed", "open", "grid").index(loop), PLACES.index(place) if place in PLACES else 9


def _table_title(defined: Defined, language: Language) -> str:
    if not _is_cell(defined):
        return ""
    place = pick(field_words("place", defined.fields["place"]), language)
    joint = pick((": ", "、"), language)
    return f"{place[:1].upper()}{place[1:]}{joint}{pick(_LOOPS[defined.fields.get('loop', 'grid')], language)}"


def _table(title: str, known: Sequence[Known], headings: tuple[Heading, ...], language: Language) -> Table:
    """`headings` empty: a list with one value a row."""
    notes: dict[str, int] = {}
    rows: dict[tuple[str, str], list[Cell | None]] = {}
    means: dict[tuple[str, str], str] = {}
    for defined, figure in known:
        key = (defined.pattern or defined.id, _row_name(defined, bool(headings), language))
        cells = rows.setdefault(key, [None] * max(1, len(headings)))
        cells[headings.index(_heading(defined, language)) if headings else 0] = _cell(figure, notes, language)
        means[key] = "" if _is_cell(defined) else pick(defined.means, language)
    counts = [_shared_n([cells[place] for cells in rows.values()]) for place in range(len(headings))]
    if None in counts:
        counts = [None] * len(headings)
    elif counts:
        rows = {key: [cell and msgspec.structs.replace(cell, n=None) for cell in cells] for key, cells in rows.items()}
    figures = [figure for _, figure in known]
    intervals = [figure.interval for figure in figures if figure.interval is not None]
    return Table(
        title=title,
        columns=tuple(Column(over=over, name=name, n=n) for (over, name), n in zip(headings, counts, strict=True)),
        rows=tuple(Row(name=key[1], means=means[key], cells=tuple(cells)) for key, cells in rows.items()),
        notes=tuple(notes),
        methods=_unique(method_words(interval, language) for interval in intervals),
        commands=_unique(figure.command for figure in figures),
        files=_unique(figure.file for figure in figures),
    )


def _shared_n(cells: list[Cell | None]) -> int | None:
    """The n of a column with several cells that all have the same."""
    counts = {cell.n for cell in cells if cell is not None and cell.state != "open"}
    return counts.pop() if len(counts) == 1 and len(cells) > 1 else None


def _row_name(defined: Defined, beside: bool, language: Language) -> str:
    name = pick(defined.name if beside else defined.full_name, language)
    if beside and "index" in defined.fields:
        return f"{pick(field_words('index', defined.fields['index']), language)}: {name}"
    return name


def _headings(known: Sequence[Known], language: Language) -> tuple[Heading, ...]:
    """What the figures of a table differ by, where they do: the same name at several places, levels, moments."""
    found: dict[Heading, tuple[int, int, float, str]] = {}
    rows: dict[str, set[Heading]] = {}
    for defined, _ in known:
        heading = _heading(defined, language)
        if heading != ("", ""):
            found.setdefault(heading, _column_order(defined))
            rows.setdefault(defined.pattern, set()).add(heading)
    always = any(_is_cell(defined) or defined.group == "gates" for defined, _ in known)
    return tuple(sorted(found, key=found.__getitem__)) if always or any(len(row) > 1 for row in rows.values()) else ()


def _heading(defined: Defined, language: Language) -> Heading:
    """The heading under which a figure stands; empty for one that stands alone in its row."""
    fields = defined.fields
    if _is_cell(defined):
        over = [pick(field_words(key, fields[key]), language) for key in ("prompt", "tokens") if key in fields]
        return pick((", ", "、"), language).join(over), pick(field_words("level", fields["level"]), language)
    key = _BESIDE.get(defined.pattern.partition(".")[0], "")
    return ("", pick(field_words(key, fields[key]), language)) if key in fields else ("", "")


def _column_order(defined: Defined) -> tuple[int, int, float, str]:
    fields = defined.fields
    if _is_cell(defined):
        return int(fields.get("prompt", 0)), int(fields["tokens"]), float(fields["level"][1:]), fields["level"]
    order = (*PLACES, "chat", "responses", "before", "loaded", "under_load", *METRICS)
    value = next((fields[key] for key in ("place", "mode", "moment", "metric") if key in fields), "")
    return order.index(value) if value in order else len(order), 0, 0.0, value


def _cell(figure: Figure, notes: dict[str, int], language: Language) -> Cell:
    told: list[str] = []
    if figure.value is None:
        told.append(value_words(figure, language))
    elif figure.interval is None and figure.interval_missing:
        told.append(pick(("no interval: ", "信頼区間なし: "), language) + _reason(figure.interval_missing, language))
    if figure.attested_by:
        told.append(pick(("counted and attested by ", "人による確認・申告: "), language) + figure.attested_by)
    if figure.note:
        told.append(_reason(figure.note, language))
    held = isinstance(figure.value, bool)
    return Cell(
        id=figure.id,
        value=pick(("not measured", "未計測"), language) if figure.value is None else value_words(figure, language),
        exact="" if figure.value is None or held else repr(figure.value),
        interval="" if figure.interval is None else interval_words(figure.interval, figure.unit, language, bare=True),
        n=figure.n,
        state="open" if figure.value is None else ("pass" if figure.value else "fail") if held else "",
        notes=tuple(notes.setdefault(each, len(notes) + 1) for each in told),
    )


def _reason(text: str, language: Language) -> str:
    """A note in the reader's language, where it is one that we know: a kind of fault, or too few values."""
    if text in MEANINGS:
        return pick(MEANINGS[text].what, language)
    few = _TOO_FEW.fullmatch(text)
    if few is not None and language == "ja":
        return f"{few[1]} の信頼区間には {few[2]} 件以上が必要です（{few[3]} 件）"
    return text


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


# --- charts from figures --------------------------------------------------------------------------------------------

LOG_FROM = 20
"""A chart whose largest value is this many times its smallest gets a logarithmic axis."""
_CHARTED = ("ttft_p95_s", "total_p95_s", "tok_s_median")


def interval_charts(figures: Figures) -> tuple[IntervalChart, ...]:
    """Intervals of the closed loop's main figures, by parallelism and place: one chart a figure and answer length."""
    marks: dict[tuple[str, str], list[tuple[float, int, Mark]]] = {}
    units: dict[tuple[str, str], Figure] = {}
    titles: dict[tuple[str, str], Defined] = {}
    for figure in {figure.id: figure for figure in figures.all}.values():
        defined = define(figure.id)
        what = figure.id.rpartition(".")[2]
        if what not in _CHARTED or defined.fields.get("loop") != "closed" or isinstance(figure.value, bool):
            continue
        place, level = defined.fields["place"], defined.fields["level"]
        series = PLACES.index(place) if place in PLACES else len(PLACES)
        interval = figure.interval
        one = Mark(
            name=field_words("place", place),
            group=field_words("level", level),
            series=series,
            value=figure.value,
            low=None if interval is None else interval.low,
            high=None if interval is None else interval.high,
            n=figure.n,
        )
        key = (what, defined.fields["tokens"])
        marks.setdefault(key, []).append((float(level[1:]), series, one))
        units[key], titles[key] = figure, defined
    order = sorted(marks, key=lambda key: (_CHARTED.index(key[0]), int(key[1])))
    return tuple(_interval_chart(key, marks[key], units[key], titles[key]) for key in order)


def _interval_chart(
    key: tuple[str, str], marks: list[tuple[float, int, Mark]], figure: Figure, defined: Defined
) -> IntervalChart:
    tokens = field_words("tokens", key[1])
    values = [mark.value for _, _, mark in marks if mark.value]
    return IntervalChart(
        id=f"intervals-{key[0]}-{key[1]}",
        title=(f"{defined.name[0]}, {tokens[0]}", f"{defined.name[1]}、{tokens[1]}"),
        marks=tuple(mark for _, _, mark in sorted(marks, key=lambda each: each[:2])),
        unit=figure.unit,
        log=bool(values) and min(values) > 0 and max(values) > LOG_FROM * min(values),
    )
