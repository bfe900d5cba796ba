"""What a guard model's format promises.

GuardModelFailed    no opinion: whoever asked must refuse. `reason` says which way it failed, never what was said
"""

from typing import Literal, Protocol

import msgspec

from sekisho.core.turn import Message, OutputFormat, ReasoningRequest
from sekisho.core.verdict import Category, Decision, Severity

Reason = Literal["timeout", "engine", "cut_off", "empty", "malformed"]
Policy = Literal["ja", "en"]


class GuardModelFailed(Exception):
    """`timeout`: the deadline passed. `engine`: the engine failed, refused the turn or ended without a word.
    `cut_off`: the answer hit the token limit. `empty`: it held no text. `malformed`: it is not in the format."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"guard model failed: {reason}{f' ({detail})' if detail else ''}")
        self.reason: Reason = reason
        self.detail = detail


class Said(msgspec.Struct, frozen=True):
    """One message of the judged conversation as plain text, cut to size."""

    role: str
    text: str


class Exchange(msgspec.Struct, frozen=True):
    """What is judged: a conversation, and the model's answer where the answer is what is asked about. `policy` is the
    language of the policy text, for formats that send one."""

    said: tuple[Said, ...]
    answer: str | None = None
    policy: Policy = "en"


class Question(msgspec.Struct, frozen=True):
    """One question to the model. `max_tokens` bounds reasoning and answer together."""

    messages: tuple[Message, ...]
    max_tokens: int
    format: OutputFormat = OutputFormat()
    reasoning: ReasoningRequest = ReasoningRequest()


class Label(msgspec.Struct, frozen=True):
    """An answer in our words. `labels` are the model's own words for it, from its closed vocabulary."""

    decision: Decision
    category: Category
    severity: Severity
    labels: tuple[str, ...]


class ModelFormat(Protocol):
    """Pure and stateless: values in, values out."""

    def questions(self, exchange: Exchange) -> tuple[Question, ...]:
        """What to ask, all of it; the gravest answer counts. The judged text cannot leave its frame."""
        ...

    def read(self, text: str, *, about_answer: bool) -> Label:
        """An answer, without its reasoning. Raises `GuardModelFailed` ("malformed") for anything but the exact
        format: an answer that is not understood is never taken for a safe one."""
        ...
