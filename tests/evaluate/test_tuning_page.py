"""The pages of `sekisho policy tune`, `compare` and `ablate`, and their words."""

import asyncio
import html
from random import Random
from xml.etree import ElementTree

import msgspec
import pytest

from sekisho.control.comparison import Comparison, ComparisonPlan, OutOfBudget, compare
from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.policy import KvSection, Policy
from sekisho.control.trial_engine import TrialPlan
from sekisho.control.tuner import tune
from sekisho.control.tuner_limits import Budget, Limits
from sekisho.control.tuner_report import TuningReport
from sekisho.control.tuner_space import Axis, Space
from sekisho.control.tuner_target import Goal, Target
from sekisho.control.tuner_words import told
from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.evaluate.ablation_run import Ablation, AblationPlan, Part, ablate
from sekisho.evaluate.definitions import LANGUAGES, Language
from sekisho.evaluate.environment import Section
from sekisho.evaluate.report import tuning_tables
from sekisho.evaluate.report.tuning_page import field, render
from sekisho.evaluate.report.tuning_words import WORDS
from sekisho.evaluate.tuning_record import Side, TuningRecord

SPEED = {None: 10.0, "q8_0": 14.0, "q4_0": 12.0, "q5_0": 20.0}
TYPES = ("q8_0", "q5_0", "q4_0", "q5_1")
TARGET = Target("decode_tokens_per_s", (Goal("contexts", times=9), Goal("first_token_ms", value=5)))


async def measure(policy: Policy, effort: float) -> Measured:
    kind = policy.kv.key_type
    if kind == "q5_1":
        raise MeasurementFailed("the worker <ended>")
    return Measured(
        decode_tokens_per_s=SPEED[kind],
        prefill_tokens_per_s=100.0 if kind != "q4_0" else 10.0,
        first_token_ms=50.0,
        memory_bytes=2**20 * 300,
        kv_bytes=2**20 * 36,
        contexts=4 if kind is None else 7,
        delta_ppl=3.0 if kind == "q5_0" else 0.1,
    )


def tuned() -> TuningReport:
    space = Space(Policy(), [Axis("kv", {kind: {"kv": {"key_type": kind}} for kind in TYPES})])
    return asyncio.run(tune(space, measure, TARGET, Limits(), Budget(60, 1e6), Random(1), ManualClock()))


def compared() -> Comparison:
    return asyncio.run(compare(Policy(), Policy(kv=KvSection(key_type="q8_0")), measure, ComparisonPlan(), Random(1)))


def ablated() -> Ablation:
    parts = [Part(name, {"kv": {field: value}}) for name, field, value in _PARTS]
    return asyncio.run(ablate(Policy(), parts, measure, AblationPlan()))


_PARTS = (("<kv8>", "key_type", "q8_0"), ("window", "recent_window", 128))


def record(**parts: object) -> TuningRecord:
    plain = {
        "made_at": "2026-11-28T06:00:00Z",
        "command": "sekisho policy tune --model '<b>'",
        "model": ModelConfig("<b>mine</b>", path="builtin"),
        "plan": TrialPlan(),
        "notes": ("the server <runs>",),
        "environment": (Section(("Machine", "マシン"), (("processor", "x"),)),),
    }
    return TuningRecord(**(plain | parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tuning_is_told_whole(language: Language) -> None:
    """The winner with its gain, every candidate with its figures and what became of it, the goals that it misses; what
    comes from outside is text."""
    report = tuned()
    page = render(record(tuning=report), language)
    assert report.outcome == "better"
    for words in ("kv=q8_0", "kv=q5_1", "× 1.400", "&lt;b&gt;mine", "&lt;ended&gt;", "&lt;runs&gt;", "<svg"):
        assert words in page
    for words in ("<b>mine", "<ended>", "<runs>"):
        assert words not in page
    fates = {each.name: tuning_tables.fate(each, report, language) for each in tuning_tables.candidates(report)}
    if language == "ja":
        assert fates["baseline"] == "基準"
        assert fates["kv=q8_0"] == "採用"
        assert "上限 0.5 を超えます" in fates["kv=q5_0"]
        assert "倍の時間" in fates["kv=q4_0"]
        assert fates["kv=q5_1"] == "計測に失敗: the worker <ended>"
        assert "未達: contexts: 基準の 9 倍以上" in page
        assert "未達: first_token_ms: 5 以下" in page
    else:
        assert fates["kv=q8_0"] == "the winner"
        assert "Not reached: contexts at least 9 x the baseline" in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_comparison_and_an_ablation_are_told_whole(language: Language) -> None:
    """Ratios with exact intervals, the sides by their names; effects of each part and of both together."""
    sides = (Side("current", {}, {}), Side("<kv8>", {}, {}))
    page = render(record(comparison=compared(), sides=sides), language)
    for words in (
        "A: current",
        "B: &lt;kv8&gt;",
        "× 1.400",
        "1.400 – 1.400",
        WORDS["contexts"][LANGUAGES.index(language)],
    ):
        assert words in page
    page = render(record(ablation=ablated()), language)
    for words in ("&lt;kv8&gt; × window", "× 1.400", "A × B"):
        assert words in page
    assert "<kv8>" not in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_picture_is_well_formed(language: Language) -> None:
    """Baseline, winner and those that were dropped, each a family; a report without figures says so."""
    report = tuned()
    tree = ElementTree.fromstring(field(report, language))
    told = [node.text or "" for node in tree.iter() if node.tag.endswith("title")]
    assert any("kv=q8_0: 7, 14.0 tok/s" in each for each in told)
    legend = [node.text for node in tree.iter() if node.get("class") == "legend"]
    assert legend == [WORDS[name][LANGUAGES.index(language)] for name in ("baseline", "winner", "rejected")]
    empty = msgspec.structs.replace(report.baseline, observations=())
    nothing = msgspec.structs.replace(report, baseline=empty, tried=())
    assert ElementTree.fromstring(field(nothing, language)) is not None


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reason_is_the_same_on_the_page_and_in_its_words(language: Language) -> None:
    """Whatever the tuner says in short and long searches: the outcome's reason first, and each candidate's."""
    kinds = set[str]()
    for measurements in (16, 20, 60):
        for seconds in (1.0, 40.0, 1e6):
            clock = ManualClock()

            async def timed(policy: Policy, effort: float, clock: ManualClock = clock) -> Measured:
                clock.advance(2.0 * effort)
                return await measure(policy, effort)

            space = Space(Policy(), [Axis("kv", {kind: {"kv": {"key_type": kind}} for kind in TYPES})])
            work = tune(space, timed, TARGET, Limits(), Budget(measurements, seconds), Random(2), clock)
            report = asyncio.run(work)
            page = html.unescape(render(record(tuning=report), language))
            for said in (report.why, *(each.dropped for each in report.tried if each.dropped is not None)):
                assert told(said, language) in page
                kinds.add(type(said).__name__)
    assert len(kinds) > 6


def test_an_ablation_that_is_stopped_keeps_its_whole_rounds() -> None:
    """And says that it was stopped."""
    left = 9

    async def until_then(policy: Policy, effort: float) -> Measured:
        nonlocal left
        left -= 1
        if left < 0:
            raise OutOfBudget("stopped")
        return await measure(policy, effort)

    parts = [Part(name, {"kv": {field: value}}) for name, field, value in _PARTS]
    found = asyncio.run(ablate(Policy(), parts, until_then, AblationPlan()))
    assert (found.rounds, found.stopped) == (2, "stopped")
