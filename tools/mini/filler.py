"""Text that does not matter: system prompts, notes and tool lists of any length to stand in front of what does."""

from __future__ import annotations

import json
import random

from mini.conversation import Language
from mini.facts import facts
from mini.keywords import ENGLISH, NOUNS, draw

SHORT: dict[Language, tuple[str, ...]] = {
    "en": (
        "You are a helpful assistant.",
        "You are a helpful assistant. Answer briefly.",
        "Answer in one sentence.",
        "Be concise and polite.",
        "You are an assistant for our team. Follow the user's instructions exactly.",
        "You are ChatGPT, a large language model.",
        "Follow the rules. Do not invent facts. Keep answers short.",
        "You are a coding agent running in a terminal. Think step by step before you answer.",
    ),
    "ja": (
        "あなたは親切なアシスタントです。",
        "あなたは親切なアシスタントです。簡潔に答えてください。",
        "日本語で一文で答えてください。",
        "丁寧に、短く答えてください。",
        "あなたはチームのためのアシスタントです。利用者の指示に正確に従ってください。",
        "決まりを守り、事実を作らず、短く答えてください。",
        "あなたは優秀な日本語アシスタントです。",
    ),
}
SUBJECTS: dict[Language, tuple[str, ...]] = {
    "en": (
        "The team",
        "Our office",
        "The user",
        "A guest",
        "The manager",
        "Document {k}",
        "The file {k}",
        "Ticket {k}",
    ),
    "ja": ("チーム", "事務所", "利用者", "お客様", "部長", "文書 {k} ", "ファイル「{k}」", "案件 {k} "),
}
CLAUSES: dict[Language, tuple[str, ...]] = {
    "en": (
        "likes {a} and {b}.",
        "must not mention {a}.",
        "was updated on 2024-0{d}-1{d}.",
        "prefers short answers about {a}.",
        "has {d} open tasks with {a} and {b}.",
        "moved from {a} street to {b} street.",
        "uses the {a} tool when the {b} is ready.",
        'calls it "{a} {b}".',
        "meets every week to talk about the {a}.",
    ),
    "ja": (
        "は{a}と{b}が好きです。",
        "は{a}について話してはいけません。",
        "は 2024 年 {d} 月に更新されました。",
        "は{a}について短い答えを好みます。",
        "には{a}と{b}の仕事が {d} 件あります。",
        "は{a}町から{b}町へ移りました。",
        "は{b}が済んだら{a}を使います。",
        "はそれを「{a}の{b}」と呼びます。",
        "は毎週{a}について話し合います。",
    ),
}


def sentence(rng: random.Random, language: Language) -> str:
    """One sentence about nothing, often with a code or a quoted word that must not be taken for the keyword."""
    if rng.random() < 0.2:
        return rng.choice(facts(language)).answer
    words = ENGLISH if language == "en" else NOUNS
    subject = rng.choice(SUBJECTS[language]).format(k=draw(rng, language, "train"))
    clause = rng.choice(CLAUSES[language]).format(a=rng.choice(words), b=rng.choice(words), d=rng.randint(1, 9))
    return f"{subject} {clause}" if language == "en" else subject + clause


def tool_list(rng: random.Random, count: int) -> str:
    """A list of tools as agents send it."""
    rows = []
    for _ in range(count):
        name = f"{rng.choice(ENGLISH)}_{rng.choice(ENGLISH)}"
        schema = {"type": "object", "properties": {rng.choice(ENGLISH): {"type": rng.choice(("string", "integer"))}}}
        about = f"Use it for the {rng.choice(ENGLISH)} of a {rng.choice(ENGLISH)}."
        if rng.random() < 0.5:
            rows.append(f"- {name}: {about}")
        else:
            rows.append(json.dumps({"name": name, "description": about, "parameters": schema}))
    return "Tools:\n" + "\n".join(rows)


def text(rng: random.Random, language: Language, characters: int) -> str:
    """Filler of about so many characters: sentences, bullet points, headings, sometimes a tool list."""
    parts: list[str] = []
    length = 0
    while length < characters:
        roll = rng.random()
        if roll < 0.05:
            part = "\n" + tool_list(rng, rng.randint(1, 4)) + "\n"
        elif roll < 0.2:
            part = "\n- " + sentence(rng, language)
        elif roll < 0.25:
            part = "\n\n# " + (rng.choice(ENGLISH) if language == "en" else rng.choice(NOUNS)) + "\n"
        else:
            part = sentence(rng, language) + (" " if language == "en" else "")
        parts.append(part)
        length += len(part)
    return "".join(parts).strip()


def system(rng: random.Random, language: Language) -> str:
    """A system prompt: mostly a short one, sometimes with a paragraph of filler behind it."""
    short = rng.choice(SHORT[language if rng.random() < 0.8 else "en"])
    return short if rng.random() < 0.7 else f"{short}\n{text(rng, language, rng.randint(40, 300))}"
