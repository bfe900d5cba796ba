"""The sentences of a comparison, in English and Japanese."""

from collections.abc import Sequence

from sekisho.evaluate.comparison.compare_plan import Metric, Unit, is_speed
from sekisho.evaluate.figures import Interval
from sekisho.evaluate.paired import Decision
from sekisho.evaluate.verdict.criterion import Words

NAMES: dict[Metric, Words] = {
    "ttft": ("Time to first token", "最初のトークンまでの時間"),
    "total": ("Time of the whole answer", "応答完了までの時間"),
    "tok_s": ("Output tokens per second, whole answer", "1 秒あたりの出力トークン数（応答全体）"),
    "success": ("Success rate", "成功率"),
    "correct": ("Share of correct answers", "正答率"),
}
UNITS: dict[Unit, Words] = {
    "blocks": ("blocks", "ブロック"),
    "prompts": ("prompts", "プロンプト"),
    "pairs": ("pairs", "組"),
    "items": ("items", "問"),
}


def overall(verdict: Decision, arms: tuple[str, str], which: Sequence[Metric], gates_ok: bool) -> tuple[Words, ...]:
    """`which`: the metrics that made the verdict."""
    a, b = arms
    english = ", ".join(NAMES[metric][0].lower() for metric in which)
    japanese = "、".join(NAMES[metric][1] for metric in which)
    if verdict == "adopt":
        return (
            (
                f"{b} can take the place of {a}: on no metric is it worse by more than its margin.",
                f"{b} は {a} の代わりに使えます。どの指標でも、許容幅を超えて劣ってはいません。",
            ),
        )
    if verdict == "reject":
        return (
            (
                f"{b} must not take the place of {a}: it is worse by more than the margin in {english}.",
                f"{b} は {a} の代わりに使えません。{japanese}が許容幅を超えて劣っています。",
            ),
        )
    said: Words = (
        f"It is not shown that {b} can take the place of {a}; open: {english}.",
        f"{b} が {a} の代わりになるとは、まだ言えません。未確定：{japanese}。",
    )
    return (said,) if gates_ok else (said, gates())


def figure(metric: Metric, estimate: float, interval: Interval | None, limit: float, n: int, unit: Unit) -> Words:
    ratio = is_speed(metric)
    between = ("", "") if interval is None else _between(interval, ratio)
    what = ("B/A", "B/A") if ratio else ("B − A", "B − A")
    value, end = (f"{estimate:.3f}", f"{limit:.3f}") if ratio else (_points(estimate), _points(limit))
    after = ("", "") if ratio else (" points", "ポイント")
    return (
        f"{NAMES[metric][0]}: {what[0]} = {value}{between[0]}{after[0]}, limit {end} ({n} {UNITS[unit][0]}).",
        f"{NAMES[metric][1]}：{what[1]} = {value}{between[1]}{after[1]}、限界 {end}（{n} {UNITS[unit][1]}）。",
    )


def _between(interval: Interval, ratio: bool) -> Words:
    low, high = (f"{end:.3f}" if ratio else _points(end) for end in (interval.low, interval.high))
    return f" [{low}, {high}]", f"［{low}, {high}］"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def nothing(metric: Metric) -> Words:
    return (
        f"{NAMES[metric][0]}: no pair of answers has this figure, so nothing is said about it.",
        f"{NAMES[metric][1]}：この値が得られた回答の組がないため、判定できません。",
    )


def too_few(margin: float, have: int, unit: Unit, needed: int | None, near: bool) -> Words:
    """`near`: there would be enough, were the estimate not so near the limit."""
    english, japanese = UNITS[unit]
    share = f"{100 * margin:g} %"
    if needed is None:
        return (
            f"B lies right at the limit of {share}: more {english} will hardly decide it. Look for the cause.",
            f"B は許容幅 {share} の限界付近にあり、測定を増やしても決着は見込めません。差の原因を調べてください。",
        )
    if near:
        return (
            f"B is probably somewhat worse, near the limit of {share}: to decide it takes about {needed} {english}, "
            f"and there are {have}.",
            f"B はやや劣り、許容幅 {share} の限界に近いようです。"
            f"決着には約 {needed} {japanese}必要です（現在 {have} {japanese}）。",
        )
    return (
        f"{have} {english} were too few for a margin of {share}: about {needed} are needed.",
        f"許容幅 {share} に対して {have} {japanese}では足りません。約 {needed} {japanese}が必要です。",
    )


def gates() -> Words:
    return (
        "B did not pass every gate. Mend that first.",
        "B は合格していない必須ゲートがあります。先にそれを直してください。",
    )


def left_out(missing: int, total: int, unit: Unit) -> Words:
    return (
        f"{missing} of {total} {UNITS[unit][0]} have no figure because a request failed or was not measurable; "
        "what is left may be the easy part.",
        f"{total} {UNITS[unit][1]}のうち {missing} は、失敗または測定不能のため値がありません。"
        "残りが有利な部分に偏っている恐れがあります。",
    )


def not_after_holm(metrics: int) -> Words:
    return (
        f"Worse by more than the margin, but with {metrics} metrics that could be chance (Holm). Take more pairs.",
        f"許容幅を超えて劣っていますが、{metrics} 指標を同時に見ているため偶然の可能性が残ります（Holm 補正）。"
        "測定を増やしてください。",
    )


def drift() -> Words:
    return (
        "The two runs were not interleaved: the machine may have changed between them, so speed is not judged. "
        "`sekisho evaluate compare` asks both in turn.",
        "2つの実行は交互に行われていません。その間に機械の状態が変わった可能性があるため、速度は判定しません。"
        "`sekisho evaluate compare` なら交互に測定します。",
    )


def stopped_early(blocks: int, planned: int) -> Words:
    return (
        f"Stopped after {blocks} of {planned} blocks: B had surely failed.",
        f"計画した {planned} ブロックのうち {blocks} ブロックで終了しました。B の不合格が確実になったためです。",
    )


def unmatched(prompts: int) -> Words:
    return (
        f"{prompts} prompts are in one run only and were left out.",
        f"片方の実行にしかないプロンプト {prompts} 件は除きました。",
    )


def few_blocks(needed: int, planned: int) -> Words:
    return (
        f"Speed needs at least {needed} blocks, and {planned} are planned.",
        f"速度の判定には {needed} ブロック以上が必要ですが、計画は {planned} です。",
    )


def few_pairs(metric: Metric, margin: float, unit: Unit, needed: int, planned: int) -> Words:
    english, japanese = UNITS[unit]
    return (
        f"{NAMES[metric][0]}: a margin of {100 * margin:g} % needs at least {needed} {english}, even if B never fails; "
        f"{planned} are planned.",
        f"{NAMES[metric][1]}：許容幅 {100 * margin:g} % の判定には、B が一度も失敗しなくても {needed} {japanese}以上が"
        f"必要ですが、計画は {planned} {japanese}です。",
    )
