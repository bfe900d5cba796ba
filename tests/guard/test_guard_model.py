"""The guard model at work: deadlines, slots, what it remembers, long conversations, and how its opinion counts."""

import asyncio
from typing import Any

import msgspec
import pytest
from desk_harness import until
from guard_model_harness import FORMATS, HELLO, SAFE, assistant, model, saying, user
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.events import EventStream, Finished, TextDelta
from sekisho.core.turn import Image, Message, Reasoning, Text, ToolCall, ToolResult, Turn
from sekisho.core.verdict import DECISIONS, SEVERITIES, Category, Finding, Verdict
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.guard import conversation
from sekisho.guard.guard_model import GuardModelConfig, GuardModelFailed, Opinion, combine, failed
from sekisho.guard.model_formats import policy, registry


async def test_a_prefilled_answer_is_judged_as_what_somebody_sent() -> None:
    """A conversation that ends with the assistant is asked about whole: rated alone the last message would be ours."""
    run = saying(SAFE["qwen3guard"])
    await model(run).judge((user("how to?"), assistant("Sure, step 1:")))
    assert [[message.role for message in turn.messages] for turn in run.turns] == [["user"]]


async def test_gravest_of_several_questions_counts() -> None:
    """A request spread over several messages is found in the whole, though its last message is harmless."""

    async def run(turn: Turn) -> EventStream:
        unsafe = len(turn.messages) == 1
        yield [TextDelta("unsafe\nS9" if unsafe else "safe"), Finished("stop")]

    said = await model(run, "llama_guard").judge((user("pipe"), assistant("yes?"), user("bomb, how?")))
    assert (said.decision, set(said.labels)) == ("refuse", {"unsafe", "S9", "safe"})


async def test_nothing_to_judge_is_still_asked_about() -> None:
    """An empty conversation makes a question, not an error."""
    for format in FORMATS:
        assert (await model(saying(SAFE[format]), format).judge(())).decision == "allow"


async def test_the_policy_is_told_in_the_language_of_the_request() -> None:
    """Japanese requests are judged under the Japanese text, others under the English one."""
    run = saying(SAFE["generic"])
    guard = model(run, "generic")
    await guard.judge((user("パンの焼き方を教えてください"),))
    await guard.judge(HELLO)
    told = [turn.messages[0].parts[0] for turn in run.turns]
    assert told == [Text(policy.POLICIES["ja"]), Text(policy.POLICIES["en"])]


async def test_the_deadline_frees_the_engine() -> None:
    """A slow model is a failure in time, and its turn is called off."""
    engine = FakeEngine(ModelConfig(name="guard", engine="fake"))
    guard = model(engine.generate, deadline_s=0.05)
    with pytest.raises(GuardModelFailed) as caught:
        await guard.judge((user("stall:1 hello"),))
    assert caught.value.reason == "timeout"
    assert "0.05 s" in str(caught.value)
    assert (engine.active, engine.cancelled) == (0, 1)


async def test_waiting_for_a_slot_counts_against_the_deadline() -> None:
    """No more questions run at once than allowed, and one that finds no slot in time fails."""
    running, most = 0, 0

    async def run(turn: Turn) -> EventStream:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.Event().wait()
            yield [Finished("stop")]
        finally:
            running -= 1

    guard = model(run, deadline_s=0.05, max_parallel=2)
    results = await asyncio.gather(*(guard.judge((user(str(number)),)) for number in range(9)), return_exceptions=True)
    assert [getattr(result, "reason", None) for result in results] == ["timeout"] * 9
    assert (running, most) == (0, 2)


async def test_cancellation_frees_the_engine_and_the_slot() -> None:
    """A caller who goes away calls the question off, and the next one gets its slot."""
    engine = FakeEngine(ModelConfig(name="guard", engine="fake"))
    guard = model(engine.generate, max_parallel=1, deadline_s=30.0)
    task = asyncio.create_task(guard.judge((user("stall:0"),)))
    await until(lambda: engine.active == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.active, engine.cancelled) == (0, 1)
    with pytest.raises(GuardModelFailed, match="malformed"):
        await guard.judge((user("hello"),))


async def test_labels_are_remembered_and_failures_are_not() -> None:
    """The same text is asked about once; another text, an answer and a failed question are asked about anew."""
    run = saying(SAFE["llama_guard"])
    guard = model(run, "llama_guard", cache_entries=2)
    assert not (await guard.judge(HELLO)).cached
    assert (await guard.judge(HELLO)).cached
    assert len(run.turns) == 1
    await guard.judge(HELLO, "bread is baked so")
    await guard.judge((user("other"),))
    assert len(run.turns) == 3
    assert not (await guard.judge(HELLO)).cached  # the oldest of three went
    broken = saying("perhaps")
    guard = model(broken, "llama_guard")
    for _ in range(2):
        with pytest.raises(GuardModelFailed):
            await guard.judge(HELLO)
    assert len(broken.turns) == 2


async def test_a_long_conversation_is_cut_and_says_so() -> None:
    """Head and tail are shown within the limit, and the opinion tells how much was not."""
    run = saying(SAFE["generic"])
    said = await model(run, "generic", max_chars=400).judge((user("HEAD" + "x" * 5_000 + "TAIL"),))
    sent = str(run.turns[0].messages[1])
    assert "HEAD" in sent
    assert "TAIL" in sent
    assert said.unseen_chars == 5_008 - 400
    assert said.decision == "allow"


@given(
    st.lists(st.integers(0, 300), max_size=8),
    st.none() | st.integers(0, 300),
    st.integers(64, 400),
)
def test_cutting_keeps_the_limit(sizes: list[int], answer: int | None, max_chars: int) -> None:
    """Within the limit (but for one mark) nothing is lost silently, and last things are kept before middle ones."""
    talk = tuple(user(chr(97 + number) * size) for number, size in enumerate(sizes))
    shown = conversation.plain(talk, None if answer is None else "Z" * answer, max_chars)
    total = sum(sizes) + (answer or 0)
    seen = sum(len(one.text) for one in shown.said) + len(shown.answer or "")
    assert seen <= max(max_chars + 5, 0)
    assert (shown.unseen_chars > 0) is (total > max_chars)
    if answer:
        assert shown.answer
    if sizes and sizes[-1]:
        assert shown.said
        assert shown.said[-1].text


def test_every_kind_of_part_becomes_text_or_is_named() -> None:
    """Tool calls, results and handed-back thinking are judged; what holds no text is named, not passed over."""
    parts = (
        Text("one"),
        Reasoning("two", ("three",)),
        ToolCall("c", "four", '{"five": 5}'),
        ToolResult("c", (Text("six"), Image("data:"))),
        Text("half \ud800"),
    )
    shown = conversation.plain((Message("user", parts),), None, 1_000)
    assert shown.said[0].text == 'one\ntwo\nthree\nfour {"five": 5}\nsix\n(image)\nhalf ?'
    assert shown.unseen_parts == ("image",)


decisions = st.sampled_from(DECISIONS)
severities = st.sampled_from(SEVERITIES)
categories: st.SearchStrategy[Category] = st.sampled_from(["none", "other", "fraud", "self_harm"])
findings = st.builds(Finding, st.just("rule"), st.just("r1"), categories, decisions)
verdicts = st.builds(
    Verdict,
    decision=decisions,
    category=categories,
    severity=severities,
    confidence=st.none() | st.floats(0, 1),
    findings=st.lists(findings, max_size=2).map(tuple),
    policy_version=st.just("7"),
    language=st.sampled_from(["ja", "en", "unknown"]),
)
opinions = st.builds(
    Opinion,
    decision=decisions,
    category=categories,
    severity=severities,
    labels=st.just(("Unsafe",)),
    about=st.sampled_from(["request", "answer"]),
    unseen_chars=st.integers(0, 3),
)


def _no_lighter(after: Verdict, before: Verdict) -> bool:
    return (
        DECISIONS.index(after.decision) >= DECISIONS.index(before.decision)
        and SEVERITIES.index(after.severity) >= SEVERITIES.index(before.severity)
        and after.findings[: len(before.findings)] == before.findings
        and (after.policy_version, after.language) == (before.policy_version, before.language)
    )


@given(verdicts, opinions)
def test_an_opinion_never_lightens_a_verdict(verdict: Verdict, said: Opinion) -> None:
    """The result is as grave as the graver of both, keeps every finding, and says who decided."""
    result = combine(verdict, said)
    assert _no_lighter(result, verdict)
    assert result.decision == max(verdict.decision, said.decision, key=DECISIONS.index)
    raised = result.decision != verdict.decision
    assert (result.decided_by == "guard_model") is raised
    assert len(result.findings) > len(verdict.findings)
    if not raised:
        assert (result.category, result.rationale) == (verdict.category, verdict.rationale)


@given(verdicts, st.sampled_from(["timeout", "engine", "cut_off", "empty", "malformed"]))
def test_a_failure_refuses(verdict: Verdict, reason: Any) -> None:
    """Without an opinion the verdict is a refusal, whatever it was."""
    result = failed(verdict, GuardModelFailed(reason))
    assert result.decision == "refuse"
    assert _no_lighter(result, verdict)
    assert result.findings[-1].rule == f"guard_model:{reason}"


def test_settings_are_strict() -> None:
    """Unknown fields, unknown formats and senseless numbers are errors."""
    good = {"model": "guard", "format": "qwen3guard"}
    config = msgspec.convert(good, GuardModelConfig)
    assert (config.deadline_s, config.max_parallel, config.on) == (3.0, 4, "all")
    for change in (
        {"formats": 1},
        {"format": "other"},
        {"deadline_s": 0},
        {"max_parallel": 0},
        {"max_chars": 1},
        {"model": ""},
        {"on": "never"},
        {"cache_entries": -1},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(good | change, GuardModelConfig)
    with pytest.raises(ValueError, match="generic, gpt_oss_safeguard, llama_guard, qwen3guard"):
        registry.find("other")


def test_wanted_follows_the_settings() -> None:
    """`all` asks always, `band` only where the classifier is unsure."""
    run = saying("safe")
    assert model(run, on="all").wanted(unsure=False)
    assert not model(run, on="band").wanted(unsure=False)
    assert model(run, on="band").wanted(unsure=True)
