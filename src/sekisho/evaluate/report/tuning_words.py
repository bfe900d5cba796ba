"""Words of the reports on tuning, in both languages. Those of the tuner's reasons: `control.tuner_words`."""

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


def said(key: str, language: Language, **values: object) -> str:
    return pick(WORDS[key], language).format(**values)
