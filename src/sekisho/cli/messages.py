"""What the commands say, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "error": ("error", "エラー"),
    "warning": ("warning", "警告"),
    "next": ("next", "次の手順"),
    # up, down, status
    "up_at": ("Sekisho is up at {url}", "関所が開きました: {url}"),
    "up_already": ("Sekisho is already up at {url}", "関所はすでに開いています: {url}"),
    "up_starting": ("starting", "起動中"),
    "admin_key": (
        "Admin key (shown this once, keep it safe):",
        "管理者キー（今回だけ表示します。大切に保管してください）:",
    ),
    "try_it": ("Try it:", "試すには:"),
    "chat_page": ("Chat page: {url}/", "チャットページ: {url}/"),
    "models_are": ("Models: {models}", "モデル: {models}"),
    "stop_with": ("Stop with: {command}", "止めるには: {command}"),
    "stop_with_ctrl_c": ("Stop with: Ctrl+C or {command}", "止めるには: Ctrl+C または {command}"),
    "open_host": (
        "{host} can be reached from other machines; keys are sent in clear unless a proxy adds TLS",
        "{host} は他のマシンから到達できます。TLS を行うプロキシがなければキーは平文で流れます",
    ),
    "down_done": ("Sekisho is down.", "関所を閉じました。"),
    "down_not_running": ("Sekisho is not running.", "関所は動いていません。"),
    "stopping": ("stopping", "停止中"),
    "status_ready": (
        "{url} is ready (up {uptime}, version {version})",
        "{url} は稼働中です（{uptime}、バージョン {version}）",
    ),
    "status_not_ready": (
        "{url} is running but not ready: {reason}",
        "{url} は動いていますが、まだ応答できません: {reason}",
    ),
    "starting_late": ("the supervisor ended; see {log}", "監視プロセスが終了しました。{log} を見てください"),
    # columns
    "process": ("process", "プロセス"),
    "state": ("state", "状態"),
    "pid": ("pid", "pid"),
    "restarts": ("restarts", "再起動"),
    "uptime": ("uptime", "稼働時間"),
    "exit": ("last exit", "前回の終了"),
    "name": ("name", "名前"),
    "id": ("id", "ID"),
    "key": ("key", "キー"),
    "scopes": ("scopes", "権限"),
    "models": ("models", "モデル"),
    "model": ("model", "モデル"),
    "limits": ("limits", "制限"),
    "expires": ("expires", "期限"),
    "day": ("day", "日"),
    "user": ("user", "利用者"),
    "requests": ("requests", "リクエスト"),
    "input_tokens": ("input", "入力"),
    "output_tokens": ("output", "出力"),
    "cached_tokens": ("cached", "キャッシュ"),
    "cost": ("cost {currency}", "費用 {currency}"),
    "engine": ("engine", "エンジン"),
    "source": ("source", "所在"),
    "context": ("context", "文脈長"),
    "slots": ("slots", "並列"),
    "parameters": ("parameters", "規模"),
    "memory": ("memory", "メモリー"),
    "runs_on": ("runs on", "実行場所"),
    "longest": ("longest context", "最長文脈"),
    "licence": ("licence", "ライセンス"),
    "note": ("note", "備考"),
    "slowly": ("{place}, slow", "{place}（低速）"),
    "why": ("why", "理由"),
    # keys and usage
    "key_created": ("Key {name} ({id}). It is shown this once:", "キー {name}（{id}）。今回だけ表示します:"),
    "key_rotated": (
        "New secret of {name} ({id}). It is shown this once:",
        "{name}（{id}）の新しいキー。今回だけ表示します:",
    ),
    "key_old_until": ("The old secret works until {until}.", "古いキーは {until} まで使えます。"),
    "key_old_stopped": ("The old secret has stopped working.", "古いキーはもう使えません。"),
    "key_revoked": ("Key {name} ({id}) is revoked.", "キー {name}（{id}）を失効しました。"),
    "key_none": (
        "No keys yet. Make one: sekisho key create --name taro",
        "キーがありません。作るには: sekisho key create --name taro",
    ),
    "usage_none": ("Nothing was used in {month}.", "{month} の利用はありません。"),
    "usage_title": ("Usage in {month} (UTC)", "{month} の利用状況（UTC）"),
    "usage_estimated": (
        "{estimated} requests were counted by the server, {unmeasured} not at all.",
        "{estimated} 件はサーバー側の推計、{unmeasured} 件は計測できていません。",
    ),
    # config and models
    "config_good": ("{path}: good", "{path}: 問題ありません"),
    "config_default": ("{path}: not there, the defaults are used", "{path}: ファイルがないため既定値を使います"),
    "config_written": ("{path} written", "{path} を作りました"),
    "model_added": ("Model {name} added to {path}.", "モデル {name} を {path} に追加しました。"),
    "model_restart": (
        "Restart to use it: sekisho down, then sekisho up",
        "反映するには: sekisho down のあと sekisho up",
    ),
    "model_here": (
        "{file} is there already and its checksum is right.",
        "{file} はすでにあり、チェックサムも一致しました。",
    ),
    "model_fetched": ("{file} fetched, checksum verified.", "{file} を取得し、チェックサムを確認しました。"),
    "model_exported": ("{count} files written to {folder}.", "{folder} に {count} 個のファイルを書き出しました。"),
    "model_in_config": ("Model {name} is in the settings already.", "モデル {name} はすでに設定にあります。"),
    "recommend_title": (
        "For {slots} slots of {context:,} tokens; {ram} memory free, {vram} graphics memory free",
        "{context:,} トークン × {slots} 並列の場合。空きメモリー {ram}、空きグラフィックスメモリー {vram}",
    ),
    "recommend_none": ("No model of the catalogue fits this machine.", "このマシンに収まるモデルが一覧にありません。"),
    "recommend_pull": ("Fetch one: sekisho model pull {name}", "取得するには: sekisho model pull {name}"),
    # doctor
    "doctor_good": ("Nothing is wrong.", "問題は見つかりませんでした。"),
    "doctor_summary": ("{errors} errors, {warnings} warnings", "エラー {errors} 件、警告 {warnings} 件"),
    "fix": ("fix", "対処"),
}


def text(key: str, language: str, **values: object) -> str:
    """The message in `ja` or `en`. Raises KeyError for a message or a value that is missing."""
    english, japanese = TABLE[key]
    return (japanese if language == "ja" else english).format(**values)
