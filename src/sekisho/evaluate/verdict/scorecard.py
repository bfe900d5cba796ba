"""The scorecard: figures against the thresholds, and what follows for the two client patterns.

Pure: from values to values. `thresholds` reads the criteria, `approvals` says whether they are the approved ones.

    figures ─> one Result a criterion ─> pattern A, pattern B: fail < open < pass ─> Verdict

Nothing that was not measured counts as passed: it is open, and so is its pattern.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from sekisho.evaluate.figures import Figures
from sekisho.evaluate.verdict.criterion import PATTERNS, Criterion, Outcome, Pattern, Result, Words, judge, shown

__all__ = [
    "ApprovalState",
    "Change",
    "Criterion",
    "Decision",
    "Outcome",
    "Pattern",
    "Result",
    "Rules",
    "Scorecard",
    "Verdict",
    "Words",
    "decide",
    "judge",
    "score",
    "shown",
    "title",
]

Decision = Literal["adopt", "limited_a", "limited_b", "reject", "undecided"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the results mean. `adopt`: both patterns pass; `limited_a`, `limited_b`: only that one does and the other
    failed; `reject`: both failed; `undecided`: something is open that could still change the answer. `certain` is
    False where a result that decides is not certain. `next_actions` belong to the decision; each result has its own."""

    decision: Decision
    a: Outcome
    b: Outcome
    certain: bool
    title: Words
    next_actions: tuple[Words, ...]


class Change(msgspec.Struct, frozen=True):
    """A threshold that is not as it was approved. `before` None: it is new; `after` None: it was taken out. `what` is
    the field: `value`, `figures`, `minimal_n`, …"""

    criterion: str
    what: str
    before: str | None
    after: str | None


class ApprovalState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the thresholds of this profile are the approved ones. `none`: never approved. `changed`: they were, and
    the file says something else since `changed_at` (its modification time). `broken`: the records of approvals were
    tampered with; `problem` says how. `alone`: why who measured also approved. Times are seconds since 1970. `hash`
    names the approval record."""

    status: Literal["none", "approved", "changed", "broken"] = "none"
    number: int = 0
    approved_by: str = ""
    measured_by: str = ""
    alone: str = ""
    approved_at: float | None = None
    why: str = ""
    run_id: str = ""
    hash: str = ""
    changes: tuple[Change, ...] = ()
    changed_at: float | None = None
    problem: str = ""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The criteria of one profile. `sha256` is of what they decide by, not of their wording or of comments.
    `left_out`: built-in criteria that the team's file does not have."""

    profile: str
    criteria: tuple[Criterion, ...]
    sha256: str
    left_out: tuple[str, ...] = ()
    source: str = ""


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """`scorecard.json`. `by_approved` is what the figures would mean by the thresholds that were approved last, where
    those are not the ones used. `notes` stand above the table: about the approval and about what was left out."""

    profile: str
    rules_sha256: str
    verdict: Verdict
    results: tuple[Result, ...]
    approval: ApprovalState
    by_approved: Decision | None = None
    notes: tuple[Words, ...] = ()


def score(
    figures: Figures,
    rules: Rules,
    approval: ApprovalState | None = None,
    approved: tuple[Criterion, ...] | None = None,
    run_id: str = "",
) -> Scorecard:
    """`approved`: the criteria as they were approved last. `run_id`: of the run whose figures these are."""
    approval = approval or ApprovalState()
    results = tuple(judge(criterion, figures) for criterion in rules.criteria)
    by_approved = None
    if approved is not None and approval.status == "changed":
        by_approved = decide(tuple(judge(criterion, figures) for criterion in approved)).decision
    return Scorecard(
        profile=rules.profile,
        rules_sha256=rules.sha256,
        verdict=decide(results),
        results=results,
        approval=approval,
        by_approved=by_approved,
        notes=_notes(rules, approval, by_approved, run_id),
    )


_ORDER: tuple[Outcome, ...] = ("fail", "open", "pass")
_DECISIONS: dict[tuple[Outcome, Outcome], Decision] = {
    ("pass", "pass"): "adopt",
    ("pass", "fail"): "limited_a",
    ("fail", "pass"): "limited_b",
    ("fail", "fail"): "reject",
}


def decide(results: tuple[Result, ...]) -> Verdict:
    """A pattern is as good as its worst criterion; one without criteria is open. The table is the seed's (000)."""
    a, b = (_of_pattern(results, pattern) for pattern in PATTERNS)
    decision = _DECISIONS.get((a, b), "undecided")
    certain = decision != "undecided" and _rests_on_certain(results, "a", a) and _rests_on_certain(results, "b", b)
    title, actions = _MEANING[decision]
    return Verdict(decision=decision, a=a, b=b, certain=certain, title=title, next_actions=actions)


def _of_pattern(results: Iterable[Result], pattern: Pattern) -> Outcome:
    outcomes = [result.outcome for result in results if pattern in result.criterion.patterns]
    return min(outcomes, key=_ORDER.index, default="open")


def _rests_on_certain(results: Iterable[Result], pattern: Pattern, outcome: Outcome) -> bool:
    those = [r.certain for r in results if pattern in r.criterion.patterns and r.outcome == outcome]
    return any(those) if outcome == "fail" else all(those)


def title(decision: Decision) -> Words:
    """The decision in words."""
    return _MEANING[decision][0]


_MEANING: dict[Decision, tuple[Words, tuple[Words, ...]]] = {
    "adopt": (
        ("Adopt", "採用"),
        (
            (
                "Keep this report and the approved thresholds together; measure again after every change of model, "
                "engine or machine.",
                "このレポートと承認済みの基準を一緒に保管し、モデル・エンジン・マシンを変えたら測り直してください。",
            ),
        ),
    ),
    "limited_a": (
        ("Limited use: chat only (A)", "限定運用: チャットのみ（A）"),
        (
            (
                "Do not take it into production. Let the chat UI be used inside the company, for the time being.",
                "本番には採用せず、当面はチャット UI を社内に限って使います。",
            ),
            (
                "Within five business days: pass the responses gates (`sekisho gate --responses`), set Codex up anew "
                "and measure pattern B again.",
                "5 営業日以内に responses のゲート（`sekisho gate --responses`）を通し、"
                "Codex を設定し直して B を再測定します。",
            ),
        ),
    ),
    "limited_b": (
        ("Limited use: Codex only (B)", "限定運用: Codex のみ（B）"),
        (
            (
                "Do not take it into production. Let developers alone use it, and close it to everybody else.",
                "本番には採用せず、開発用途に限って使い、開発者以外への案内を止めます。",
            ),
            (
                "Pass the chat gates (`sekisho gate --chat`), check the chat UI's set-up and measure pattern A again.",
                "chat のゲート（`sekisho gate --chat`）を通し、チャット UI の設定を見直して A を再測定します。",
            ),
        ),
    ),
    "reject": (
        ("Do not adopt", "不採用"),
        (
            (
                "Change the model, its quantisation or the set-up (Q4_K_M in place of IQ4_XS, another model, more "
                "graphics memory), and begin again with fetching the model.",
                "モデル・量子化・構成を見直し（IQ4_XS を Q4_K_M に、別のモデルに、GPU を増やすなど）、"
                "モデルの取得からやり直します。",
            ),
        ),
    ),
    "undecided": (
        ("Undecided", "判定保留"),
        (
            (
                "Measure what is open. Nothing that was not measured counts as passed.",
                "未計測の項目を測定してください。測っていない項目は合格として数えません。",
            ),
        ),
    ),
}


def _notes(rules: Rules, approval: ApprovalState, by_approved: Decision | None, run_id: str) -> tuple[Words, ...]:
    notes: list[Words] = []
    if approval.status == "none":
        notes.append(
            (
                f"The thresholds of {rules.profile} have not been approved: `sekisho scorecard approve`.",
                f"{rules.profile} の基準は承認されていません（`sekisho scorecard approve`）。",
            )
        )
    if approval.status == "broken":
        notes.append(
            (
                f"The records of approvals cannot be trusted: {approval.problem}",
                f"承認の記録が信頼できません: {approval.problem}",
            )
        )
    if approval.status == "changed":
        count = len(approval.changes)
        notes.append(
            (
                f"The thresholds were changed after approval: {count} changes that nobody approved.",
                f"承認後に基準が変更されています: 未承認の変更が {count} 件あります。",
            )
        )
    if run_id and approval.run_id == run_id:
        notes.append(
            (
                "The thresholds were approved on this very run, when its figures were known.",
                "基準はこの測定の結果がわかったうえで承認されたものです。",
            )
        )
    if approval.alone:
        notes.append(
            (
                f"Measured and approved by the same person: {approval.alone}",
                f"測定者と承認者が同一人物です: {approval.alone}",
            )
        )
    if by_approved is not None:
        title = _MEANING[by_approved][0]
        notes.append(
            (
                f"By the approved thresholds the verdict would be: {title[0]}.",
                f"承認済みの基準による判定: {title[1]}。",
            )
        )
    if rules.left_out:
        listed = ", ".join(rules.left_out)
        notes.append((f"Left out by the team's thresholds: {listed}.", f"チームの基準から除かれた項目: {listed}。"))
    return tuple(notes)
