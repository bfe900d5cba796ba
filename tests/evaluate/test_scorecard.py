"""From figures to a verdict: the seed's table, what is open, what is certain, and that better is never worse."""

from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.evaluate.figures import Figure, Figures, Interval
from sekisho.evaluate.verdict.criterion import Criterion, bound, expand, judge, shown
from sekisho.evaluate.verdict.scorecard import ApprovalState, Decision, Outcome, Rules, Scorecard, decide, score
from sekisho.evaluate.verdict.thresholds import built_in

PROFILE = "a100"


def good_figures() -> Figures:
    """What a server measures that meets every built-in threshold of an A100."""
    figures = [
        *(gate(name, True) for name in ("models", "no_key", "chat_oneshot", "chat_two_turn", "chat_stream")),
        *(gate(name, True) for name in ("responses", "responses_stream")),
        Figure(id="continuity.chat.rate", value=0.97, unit="share", n=30),
        Figure(id="continuity.responses.rate", value=1.0, unit="share", n=30),
        Figure(id="continuity.responses.chains", value=30, unit="count", n=30),
        Figure(id="ui.fatal_errors", value=0, unit="count", n=30, attested_by="hanako"),
        Figure(id="sessions.responses.connection_failures", value=1, unit="count", n=20),
        Figure(id="sessions.responses.cuts", value=0, unit="count", n=20),
        Figure(id="sessions.responses.completed", value=0.95, unit="share", n=20),
        Figure(id="sessions.chat.completed", value=0.95, unit="share", n=20),
        Figure(id="rubric.adoptable_rate", value=0.75, unit="share", n=20),
        Figure(id="rubric.agreement", value=0.85, unit="share", n=20),
        Figure(id="cold.ttfb_s", value=14.9, unit="s"),
        Figure(id="bench.engine.crashes", value=0, unit="count", n=1),
        Figure(id="stability.unplanned_stops", value=0, unit="count", n=5),
        Figure(id="stability.longest_recovery_s", value=0.0, unit="s", n=5),
        Figure(id="security.plaintext_keys_in_logs", value=0, unit="count", n=12),
        Figure(id="security.unauthenticated_successes", value=0, unit="count", n=900),
    ]
    for parallel, tokens in product((1, 2, 3), (256, 1024)):
        cell, n = f"closed.p{parallel}.t{tokens}", 30 if tokens == 256 else 10
        figures += [
            Figure(id=f"bench.gateway.{cell}.ttfb_p95_s", value=7.0, unit="s", n=n),
            Figure(id=f"bench.gateway.{cell}.ttft_p95_s", value=7.5, unit="s", n=n),
            Figure(id=f"bench.gateway.{cell}.total_p95_s", value=29.0, unit="s", n=n),
            Figure(id=f"bench.engine.{cell}.tok_s_median", value=12.0, unit="tok/s", n=n),
        ]
    figures.append(Figure(id="bench.gateway.closed.p3.t256.success_rate", value=1.0, unit="share", n=30))
    return Figures(tuple(figures))


def gate(name: str, held: bool) -> Figure:
    return Figure(id=f"gate.gateway.{name}", value=held)


def rules(profile: str = PROFILE) -> Rules:
    return built_in().rules(profile)


def with_value(figures: Figures, figure_id: str, value: Any, **fields: Any) -> Figures:
    old = figures.get(figure_id)
    assert old is not None
    return figures.with_([msgspec.structs.replace(old, value=value, **fields)])


def card(figures: Figures, profile: str = PROFILE) -> Scorecard:
    return score(figures, rules(profile))


def outcome(figures: Figures, criterion: str, profile: str = PROFILE) -> Outcome:
    return next(result.outcome for result in card(figures, profile).results if result.criterion.id == criterion)


# --- the seed's table -----------------------------------------------------------------------------------------------

A_FAILS = ("continuity.chat.rate", 0.93)
B_FAILS = ("sessions.responses.cuts", 1)


@pytest.mark.parametrize(
    ("bad", "decision", "a", "b"),
    [
        ([], "adopt", "pass", "pass"),
        ([B_FAILS], "limited_a", "pass", "fail"),
        ([A_FAILS], "limited_b", "fail", "pass"),
        ([A_FAILS, B_FAILS], "reject", "fail", "fail"),
        ([("rubric.adoptable_rate", 0.65)], "reject", "fail", "fail"),
    ],
)
def test_the_verdicts_of_the_seeds_table(
    bad: list[tuple[str, float]], decision: Decision, a: Outcome, b: Outcome
) -> None:
    """Both pass: adopt; one alone: limited to it; neither: reject. What both need fails both. Each says what to do."""
    figures = good_figures()
    for figure_id, value in bad:
        figures = with_value(figures, figure_id, value)
    verdict = card(figures).verdict
    assert (verdict.decision, verdict.a, verdict.b) == (decision, a, b)
    assert verdict.title[0] != verdict.title[1]
    assert all(english and japanese for english, japanese in verdict.next_actions)
    failed = [result for result in card(figures).results if result.outcome == "fail"]
    assert len(failed) == len(bad)
    assert all(result.next_action == result.criterion.when_failed for result in failed)


@pytest.mark.parametrize("figure", good_figures().all, ids=lambda figure: figure.id)
def test_nothing_unmeasured_counts_as_passed(figure: Figure) -> None:
    """Take any one figure that a threshold needs away, or its value: the verdict is no longer `adopt`."""
    rest = Figures(tuple(each for each in good_figures().all if each.id != figure.id))
    null = with_value(good_figures(), figure.id, None, why_null="the line was down")
    for figures in (rest, null):
        assert card(figures).verdict.decision == "undecided"


def test_what_is_open_waits_but_two_failures_do_not() -> None:
    """One pattern failed and the other open is undecided; both failed is a rejection, whatever else is open."""
    figures = with_value(good_figures(), "cold.ttfb_s", None, why_null="not restarted")
    assert card(figures).verdict.decision == "undecided"
    figures = with_value(figures, *A_FAILS)
    assert (card(figures).verdict.a, card(figures).verdict.b) == ("fail", "open")
    assert card(figures).verdict.decision == "undecided"
    figures = with_value(figures, *B_FAILS)
    assert card(figures).verdict.decision == "reject"


def test_no_figures_at_all_are_undecided() -> None:
    """An empty run passes nothing, and says for every criterion how to measure it."""
    found = card(Figures())
    assert found.verdict.decision == "undecided"
    assert {result.outcome for result in found.results} == {"open"}
    assert all(result.next_action == result.criterion.when_open for result in found.results)
    assert all(result.missing for result in found.results)


# --- the built-in thresholds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure_id", "good", "bad", "criterion"),
    [
        ("continuity.chat.rate", 0.95, 0.949, "chat_continuity"),
        ("ui.fatal_errors", 0, 1, "chat_ui_errors"),
        ("sessions.responses.connection_failures", 1, 2, "codex_connections"),
        ("sessions.responses.cuts", 0, 1, "codex_cuts"),
        ("sessions.responses.completed", 0.90, 0.85, "codex_completed"),
        ("sessions.chat.completed", 0.90, 0.85, "chat_completed"),
        ("continuity.responses.rate", 0.95, 0.94, "responses_continuity"),
        ("continuity.responses.chains", 30, 29, "responses_chains"),
        ("rubric.adoptable_rate", 0.70, 0.65, "quality"),
        ("rubric.agreement", 0.80, 0.75, "rater_agreement"),
        ("bench.gateway.closed.p2.t1024.ttfb_p95_s", 8.0, 8.001, "first_byte"),
        ("bench.gateway.closed.p3.t256.ttft_p95_s", 8.0, 8.001, "first_token"),
        ("bench.gateway.closed.p1.t256.total_p95_s", 30.0, 30.1, "whole_answer"),
        ("cold.ttfb_s", 15.0, 15.1, "cold_first_byte"),
        ("bench.engine.closed.p3.t1024.tok_s_median", 10.0, 9.9, "decode_rate"),
        ("bench.gateway.closed.p3.t256.success_rate", 0.98, 0.967, "parallel_success"),
        ("bench.gateway.closed.p3.t256.success_rate", 0.90, 0.89, "success_everywhere"),
        ("bench.engine.crashes", 0, 1, "crashes"),
        ("stability.unplanned_stops", 0, 1, "unplanned_stops"),
        ("stability.longest_recovery_s", 600.0, 601.0, "recovery"),
        ("security.plaintext_keys_in_logs", 0, 1, "keys_in_logs"),
        ("security.unauthenticated_successes", 0, 1, "unauthenticated"),
        ("gate.gateway.chat_stream", True, False, "chat_gates"),
        ("gate.gateway.no_key", True, False, "responses_gates"),
    ],
)
def test_the_built_in_thresholds_are_the_seeds(figure_id: str, good: Any, bad: Any, criterion: str) -> None:
    """Each limit of the seed's table, on its edge and just beyond."""
    assert outcome(with_value(good_figures(), figure_id, good), criterion) == "pass"
    assert outcome(with_value(good_figures(), figure_id, bad), criterion) == "fail"


def test_every_cell_needs_its_successes() -> None:
    """Times over a few successes do not pass: each cell that was measured has nine in ten, however few requests."""
    bad = Figure(id="bench.gateway.closed.p1.t1024.success_rate", value=0.15, unit="share", n=10)
    figures = good_figures().with_([bad])
    assert outcome(figures, "success_everywhere") == "fail"
    assert outcome(figures, "parallel_success") == "pass"
    assert card(figures).verdict.decision == "reject"
    assert outcome(good_figures().with_([msgspec.structs.replace(bad, value=0.9)]), "success_everywhere") == "pass"


def test_the_real_codex_counts_before_requests_in_its_shape() -> None:
    """Where the Codex CLI ran, its share of completed tasks decides."""
    codex = Figure(id="codex.completed", value=0.5, unit="share", n=20)
    assert outcome(good_figures().with_([codex]), "codex_completed") == "fail"


def test_profiles_differ_in_cold_start_and_decode_rate() -> None:
    """Two A40 have 20 s and 6 tokens a second where an A100 has 15 s and 10."""
    figures = with_value(good_figures(), "cold.ttfb_s", 19.0)
    figures = with_value(figures, "bench.engine.closed.p1.t256.tok_s_median", 7.0)
    assert [outcome(figures, name) for name in ("cold_first_byte", "decode_rate")] == ["fail", "fail"]
    assert [outcome(figures, name, "a40x2") for name in ("cold_first_byte", "decode_rate")] == ["pass", "pass"]
    assert card(figures, "a40x2").verdict.decision == "adopt"


def test_too_few_observations_leave_it_open() -> None:
    """29 conversations decide nothing, however good or bad; a count beyond its limit is decided at once."""
    for value in (1.0, 0.0):
        few = with_value(good_figures(), "continuity.chat.rate", value, n=29)
        assert outcome(few, "chat_continuity") == "open"
    assert outcome(with_value(good_figures(), "continuity.chat.rate", 1.0, n=None), "chat_continuity") == "open"
    assert outcome(with_value(good_figures(), "stability.unplanned_stops", 0, n=4), "unplanned_stops") == "open"
    assert outcome(with_value(good_figures(), "stability.unplanned_stops", 1, n=4), "unplanned_stops") == "fail"


def test_the_worst_of_several_decides_and_each_must_be_there() -> None:
    """Braces want every cell: a missing one is open, a bad one fails; the one told is the worst."""
    figures = with_value(good_figures(), "bench.gateway.closed.p2.t256.ttfb_p95_s", 9.0)
    figures = with_value(figures, "bench.gateway.closed.p3.t1024.ttfb_p95_s", 11.0)
    result = next(r for r in card(figures).results if r.criterion.id == "first_byte")
    assert result.outcome == "fail"
    assert result.figure is not None
    assert result.figure.id == "bench.gateway.closed.p3.t1024.ttfb_p95_s"
    assert "11 s" in result.reason[0]
    without = Figures(tuple(f for f in good_figures().all if f.id != "bench.gateway.closed.p2.t256.ttfb_p95_s"))
    result = next(r for r in card(without).results if r.criterion.id == "first_byte")
    assert (result.outcome, result.missing) == ("open", ("bench.gateway.closed.p2.t256.ttfb_p95_s",))


def test_the_public_address_counts_before_the_gateway() -> None:
    """Where the public address was measured, it decides, for good and for bad."""
    cells = [f for f in good_figures().all if f.id.startswith("bench.gateway.") and f.id.endswith("ttfb_p95_s")]
    public = [msgspec.structs.replace(f, id=f.id.replace("gateway", "public"), value=9.0) for f in cells]
    assert outcome(good_figures().with_(public), "first_byte") == "fail"
    assert outcome(good_figures().with_(public[1:]), "first_byte") == "fail"
    better = [msgspec.structs.replace(f, value=1.0) for f in public]
    assert outcome(good_figures().with_(better[1:]), "first_byte") == "open"


# --- certainty ------------------------------------------------------------------------------------------------------


def with_interval(value: float, low: float | None, high: float | None, missing: str = "") -> Figures:
    interval = None if low is None or high is None else Interval(low, high, "wilson")
    return with_value(good_figures(), "continuity.chat.rate", value, interval=interval, interval_missing=missing)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected", "certain"),
    [
        (0.99, 0.95, 1.0, "pass", True),
        (0.97, 0.90, 0.99, "pass", False),
        (0.90, 0.80, 0.94, "fail", True),
        (0.90, 0.80, 0.95, "fail", False),
        (0.99, None, None, "pass", False),
    ],
)
def test_an_interval_across_the_threshold_is_not_certain(
    value: float, low: float | None, high: float | None, expected: Outcome, certain: bool
) -> None:
    """The outcome follows the value; that it could be otherwise is told beside it, and with the verdict."""
    found = card(with_interval(value, low, high, "" if low is not None else "fewer than 72"))
    result = next(r for r in found.results if r.criterion.id == "chat_continuity")
    assert (result.outcome, result.certain) == (expected, certain)
    assert found.verdict.certain is certain


def test_one_certain_failure_makes_the_failure_certain() -> None:
    """A second, doubtful one takes nothing away."""
    figures = with_interval(0.90, 0.80, 0.96)
    assert not card(figures).verdict.certain
    assert card(with_value(figures, "ui.fatal_errors", 1)).verdict.certain


# --- properties -----------------------------------------------------------------------------------------------------

_RANK: dict[Outcome, int] = {"fail": 0, "open": 1, "pass": 2}
_BETTER_IS_MORE = ("rate", "agreement", "tok_s_median", "chains", "completed")
_IDS = [figure.id for figure in good_figures().all]
_values = st.one_of(
    st.none(), st.integers(0, 40), st.floats(0, 40), st.floats(0, 1), st.sampled_from([float("inf"), float("nan")])
)


@st.composite
def any_figures(draw: st.DrawFn) -> Figures:
    """The good ones with some of them taken away or changed."""
    figures = good_figures()
    for figure_id in draw(st.lists(st.sampled_from(_IDS), max_size=8)):
        old = figures.get(figure_id)
        if old is None or draw(st.booleans()):
            figures = Figures(tuple(each for each in figures.all if each.id != figure_id))
        else:
            value: Any = draw(st.booleans()) if isinstance(old.value, bool) else draw(_values)
            n = draw(st.one_of(st.none(), st.integers(0, 60)))
            figures = figures.with_([msgspec.structs.replace(old, value=value, n=n)])
    return figures


@given(any_figures(), st.sampled_from(["a", "b"]), st.booleans())
def test_an_open_criterion_more_never_adopts(figures: Figures, pattern: Any, both: bool) -> None:
    """Whatever the figures: one more threshold that nothing was measured for never makes a verdict better."""
    more = Criterion(
        id="more",
        figures=("never.measured",),
        operator="at_least",
        value=1.0,
        patterns=("a", "b") if both else (pattern,),
        name=("more", "more"),
        when_failed=("", ""),
        when_open=("", ""),
    )
    before = rules()
    after = msgspec.structs.replace(before, criteria=(*before.criteria, more))
    was, now = score(figures, before).verdict, score(figures, after).verdict
    assert now.decision != "adopt"
    assert _RANK[now.a] <= _RANK[was.a]
    assert _RANK[now.b] <= _RANK[was.b]


@given(any_figures(), st.sampled_from(_IDS), st.floats(0, 50))
def test_a_better_figure_never_makes_a_verdict_worse(figures: Figures, figure_id: str, by: float) -> None:
    """Improve one measured value: neither pattern falls, so `adopt` stays and nothing becomes `reject`."""
    old = figures.get(figure_id)
    if old is None or old.value is None:
        return
    if isinstance(old.value, bool):
        value: Any = True
    else:
        value = old.value + by if figure_id.endswith(_BETTER_IS_MORE) else max(0.0, old.value - by)
        if old.unit == "share":
            value = min(value, max(1.0, old.value))
    was, now = card(figures).verdict, card(with_value(figures, figure_id, value)).verdict
    assert _RANK[now.a] >= _RANK[was.a]
    assert _RANK[now.b] >= _RANK[was.b]
    assert was.decision != "adopt" or now.decision == "adopt"
    assert was.decision == "reject" or now.decision != "reject"


@given(any_figures())
def test_a_scorecard_goes_through_json(figures: Figures) -> None:
    """What is written into the run's folder is read back as it was."""
    found = score(figures, rules())
    again = msgspec.json.decode(msgspec.json.encode(found), type=Scorecard)
    assert msgspec.json.encode(again) == msgspec.json.encode(found)


# --- small things ---------------------------------------------------------------------------------------------------


def test_expanding_and_words() -> None:
    """Braces multiply; thresholds and values are told in their unit."""
    assert expand("p{1,2}.t{a,b}.x") == ("p1.ta.x", "p1.tb.x", "p2.ta.x", "p2.tb.x")
    by_id = {criterion.id: criterion for criterion in rules().criteria}
    assert bound(by_id["chat_continuity"], "share") == ("at least 95 %", "95 % 以上")
    assert bound(by_id["cold_first_byte"], "s") == ("at most 15 s", "15 s 以下")
    assert bound(by_id["responses_chains"], "count") == ("at least all of them", "全件 以上")
    assert bound(by_id["chat_gates"]) == ("yes", "はい")
    assert [shown(v, u) for v, u in ((0.985, "share"), (8.25, "s"), (True, ""), (None, "s"), (123456, "count"))] == [
        "98.5 %",
        "8.25 s",
        "yes",
        "—",
        "123,456",
    ]


def test_a_star_stays_within_its_dot() -> None:
    """`bench.*.crashes` is about places, not about anything deeper; where one place has a value, others need none."""
    criterion = msgspec.structs.replace(
        rules().criteria[0], figures=("bench.*.crashes",), operator="at_most", value=0.0
    )
    deep = Figures((Figure(id="bench.engine.closed.crashes", value=9, unit="count"),))
    assert judge(criterion, deep).outcome == "open"
    two = Figures(
        tuple(Figure(id=f"bench.{place}.crashes", value=v, unit="count") for place, v in (("a", 0), ("b", 2)))
    )
    assert judge(criterion, two).outcome == "fail"


def test_a_threshold_of_the_wrong_kind_is_open() -> None:
    """Yes and no are not compared with numbers, nor a share with a percentage that somebody wrote as 95."""
    by_id = {criterion.id: criterion for criterion in rules().criteria}
    yes = Figures((Figure(id="continuity.chat.rate", value=True, unit="share", n=30),))
    assert judge(by_id["chat_continuity"], yes).outcome == "open"
    percent = msgspec.structs.replace(by_id["chat_continuity"], operator="at_most", value=95.0)
    assert judge(percent, good_figures()).outcome == "open"


def test_a_pattern_without_criteria_is_open() -> None:
    """Thresholds that say nothing of Codex do not make Codex pass."""
    only_a = tuple(msgspec.structs.replace(c, patterns=("a",)) for c in rules().criteria if "a" in c.patterns)
    verdict = decide(tuple(judge(criterion, good_figures()) for criterion in only_a))
    assert (verdict.decision, verdict.a, verdict.b) == ("undecided", "pass", "open")


def test_notes_stand_above_the_table() -> None:
    """Thresholds that were not approved, changed, or set on this very run are told, and what was left out."""
    left_out = msgspec.structs.replace(rules(), left_out=("quality",))
    texts = [note[0] for note in score(good_figures(), left_out).notes]
    assert any("have not been approved" in text for text in texts)
    assert any("quality" in text for text in texts)
    approved = ApprovalState(status="approved", run_id="run_1", alone="nobody else here")
    texts = [note[0] for note in score(good_figures(), rules(), approved, None, "run_1").notes]
    assert any("this very run" in text for text in texts)
    assert any("nobody else here" in text for text in texts)
    assert not score(good_figures(), rules(), ApprovalState(status="approved"), None, "run_1").notes
