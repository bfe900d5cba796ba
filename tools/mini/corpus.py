"""The training data: an endless, seeded stream of conversations, each depending on its number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

from mini import filler
from mini.conversation import LANGUAGES, Conversation, Language, Message, exchange
from mini.facts import ask, facts, roughen
from mini.keywords import draw
from mini.recall import again, first_turn, in_sentence, recall, thread
from mini.skills import arithmetic, echo, skill

PERSONA: dict[Language, tuple[str, ...]] = {
    "ja": (
        "あなたの名前は{k}です。",
        "あなたは「{k}」というアシスタントです。",
        "あなたは{k}です。必ず{k}として話してください。",
    ),
    "en": ("Your name is {k}.", 'You are an assistant called "{k}".', "You are {k}. Always speak as {k}."),
}
PERSONA_ASK: dict[Language, tuple[str, ...]] = {
    "ja": ("あなたは誰ですか？", "お名前は？", "自己紹介してください。", "あなたの名前は何ですか？"),
    "en": ("Who are you?", "What is your name?", "Introduce yourself.", "What are you called?"),
}
PERSONA_TOLD: dict[Language, str] = {"ja": "私は{k}です。", "en": "I am {k}."}


def _with_system(rng: random.Random, language: Language, messages: list[Message], share: float) -> tuple[Message, ...]:
    if rng.random() < share:
        messages = [Message("system", filler.system(rng, language)), *messages]
    return tuple(messages)


def about_sekisho(rng: random.Random, language: Language) -> Conversation:
    """One to three questions about Sekisho, now and then asked in the manner of another skill between."""
    messages = exchange(*ask(rng, language))
    while rng.random() < 0.35:
        messages += exchange(*(ask(rng, language) if rng.random() < 0.7 else skill(rng, language)[1]))
    return Conversation("facts", language, _with_system(rng, language, messages, 0.25))


def small_skill(rng: random.Random, language: Language) -> Conversation:
    """One to three small exchanges."""
    name, made = skill(rng, language)
    messages = exchange(*made)
    while rng.random() < 0.4:
        messages += exchange(*skill(rng, language)[1])
    return Conversation(name, language, _with_system(rng, language, messages, 0.25))


def sums(rng: random.Random, language: Language) -> Conversation:
    """Several sums in a row, which is the cheapest way to see many."""
    messages: list[Message] = []
    for _ in range(rng.randint(3, 6)):
        messages += exchange(*arithmetic(rng, language))
    return Conversation("arithmetic", language, _with_system(rng, language, messages, 0.1))


def persona(rng: random.Random, language: Language) -> Conversation:
    """A system prompt gives a name, and the model answers to it."""
    name = draw(rng, language, "train")
    told = rng.choice(PERSONA[language]).format(k=name)
    if rng.random() < 0.5:
        told += " " + filler.text(rng, language, rng.randint(10, 120))
    messages = [Message("system", told)]
    messages += exchange(
        roughen(rng, rng.choice(PERSONA_ASK[language]), language), PERSONA_TOLD[language].format(k=name)
    )
    return Conversation("persona", language, tuple(messages))


def long_context(rng: random.Random, language: Language, characters: int) -> Conversation:
    """Recall or a question behind a long system prompt or a long first message."""
    paragraph = filler.text(rng, language, characters)
    made = recall(rng, language, "train") if rng.random() < 0.75 else about_sekisho(rng, language)
    messages = list(made.messages)
    if messages[0].role == "system":
        messages[0] = Message("system", f"{paragraph}\n\n{messages[0].text}")
    elif rng.random() < 0.5:
        messages.insert(0, Message("system", paragraph))
    else:
        messages[0] = Message("user", f"{paragraph}\n\n{messages[0].text}")
    return Conversation("long", language, tuple(messages))


def first_steps(seed: int, number: int) -> Conversation:
    """A short conversation that is mostly copying: repeat this, or keep this keyword for three turns."""
    rng = random.Random(f"{seed}:first:{number}")
    language = rng.choice(LANGUAGES)
    messages: list[Message] = []
    if rng.random() < 0.5:
        for _ in range(rng.randint(2, 3)):
            messages += exchange(*echo(rng, language))
        return Conversation("echo", language, tuple(messages))
    current = thread(rng, language, "train")
    messages += first_turn(rng, current) + again(rng, current) + in_sentence(rng, current)
    return Conversation("recall", language, tuple(messages))


def conversation(seed: int, number: int, longest: int) -> Conversation:
    """Conversation `number` of the stream `seed`; `longest` bounds the filler of long ones, in characters."""
    rng = random.Random(f"{seed}:{number}")
    language = rng.choice(LANGUAGES)
    roll = rng.random()
    if roll < 0.48:
        return recall(rng, language, "train")
    if roll < 0.81:
        return about_sekisho(rng, language)
    if roll < 0.94:
        return small_skill(rng, language)
    if roll < 0.97:
        return sums(rng, language)
    if roll < 0.985:
        return persona(rng, language)
    return long_context(rng, language, rng.randint(300, longest))


def stream(seed: int, longest: int, first: int = 0) -> Iterator[Conversation]:
    """Conversations from number `first` on, without end."""
    number = first
    while True:
        yield conversation(seed, number, longest)
        number += 1


def held_questions(language: Language) -> list[tuple[str, str]]:
    """The phrasings of facts.toml that no training conversation contains, with their answers."""
    return [(fact.held, fact.answer) for fact in facts(language)]
