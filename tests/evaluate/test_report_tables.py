"""Figures as tables and interval charts."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sekisho.evaluate.definitions import LANGUAGES
from sekisho.evaluate.figures import Figure, Figures, Interval
from sekisho.evaluate.report.tables import interval_charts, sections

IDS = (
    "bench.engine.closed.p1.t256.ttft_p95_s",
    "bench.public.open.r0.5.t64.late_p95_ms",
    "grid.engine.p1.i2048.t64.total_p95_s",
    "bench.gap.public.ttft_p50_s",
    "gate.engine.models",
    "continuity.chat.rate",
    "gpu.0.loaded_bytes",
    "gpu.1.loaded_bytes",
    "compare.ttft.ratio",
    "compare.adopt",
    "cost.amount",
)


@given(
    st.lists(
        st.builds(
            Figure,
            id=st.sampled_from(IDS) | st.text(max_size=20),
            value=st.none() | st.booleans() | st.integers(0, 10**18) | st.floats(),
            unit=st.sampled_from(["", "s", "share", "count", "bytes", "days", "ratio", "currency"]),
            n=st.none() | st.integers(0, 10**9),
            interval=st.none() | st.builds(Interval, st.floats(), st.floats(), st.text(max_size=9)),
            interval_missing=st.text(max_size=9),
        ),
        max_size=12,
    ).map(tuple)
)
def test_any_figures_make_tables(figures: tuple[Figure, ...]) -> None:
    """Whatever the figures are, each id is shown once, no table is wider than paper, and each can be drawn."""
    for language in LANGUAGES:
        found = sections(Figures(figures), language)
        tables = [table for section in found for table in section.tables]
        shown = [c.id for table in tables for row in table.rows for c in row.cells if c is not None]
        assert Counter(shown) == Counter({figure.id: 1 for figure in figures})
        assert all(len(table.columns) <= 6 for table in tables)
        assert all(len(row.cells) == max(1, len(table.columns)) for table in tables for row in table.rows)
    interval_charts(Figures(figures))


def test_no_table_is_wider_than_paper() -> None:
    """Four parallelisms at three lengths are split into tables of six columns, each with all its rows and headings."""
    figures = tuple(
        Figure(id=f"bench.engine.closed.p{parallel}.t{tokens}.{what}", value=1.0, unit="s", n=80)
        for parallel in (1, 2, 3, 4)
        for tokens in (64, 256, 1024)
        for what in ("ttft_p95_s", "total_p95_s")
    )
    (section,) = sections(Figures(figures), "en")
    first, second = section.tables
    assert first.spans == (("64 tokens", 4), ("256 tokens", 2))
    assert second.spans == (("256 tokens", 2), ("1024 tokens", 4))
    assert [column.name for column in second.columns[:3]] == ["3 in parallel", "4 in parallel", "1 in parallel"]
    assert {column.n for column in first.columns} == {80}
    assert all(cell is not None and cell.n is None for row in first.rows for cell in row.cells)


def test_interval_charts_stand_by_parallelism_and_place() -> None:
    """One chart a figure and length; within it the parallelisms in order, and the places in the order of the way."""
    figures = tuple(
        Figure(id=f"bench.{place}.closed.p{parallel}.t256.ttft_p95_s", value=1.0, unit="s")
        for parallel in (10, 2)
        for place in ("public", "engine")
    )
    (chart,) = interval_charts(Figures(figures))
    assert [(mark.group[0], mark.name[0]) for mark in chart.marks] == [
        ("2 in parallel", "engine, direct"),
        ("2 in parallel", "public address"),
        ("10 in parallel", "engine, direct"),
        ("10 in parallel", "public address"),
    ]
