"""The nouns of the data generator: a message, a conversation, a language, a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["ja", "en"]
Split = Literal["train", "measure"]
Role = Literal["system", "user", "assistant"]

LANGUAGES: tuple[Language, ...] = ("ja", "en")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation as the chat template sees it."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """A finished conversation; `kind` names the skill it teaches."""

    kind: str
    language: Language
    messages: tuple[Message, ...]


def exchange(question: str, answer: str) -> list[Message]:
    """A user's message and the assistant's reply to it."""
    return [Message("user", question), Message("assistant", answer)]
