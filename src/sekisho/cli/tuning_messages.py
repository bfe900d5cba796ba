"""What `policy tune`, `compare` and `ablate` say, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "tuning_disturbed": (
        "the server runs: its traffic disturbs the figures",
        "サーバーが動作中です。その処理が計測値に影響します",
    ),
    "tuning_no_room": (
        "a second worker for {model} does not fit into memory: {needed} are needed, {free} are free",
        "{model} のワーカーをもう一つ起動するメモリがありません: 必要 {needed}、空き {free}",
    ),
    "tuning_make_room": (
        "sekisho down first, or fewer slots, or shorter contexts",
        "先に sekisho down、または並列数や文脈長を減らす",
    ),
    "tuning_stopping": ("stopping; what was measured is kept", "中断します（計測済みの値は残します）"),
    "tuning_measuring": ("measured", "計測"),
    "tuning_quality": ("perplexity", "パープレキシティ"),
    "tuning_dropped": ("Dropped:", "除外した候補:"),
    "tuning_apply_with": ("To apply it: {command}", "適用するには: {command}"),
    "tuning_apply_now": ("Apply this policy now?", "この方針を今すぐ適用しますか？"),
    "tuning_not_applied": ("Nothing was applied.", "適用していません。"),
    "tuning_nothing_to_apply": (
        "The policy stays as it is: nothing better was confirmed.",
        "方針は変更しません（改善を確認できませんでした）。",
    ),
    "tuning_written": ("Written to {files}", "{files} に書き出しました"),
    "tuning_too_short": (
        "{measurements} measurements took {seconds} s; a result needs {least} at least: try --minutes {minutes}, "
        "or shorter ones with --prompt-tokens and --answer-tokens",
        "{measurements} 回の計測に {seconds} 秒かかりました。結果には最低 {least} 回必要です。"
        "--minutes {minutes}、または --prompt-tokens と --answer-tokens で短くしてください",
    ),
    "tuning_strange": (
        "the text is strange to the model (perplexity {perplexity} at 16 bits): ΔPPL says little; name one with --text",
        "この文章はモデルに馴染みがなく（16 ビットで {perplexity}）、ΔPPL は参考になりません。--text で指定を",
    ),
    "tuning_greedy": (
        "speculation is measured on answers that repeat themselves: on your own prompts it gains less",
        "投機的生成は繰り返しの多い応答で計測するため、実際の効果はこれより小さくなります",
    ),
    "tuning_no_effect": (
        "{side}: {field} has no effect here: {reason}",
        "{side}: {field} はここでは効果がありません: {reason}",
    ),
    "preset_by_size": (
        "{model} has {parameters} parameters: preset {preset}",
        "{model} は {parameters} パラメータ: プリセット {preset}",
    ),
}
