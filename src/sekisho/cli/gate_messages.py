"""What `gate` and `continuity` say, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "gate": ("gate", "ゲート"),
    "result": ("result", "結果"),
    "http_status": ("HTTP", "HTTP"),
    "time_ms": ("ms", "ミリ秒"),
    "gate_title": ("{place}: {url} · model {model}", "{place}: {url} · モデル {model}"),
    "gate_passed": ("passed", "合格"),
    "gate_failed": ("FAILED", "不合格"),
    "gate_not_tried": ("not tried", "未実施"),
    "gate_all_passed": ("All {count} gates passed.", "{count} 件のゲートすべてに合格しました。"),
    "gate_some_failed": ("{failed} of {count} gates failed.", "{count} 件中 {failed} 件が不合格です。"),
    "gate_found": ("found: {words}", "詳細: {words}"),
    "gate_server_says": ("the server says: {words}", "サーバーの応答: {words}"),
    "gate_besides": ("besides: {what}", "参考: {what}"),
    "gate_key_in_clear": (
        "the key is sent to {url} in clear: anybody on the way can read it",
        "{url} へキーを平文で送ります。途中で読み取られる恐れがあります",
    ),
    "continuity_title": (
        "{mode}: {continued} of {count} conversations continued, {rate} [{low}, {high}]",
        "{mode}: {count} 会話中 {continued} 会話が継続、{rate} [{low}, {high}]",
    ),
    "continuity_chains": (
        "unbroken chains of ids: {chains} of {count}",
        "途切れなかった ID の連鎖: {chains} / {count}",
    ),
    "continuity_lost": ("{mode} conversation {number}: {why}", "{mode} 会話 {number}: {why}"),
    "continuity_written": ("Written to {files}", "{files} に書き出しました"),
    "continuity_below": ("The rate is below {least}.", "継続率が {least} を下回りました。"),
}
