"""Words of the reports on tuning, in both languages, and what the tuner says put into Japanese."""

import re
from typing import Final

from sekisho.evaluate.definitions import Language, Words, pick

WORDS: Final[dict[str, Words]] = {
    "tuning": ("Policies tuned", "方針の調整"),
    "comparison": ("Two policies compared", "二つの方針の比較"),
    "ablation": ("Parts of a policy, on and off", "方針の要素の有無"),
    "policy": ("policy", "方針"),
    "contexts": ("contexts", "同時数"),
    "decode_tokens_per_s": ("decode tok/s", "生成 /s"),
    "prefill_tokens_per_s": ("prefill tok/s", "読込 /s"),
    "first_token_ms": ("first token ms", "初回応答 ms"),
    "kv_bytes": ("KV MiB", "KV MiB"),
    "memory_bytes": ("RAM MiB", "RAM MiB"),
    "delta_ppl": ("ΔPPL", "ΔPPL"),
    "fate": ("what became of it", "結果"),
    "baseline": ("the baseline", "基準"),
    "winner": ("the winner", "採用"),
    "best": ("the best, not confirmed", "最良（未確認）"),
    "rejected": ("dropped", "除外"),
    "better": ("better", "改善あり"),
    "nothing better": ("nothing better", "改善なし"),
    "not distinguishable": ("not distinguishable", "差は判別できず"),
    "not measured": ("not measured", "計測できず"),
    "stopped": ("stopped", "中断"),
    "more": ("more", "増加"),
    "less": ("less", "減少"),
    "too few blocks": ("too few blocks", "ブロック不足"),
    "figure": ("figure", "指標"),
    "ratio": ("ratio", "比"),
    "interval": ("95 % interval", "95 % 区間"),
    "verdict": ("verdict", "判定"),
    "blocks": ("blocks", "ブロック"),
    "over_blocks": ("medians of {blocks} blocks", "{blocks} ブロックの中央値"),
    "parts": ("parts that are on", "有効な要素"),
    "effect": ("effect", "効果"),
    "p_value": ("p (Holm)", "p 値（Holm）"),
    "together": (
        "A × B: what both bring together beyond what each brings alone (1: nothing)",
        "A × B: それぞれの効果を超える相乗効果（1 はなし）",
    ),
    "gain": ("The winner against the baseline, measured afresh", "採用した方針と基準の再計測"),
    "ratios": ("B against A", "A に対する B"),
    "field": ("Tokens a second against contexts at once", "同時に扱える文脈の数と生成速度"),
    "across": ("contexts at once", "同時に扱える文脈の数"),
    "up": ("decode, tokens a second of all together", "生成速度（全体、トークン/秒）"),
    "tried": ("Every policy that was tried", "試した方針"),
    "measured": ("Medians", "中央値"),
    "why": ("Why", "理由"),
    "missed": ("Not reached: {goal}", "未達: {goal}"),
    "noise": ("noise of scores: {each}", "スコアのばらつき: {each}"),
    "at_effort": ("{sd} at effort {effort}", "労力 {effort} で {sd}"),
    "spent": (
        "{measurements} measurements in {seconds} s; {untried} combinations not tried",
        "{seconds} 秒で {measurements} 回計測、未試行 {untried} 通り",
    ),
    "extent": (
        "{share} {count} combinations of {parts} parts in {rounds} rounds",
        "{parts} 要素 {count} 通り{share}を {rounds} 巡",
    ),
    "all": ("all", "すべて"),
    "half": ("half of all", "の半分"),
    "left_out": ("left out: {fault}", "除外: {fault}"),
    "notes": ("To know", "注意"),
    "environment": ("Where and how", "環境と条件"),
    "made_at": ("measured at", "計測日時"),
    "command": ("command", "コマンド"),
    "slower": ("less", "減少"),
    "faster": ("more", "増加"),
}
_JAPANESE: Final[tuple[tuple[str, str], ...]] = (
    (r"when compared with the baseline again, (.*)", r"基準との再比較で、{1}"),
    (r"measurement failed: (.*)", r"計測に失敗: \1"),
    (r"could not be compared with the baseline: (.*)", r"基準と比べられません: \1"),
    (r"quality was not measured(?:; )?(.*)", r"品質を計測できません \1"),
    (r"quality: perplexity rises by (\S+), more than (\S+)", r"品質: パープレキシティが \1 増え、上限 \2 を超えます"),
    (r"memory was not measured", r"メモリを計測できません"),
    (r"memory: (\d+) bytes, more than (\d+)", r"メモリ: \1 バイトで、上限 \2 を超えます"),
    (r"prefill was not measured", r"読込速度を計測できません"),
    (r"prefill: (\S+) times as long, more than (\S+)", r"読込: \1 倍の時間がかかり、上限 \2 を超えます"),
    (r"(.+): not measured", r"\1: 計測できません"),
    (
        r"no budget to measure it on; ranked behind those that went on",
        r"予算内では続けられず、残った候補より下位でした",
    ),
    (r"worse than (.+): score (\S+) behind, noise (\S+)", r"\1 に劣る: スコア差 \2（ばらつき \3）"),
    (
        r"never measured in a whole round with the baseline",
        r"基準と同じ巡で計測し終えていません",
    ),
    (r"not better than the baseline", r"基準より良くありません"),
    (r"ranked behind (.+): score (\S+) behind, which may be noise", r"\1 より下位: スコア差 \2（ばらつきの可能性）"),
    (r"ranked behind (.+)", r"\1 より下位"),
    (r"the baseline could not be measured: (.*)", r"基準を計測できませんでした: \1"),
    (
        r"the budget ended before a candidate was measured beside the baseline",
        r"候補を基準と並べて計測する前に予算が尽きました",
    ),
    (r"stopped after (\d+) measurements", r"\1 回の計測後に中断しました"),
    (r"no candidate was better than the baseline within the limits", r"制限内で基準より良い候補はありませんでした"),
    (
        r"(.+) was best, but (\d+) pairs with the baseline are too few for an interval: (\d+) are needed",
        r"\1 が最良ですが、基準との組が \2 では区間を出せません（\3 必要）",
    ),
    (
        r"(.+) was best, but its lead over the baseline may be noise: (\w+) x (\S+) in (\d+) pairs with the baseline",
        r"\1 が最良ですが、基準との差はばらつきかもしれません: \2 は \4 組で \3 倍",
    ),
    (r"(.+): (\w+) x (\S+) in (\d+) pairs with the baseline", r"\1: 基準との \4 組で \2 が \3 倍"),
    (
        r"(.+): (\w+) x (\S+) in (\d+) pairs with the baseline; reaches (.+)",
        r"\1: 基準との \4 組で \2 が \3 倍。目標を達成: {5}",
    ),
    (r"(\w+) at (?:least|most) (\S+) x the baseline", r"\1: 基準の \2 倍"),
    (r"(\w+) at least (\S+)", r"\1: \2 以上"),
    (r"(\w+) at most (\S+)", r"\1: \2 以下"),
)


def said(key: str, language: Language, **values: object) -> str:
    return pick(WORDS[key], language).format(**values)


def retold(text: str, language: Language) -> str:
    """A sentence of the tuner's; one without a translation as it is."""
    if language == "en":
        return text
    for pattern, japanese in _JAPANESE:
        if found := re.fullmatch(pattern, text, re.DOTALL):
            told = found.expand(japanese).strip()
            return re.sub(r"\{(\d)\}", lambda place: retold(found[int(place[1])], language), told)
    parts = text.split(", ")
    told_parts = [retold(part, language) for part in parts] if len(parts) > 1 else parts
    return "、".join(told_parts) if all(map(str.__ne__, told_parts, parts)) else text
