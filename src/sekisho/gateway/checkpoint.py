"""The checkpoint on the road of a turn: judged before it runs, watched on its way back, written into the book.

    judge ── refuse ───────────────> record durable ──> refusal
      ├───── escalate ─────────────> record durable ──> desk: approved ──> (as allow) | answered | denied | expired
      └───── allow ──> engine runs ─┬─> thinking filter ──> output watch ──> out, once the record is durable
                       record ──────┘

The engine begins while the record is still on its way to the disk; nothing leaves before it is there. Where the book
cannot be written the turn fails with 503, and where the guard fails it is refused.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Final, Protocol

import msgspec

from sekisho.audit.book import Book
from sekisho.audit.records import VerdictRecord, verdict_record
from sekisho.core.errors import SekishoError
from sekisho.core.events import (
    Batch,
    Handler,
)
from sekisho.core.turn import Message, Text, Turn
from sekisho.core.verdict import Category, Finding, Verdict
from sekisho.engines.config import Thinking
from sekisho.gateway import told
from sekisho.gateway.passing import Passing, choices_of, request_hash, user_of
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.guard_model import GuardModel, GuardModelFailed, combine, failed
from sekisho.guard.judge import OUTPUT, Judge
from sekisho.guard.output import OutputOptions, OutputWatch
from sekisho.guard.passages import shown, size_chars
from sekisho.guard.rationale import rationale
from sekisho.guard.separator import Start
from sekisho.guard.thinking import Seal, ThinkingFilter, ThinkingOptions
from sekisho.guard.triage import LINEAR, resolved, softened
from sekisho.wire import think

log = logging.getLogger("sekisho.gateway.checkpoint")

_STARTS: Final[dict[Thinking, Start]] = {"opened": "thought", "unknown": "unknown"}
_THREAD_CHARS = 8_000  # longer texts are judged beside the event loop, and within the deadline


OnVerdict = Callable[[str, Verdict, float | None], None]  # stage, verdict, seconds that the judging took


class Ruling(msgspec.Struct, frozen=True):
    """What the desk said. `state`: approved, answered, denied, expired, or waiting (a ticket without a hold)."""

    state: str
    ticket_id: str
    answer: str | None = None
    reason: str | None = None


class Held(msgspec.Struct, frozen=True):
    """What the desk is told of a turn. `question` has had its personal data removed."""

    turn: Turn
    verdict: Verdict
    request_hash: str
    question: str


class DeskFace(Protocol):
    """The desk as this stage sees it (`gateway.people`)."""

    async def rule(self, held: Held, mode: Mode) -> Ruling:
        """Waits for a person where the category is held; cancelling gives the ticket up."""
        ...


class Checkpoint:
    """One for the gateway. `book` raises BookUnavailable while there is none; `mode` is asked at each turn, since an
    emergency is declared while the server runs. `seal(owner)` seals thinking for one key. `thinking`: by model."""

    def __init__(
        self,
        config: GuardConfig,
        judge: Judge,
        book: Callable[[], Book],
        desk: DeskFace | None = None,
        mode: Callable[[], Mode] | None = None,
        seal: Callable[[str], Seal] | None = None,
        thinking: Mapping[str, Thinking] | None = None,
        guard_model: GuardModel | None = None,
    ) -> None:
        self._config = config
        self._judge = judge
        self._book = book
        self._desk = desk
        self._mode = mode or (lambda: config.mode)
        self._seal = seal
        self._thinking = thinking or {}
        self._guard_model = guard_model
        self.on_verdict: OnVerdict = lambda stage, verdict, judged_s: None

    async def stage(self, turn: Turn, inner: Handler) -> AsyncGenerator[Batch, None]:
        """A `Stage` of the road, the outermost one."""
        book = self._book()
        started_s = time.perf_counter()
        verdict = await self._verdict(turn)
        judged_ms = (time.perf_counter() - started_s) * 1e3
        self.on_verdict("input", verdict, judged_ms / 1e3)
        passing = Passing(turn, book, started_s)
        try:
            if verdict.decision == "allow":
                async with aclosing(self._allowed(turn, inner, verdict, judged_ms, passing)) as events:
                    async for batch in events:
                        yield batch
            else:
                async with aclosing(self._held(turn, inner, verdict, judged_ms, passing)) as events:
                    async for batch in events:
                        yield batch
            passing.leave("failed")  # where the engine broke off without an end
        except (asyncio.CancelledError, GeneratorExit):
            passing.leave("cancelled")
            raise
        except Exception as error:
            passing.leave("failed", error.id if isinstance(error, SekishoError) else "")
            raise

    # --- before ---------------------------------------------------------------------------------------------------

    async def _verdict(self, turn: Turn) -> Verdict:
        mode = self._mode()
        if mode == "off":
            return Verdict("allow", decided_by="configuration", rationale="The guard is switched off.")
        try:
            if size_chars(turn) > _THREAD_CHARS:
                async with asyncio.timeout(self._config.deadline_s):
                    verdict = await asyncio.to_thread(self._judge.judge, turn)
            else:
                verdict = self._judge.judge(turn)
        except TimeoutError:
            log.warning("the guard took longer than %g s over %s: refused", self._config.deadline_s, turn.id)
            return _failure("guard-too-slow", self._judge)
        except Exception:
            log.exception("the guard failed over %s: refused", turn.id)
            return _failure("guard-failed", self._judge)
        if self._guard_model is not None:
            verdict = await self._with_model(turn, verdict, self._guard_model)
        if verdict.decided_by in LINEAR and self._config.lets_unsure_pass(mode):
            verdict = softened(verdict)
        if mode == "emergency" and verdict.decision == "allow" and not self._passes_in_emergency(turn):
            shown = "ja" if verdict.language in ("ja", "mixed") else "en"
            return msgspec.structs.replace(
                verdict,
                decision="escalate",
                decided_by="configuration",
                category="other",
                rationale=rationale("escalate", "other", "configuration", shown),
            )
        return verdict

    async def _with_model(self, turn: Turn, verdict: Verdict, model: GuardModel) -> Verdict:
        """A second opinion, which can only be graver, but for the classifier's doubt, which it ends; none in time means
        no."""
        unsure = any(finding.source == "band" for finding in verdict.findings)
        if verdict.decision == "refuse" or not model.wanted(unsure=unsure):
            return verdict
        prompts = tuple(Message("user", (Text(prompt),)) for prompt in turn.prompts if isinstance(prompt, str))
        try:
            opinion = await model.judge((*turn.messages, *prompts))
        except GuardModelFailed as error:
            log.warning("the guard model gave no opinion of %s (%s %s): refused", turn.id, error.reason, error.detail)
            return failed(verdict, error)
        combined = combine(verdict, opinion)
        if opinion.decision == "allow" and combined.decided_by == "band":
            return resolved(combined, "allow", "guard_model")
        return combined

    def _passes_in_emergency(self, turn: Turn) -> bool:
        return turn.caller is not None and turn.caller.name in self._config.emergency_allow

    async def _allowed(
        self, turn: Turn, inner: Handler, verdict: Verdict, judged_ms: float, passing: Passing
    ) -> AsyncGenerator[Batch, None]:
        """The engine is asked first and the record made while it reads the prompt."""
        events = self._watched(turn, inner, passing)
        first = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.sleep(0)  # the question is on its way
            record = await self._record(turn, verdict, judged_ms, passing)
            durable = asyncio.ensure_future(passing.book.append(record))
            await asyncio.sleep(0)  # it stands in the book's line: what follows of this turn comes behind it
            passing.recorded.set()
            try:
                await asyncio.wait({first, durable}, return_when=asyncio.FIRST_EXCEPTION)
                if durable.done():
                    durable.result()
                batch = await first
            except BaseException:
                if not durable.done() or durable.cancelled() or durable.exception() is None:
                    await asyncio.shield(durable)  # what broke is told of a request that is in the book
                raise
            await durable
            async with aclosing(events):
                while batch is not None:
                    yield batch
                    batch = await anext(events, None)
        finally:
            if not first.done():
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            await events.aclose()

    async def _held(
        self, turn: Turn, inner: Handler, verdict: Verdict, judged_ms: float, passing: Passing
    ) -> AsyncGenerator[Batch, None]:
        record = await self._record(turn, verdict, judged_ms, passing)
        await passing.book.append(record)
        passing.recorded.set()
        choices = choices_of(turn)
        if verdict.decision == "refuse" or self._desk is None:
            text = told.refused(verdict, turn.id)
            yield await passing.ended(told.refusal(text, choices), "refused")
            return
        held = Held(turn, verdict, record.request_hash, passing.question)
        ruling = await self._desk.rule(held, self._mode())
        if ruling.state == "approved":
            async with aclosing(self._watched(turn, inner, passing)) as events:
                async for batch in events:
                    yield batch
        elif ruling.state == "answered":
            yield await passing.ended(told.answer(ruling.answer or "", choices), "answered by a person")
        else:
            text = {
                "waiting": lambda: told.waiting(verdict, ruling.ticket_id),
                "denied": lambda: told.denied(verdict, ruling.ticket_id, ruling.reason),
            }.get(ruling.state, lambda: told.expired(verdict, ruling.ticket_id))()
            yield await passing.ended(told.refusal(text, choices), ruling.state)

    async def _record(self, turn: Turn, verdict: Verdict, judged_ms: float, passing: Passing) -> VerdictRecord:
        """The verdict as it goes into the book, without personal data."""
        question = shown(turn, verdict)
        passing.question = await passing.clean(question)
        caller = turn.caller
        record = verdict_record(verdict, request_id=turn.id, user_id=user_of(turn), input_text=passing.question)
        return msgspec.structs.replace(
            record,
            processing_time_ms=judged_ms,
            policy_version=verdict.policy_version or self._judge.policy_version,
            key_id=caller.key_id if caller else "",
            protocol=turn.protocol,
            model=turn.model,
            model_version=turn.model,
            request_hash=request_hash(turn, passing.book),
        )

    # --- on the way back ------------------------------------------------------------------------------------------

    async def _watched(self, turn: Turn, inner: Handler, passing: Passing) -> AsyncGenerator[Batch, None]:
        """The engine's events without thinking, each character judged before it leaves."""
        caller = turn.caller
        parts = think.MARK in turn.extra  # its thinking parts leave for nobody
        reveal = caller is not None and "reasoning" in caller.scopes and not parts
        choices = choices_of(turn)
        seal = None
        if self._seal is not None and caller is not None and turn.protocol == "responses":
            seal = self._seal(caller.key_id)
        habit = self._thinking.get(turn.model, "marked")
        options = ThinkingOptions(
            start=_STARTS.get(habit, "answer"),
            final_only=parts,
            channels=habit == "channels",
            reveal=reveal,
        )
        thinking = ThinkingFilter(options, choices, seal=seal, on_thought=passing.thought)
        watch = self._watch(choices)
        async with aclosing(inner(turn)) as events:
            async for batch in events:
                out = thinking.feed(batch)
                if watch is not None:
                    out = watch.feed(out)
                    if watch.refused:
                        yield await self._stopped(turn, watch, out, passing)
                        return
                if out:
                    passing.observe(out)
                    yield await passing.ended(out) if passing.over else out
        out = thinking.end()
        if watch is not None:
            out = [*watch.feed(out), *watch.end()]
            if watch.refused:
                yield await self._stopped(turn, watch, out, passing)
                return
        if out:
            passing.observe(out)
            yield await passing.ended(out) if passing.over else out

    def _watch(self, choices: int) -> OutputWatch | None:
        """Only what is to be refused ends an answer: that a person should look at a subject was said of the request."""
        if not self._config.output or self._mode() == "off":
            return None
        window = max(self._config.hold_back_chars, self._judge.longest_match())
        return OutputWatch(self._judge_output, OutputOptions(window, escalate="allow"), choices)

    def _judge_output(self, text: str) -> Verdict:
        return self._judge.judge_text(text, "assistant", OUTPUT)

    async def _stopped(self, turn: Turn, watch: OutputWatch, out: Batch, passing: Passing) -> Batch:
        """The end of an answer of which no more may leave, with a record of its own."""
        verdict = watch.verdict
        assert verdict is not None
        self.on_verdict("output", verdict, None)
        passing.observe(out)
        record = verdict_record(verdict, request_id=turn.id, user_id=user_of(turn))
        await passing.recorded.wait()
        await passing.book.append(msgspec.structs.replace(record, stage="output", model=turn.model))
        text = told.stopped(verdict, turn.id) if passing.said else told.refused(verdict, turn.id)
        return [*out, *await passing.ended(watch.refusal(text), "refused")]


def _failure(rule: str, judge: Judge) -> Verdict:
    category: Category = "other"
    return Verdict(
        "refuse",
        category,
        "medium",
        rationale=rationale("refuse", category, "failure", "en"),
        findings=(Finding("failure", rule, category, "refuse"),),
        decided_by="failure",
    )
