"""What `sekisho top` shows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sekisho.cli import top_view

METRICS: dict[str, Any] = {
    "throughput": {"tokens_per_second": 123.4, "requests_per_second": 2.5},
    "latency": {"median_ms": 850.0, "p95_ms": 2100.0, "p99_ms": 3200.0, "n": 150},
    "first_token_latency": {"median_ms": 95.0, "p95_ms": 240.0, "p99_ms": None, "n": 140},
    "quality": {"delta_ppl_est": {"delta": 0.61}, "max_delta_ppl": 0.5, "accept_rate": {"current": 0.42}},
    "engines": [
        {
            "model": "sekisho-mini",
            "running": 3,
            "waiting": 1,
            "kv": {
                "used_bytes": 96 * 2**20,
                "limit_bytes": 512 * 2**20,
                "levels": {"L0": 30, "L1": 20, "L2": 50, "L3": 0},
                "hit_rate": 0.97,
            },
        }
    ],
    "devices": [
        {"name": "Processor", "utilisation": 0.31},
        {"name": "Memory", "used_bytes": 6 * 2**30, "total_bytes": 24 * 2**30},
        {"name": "NVIDIA L4", "utilisation": 0.88, "temperature_c": 71.0, "present": True},
    ],
}
ANSWERS: dict[str, Any] = {
    "health": {"status": "healthy"},
    "metrics": METRICS,
    "policy": {"version": 3, "kv": {"mode": "dynamic"}},
    "decisions": [
        {"at": 1_790_000_000 + n, "outcome": "applied", "rule": "quality", "action": f"step {n}", "why": "ΔPPL 0.61"}
        for n in range(30)
    ],
}


def shown(answers: dict[str, Any], width: int = 80, height: int = 24, language: str = "en") -> list[str]:
    lines = top_view.frame(answers, [1.0, 2.0, 3.0], width=width, height=height, language=language)
    return [line.plain for line in lines]


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 60), (20, 5)])
def test_it_fits_the_terminal(width: int, height: int, language: str) -> None:
    """No line is wider and there are no more lines than there is room; Japanese letters take two cells."""
    lines = shown(ANSWERS, width, height, language)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width


def test_at_80_by_24_everything_is_there() -> None:
    """Throughput, both latencies, KV levels, devices, quality, policy and the newest decisions."""
    text = "\n".join(shown(ANSWERS))
    for part in ("healthy", "policy 3 dynamic", "123.4 tok/s", "p95 2.10 s", "p50 95 ms", "L1 20%", "97%", "71 °C"):
        assert part in text, part
    assert "ΔPPL +0.610" in text
    assert "step 29" in text
    assert text.index("step 29") < text.index("step 28"), "the newest first"


def test_what_is_not_measured_is_a_dash_and_no_number() -> None:
    """Null is never drawn as 0."""
    nothing = {"throughput": {}, "latency": {}, "first_token_latency": {}, "quality": {}, "engines": [{"model": "m"}]}
    lines = shown({**ANSWERS, "metrics": nothing})
    assert any("— tok/s" in line for line in lines)
    assert any("ΔPPL not measured" in line for line in lines)
    assert any("m: not measured" in line for line in lines)


def test_an_agent_that_does_not_answer_is_told_beside_what_was_seen_last() -> None:
    """The screen stays, with the reason in it."""
    lines = shown({**ANSWERS, "error": "connection refused"})
    assert any("does not answer: connection refused" in line for line in lines)
    assert any("123.4 tok/s" in line for line in lines)
    assert "does not answer" in "\n".join(shown({"error": "no"}))


@given(st.lists(st.floats(0, 1e9), max_size=200), st.integers(1, 60))
def test_a_sparkline_is_as_long_as_there_are_values(values: list[float], cells: int) -> None:
    """At most so many cells, and its tallest bar is the largest of what is shown."""
    line = top_view.sparkline(values, cells)
    assert len(line) == min(len(values), cells)
    recent = values[-cells:]
    if recent and max(recent) > 0:
        assert line[recent.index(max(recent))] == "█"


@given(st.one_of(st.none(), st.floats(-2, 3)), st.integers(1, 40))
def test_a_gauge_stays_within_its_cells(share: float | None, cells: int) -> None:
    """Also for a share beyond 0 to 1."""
    assert len(top_view.gauge(share, cells)) == cells
