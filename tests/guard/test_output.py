"""No character of an answer leaves before a verdict covers it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sekisho.core.verdict import Decision, Verdict
from sekisho.guard.output import Judge, OutputOptions, OutputWatch

PHRASE = "火薬の作り方abc"
WINDOW = 16
SMALL = OutputOptions(window_chars=WINDOW, step_chars=8)


def forbid(phrase: str, decision: Decision = "refuse") -> Judge:
    return lambda text: Verdict(decision, "weapons") if phrase in text else None


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


def run(watch: OutputWatch, events: list[Event]) -> Batch:
    out: Batch = []
    for event in events:
        out += watch.feed([event])
    return out + watch.end()


def text_of(batch: Batch) -> str:
    return "".join(event.text for event in batch if isinstance(event, TextDelta))


texts = st.text("ab火薬の作 。\n", max_size=80)
cuts = st.lists(st.integers(0, 400), max_size=40)


@settings(max_examples=300)
@given(texts, texts, cuts, st.integers(1, 40))
def test_a_forbidden_phrase_never_leaves(before: str, behind: str, places: list[int], step: int) -> None:
    """For any cuts and any step: nothing that reaches the phrase's last character leaves, in fact nothing of it."""
    text = before + PHRASE + behind
    first = text.index(PHRASE)
    watch = OutputWatch(forbid(PHRASE), OutputOptions(WINDOW, step))
    out = run(watch, [*(TextDelta(piece) for piece in pieces(text, places)), Usage(1, 2), Finished("stop")])
    assert watch.refused
    assert watch.verdict == Verdict("refuse", "weapons")
    assert text.startswith(text_of(out))
    assert len(text_of(out)) <= first
    assert not [event for event in out if isinstance(event, Usage | Finished)]


@settings(max_examples=300)
@given(st.lists(st.one_of(st.just("call"), st.just("think"), texts), max_size=12), cuts)
def test_an_innocent_answer_leaves_as_it_came(said: list[str], places: list[int]) -> None:
    """Every event leaves, the same objects in the same order, usage and end last."""
    events: list[Event] = [Started()]
    for number, piece in enumerate(said):
        if piece == "call":
            events.append(ToolCallDelta(number % 2, "call_1", "look", '{"a":1}'))
        elif piece == "think":
            events.append(ReasoningDelta("hm"))
        else:
            events += [TextDelta(part, 0, (TokenLogprob("t", -1.0),)) for part in pieces(piece, places)]
    events += [Usage(1, 2), Finished("stop")]
    for judge in (None, forbid(PHRASE)):
        watch = OutputWatch(judge, SMALL)
        out = run(watch, events)
        assert [id(event) for event in out] == [id(event) for event in events]
        assert not watch.refused


@given(texts, texts, cuts, st.booleans(), st.integers(0, 3))
def test_arguments_are_watched_too(before: str, behind: str, places: list[int], escape: bool, first: int) -> None:
    """A phrase in the arguments of a call, written plainly or in JSON escapes, stops the call: no delta that reaches
    its last character leaves."""
    arguments = json.dumps({"text": before + PHRASE + behind}, ensure_ascii=escape)
    deltas: list[Event] = [ToolCallDelta(first, "call_1", "write")]
    deltas += [ToolCallDelta(first, arguments=piece) for piece in pieces(arguments, places)]
    watch = OutputWatch(forbid(PHRASE), SMALL)
    out = run(watch, [TextDelta("I write."), *deltas, Finished("tool_calls")])
    assert watch.refused
    written = "".join(event.arguments for event in out if isinstance(event, ToolCallDelta))
    end = arguments.index(json.dumps(PHRASE, ensure_ascii=escape)[1:-1])
    assert len(written) <= end


def test_escaped_pairs_are_read_as_one_character() -> None:
    """Arguments with an escaped emoji do not break a judge that encodes what it is shown."""
    seen: list[str] = []

    def judge(text: str) -> None:
        seen.append(text.encode().decode())

    watch = OutputWatch(judge, SMALL)
    run(watch, [ToolCallDelta(0, "c", "f", json.dumps("a😀\n")), Finished("tool_calls")])
    assert '"a😀\n"' in seen
    assert not watch.refused


@settings(max_examples=200)
@given(texts, cuts)
def test_what_has_left_was_judged_with_a_window_ahead(text: str, places: list[int]) -> None:
    """At any time the judge has seen at least a window more than has left, and it sees every run of a window whole."""
    seen: list[str] = []
    fed, judged, left = "", 0, ""

    def judge(said: str) -> None:
        nonlocal judged
        assert fed.endswith(said)
        judged = len(fed)
        seen.append(said)

    watch = OutputWatch(judge, SMALL)
    for piece in pieces(text, places):
        fed += piece
        left += text_of(watch.feed([TextDelta(piece)]))
        assert len(left) <= max(judged - WINDOW, 0)
    left += text_of(watch.end())
    assert left == text
    assert all(any(text[at : at + WINDOW] in said for said in seen) for at in range(len(text)))


def test_it_is_asked_in_steps() -> None:
    """Once for a step of characters, at a sentence's end earlier, and not for every token."""
    asked: list[int] = []

    def judge(said: str) -> None:
        asked.append(len(said))

    watch = OutputWatch(judge, OutputOptions(64, 32))
    for _ in range(320):
        watch.feed([TextDelta("a")])
    assert len(asked) == 10
    asked.clear()
    watch.feed([TextDelta("nine more.")])
    assert len(asked) == 1


@pytest.mark.parametrize("escalate", ["refuse", "allow"])
def test_an_escalation_in_the_middle(escalate: str) -> None:
    """Ends the answer, or is noted, as configured."""
    options = OutputOptions(WINDOW, 8, "refuse" if escalate == "refuse" else "allow")
    watch = OutputWatch(forbid("xyz", "escalate"), options)
    out = run(watch, [TextDelta("a" * 50), TextDelta("xyz"), TextDelta("b" * 50), Finished("stop")])
    assert watch.refused == (escalate == "refuse")
    assert bool(watch.noted) == (escalate == "allow")
    assert ("xyz" in text_of(out)) == (escalate == "allow")


def test_a_broken_judge_refuses() -> None:
    """Nothing leaves that it could not judge, and the verdict says that it failed."""

    def judge(_: str) -> Verdict | None:
        raise RuntimeError("no model")

    watch = OutputWatch(judge, SMALL)
    assert text_of(run(watch, [TextDelta("a" * 500), Finished("stop")])) == ""
    assert watch.verdict is not None
    assert watch.verdict.decided_by == "failure"
    assert watch.refusal("No.") == [RefusalDelta("No."), Finished("content_filter")]


def test_a_refusal_of_one_choice_ends_all() -> None:
    """The other choice stops too, and the refusal speaks for both, with the usage where it was told."""
    watch = OutputWatch(forbid(PHRASE), SMALL, choices=2)
    out = watch.feed([TextDelta("a" * 40), TextDelta(PHRASE, 1), Usage(1, 2), Finished("stop"), Finished("stop", 1)])
    assert watch.refused
    assert watch.feed([TextDelta("more")]) + watch.end() == []
    assert not [event for event in out if isinstance(event, Finished)]
    refusal = watch.refusal("No.")
    assert refusal[2] == Usage(1, 2)
    assert [event.choice for event in refusal if isinstance(event, Finished)] == [0, 1]


def test_thinking_does_not_hold_the_answer_up() -> None:
    """Shown or sealed thinking leaves as soon as the answer begins; the answer streams on."""
    watch = OutputWatch(forbid(PHRASE), SMALL)
    thoughts = [ReasoningDelta("short"), ReasoningDelta("", 0, "sealed")]
    assert watch.feed([*thoughts, TextDelta("a")]) == thoughts
    assert text_of(watch.feed([TextDelta("b" * WINDOW)])) == "a"
    caught = OutputWatch(forbid(PHRASE), SMALL)
    assert caught.feed([ReasoningDelta(PHRASE), TextDelta("a")]) == []
    assert caught.refused


def test_a_failure_leaves_at_once() -> None:
    """What was held is dropped with it."""
    failed = Failed("err_1", "engine_failed", "server_error", "broke")
    watch = OutputWatch(None)
    assert watch.feed([TextDelta("a"), failed]) == [failed]
    assert watch.end() == []


def test_a_window_has_a_least_length() -> None:
    """A window that could hold no phrase is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least 16"):
        OutputWatch(None, OutputOptions(window_chars=1))
