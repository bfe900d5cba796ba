"""Why, in a sentence for people: in the book, in `guard explain`, and to the caller. Never holds the caller's words."""

from typing import Final

from sekisho.core.verdict import Category, DecidedBy, Decision

_CATEGORIES: Final[dict[Category, tuple[str, str]]] = {
    "medical": ("a personal medical matter", "個人の医療に関すること"),
    "legal": ("a personal legal matter", "個別の法律問題"),
    "hr": ("a staff or harassment matter", "人事・ハラスメントに関すること"),
    "security": ("the security of systems", "システムの安全に関すること"),
    "self_harm": ("self-harm or a crisis", "自傷・命の危機に関すること"),
    "weapons": ("weapons or dangerous substances", "武器・危険物に関すること"),
    "fraud": ("fraud or deceit", "詐欺・不正に関すること"),
    "privacy": ("other people's personal data", "他人の個人情報に関すること"),
    "injection": ("instructions meant to get around the rules", "規則を逃れようとする指示"),
    "violence": ("violence against people", "人への暴力に関すること"),
    "sexual": ("sexual content", "性的な内容"),
    "other": ("something that the rules do not cover", "規則が扱わないもの"),
    "none": ("nothing of note", "特になし"),
}
_SOURCES: Final[dict[DecidedBy, tuple[str, str]]] = {
    "rule": ("a rule", "規則"),
    "classifier": ("the classifier", "分類器"),
    "band": ("the classifier, which is not sure", "分類器(確信が持てないため)"),
    "guard_model": ("the guard model", "ガードモデル"),
    "configuration": ("the configuration", "設定"),
    "language": ("the language check", "言語の確認"),
    "failure": ("a failure of the guard", "ガードの障害"),
    "human": ("a person", "担当者"),
}


def rationale(decision: Decision, category: Category, decided_by: DecidedBy, language: str) -> str:
    """One sentence; `language` is `ja`, anything else is English."""
    japanese = language == "ja"
    subject, source = _CATEGORIES[category][japanese], _SOURCES[decided_by][japanese]
    if decided_by == "language":
        if japanese:
            return "この文章を判定できる言語・形式ではないため、人の判断が必要です。"
        return "This text is in a language or form that cannot be judged here, so a person must decide."
    if decided_by == "failure":
        if japanese:
            return "判定ができませんでした。"
        return "It could not be judged."
    if decision == "allow":
        return "問題は見つかりませんでした。" if japanese else "Nothing was found that speaks against it."
    if decision == "escalate":
        if japanese:
            return f"{subject}のため、人の判断が必要です({source})。"
        return f"It touches {subject}, so a person must decide ({source})."
    if japanese:
        return f"理由は{subject}です({source})。"
    return f"It concerns {subject} ({source})."
