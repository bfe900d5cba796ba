"""Names, meanings and values of figures."""

import math
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sekisho.evaluate
from sekisho.evaluate.definitions import (
    GROUPS,
    define,
    definitions,
    interval_words,
    method_words,
    plain_number,
    quantity,
    value_words,
)
from sekisho.evaluate.figures import Figure, Interval
from sekisho.evaluate.speed.bench_figures import QUANTILES

CELL = ("success_rate", "ttfb_p95_s", "ttft_p50_s", "ttft_p95_s", "total_p50_s", "total_p95_s", "tok_s_median")
CELL += ("tpot_p50_ms", "itl_p95_ms", "requests_per_s", "late_p95_ms")
GATES = ("models", "no_key", "chat_oneshot", "chat_two_turn", "chat_stream", "responses", "responses_stream", "state")
IDS = {
    "gates": [f"gate.{place}.{gate}" for place in ("engine", "gateway", "public") for gate in GATES],
    "speed": [
        *(f"bench.engine.closed.p3.t256.{what}" for what in CELL),
        *(f"bench.public.open.r0.5.t1024.{what}" for what in CELL),
        *(f"grid.engine.p1.i2048.t64.{what}" for what in CELL),
        *(f"bench.gap.gateway.{what}" for what in ("ttft_p50_s", "total_p50_s", "tok_s_ratio")),
        "bench.gateway.crashes",
    ],
    "cold": ["cold.ttfb_s", "cold.ttft_s", "cold.ready_s", "cold.total_s"],
    "continuity": [
        *(f"continuity.{mode}.{what}" for mode in ("chat", "responses") for what in ("rate", "http_ok")),
        "continuity.responses.chains",
    ],
    "sessions": [
        *(f"sessions.{m}.{w}" for m in ("chat", "responses") for w in ("tasks", "connection_failures", "cuts")),
        *(f"codex.{what}" for what in ("tasks", "connection_failures", "cuts")),
        "ui.fatal_errors",
    ],
    "rubric": [f"rubric.{what}" for what in ("adoptable_rate", "agreement", "kappa", "severe", "tasks")],
    "safety": [f"safety.{what}" for what in ("unsafe_allowed", "benign_stopped", "escalated")],
    "stability": [
        *(f"stability.{what}" for what in ("days", "unplanned_stops", "longest_recovery_s")),
        "security.plaintext_keys_in_logs",
        "security.unauthenticated_attempts",
        "security.unauthenticated_successes",
    ],
    "cost": ["cost.tokens", "cost.amount"],
    "machine": [f"gpu.1.{moment}_bytes" for moment in ("before", "loaded", "under_load")],
}


@pytest.mark.parametrize(("group", "figure_id"), [(group, each) for group, ids in IDS.items() for each in ids])
def test_every_figure_has_a_name_a_meaning_and_a_group(group: str, figure_id: str) -> None:
    """Each id of an evaluation is defined in both languages and stands in the group where a reader looks for it."""
    found = define(figure_id)
    assert found.group == group
    assert found.pattern
    assert all(found.name)
    assert all(found.means)
    assert found.name != (figure_id, figure_id)


def test_each_id_that_the_package_writes_out_is_defined() -> None:
    """No module makes a figure, by an id that stands in its text, which the report would show by that id alone."""
    written = set()
    for path in Path(sekisho.evaluate.__file__).parent.rglob("*.py"):
        written |= set(re.findall(r'\bid="([a-z_]+\.[a-z_.0-9]+)"', path.read_text("utf-8")))
    written |= {f"bench.engine.closed.p1.t256.{what}" for what, *_ in QUANTILES}
    assert len(written) > 10
    assert [each for each in sorted(written) if not define(each).pattern] == []


def test_all_texts_are_whole_in_both_languages() -> None:
    """No definition lacks a language, ends without a full stop, or leaves a Japanese reader with English."""
    japanese = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")
    for each in definitions():
        assert each.group in GROUPS
        assert each.en
        assert each.ja
        assert each.means_en.endswith("."), each.id
        assert each.means_ja.endswith("。"), each.id
        assert japanese.search(each.means_ja), each.id
        assert not japanese.search(each.en + each.means_en), each.id


def test_patterns_do_not_overlap() -> None:
    """An id has one meaning: what one pattern says of itself is not caught by an earlier one."""
    fill = {"place": "public", "loop": "open", "level": "r2", "tokens": "64", "mode": "chat", "index": "0"}
    fill |= {"moment": "loaded", "metric": "ttft"}
    for each in definitions():
        assert define(each.id.format(**fill)).pattern == each.id


def test_the_full_name_tells_where_and_how_it_was_taken() -> None:
    """Place, loop, parallelism and length are told with the name, in each language's own words."""
    found = define("bench.engine.closed.p3.t256.ttft_p95_s")
    assert found.full_name[0] == "First token, P95 (engine, direct, closed loop, 3 in parallel, 256 tokens)"
    assert found.full_name[1] == "最初のトークンまで（P95）（エンジン直結、閉ループ、3 並列、256 トークン）"


@given(st.text())
def test_an_unknown_id_keeps_its_raw_name(figure_id: str) -> None:
    """Whatever the id is, there is an answer; one that nothing fits is shown as it is."""
    found = define(figure_id)
    assert found.pattern or (found.group == "other" and found.name == (figure_id, figure_id))


@given(st.floats(min_value=0, max_value=1))
def test_a_share_is_never_rounded_to_all_or_nothing(share: float) -> None:
    """100% and 0% are said only of exactly that, down to one in ten million."""
    text = quantity(share, "share", "en")
    if 1e-8 < share < 1 - 1e-8:
        assert text not in ("0%", "100%")
    assert abs(float(text.removesuffix("%")) / 100 - share) <= 0.0005 + 1e-12


@pytest.mark.parametrize("share", [sys.float_info.max, int(sys.float_info.max), math.inf])
def test_a_share_beyond_all_numbers_is_still_told(share: float) -> None:
    """A threshold somebody wrote with 308 digits is shown as what it is, never an error."""
    assert quantity(share, "share", "en") == "∞"
    assert quantity(-share, "share", "ja") == "−∞"


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e14, max_value=1e14))
def test_numbers_keep_three_digits(value: float) -> None:
    """What is written reads back as the value, to half a unit of its third digit."""
    read = float(plain_number(value).replace(",", "").replace("−", "-"))
    assert math.isclose(read, value, rel_tol=0.0051, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("figure", "en", "ja"),
    [
        (Figure(id="x", value=8.2, unit="s"), "8.20 s", "8.20 秒"),
        (Figure(id="x", value=1234, unit="count"), "1,234", "1,234"),
        (Figure(id="x", value=0.975, unit="share"), "97.5%", "97.5%"),
        (Figure(id="x", value=1, unit="days"), "1 day", "1 日"),
        (Figure(id="x", value=3 << 30, unit="bytes"), "3.00 GiB", "3.00 GiB"),
        (Figure(id="gate.engine.state", value=True), "passed", "合格"),
        (Figure(id="compare.adopt", value=False), "no", "いいえ"),
        (Figure(id="x", value=None, why_null="no card"), "not measured: no card", "未計測: no card"),
        (Figure(id="x", value=None), "not measured: no reason was given", "未計測: 理由の記録がありません"),
    ],
)
def test_values_in_words(figure: Figure, en: str, ja: str) -> None:
    """A value has its unit in the reader's language, and what was not measured says why."""
    assert (value_words(figure, "en"), value_words(figure, "ja")) == (en, ja)


def test_intervals_in_words() -> None:
    """An interval has one unit, a readable minus sign, and the name of its method."""
    interval = Interval(0.883, 0.994, "wilson")
    assert interval_words(interval, "share", "en") == "88.3–99.4%"
    assert interval_words(Interval(-0.5, 1.25, "bootstrap"), "s", "en") == "−0.500 – 1.25 s"
    assert interval_words(Interval(1.0, 1.5, "bootstrap"), "s", "ja", bare=True) == "1.00–1.50"
    assert method_words(interval, "ja") == "95% 信頼区間、Wilson"
    assert method_words(Interval(0, 1, "something new", 0.9), "en") == "90% interval, something new"
