"""Questions about Sekisho: the answers of facts.toml under many phrasings."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mini.conversation import Language

WHAT: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is {x}?",
        "What's {x}?",
        "Explain {x}.",
        "Tell me about {x}.",
        "Describe {x}.",
        "Can you explain {x}?",
        "What can you tell me about {x}?",
        "I want to know about {x}.",
        "what about {x}",
        "{x}?",
    ),
    "ja": (
        "{x}とは何ですか？",
        "{x}って何？",
        "{x}とは？",
        "{x}について教えて。",
        "{x}について教えてください。",
        "{x}を説明してください。",
        "{x}は何ですか？",
        "{x}について知りたいです。",
        "{x}について説明して。",
        "{x}は？",
    ),
}
HOW: dict[Language, tuple[str, ...]] = {
    "en": (
        "How do I {x}?",
        "How can I {x}?",
        "Tell me how to {x}.",
        "How to {x}?",
        "I want to {x}.",
        "Which command do I use to {x}?",
        "Please explain how to {x}.",
        "What must I do to {x}?",
        "What is the way to {x}?",
        "Can you show me how to {x}?",
    ),
    "ja": (
        "{x}には？",
        "{x}にはどうすればいいですか？",
        "{x}方法を教えてください。",
        "{x}にはどうしたらいい？",
        "{x}方法は？",
        "どうやって{x}のですか？",
        "{x}手順を教えて。",
        "{x}コマンドは？",
        "{x}やり方を教えて。",
        "{x}にはどのコマンドを使いますか？",
    ),
}
BEFORE: dict[Language, tuple[str, ...]] = {
    "en": (
        "Hi. ",
        "Hello, ",
        "Please tell me: ",
        "Quick question: ",
        "I have a question. ",
        "Excuse me, ",
        "Briefly: ",
    ),
    "ja": (
        "すみません、",
        "質問です。",
        "教えてください。",
        "ちょっと聞きたいのですが、",
        "こんにちは。",
        "簡単に、",
        "ところで、",
    ),
}
AFTER: dict[Language, tuple[str, ...]] = {
    "en": (" Thanks.", " Please be brief.", " Answer in one sentence.", " Please."),
    "ja": ("お願いします。", "短く答えてください。", "一文で答えてください。", "よろしくお願いします。"),
}


@dataclass(frozen=True)
class Fact:
    """One thing to know: its answer, the questions to train on, and the phrasing kept for measuring."""

    name: str
    answer: str
    questions: tuple[str, ...]
    held: str


@cache
def facts(language: Language) -> tuple[Fact, ...]:
    """Every fact of facts.toml in one language."""
    table = tomllib.loads((Path(__file__).parent / "facts.toml").read_text(encoding="utf-8"))
    found: list[Fact] = []
    for name, languages in table.items():
        entry = languages[language]
        questions = list(entry.get("ask", ())) * 3
        questions += [form.format(x=x) for x in entry.get("what", ()) for form in WHAT[language]]
        questions += [form.format(x=x) for x in entry.get("how", ()) for form in HOW[language]]
        found.append(Fact(name, entry["a"], tuple(questions), entry["held"]))
    return tuple(found)


def roughen(rng: random.Random, question: str, language: Language) -> str:
    """The same question as people type it: with a preamble, without its mark, in lower case."""
    if rng.random() < 0.2:
        question = rng.choice(BEFORE[language]) + question
    if rng.random() < 0.15:
        question = question + rng.choice(AFTER[language])
    elif rng.random() < 0.25:
        question = question.rstrip("?？.。")
    elif rng.random() < 0.15:
        question = question.replace("？", "?").replace("。", "")
    if language == "en" and rng.random() < 0.2:
        question = question.lower()
    elif language == "en" and rng.random() < 0.5:
        question = question[:1].upper() + question[1:]
    return question


def ask(rng: random.Random, language: Language) -> tuple[str, str]:
    """A random question about Sekisho and its answer."""
    fact = rng.choice(facts(language))
    return roughen(rng, rng.choice(fact.questions), language), fact.answer
