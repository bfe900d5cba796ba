"""What the tuner's reasons are in JSON, in English and in Japanese."""

from string import Formatter
from typing import get_args, get_type_hints

import msgspec
import pytest

from sekisho.control import tuner_reasons as reasons
from sekisho.control.measured import FIGURES, LESS_IS_BETTER
from sekisho.control.tuner_reasons import Dropped, Reason, Why
from sekisho.control.tuner_target import Goal
from sekisho.control.tuner_words import SEVERAL, WORDS, Words, told

KINDS = tuple(Reason.__subclasses__())
GOALS = (Goal("contexts", times=3), Goal("first_token_ms", value=500))
SENTENCES: tuple[tuple[Reason, str, str], ...] = (
    (reasons.QualityNotMeasured(), "quality was not measured", "品質を計測できません"),
    (
        reasons.QualityNotMeasured(("no text", "no file")),
        "quality was not measured; no text; no file",
        "品質を計測できません: no text; no file",
    ),
    (
        reasons.QualityOverLimit(3.14159, 0.5),
        "quality: perplexity rises by 3.14, more than 0.5",
        "品質: パープレキシティが 3.14 増え、上限 0.5 を超えます",
    ),
    (reasons.MemoryNotMeasured(), "memory was not measured", "メモリを計測できません"),
    (
        reasons.MemoryOverLimit(4096, 1024),
        "memory: 4096 bytes, more than 1024",
        "メモリ: 4096 バイトで、上限 1024 を超えます",
    ),
    (reasons.PrefillNotMeasured(), "prefill was not measured", "読込速度を計測できません"),
    (
        reasons.PrefillOverLimit(4.567, 1.2),
        "prefill: 4.57 times as long, more than 1.2",
        "読込: 4.57 倍の時間がかかり、上限 1.2 を超えます",
    ),
    (
        reasons.TimeRanOut(59.7),
        "did not end within the 60 s that were left",
        "残り 60 秒では終わりませんでした",
    ),
    (reasons.NotMeasured("no {answer}"), "measurement failed: no {answer}", "計測に失敗: no {answer}"),
    (
        reasons.NotMeasured(reasons.TimeRanOut(1)),
        "measurement failed: did not end within the 1 s that were left",
        "計測に失敗: 残り 1 秒では終わりませんでした",
    ),
    (
        reasons.FiguresNotMeasured(("contexts", "kv_bytes")),
        "contexts, kv_bytes: not measured",
        "contexts、kv_bytes: 計測できません",
    ),
    (
        reasons.NoBudgetLeft(),
        "no budget to measure it on; ranked behind those that went on",
        "予算内では続けられず、残った候補より下位でした",
    ),
    (
        reasons.Worse("kv=q8_0", 0.25, 0.1),
        "worse than kv=q8_0: score 0.250 behind, noise 0.100",
        "kv=q8_0 に劣る: スコア差 0.250（ばらつき 0.100）",
    ),
    (
        reasons.NeverBesideBaseline(),
        "never measured in a whole round with the baseline",
        "基準と同じ巡で計測し終えていません",
    ),
    (reasons.NotBetter(), "not better than the baseline", "基準より良くありません"),
    (
        reasons.Outranked("kv=q8_0", 0.25),
        "ranked behind kv=q8_0: score 0.250 behind, which may be noise",
        "kv=q8_0 より下位: スコア差 0.250（ばらつきの可能性）",
    ),
    (
        reasons.NotCompared("B: it died"),
        "could not be compared with the baseline: B: it died",
        "基準と比べられません: B: it died",
    ),
    (
        reasons.CrossedAgain(reasons.MemoryOverLimit(2, 1)),
        "when compared with the baseline again, memory: 2 bytes, more than 1",
        "基準との再比較で、メモリ: 2 バイトで、上限 1 を超えます",
    ),
    (
        reasons.BaselineNotMeasured("it died"),
        "the baseline could not be measured: it died",
        "基準を計測できませんでした: it died",
    ),
    (
        reasons.BudgetEnded(),
        "the budget ended before a candidate was measured beside the baseline",
        "候補を基準と並べて計測する前に予算が尽きました",
    ),
    (reasons.Stopped(7), "stopped after 7 measurements", "7 回の計測後に中断しました"),
    (
        reasons.NoneBetter(),
        "no candidate was better than the baseline within the limits",
        "制限内で基準より良い候補はありませんでした",
    ),
    (
        reasons.TooFewPairs("kv=q8_0", 3, 6),
        "kv=q8_0 was best, but 3 pairs with the baseline are too few for an interval: 6 are needed",
        "kv=q8_0 が最良ですが、基準との組が 3 では区間を出せません（6 必要）",
    ),
    (
        reasons.LeadMayBeNoise("kv=q8_0", "contexts", 1.25, 6),
        "kv=q8_0 was best, but its lead over the baseline may be noise: contexts x 1.250 in 6 pairs with the baseline",
        "kv=q8_0 が最良ですが、基準との差はばらつきかもしれません: contexts は 6 組で 1.250 倍",
    ),
    (
        reasons.Better("kv=q8_0", "contexts", 1.25, 6),
        "kv=q8_0: contexts x 1.250 in 6 pairs with the baseline",
        "kv=q8_0: 基準との 6 組で contexts が 1.250 倍",
    ),
    (
        reasons.Better("kv=q8_0", "contexts", 1.25, 6, GOALS),
        "kv=q8_0: contexts x 1.250 in 6 pairs with the baseline; "
        "reaches contexts at least 3 x the baseline, first_token_ms at most 500",
        "kv=q8_0: 基準との 6 組で contexts が 1.250 倍。"
        "目標を達成: contexts: 基準の 3 倍以上、first_token_ms: 500 以下",
    ),
    (
        reasons.Better("kv=q8_0", "decode_tokens_per_s", 0.9, 6, nearer=GOALS[:1]),
        "kv=q8_0: decode_tokens_per_s x 0.900 in 6 pairs with the baseline; "
        "misses by less than the baseline contexts at least 3 x the baseline",
        "kv=q8_0: 基準との 6 組で decode_tokens_per_s が 0.900 倍。"
        "未達ながら基準より近い目標: contexts: 基準の 3 倍以上",
    ),
)


def named(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_words_in_both_languages_that_use_each_field_once(kind: type[Reason]) -> None:
    """And a sentence below, so that a kind that is added is read by somebody."""
    for words in WORDS[kind]:
        assert named(words) == sorted(kind.__struct_fields__)
    assert WORDS[kind][0] != WORDS[kind][1]
    assert kind in {type(said) for said, _, _ in SENTENCES}


def test_every_kind_can_stand_in_a_report() -> None:
    """As what became of a candidate, as an outcome's reason, or as a measurement's fault; no word is of nothing."""
    assert {*get_args(Dropped), *get_args(Why), reasons.TimeRanOut} == set(KINDS) == set(WORDS)


def test_fields_of_several_values_have_words_of_their_own() -> None:
    several = {
        name
        for kind in KINDS
        for name, hint in get_type_hints(kind).items()
        if getattr(hint, "__origin__", hint) is tuple
    }
    assert several == set(SEVERAL)


@pytest.mark.parametrize(("said", "english", "japanese"), SENTENCES)
def test_reasons_are_put_into_words(said: Reason, english: str, japanese: str) -> None:
    """Numbers short, a reason within a reason in the same language, and an engine's own words untouched."""
    assert told(said) == told(said, "en") == english
    assert told(said, "ja") == japanese


@pytest.mark.parametrize("said", [said for said, _, _ in SENTENCES])
def test_a_reason_goes_through_json_by_its_kind(said: Reason) -> None:
    data = msgspec.json.encode(said)
    assert msgspec.json.decode(data, type=Dropped | Why | reasons.TimeRanOut) == said
    assert msgspec.json.decode(data)["kind"] == type(said).__struct_config__.tag


def test_kinds_are_spelt_with_underscores() -> None:
    assert msgspec.to_builtins(reasons.CrossedAgain(reasons.MemoryOverLimit(2, 1))) == {
        "kind": "crossed_again",
        "limit": {"kind": "memory_over_limit", "memory_bytes": 2, "max_memory_bytes": 1},
    }


@pytest.mark.parametrize("figure", FIGURES)
def test_goals_say_which_way_is_better(figure: str) -> None:
    """A value or a multiple, at most where less is better, else at least."""
    bound: Words = ("at most", "以下") if figure in LESS_IS_BETTER else ("at least", "以上")
    value, times = Goal(figure, value=1.5), Goal(figure, times=3)  # type: ignore[arg-type]
    assert (told(value), told(value, "ja")) == (f"{figure} {bound[0]} 1.5", f"{figure}: 1.5 {bound[1]}")
    assert told(times) == f"{figure} {bound[0]} 3 x the baseline"
    assert told(times, "ja") == f"{figure}: 基準の 3 倍{bound[1]}"
