"""The tuner's reasons and goals in English and Japanese, for every report of it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from sekisho.control import tuner_reasons as reasons
from sekisho.control.measured import LESS_IS_BETTER
from sekisho.control.tuner_reasons import Reason
from sekisho.control.tuner_target import Goal

Language = Literal["en", "ja"]
Words = tuple[str, str]
"""English, Japanese."""

WORDS: Final[Mapping[type[Reason], Words]] = MappingProxyType(
    {
        reasons.QualityNotMeasured: ("quality was not measured{notes}", "品質を計測できません{notes}"),
        reasons.QualityOverLimit: (
            "quality: perplexity rises by {delta_ppl:.3g}, more than {max_delta_ppl:g}",
            "品質: パープレキシティが {delta_ppl:.3g} 増え、上限 {max_delta_ppl:g} を超えます",
        ),
        reasons.MemoryNotMeasured: ("memory was not measured", "メモリを計測できません"),
        reasons.MemoryOverLimit: (
            "memory: {memory_bytes} bytes, more than {max_memory_bytes}",
            "メモリ: {memory_bytes} バイトで、上限 {max_memory_bytes} を超えます",
        ),
        reasons.PrefillNotMeasured: ("prefill was not measured", "読込速度を計測できません"),
        reasons.PrefillOverLimit: (
            "prefill: {slowdown:.2f} times as long, more than {max_slowdown:g}",
            "読込: {slowdown:.2f} 倍の時間がかかり、上限 {max_slowdown:g} を超えます",
        ),
        reasons.TimeRanOut: (
            "did not end within the {left_s:.0f} s that were left",
            "残り {left_s:.0f} 秒では終わりませんでした",
        ),
        reasons.NotMeasured: ("measurement failed: {fault}", "計測に失敗: {fault}"),
        reasons.FiguresNotMeasured: ("{figures}: not measured", "{figures}: 計測できません"),
        reasons.NoBudgetLeft: (
            "no budget to measure it on; ranked behind those that went on",
            "予算内では続けられず、残った候補より下位でした",
        ),
        reasons.Worse: (
            "worse than {than}: score {score_behind:.3f} behind, noise {noise_margin:.3f}",
            "{than} に劣る: スコア差 {score_behind:.3f}（ばらつき {noise_margin:.3f}）",
        ),
        reasons.NeverBesideBaseline: (
            "never measured in a whole round with the baseline",
            "基準と同じ巡で計測し終えていません",
        ),
        reasons.NotBetter: ("not better than the baseline", "基準より良くありません"),
        reasons.Outranked: (
            "ranked behind {by}: score {score_behind:.3f} behind, which may be noise",
            "{by} より下位: スコア差 {score_behind:.3f}（ばらつきの可能性）",
        ),
        reasons.NotCompared: ("could not be compared with the baseline: {fault}", "基準と比べられません: {fault}"),
        reasons.CrossedAgain: ("when compared with the baseline again, {limit}", "基準との再比較で、{limit}"),
        reasons.BaselineNotMeasured: (
            "the baseline could not be measured: {fault}",
            "基準を計測できませんでした: {fault}",
        ),
        reasons.BudgetEnded: (
            "the budget ended before a candidate was measured beside the baseline",
            "候補を基準と並べて計測する前に予算が尽きました",
        ),
        reasons.Stopped: ("stopped after {measurements} measurements", "{measurements} 回の計測後に中断しました"),
        reasons.NoneBetter: (
            "no candidate was better than the baseline within the limits",
            "制限内で基準より良い候補はありませんでした",
        ),
        reasons.TooFewPairs: (
            "{best} was best, but {pairs} pairs with the baseline are too few for an interval: "
            "{needed_pairs} are needed",
            "{best} が最良ですが、基準との組が {pairs} では区間を出せません（{needed_pairs} 必要）",
        ),
        reasons.LeadMayBeNoise: (
            "{best} was best, but its lead over the baseline may be noise: "
            "{figure} x {times:.3f} in {pairs} pairs with the baseline",
            "{best} が最良ですが、基準との差はばらつきかもしれません: {figure} は {pairs} 組で {times:.3f} 倍",
        ),
        reasons.Better: (
            "{winner}: {figure} x {times:.3f} in {pairs} pairs with the baseline{reached}{nearer}",
            "{winner}: 基準との {pairs} 組で {figure} が {times:.3f} 倍{reached}{nearer}",
        ),
    }
)
SEVERAL: Final[Mapping[str, tuple[Words, Words]]] = MappingProxyType(
    {
        "figures": (("", ""), (", ", "、")),
        "notes": (("; ", ": "), ("; ", "; ")),
        "reached": (("; reaches ", "。目標を達成: "), (", ", "、")),
        "nearer": (("; misses by less than the baseline ", "。未達ながら基準より近い目標: "), (", ", "、")),
    }
)
"""Fields with any number of values: what stands before them, where there are any, and between two."""

_GOALS: Final[Mapping[tuple[str, str], Words]] = MappingProxyType(
    {
        ("at least", "value"): ("{figure} at least {value:g}", "{figure}: {value:g} 以上"),
        ("at least", "times"): ("{figure} at least {times:g} x the baseline", "{figure}: 基準の {times:g} 倍以上"),
        ("at most", "value"): ("{figure} at most {value:g}", "{figure}: {value:g} 以下"),
        ("at most", "times"): ("{figure} at most {times:g} x the baseline", "{figure}: 基準の {times:g} 倍以下"),
    }
)


def told(said: Reason | Goal, language: Language = "en") -> str:
    """One sentence, without a full stop."""
    fields = {name: _field(name, getattr(said, name), language) for name in said.__struct_fields__}
    return _pick(_words(said), language).format(**fields)


def _words(said: Reason | Goal) -> Words:
    if isinstance(said, Reason):
        return WORDS[type(said)]
    bound = "at most" if said.figure in LESS_IS_BETTER else "at least"
    return _GOALS[bound, "times" if said.value is None else "value"]


def _field(name: str, value: object, language: Language) -> object:
    if isinstance(value, tuple):
        before, between = SEVERAL[name]
        each_told = (str(_field(name, each, language)) for each in value)
        return _pick(before, language) + _pick(between, language).join(each_told) if value else ""
    return told(value, language) if isinstance(value, Reason | Goal) else value


def _pick(words: Words, language: Language) -> str:
    return words[0] if language == "en" else words[1]
