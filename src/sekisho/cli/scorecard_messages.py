"""What `sekisho scorecard` says, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "card_written": (
        "{path} written. Change it before the evaluation, then: sekisho scorecard approve RUN",
        "{path} を作りました。評価の前に編集し、sekisho scorecard approve RUN で承認してください",
    ),
    "card_verdict": (
        "{title}  (profile {profile}; A, chat UI: {a} · B, Codex: {b})",
        "{title}（プロファイル {profile}、A チャット UI: {a} ・ B Codex: {b}）",
    ),
    "card_uncertain": (
        "A figure that decides lies within its interval of the threshold: measure more to be certain.",
        "判定を左右する値の信頼区間が基準をまたいでいます。確定するには測定を増やしてください。",
    ),
    "card_pass": ("pass", "合格"),
    "card_fail": ("FAIL", "不合格"),
    "card_open": ("open", "未判定"),
    "card_pattern": ("for", "対象"),
    "card_criterion": ("criterion", "項目"),
    "card_result": ("result", "結果"),
    "card_measured": ("measured", "測定値"),
    "card_wanted": ("wanted", "基準"),
    "card_unsure": ("{outcome} (not certain)", "{outcome}（不確か）"),
    "card_next": ("What to do next:", "次のアクション:"),
    "card_approved": (
        "Thresholds approved by {by} at {at} on run {run}: {why}",
        "基準は {at} に {by} が承認しました（測定 {run}）: {why}",
    ),
    "card_changes": (
        "Changed since (file written at {at}):",
        "承認後の変更（ファイルの更新 {at}）:",
    ),
    "card_change": ("  {criterion} {what}: {before} -> {after}", "  {criterion} の {what}: {before} → {after}"),
    "card_frozen": (
        "The thresholds of {profile} are frozen: number {number}, approved by {by} on run {run}.",
        "{profile} の基準を固定しました（{number} 番、承認者 {by}、測定 {run}）。",
    ),
    "card_no_history": (
        "Nothing was approved yet: sekisho scorecard approve RUN",
        "まだ承認はありません: sekisho scorecard approve RUN",
    ),
    "card_broken": (
        "The records of approvals cannot be trusted: {problem}",
        "承認の記録が信頼できません: {problem}",
    ),
    "card_number": ("no.", "番号"),
    "card_profile": ("profile", "プロファイル"),
    "card_by": ("approved by", "承認者"),
    "card_measured_by": ("measured by", "測定者"),
    "card_run": ("run", "測定"),
    "card_days": (
        "{covered} of {days} business days in service ({zone}), {planned} planned stops, {restarts} announced restarts",
        "稼働した営業日 {covered}/{days} 日（{zone}）、計画停止 {planned} 回、予告した再起動 {restarts} 回",
    ),
    "card_no_record": (
        "There is no record of this time: the server did not run, or was of a version that kept none.",
        "この期間の記録がありません（サーバーが動いていないか、記録しない版です）。",
    ),
    "card_no_stops": ("No unplanned stops.", "突発停止はありません。"),
    "card_stops": (
        "Unplanned stops: {count}, the longest took {longest} s to mend",
        "突発停止: {count} 回、最長の復旧 {longest} 秒",
    ),
    "card_stop": (
        "  {at}  {child}: {how}; {down} s until it answered again",
        "  {at}  {child}: {how}、復旧まで {down} 秒",
    ),
    "card_stop_open": (
        "  {at}  {child}: {how}; not mended for {down} s",
        "  {at}  {child}: {how}、未復旧（{down} 秒）",
    ),
    "card_server": ("server", "サーバー全体"),
    "card_ended": ("ended with exit code {code}", "終了コード {code} で終了"),
    "card_signalled": ("killed by signal {code}", "シグナル {code} で終了"),
    "card_failed": ("the supervisor gave up", "監視プロセスが異常終了"),
    "card_lost": ("no goodbye (power cut, kill -9)", "終了の記録なし（停電・kill -9 など）"),
    "card_silent": ("no sign of life any more", "応答がなくなりました"),
    "card_lost_events": (
        "{count} events could not be written or read.",
        "{count} 件の記録を書けなかったか、読み取れませんでした。",
    ),
    "card_mornings": (
        "Latest morning: {late} s after {morning} ({day})",
        "朝の起動が最も遅い日: {morning} の {late} 秒後（{day}）",
    ),
    "card_access": (
        "{looked} answered requests looked at; answered without a valid key: {successes}",
        "応答した要求 {looked} 件を確認。有効なキーなしの成功: {successes} 件",
    ),
    "card_no_key": ("no key", "キーなし"),
    "card_unknown_key": ("unknown key", "未知のキー"),
    "card_revoked_key": ("revoked key", "失効したキー"),
    "card_expired_key": ("expired key", "期限切れのキー"),
    "card_denied": (
        "Turned away without a valid key: {count} ({codes})",
        "有効なキーがなく拒否: {count} 件（{codes}）",
    ),
    "card_not_counted": (
        "Nobody counted who was turned away in this time.",
        "この期間に拒否した要求は数えられていません。",
    ),
    "card_book": ("The book was not read: {why}", "監査記録は読んでいません: {why}"),
    "card_scanned": (
        "Keys in plain text: {count} in {files} files ({definite} open this server, {suspicious} look like keys)",
        "平文のキー: {files} ファイル中 {count} 件（このサーバーで有効 {definite} 件、疑わしいもの {suspicious} 件）",
    ),
    "card_unreadable": ("{count} files could not be read:", "読めなかったファイル {count} 件:"),
    "card_scanning": ("reading the records", "記録を確認中"),
}
