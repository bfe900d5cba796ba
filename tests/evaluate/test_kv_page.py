"""The page of `sekisho kv bench`."""

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.evaluate.definitions import LANGUAGES, Language
from sekisho.evaluate.report.kv_charts import Point, tradeoff
from sekisho.evaluate.report.kv_page import WORDS, quality_cells, render, speed_cells


def figure(value: float | None, low: float | None = None, high: float | None = None, n: int = 4) -> dict[str, Any]:
    reason = None if value is not None else "holds at least 28.1% of the 16-bit bytes"
    return {"value": value, "low": low, "high": high, "n": n, "blocks": n, "reason": reason}


def quality(name: str, target: float | None, share: float | None, divergence: float | None) -> dict[str, Any]:
    return {
        "entry": {"name": name, "target": target},
        "knobs": {},
        "share": figure(share),
        "bytes": figure(1e6),
        "perplexity": figure(20.0),
        "delta_perplexity": figure(None if share is None else 0.0123, 0.004, 0.021),
        "mean_divergence": figure(divergence, 0.003, 0.005),
        "p99_divergence": figure(divergence),
        "agreement": figure(0.97),
    }


def results(rows: list[dict[str, Any]]) -> dict[str, Any]:
    needle = {"entry": {"name": "snapkv", "target": 0.3}, "asked": "later", "share": figure(0.29)}
    needle |= {"recall": figure(0.4, n=10), "full": figure(0.9, n=10)}
    memory = {"entry": {"name": "tiered", "target": None}, "shape": "7b", "tokens": 16384, "layers_measured": 1}
    memory |= {"layers": 32, "bytes": figure(64 * 2**20), "share": figure(0.24)}
    speed = {"entry": {"name": "tiered", "target": None}, "subject": "7b", "tokens": 16384, "batch": 8}
    speed |= {"layers_measured": 1, "layers": 32, "share": figure(0.24), "step_ms": figure(8.5)}
    speed |= {"relative": figure(4.2, 4.0, 4.4), "reference": "sdpa-grouped"}
    return {
        "quality": rows,
        "needles": [needle],
        "memory": [memory],
        "speed": [speed],
        "absent": {"quality": "the text is <too> short"},
        "environment": {"torch": "2.13.0", "threads": 2},
        "plan": {"model": "<b>mine</b>", "quality": {"context": 2048}},
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_figure_is_told_or_says_why_not(language: Language) -> None:
    """Shares in per cent, intervals beside their values, counts of what was found, and the reason for what is missing;
    text from outside is text."""
    page = render(results([quality("tiered", None, 0.24, 0.004), quality("kivi-4bit-g64", 0.25, None, None)]), language)
    for words in ("+1.23 [+0.4", "0.00400", "kivi-4bit-g64 at 25 %", "holds at least 28.1%", "4 / 10", "9 / 10"):
        assert words in page
    assert "4.20 [4.00, 4.40] × sdpa-grouped" in page
    assert "64.0" in page
    assert "<b>mine" not in page
    assert "&lt;b&gt;mine" in page
    assert "<script" not in page
    assert "&lt;too&gt;" in page
    assert f'lang="{language}"' in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_speed_says_for_how_many_sequences(language: Language) -> None:
    """The batch has its own cell, under a heading in the reader's language: a step of eight is no step of one."""
    told = results([])
    cells = speed_cells(told["speed"][0])
    assert cells == ["tiered", "7b", "16,384", "8", "1 / 32", "8.50", "4.20 [4.00, 4.40] × sdpa-grouped"]
    page = render(told, language)
    assert f'<th scope="col">{WORDS["batch"][language == "ja"]}</th>' in page
    assert "<td>16,384</td><td>8</td><td>1 / 32</td>" in page


def test_a_row_without_numbers_is_a_row_of_reasons() -> None:
    """A cache that could not take part at some bytes says so in each place."""
    cells = quality_cells(quality("snapkv", 0.15, None, None))
    assert cells[0] == "snapkv at 15 %"
    assert cells[1] == cells[2] == cells[3] == "holds at least 28.1% of the 16-bit bytes"


POINTS = st.builds(
    Point,
    name=st.text(max_size=12),
    family=st.tuples(st.text(max_size=9), st.text(max_size=9)),
    share=st.floats(allow_nan=False),
    divergence=st.floats(allow_nan=False),
)


@given(st.lists(POINTS, max_size=12), st.sampled_from(LANGUAGES))
def test_any_points_give_a_drawing_inside_its_frame(points: list[Point], language: Language) -> None:
    """Whatever was measured, the picture is well-formed and every mark lies inside it; what cannot stand on the axes is
    left out."""
    root = ElementTree.fromstring(tradeoff(points, language))
    _, _, width, height = (float(each) for each in root.get("viewBox", "").split())
    for line in root.iter("{http://www.w3.org/2000/svg}line"):
        for name, end in (("x1", width), ("x2", width), ("y1", height), ("y2", height)):
            assert -0.05 <= float(line.get(name, "")) <= end + 0.05
    shown = [each for each in points if each.share > 0 and each.divergence > 0]
    groups = list(root.iter("{http://www.w3.org/2000/svg}g"))
    assert len(groups) == len(shown)
