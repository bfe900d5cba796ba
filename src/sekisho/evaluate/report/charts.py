"""The charts, drawn here as SVG text: distributions, intervals, ratios.

Each takes its values and a language and gives one picture that stands alone: title and description for readers who
do not see it, tool tips, text as text. Colours come from the page's style sheet by class; dashes and shapes tell the
series apart without them. Where nothing can be drawn the picture says so.
"""

import math
from collections.abc import Callable

from sekisho.evaluate import statistics
from sekisho.evaluate.definitions import Language, pick, quantity
from sekisho.evaluate.figures import Unit
from sekisho.evaluate.report import svg
from sekisho.evaluate.report.axes import Axis, axis
from sekisho.evaluate.report.data import Chart, EcdfChart, ForestChart, IntervalChart, Mark, Ratio, Series

WIDTH = 480.0
LEFT, RIGHT = 46.0, 14.0
WIDE = 720.0  # a comparison stands alone in its line
ROW, LEGEND_ROW = 21.0, 18.0
PLOT = 210.0
BELOW = 40.0
STEPS = 120  # more are not seen at this size
_LARGEST = 1e300  # beyond it the difference of two values is no number any more

_NO_DATA = ("Nothing was measured.", "計測値がありません。")
_UNIT_WORDS: dict[Unit, tuple[str, str]] = {
    "s": ("seconds", "秒"),
    "ms": ("milliseconds", "ミリ秒"),
    "tok/s": ("tokens per second", "トークン/秒"),
    "req/s": ("requests per second", "件/秒"),
}


def draw(chart: Chart, language: Language) -> str:
    """The picture of a chart; its ids begin with the language, so that both may stand on one page."""
    if isinstance(chart, EcdfChart):
        return ecdf(chart, language)
    if isinstance(chart, IntervalChart):
        return intervals(chart, language)
    return forest(chart, language)


# --- distributions --------------------------------------------------------------------------------------------------


class _Line:
    """A series made ready: `steps` (value, share at or below it), `p95` None where it lies beyond all that came."""

    def __init__(self, series: Series, name: str) -> None:
        values = [value for value in series.values if value > -math.inf]  # neither not-a-number
        finite = [min(value, _LARGEST) for value in values if value < math.inf]
        self.name, self.n = name, len(values)
        found = statistics.percentile(values, 95)
        self.p95 = found if found is not None and math.isfinite(found) else None
        reached = len(finite) / len(values) if values else 0.0
        steps = {value: share * reached for value, share in statistics.ecdf(finite, STEPS)}
        if self.p95 is not None:
            here = min(self.p95, _LARGEST)
            steps[here] = sum(value <= here for value in finite) / len(values)
        self.steps = sorted(steps.items())

    def told(self, unit: Unit, language: Language) -> str:
        return f"n = {self.n}, P95 {'—' if self.p95 is None else quantity(self.p95, unit, language)}"

    def words(self, unit: Unit, language: Language) -> str:
        return f"{self.name}: {self.told(unit, language)}"


def ecdf(chart: EcdfChart, language: Language) -> str:
    """Step curves of which share had ended by when, each with a mark where it reaches 95 %."""
    lines = [_Line(series, pick(series.name, language)) for series in chart.series]
    values = [value for line in lines for value, _ in line.steps]
    limits = [] if chart.threshold is None or not math.isfinite(chart.threshold) else [chart.threshold]
    drawn = [line for line in lines if line.steps]
    top = 14 + LEGEND_ROW * len(lines) + (18 if limits else 6)
    bottom = top + PLOT
    across = axis(values + limits, LEFT, WIDTH - RIGHT, log=chart.log, zero=not chart.log)
    up = Axis(0, 1, bottom, top)
    parts = [_legend(line, index, chart.unit, language) for index, line in enumerate(lines)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(svg.line(LEFT, up.at(share), WIDTH - RIGHT, up.at(share), "grid"))
        parts.append(svg.text(LEFT - 7, up.at(share) + 4, f"{share * 100:.0f}%", "tick", "end"))
    parts += _across(across, top, bottom, chart.unit, language)
    parts.append(svg.line(LEFT, up.at(0.95), WIDTH - RIGHT, up.at(0.95), "p95"))
    parts.append(svg.text(LEFT + 4, up.at(0.95) - 4, "P95", "tick"))
    parts += _limit(limits, across, top, bottom, chart.unit, language)
    parts += [_curve(line, index, across, up, chart.unit, language) for index, line in enumerate(lines) if line.steps]
    if not drawn:
        parts.append(
            svg.text((LEFT + WIDTH - RIGHT) / 2, (top + bottom) / 2, pick(_NO_DATA, language), "empty", "middle")
        )
    told = [line.words(chart.unit, language) for line in drawn] or [pick(_NO_DATA, language)]
    identity = f"{language}-{chart.id}"
    return svg.drawing(identity, WIDTH, bottom + BELOW, pick(chart.title, language), ". ".join(told), parts)


def _curve(line: _Line, index: int, across: Axis, up: Axis, unit: Unit, language: Language) -> str:
    path = [f"M{svg.px(across.at(line.steps[0][0]))} {svg.px(up.at(0))}"]
    for value, share in line.steps:
        path.append(f"H{svg.px(across.at(value))}V{svg.px(up.at(share))}")
    parts = [f'<path class="line s{index % svg.SERIES}" d="{"".join(path)}"/>']
    if line.p95 is not None:
        share = dict(line.steps).get(min(line.p95, _LARGEST), 0.95)
        parts.append(svg.mark(across.at(line.p95), up.at(share), index))
    return svg.group(line.words(unit, language), *parts)


def _legend(line: _Line, index: int, unit: Unit, language: Language) -> str:
    y, told = 14 + LEGEND_ROW * index, line.told(unit, language)
    parts = (
        f'<path class="line s{index % svg.SERIES}" d="M4 {svg.px(y - 4)}H36"/>',
        svg.mark(20, y - 4, index),
        svg.text(44, y, svg.fitted(line.name, WIDTH - RIGHT - 54 - svg.width_px(told)), "legend"),
        svg.text(WIDTH - RIGHT, y, told, "legend", "end"),
    )
    return svg.group(line.words(unit, language), *parts)


# --- intervals ------------------------------------------------------------------------------------------------------


def intervals(chart: IntervalChart, language: Language) -> str:
    """One row a value: a point, and whiskers as far as its interval reaches; a hollow point has none."""
    marks = [_tidied(mark) for mark in chart.marks]
    known = [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    limits = [] if chart.threshold is None or not math.isfinite(chart.threshold) else [chart.threshold]
    names = [pick(mark.name, language) for mark in marks]
    values = [_mark_words(mark, chart.unit, language) for mark in marks]
    left = min(max([svg.width_px(name) for name in names] + [40.0]) + 30, 190.0)
    right = WIDTH - min(max([svg.width_px(each) for each in values] + [30.0]) + 12, 160.0)
    across = axis(known + limits, left, right, log=chart.log, zero=not chart.log)
    top = 26.0 if limits else 10.0
    parts: list[str] = []
    y, group = top, ""
    for mark, name, words in zip(marks, names, values, strict=True):
        if pick(mark.group, language) != group:
            group = pick(mark.group, language)
            y += ROW
            parts.append(svg.text(4, y - 6, svg.fitted(group, WIDTH - 8), "group"))
        y += ROW
        parts.append(_row(mark, name, words, y - ROW / 2, across))
    y = max(y, top + ROW * 2)
    frame = _across(across, top, y + 4, chart.unit, language)
    frame += _limit(limits, across, top, y + 4, chart.unit, language)
    if not known:
        parts.append(svg.text(WIDTH / 2, top + ROW, pick(_NO_DATA, language), "empty", "middle"))
    told = [
        f"{pick(m.group, language)} {name}: {words}".strip()
        for m, name, words in zip(marks, names, values, strict=True)
    ]
    described = ". ".join(told) or pick(_NO_DATA, language)
    identity = f"{language}-{chart.id}"
    return svg.drawing(identity, WIDTH, y + 4 + BELOW, pick(chart.title, language), described, frame + parts)


def _row(mark: Mark, name: str, words: str, y: float, across: Axis, width: float = WIDTH) -> str:
    parts = [svg.text(14, y + 4, svg.fitted(name, across.start - 20), "label")]
    if mark.low is not None and mark.high is not None:
        parts.append(_whiskers(mark.low, mark.high, y, mark.series, across))
    if mark.value is not None:
        parts.append(svg.mark(across.at(mark.value), y, mark.series, hollow=mark.low is None))
    parts.append(svg.text(width - 4, y + 4, svg.fitted(words, width - across.end - 8), "label", "end"))
    return svg.group(f"{name}: {words}", *parts)


def _whiskers(low: float, high: float, y: float, series: int, across: Axis) -> str:
    start, end = svg.px(across.at(low)), svg.px(across.at(high))
    caps = f"M{start} {svg.px(y - 4)}V{svg.px(y + 4)}M{end} {svg.px(y - 4)}V{svg.px(y + 4)}"
    return f'<path class="whisker s{series % svg.SERIES}" d="M{start} {svg.px(y)}H{end}{caps}"/>'


def _mark_words(mark: Mark, unit: Unit, language: Language) -> str:
    if mark.value is None:
        return "—"
    bare: Unit = unit if unit in ("share", "bytes") else ""
    value, low, high = (None if e is None else quantity(e, bare, language) for e in (mark.value, mark.low, mark.high))
    return f"{value}" if low is None or high is None else f"{value} ({low}–{high})"


# --- ratios ---------------------------------------------------------------------------------------------------------


def forest(chart: ForestChart, language: Language) -> str:
    """Ratios on a logarithmic axis around 1, or shares around 0; the band up to the margin is what one may lose."""
    ratio = chart.scale == "ratio"
    rows = [_tidied_ratio(row, _above_zero if ratio else _number) for row in chart.ratios]
    known = [end for row in rows for end in (row.value, row.low, row.high, row.margin) if end is not None]
    names = [pick(row.name, language) for row in rows]
    values = [_ratio_words(row, chart.scale) for row in rows]
    left = min(max([svg.width_px(name) for name in names] + [40.0]) + 26, 230.0)
    right = WIDE - min(max([svg.width_px(each) for each in values] + [40.0]) + 14, 210.0)
    across = axis([*((0.91, 1.1) if ratio else (-0.1, 0.1)), *known], left, right, log=ratio)
    sides = [pick(side, language) for side in (chart.below, chart.above)]
    top = 26.0 if any(sides) else 8.0
    bottom = top + ROW * max(len(rows), 2) + 4
    middle = across.at(1 if ratio else 0)
    parts = [svg.text(middle - 8, 14, f"← {sides[0]}", "tick", "end")] if sides[0] else []
    parts += [svg.text(middle + 8, 14, f"{sides[1]} →", "tick")] if sides[1] else []
    frame = _across(across, top, bottom, chart.scale, language, grid=False)
    bands, drawn = [], []
    for index, (row, name, words) in enumerate(zip(rows, names, values, strict=True)):
        y = top + ROW * (index + 0.5) + 2
        if row.margin is not None:
            bands.append(svg.rectangle(across.at(row.margin), y - ROW / 2, middle, y + ROW / 2, "band"))
            bands.append(svg.line(across.at(row.margin), y - ROW / 2, across.at(row.margin), y + ROW / 2, "limit"))
        mark = Mark(name=row.name, value=row.value, low=row.low, high=row.high, n=row.n)
        drawn.append(_row(mark, name, words, y, across, WIDE))
    if not rows:
        drawn.append(svg.text(WIDE / 2, top + ROW, pick(_NO_DATA, language), "empty", "middle"))
    one = svg.line(middle, top, middle, bottom, "one")
    told = ". ".join(f"{n}: {w}" for n, w in zip(names, values, strict=True)) or pick(_NO_DATA, language)
    pieces = bands + frame + [one] + parts + drawn
    identity = f"{language}-{chart.id}"
    return svg.drawing(identity, WIDE, bottom + BELOW, pick(chart.title, language), told, pieces)


def _ratio_words(row: Ratio, scale: Unit) -> str:
    if row.value is None:
        return "—"
    told = quantity(row.value, scale, "en")
    if row.low is None or row.high is None:
        return told
    joint = " – " if row.low < 0 else "–"
    return f"{told} ({quantity(row.low, scale, 'en')}{joint}{quantity(row.high, scale, 'en')})"


# --- what they share ------------------------------------------------------------------------------------------------


def _across(across: Axis, top: float, bottom: float, unit: Unit, language: Language, grid: bool = True) -> list[str]:
    """Ticks, labels and the unit under a plot."""
    parts = []
    for value, words in across.ticks(5 if across.end - across.start > 240 else 3):
        words = quantity(value, unit, language) if unit in ("share", "bytes") else words
        x = across.at(value)
        parts.append(svg.line(x, top if grid else bottom, x, bottom + 4, "grid"))
        parts.append(svg.text(x, bottom + 17, words, "tick", "middle"))
    parts.append(svg.line(across.start, bottom, across.end, bottom, "axis"))
    named = pick(_UNIT_WORDS.get(unit, ("", "")), language)
    if named and across.log:
        named += pick((" (logarithmic)", "（対数）"), language)
    return [*parts, svg.text(across.end, bottom + 33, named, "tick", "end")] if named else parts


def _limit(limits: list[float], across: Axis, top: float, bottom: float, unit: Unit, language: Language) -> list[str]:
    """The threshold, drawn only where the axis reaches."""
    parts = []
    for limit in limits:
        if across.log and limit <= 0:
            continue
        told = quantity(int(limit) if limit == int(limit) else limit, unit, language)
        words = f"{pick(('limit', '基準'), language)} {told}"
        x = across.at(limit)
        anchor = "end" if x > (across.start + across.end) / 2 else "start"
        parts.append(svg.line(x, top, x, bottom, "limit"))
        parts.append(svg.text(x - 4 if anchor == "end" else x + 4, top - 4, words, "limit", anchor))
    return parts


def _tidied(mark: Mark) -> Mark:
    """Without what cannot be drawn: a value that is no number, an interval that lacks an end."""
    value, low, high = (_number(each) for each in (mark.value, mark.low, mark.high))
    if value is None or low is None or high is None:
        low = high = None
    return Mark(name=mark.name, group=mark.group, series=mark.series, value=value, low=low, high=high, n=mark.n)


def _tidied_ratio(row: Ratio, drawable: Callable[[float | None], float | None]) -> Ratio:
    value, low, high, margin = (drawable(each) for each in (row.value, row.low, row.high, row.margin))
    if value is None or low is None or high is None:
        low = high = None
    return Ratio(name=row.name, value=value, low=low, high=high, margin=margin, n=row.n)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _above_zero(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None
