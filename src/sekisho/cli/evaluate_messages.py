"""What `evaluate` and `bench` say, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "evaluate_begins": ("Run {run}: {steps} steps on {places}", "実行 {run}: {steps} ステップ、対象 {places}"),
    "evaluate_resumes": (
        "Run {run} goes on; {done} steps are done",
        "実行 {run} を再開します（{done} ステップ完了済み）",
    ),
    "evaluate_broken": (
        "The run stopped. Nothing that was measured is lost; go on with: sekisho evaluate --resume {run}",
        "実行が止まりました。測定済みの結果は残っています。再開: sekisho evaluate --resume {run}",
    ),
    "evaluate_report": ("Report: {report}", "レポート: {report}"),
    "evaluate_unsigned": (
        "the report is not signed: this home has no signing key yet (it is made by the first sekisho up)",
        "レポートに署名していません。このホームに署名鍵がまだありません（最初の sekisho up で作られます）",
    ),
    "evaluate_rate": (
        "Next: two people rate the answers, each alone: sekisho rubric rate {run} --rater NAME",
        "次: 2 名がそれぞれ回答を採点します: sekisho rubric rate {run} --rater NAME",
    ),
    "evaluate_again": (
        "Then make the report anew: sekisho evaluate report {run}",
        "その後、レポートを作り直します: sekisho evaluate report {run}",
    ),
    "evaluate_none": (
        "No runs yet. Begin one with: sekisho evaluate",
        "実行はまだありません。sekisho evaluate で始めます。",
    ),
    "evaluate_damaged": ("damaged", "破損"),
    "evaluate_attested": ("{figure} = {value}, attested by {by}", "{figure} = {value}（{by} による申告）"),
    "evaluate_true": ("{file} is as it was signed by {signer}", "{file} は {signer} が署名したままです"),
    "evaluate_forgotten": (
        "Run {run} is forgotten; its folder was removed.",
        "実行 {run} を削除しました（フォルダーも含む）。",
    ),
    "run": ("run", "実行"),
    "plan": ("plan", "計画"),
    "title": ("title", "題名"),
    "verdict": ("verdict", "判定"),
    "bench_written": ("Written to {folder}", "{folder} に書き出しました"),
    "bench_given_up": (
        "{missing} requests were not asked any more: nobody answered",
        "応答がなくなったため、{missing} 件の要求は送りませんでした",
    ),
    "bench_gap": ("{place}: {words}", "{place}: {words}"),
    "compare_verdict": ("{b} against {a}: {verdict}", "{a} に対する {b}: {verdict}"),
    "compare_broken": (
        "The comparison stopped. Nothing is lost; go on with the same command and --resume {run}",
        "比較が止まりました。同じコマンドに --resume {run} を付けると続きから再開します",
    ),
    "evaluate_printing": ("printing", "印刷中"),
    "compare_adopt": ("adopt", "採用"),
    "compare_limited": ("undecided (limited)", "判定保留（限定）"),
    "compare_reject": ("reject", "不採用"),
}
