"""What the commands of the control agent say."""

TABLE: dict[str, tuple[str, str]] = {
    "setting": ("setting", "設定"),
    "value": ("value", "値"),
    "effect": ("effect", "効果"),
    "by": ("by", "変更者"),
    "version": ("version", "版"),
    "changes": ("changes", "変更"),
    "policy_version": ("Policy {version} of {model}", "方針 {version}（{model}）"),
    "policy_all": ("all engines", "全エンジン"),
    "policy_waiting": (
        "changing; running answers end first where an engine must be swapped",
        "変更中（エンジンの交換が必要な場合は、実行中の応答が終わるのを待ちます）",
    ),
    "policy_would": ("Nothing was changed. It would be: {outcome}.", "変更していません。実行すると: {outcome}。"),
    "policy_done": ("Policy {version}: {outcome}.", "方針 {version}: {outcome}。"),
    "effect_now": ("in force now", "即時に有効"),
    "effect_swap": ("by swapping the engine", "エンジンの交換で有効"),
    "effect_restart": ("after a restart by you", "手動の再起動後に有効"),
    "effect_unsupported": ("not possible", "非対応"),
    "effect_unchanged": ("unchanged", "変更なし"),
    "outcome_applied": ("applied", "適用"),
    "outcome_partly": ("partly applied", "一部を適用"),
    "outcome_failed": ("not applied", "適用できず"),
    "outcome_nothing": ("nothing to do", "変更なし"),
    "outcome_advised": ("advised", "推奨のみ"),
    "agent_at": ("The control agent is at {url}", "制御エージェント: {url}"),
    "agent_token": (
        "Its token (shown this once; it lies in {path}):",
        "トークン（今回だけ表示します。{path} に保存しました）:",
    ),
    "agent_port_taken": (
        "port {port} is taken: the agent listens at {url}",
        "ポート {port} は使用中のため、{url} で待ち受けます",
    ),
}
