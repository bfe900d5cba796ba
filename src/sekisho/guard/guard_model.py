"""The optional guard model: a second opinion by a language model, under a deadline.

It may make a decision graver and never lighter (`combine`). An answer that is late, broken or not exactly in the
model's format is a failure, and a failure refuses (`failed`); it is never read as "safe".
"""

import asyncio
import hashlib
from collections import OrderedDict
from contextlib import aclosing
from typing import Literal

import msgspec

from sekisho.core import ids
from sekisho.core.events import (
    Batch,
    Failed,
    Finished,
    Handler,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Message, Sampling, Turn
from sekisho.core.verdict import DECISIONS, SEVERITIES, Category, Decision, Finding, Severity, Verdict
from sekisho.guard import conversation as words
from sekisho.guard.language import language
from sekisho.guard.model_formats import registry
from sekisho.guard.model_formats.base import Exchange, GuardModelFailed, Label, Policy, Question, Reason
from sekisho.guard.model_formats.gravest import gravest

__all__ = ["GuardModel", "GuardModelConfig", "GuardModelFailed", "Opinion", "combine", "failed"]

FormatName = Literal["qwen3guard", "gpt_oss_safeguard", "llama_guard", "generic"]
_MAX_ANSWER_CHARS = 16_384  # an engine that does not know max_tokens is cut off here


class GuardModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the guard's `model:` part. `model`: a name from the settings' models. `format`: how it is asked.
    `deadline_s`: waiting for a slot, asking and answering together. `max_parallel`: questions at once. `on`: ask about
    everything (`all`) or only where the classifier is unsure (`band`). `max_chars`: what of a conversation is shown.
    `cache_entries`: how many labels are remembered, by hash."""

    model: str
    format: FormatName
    deadline_s: float = 3.0
    max_parallel: int = 4
    on: Literal["all", "band"] = "all"
    max_chars: int = 12_000
    cache_entries: int = 2_048

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must name one of the models")
        if not 0 < self.deadline_s <= 600:
            raise ValueError("deadline_s must be above 0 and at most 600")
        if not 1 <= self.max_parallel <= 1_024:
            raise ValueError("max_parallel must be 1 to 1024")
        if self.max_chars < 64:
            raise ValueError("max_chars must be 64 or more")
        if self.cache_entries < 0:
            raise ValueError("cache_entries must not be negative")


class Opinion(msgspec.Struct, frozen=True):
    """What the guard model thinks, in our words. `labels` are its own. `about` says what was rated. `unseen_chars` (or
    a few more) were cut from the middle; `unseen_parts` (image, audio, document) it cannot see. `cached`: no question
    was asked."""

    decision: Decision
    category: Category = "none"
    severity: Severity = "none"
    labels: tuple[str, ...] = ()
    format: str = ""
    model: str = ""
    about: Literal["request", "answer"] = "request"
    unseen_chars: int = 0
    unseen_parts: tuple[str, ...] = ()
    cached: bool = False


class GuardModel:
    """Asks one model. Safe to share between tasks of one event loop; `judge` blocks nothing and keeps no text."""

    def __init__(self, run: Handler, config: GuardModelConfig) -> None:
        """`run` is an engine's `generate`, outside of the guarded road: the question is not judged again. Raises
        ValueError for an unknown format."""
        self.config = config
        self._run = run
        self._format = registry.find(config.format)
        self._slots = asyncio.Semaphore(config.max_parallel)
        self._cache: OrderedDict[bytes, Label] = OrderedDict()

    def wanted(self, *, unsure: bool) -> bool:
        """Whether the settings want the model asked; `unsure`: the classifier's score fell into the band."""
        return unsure or self.config.on == "all"

    async def judge(self, conversation: tuple[Message, ...], answer: str | None = None) -> Opinion:
        """An opinion about the conversation's request or, where it is given, about the answer to it. Raises
        `GuardModelFailed`. Cancelling it, and the deadline, close the engine's stream."""
        shown = words.plain(conversation, answer, self.config.max_chars)
        exchange = Exchange(shown.said, shown.answer, _policy(shown))
        questions = self._format.questions(exchange)
        known = [self._recall(question) for question in questions]
        labels = [label for label in known if label is not None]
        open_questions = [question for question, label in zip(questions, known, strict=True) if label is None]
        if open_questions:
            labels += await self._ask_all(open_questions, about_answer=answer is not None)
        top = gravest(labels)
        return Opinion(
            decision=top.decision,
            category=top.category,
            severity=top.severity,
            labels=top.labels,
            format=self.config.format,
            model=self.config.model,
            about="request" if answer is None else "answer",
            unseen_chars=shown.unseen_chars,
            unseen_parts=shown.unseen_parts,
            cached=not open_questions,
        )

    async def _ask_all(self, questions: list[Question], *, about_answer: bool) -> list[Label]:
        """All at once, as far as there are slots; the first failure calls the others off."""
        try:
            async with asyncio.timeout(self.config.deadline_s) as deadline, asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(question, about_answer=about_answer)) for question in questions]
        except TimeoutError:
            assert deadline.expired()  # a TimeoutError of the engine's comes in a group
            raise GuardModelFailed("timeout", f"{self.config.deadline_s:g} s") from None
        except ExceptionGroup as broken:
            error = broken.exceptions[0]
            raise (error if isinstance(error, GuardModelFailed) else GuardModelFailed("engine")) from error
        return [task.result() for task in tasks]

    async def _ask(self, question: Question, *, about_answer: bool) -> Label:
        async with self._slots:
            text = await self._answer(question)
        label = self._format.read(text, about_answer=about_answer)
        self._remember(question, label)
        return label

    async def _answer(self, question: Question) -> str:
        """The answer's text without reasoning that the engine told apart. Raises `GuardModelFailed`, or whatever the
        engine raises."""
        turn = Turn(
            id=ids.new("guard_"),
            protocol="chat",
            model=self.config.model,
            messages=question.messages,
            sampling=Sampling(temperature=0.0, max_tokens=question.max_tokens),
            format=question.format,
            reasoning=question.reasoning,
        )
        answer = _Answer()
        async with aclosing(self._run(turn)) as stream:
            async for batch in stream:
                answer.take(batch)
        return answer.text()

    def _recall(self, question: Question) -> Label | None:
        key = _key(question)
        label = self._cache.get(key)
        if label is not None:
            self._cache.move_to_end(key)
        return label

    def _remember(self, question: Question, label: Label) -> None:
        self._cache[_key(question)] = label
        while len(self._cache) > self.config.cache_entries:
            self._cache.popitem(last=False)


class _Answer:
    """Collects one answer from an engine's events and trusts none of them."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0
        self._finished: Finished | None = None

    def take(self, batch: Batch) -> None:
        for event in batch:
            match event:
                case TextDelta():
                    self._pieces.append(event.text)
                    self._chars += len(event.text)
                case Finished():
                    self._finished = event
                case Failed():
                    raise GuardModelFailed("engine", event.code)
                case RefusalDelta() | ToolCallDelta():
                    raise GuardModelFailed("malformed", "a refusal or a tool call")
                case ReasoningDelta():
                    self._chars += len(event.text)
                case Started() | Usage():
                    pass
        if self._chars > _MAX_ANSWER_CHARS:
            raise GuardModelFailed("malformed", "too long")

    def text(self) -> str:
        if self._finished is None:
            raise GuardModelFailed("engine", "ended without a word")
        if self._finished.reason != "stop":
            raise GuardModelFailed("cut_off" if self._finished.reason == "length" else "malformed")
        text = "".join(self._pieces)
        if not text.strip():
            raise GuardModelFailed("empty")
        return text


def _policy(shown: words.Plain) -> Policy:
    """The language of the policy text: Japanese where anything of the conversation is."""
    texts = [one.text for one in shown.said] + ([] if shown.answer is None else [shown.answer])
    return "ja" if language("\n".join(texts)) in ("ja", "mixed") else "en"


def _key(question: Question) -> bytes:
    """The hash of a question: all that the model is shown."""
    return hashlib.sha256(msgspec.json.encode(question)).digest()


def combine(verdict: Verdict, opinion: Opinion) -> Verdict:
    """`verdict` made graver by `opinion`, never lighter: neither decision nor severity sinks, and no finding goes."""
    findings = (*verdict.findings, *_findings(opinion))
    if DECISIONS.index(opinion.decision) > DECISIONS.index(verdict.decision):
        return msgspec.structs.replace(
            verdict,
            decision=opinion.decision,
            category=opinion.category,
            severity=max(verdict.severity, opinion.severity, key=SEVERITIES.index),
            confidence=None,
            threshold=None,
            rationale=_rationale(opinion, verdict.language),
            findings=findings,
            decided_by="guard_model",
        )
    severity = verdict.severity
    if opinion.decision == verdict.decision != "allow":
        severity = max(severity, opinion.severity, key=SEVERITIES.index)
    return msgspec.structs.replace(verdict, severity=severity, findings=findings)


def failed(verdict: Verdict, error: GuardModelFailed) -> Verdict:
    """The refusal that follows from a guard model without an opinion. A refusal that stands keeps its own reason."""
    finding = Finding("failure", f"guard_model:{error.reason}", "other", "refuse", "high")
    findings = (*verdict.findings, finding)
    if verdict.decision == "refuse":
        return msgspec.structs.replace(verdict, findings=findings)
    return msgspec.structs.replace(
        verdict,
        decision="refuse",
        category="other" if verdict.category == "none" else verdict.category,
        severity=max(verdict.severity, "high", key=SEVERITIES.index),
        confidence=None,
        threshold=None,
        rationale=_FAILED_JA[error.reason] if verdict.language == "ja" else _FAILED_EN[error.reason],
        findings=findings,
        decided_by="failure",
    )


def _findings(opinion: Opinion) -> list[Finding]:
    """What the model said and, apart from it, what it was not shown."""
    where = "output" if opinion.about == "answer" else "messages"
    label = ", ".join(opinion.labels)
    found = [
        Finding("guard_model", f"{opinion.format}:{label}", opinion.category, opinion.decision, opinion.severity, where)
    ]
    if opinion.unseen_chars:
        found.append(Finding("guard_model", f"unseen:{opinion.unseen_chars} chars", "none", "allow", "low", where))
    found += [Finding("guard_model", f"unseen:{part}", "none", "allow", "low", where) for part in opinion.unseen_parts]
    return found


_FAILED_EN: dict[Reason, str] = {
    "timeout": "The guard model did not answer in time.",
    "engine": "The guard model could not be reached.",
    "cut_off": "The guard model's answer was cut off.",
    "empty": "The guard model gave no answer.",
    "malformed": "The guard model's answer could not be understood.",
}
_FAILED_JA: dict[Reason, str] = {
    "timeout": "ガードモデルが時間内に答えませんでした。",
    "engine": "ガードモデルに接続できませんでした。",
    "cut_off": "ガードモデルの回答が途中で切れました。",
    "empty": "ガードモデルが何も答えませんでした。",
    "malformed": "ガードモデルの回答を解釈できませんでした。",
}


def _rationale(opinion: Opinion, told_in: str) -> str:
    label = ", ".join(opinion.labels)
    if told_in == "ja":
        thing = "回答" if opinion.about == "answer" else "依頼"
        return f"ガードモデルがこの{thing}を「{label}」と判定しました。"
    thing = "answer" if opinion.about == "answer" else "request"
    return f"The guard model rated this {thing} as: {label}."
