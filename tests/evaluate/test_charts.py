"""The charts' drawings."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.evaluate.definitions import LANGUAGES, Language
from sekisho.evaluate.report import svg
from sekisho.evaluate.report.axes import axis
from sekisho.evaluate.report.charts import draw
from sekisho.evaluate.report.data import Chart, EcdfChart, ForestChart, IntervalChart, Mark, Ratio, Series
from sekisho.evaluate.statistics import percentile

SPACE = "{http://www.w3.org/2000/svg}"
ANY = st.floats() | st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf])
WORDS = st.tuples(st.text(max_size=60), st.text(max_size=60))
MAYBE = st.none() | ANY
SERIES = st.builds(Series, WORDS, st.lists(ANY, max_size=40).map(tuple))
MARKS = st.builds(
    Mark, name=WORDS, group=WORDS, series=st.integers(0, 9), value=MAYBE, low=MAYBE, high=MAYBE, n=st.none()
)
RATIOS = st.builds(Ratio, name=WORDS, value=MAYBE, low=MAYBE, high=MAYBE, margin=MAYBE, n=st.none())
UNITS = st.sampled_from(["s", "ms", "tok/s", "share", "bytes", ""])
CHARTS: st.SearchStrategy[Chart] = st.one_of(
    st.builds(
        EcdfChart,
        id=st.text(max_size=9),
        title=WORDS,
        series=st.lists(SERIES, max_size=8).map(tuple),
        unit=UNITS,
        log=st.booleans(),
        threshold=MAYBE,
    ),
    st.builds(
        IntervalChart,
        id=st.just("i"),
        title=WORDS,
        marks=st.lists(MARKS, max_size=8).map(tuple),
        unit=UNITS,
        log=st.booleans(),
        threshold=MAYBE,
    ),
    st.builds(
        ForestChart,
        id=st.just("f"),
        title=WORDS,
        ratios=st.lists(RATIOS, max_size=8).map(tuple),
        scale=st.sampled_from(["ratio", "share"]),
        below=WORDS,
        above=WORDS,
    ),
)


def parsed(chart: Chart, language: Language = "en") -> ElementTree.Element:
    return ElementTree.fromstring(draw(chart, language))


def points(path: str) -> list[tuple[float, float]]:
    """The corners of a path of absolute M, H and V."""
    x = y = 0.0
    found = []
    for command, first, second in re.findall(r"([MHV])(-?[\d.]+)(?: (-?[\d.]+))?", path):
        x = float(first) if command in "MH" else x
        y = float(second) if command == "M" else float(first) if command == "V" else y
        found.append((x, y))
    return found


def places(element: ElementTree.Element) -> list[tuple[float, float]]:
    """Where an element lies, by its absolute coordinates."""
    get = element.get
    tag = element.tag.removeprefix(SPACE)
    if tag == "line":
        return [(float(get("x1", "")), float(get("y1", ""))), (float(get("x2", "")), float(get("y2", "")))]
    if tag == "rect":
        x, y = float(get("x", "")), float(get("y", ""))
        return [(x, y), (x + float(get("width", "")), y + float(get("height", "")))]
    if tag == "text":
        return [(float(get("x", "")), float(get("y", "")))]
    if tag == "path":
        return points(get("d", "").partition("m")[0] if "mark" in get("class", "") else get("d", ""))
    return []


def curves(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The step curves, without the samples of the legend."""
    found = [points(e.get("d", "")) for e in root.iter(f"{SPACE}path") if "line" in e.get("class", "").split()]
    return [each for each in found if each[0][0] > 4]


@given(CHARTS, st.sampled_from(LANGUAGES))
def test_any_values_give_a_drawing_inside_its_frame(chart: Chart, language: Language) -> None:
    """Whatever was measured (nothing, not a number, infinite, 1e308, control characters in a name), the picture is
    well-formed, every coordinate is a number inside it, and nobody has to see it to know what it is."""
    root = parsed(chart, language)
    _, _, width, height = (float(each) for each in root.get("viewBox", "").split())
    for element in root.iter():
        for x, y in places(element):
            assert -0.05 <= x <= width + 0.05
            assert -0.05 <= y <= height + 0.05
    names = root.get("aria-labelledby", "").split()
    assert [element.get("id") for element in list(root)[:2]] == names
    assert root.get("role") == "img"
    assert all(each.startswith(f"{language}-") for each in names)


@given(st.lists(SERIES, max_size=6).map(tuple), st.booleans())
def test_a_distribution_only_rises(series: tuple[Series, ...], log: bool) -> None:
    """The curve goes right and up alone, begins at nothing and ends at the share of requests that ever came."""
    root = parsed(EcdfChart(id="e", title=("t", "t"), series=series, log=log))
    drawn = curves(root)
    finite = [each for each in series if any(math.isfinite(value) for value in each.values)]
    assert len(drawn) == len(finite)
    for one, curve in zip(finite, drawn, strict=True):
        assert all(x2 >= x1 and y2 <= y1 for (x1, y1), (x2, y2) in pairwise(curve))
        counted = [value for value in one.values if value > -math.inf]
        share = sum(value < math.inf for value in counted) / len(counted)
        assert abs((curve[0][1] - curve[-1][1]) / 210 - share) < 0.002


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=300))
def test_the_mark_lies_on_its_curve_at_the_percentile_that_is_told(values: list[float]) -> None:
    """The point that marks P95 is a corner of the curve, at or above 95 %, at the figure's own nearest-rank value."""
    root = parsed(EcdfChart(id="e", title=("t", "t"), series=(Series(("a", "a"), tuple(values)),), log=False))
    (curve,) = curves(root)
    marks = [places(e)[0] for e in root.iter(f"{SPACE}path") if "mark" in e.get("class", "").split()]
    x, y = marks[-1]  # the first is the legend's
    assert any(abs(x - cx) < 0.11 and abs(y - cy) < 0.11 for cx, cy in curve)
    assert (curve[0][1] - y) / 210 >= 0.95 - 0.001
    found = percentile(values, 95)
    assert found is not None
    span = max(values) * 1.05
    assert abs((x - 46) / (480 - 14 - 46) - found / span) < 0.002


@given(st.lists(ANY, max_size=20), st.booleans(), st.booleans(), st.integers(3, 8))
def test_ticks_are_round_and_inside(values: list[float], log: bool, zero: bool, count: int) -> None:
    """At least two ticks, rising, within the axis, of which each is told by a number that is not far from it."""
    made = axis(values, 0, 100, log=log, zero=zero)
    ticks = made.ticks(count)
    assert made.low < made.high
    assert len(ticks) >= 2
    assert all(one < other for (one, _), (other, _) in pairwise(ticks))
    assert all(made.low <= value <= made.high for value, _ in ticks)
    assert ticks[0][1]
    assert all(0 <= made.at(value) <= 100 for value in [*values, 1.0] if not math.isnan(value))
    for value, words in ticks:
        if words:
            read = float(words.replace(",", "").replace("−", "-"))
            assert math.isclose(read, value, rel_tol=0.51, abs_tol=(made.high - made.low) / 50)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 8.3, ["0", "2", "4", "6", "8"]),
        (6.34, 14.4, ["8", "10", "12", "14"]),
        (0, 0.85, ["0", "0.2", "0.4", "0.6", "0.8"]),
    ],
)
def test_tick_labels(low: float, high: float, labels: list[str]) -> None:
    """Steps of 1, 2 or 5, written with as many decimals as the step needs."""
    made = axis([low / 0.95 if low else 0, high / 1.05], 0, 1, zero=low == 0)
    told = [words for _, words in made.ticks(4)]
    assert told == labels or set(labels) <= set(told)


def test_no_coordinate_hides_a_wrong_number() -> None:
    """What is not finite is refused where coordinates are written."""
    for wrong in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="no coordinate"):
            svg.px(wrong)


@pytest.mark.parametrize(
    "chart",
    [
        EcdfChart(id="e", title=("t", "題"), series=()),
        EcdfChart(id="e", title=("t", "題"), series=(Series(("a", "a"), (math.nan,)),)),
        IntervalChart(id="i", title=("t", "題"), marks=()),
        ForestChart(id="f", title=("t", "題"), ratios=()),
    ],
)
def test_a_chart_without_values_says_so(chart: Chart) -> None:
    """An empty picture is not mistaken for a good one."""
    assert "Nothing was measured." in draw(chart, "en")
    assert "計測値がありません。" in draw(chart, "ja")


def test_names_from_outside_stay_text() -> None:
    """A name that holds markup or an override of direction is shown as the letters that it is."""
    hostile = "</title><script>x</script>\u202eevil\x00"
    chart = EcdfChart(id='"><x', title=(hostile, hostile), series=(Series((hostile, hostile), (1.0, 2.0)),))
    drawn = draw(chart, "en")
    root = ElementTree.fromstring(drawn)
    assert not list(root.iter(f"{SPACE}script"))
    assert "\u202e" not in drawn
    assert "⟨U+202E⟩" in drawn
    assert "⟨U+0000⟩" in drawn


def test_a_request_that_never_came_keeps_the_curve_below_the_top() -> None:
    """Two of ten failures end the curve at 80 %, and then there is no 95th percentile to mark."""
    values = (*(float(n) for n in range(1, 9)), math.inf, math.inf)
    root = parsed(EcdfChart(id="e", title=("t", "t"), series=(Series(("a", "a"), values),)))
    (curve,) = curves(root)
    assert abs((curve[0][1] - curve[-1][1]) / 210 - 0.8) < 0.001
    assert "P95 —" in "".join(root.itertext())


def test_the_margin_is_a_band_between_no_difference_and_the_limit() -> None:
    """The band reaches from 1 to the margin, on the side where the margin lies, and the whiskers from end to end."""
    chart = ForestChart(
        id="f", title=("t", "t"), ratios=(Ratio(name=("a", "a"), value=0.97, low=0.93, high=1.01, margin=0.95),)
    )
    root = parsed(chart)
    (band,) = [places(e) for e in root.iter(f"{SPACE}rect")]
    (one,) = [places(e)[0][0] for e in root.iter(f"{SPACE}line") if e.get("class") == "one"]
    (whisker,) = [places(e) for e in root.iter(f"{SPACE}path") if "whisker" in e.get("class", "")]
    assert abs(band[1][0] - one) < 0.11
    assert whisker[0][0] < band[0][0] < one < whisker[1][0]


def test_a_point_without_an_interval_is_hollow() -> None:
    """The eye tells a value whose interval is unknown from one that is surely narrow."""
    marks = (
        Mark(name=("a", "a"), value=1.0),
        Mark(name=("b", "b"), value=1.0, low=0.9, high=1.1),
        Mark(name=("c", "c"), value=1.0, low=0.9, high=math.nan),
    )
    root = parsed(IntervalChart(id="i", title=("t", "t"), marks=marks, unit="s"))
    hollow = ["hollow" in e.get("class", "") for e in root.iter(f"{SPACE}path") if "mark" in e.get("class", "")]
    assert hollow == [True, False, True]
