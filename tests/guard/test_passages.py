"""What of a turn is judged and shown: no place where an engine reads words is left out."""

import pytest

from sekisho.core.turn import Message, OutputFormat, Reasoning, Text, Tool, ToolResult, Turn
from sekisho.core.verdict import Finding, Verdict
from sekisho.guard.passages import last_request, passages, shown, size_chars, unread

WORD = "nightshade"
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", WORD]}}}


def turn(*messages: Message, **fields: object) -> Turn:
    return Turn("x", "chat", "m", messages=messages, **fields)  # type: ignore[arg-type]


def user(text: str) -> Message:
    return Message("user", (Text(text),))


@pytest.mark.parametrize(
    ("asked", "where", "voice"),
    [
        (turn(user("hi"), tools=(Tool("f", description=f"Say {WORD}."),)), "tools[0]", "untrusted"),
        (turn(user("hi"), tools=(Tool("f", parameters=SCHEMA),)), "tools[0]", "untrusted"),
        (turn(user("hi"), tools=(Tool("f", kind="custom", grammar={"definition": WORD}),)), "tools[0]", "untrusted"),
        (turn(user("hi"), format=OutputFormat("json_schema", schema=SCHEMA)), "format", "untrusted"),
        (turn(user("hi"), format=OutputFormat("json_schema", description=WORD)), "format", "untrusted"),
        (turn(user("hi"), extra={"chat_template_kwargs": {"note": [WORD]}}), "extra", "untrusted"),
        (turn(Message("assistant", (Reasoning(summary=(WORD,)),))), "messages[0]", "assistant"),
        (turn(Message("tool", (ToolResult("c", (Text(WORD),)),))), "messages[0]", "untrusted"),
        (turn(Message("developer", (Text(WORD),))), "messages[0]", "untrusted"),
        (Turn("x", "completions", "m", prompts=("a", WORD)), "prompts[1]", "user"),
        (Turn("x", "completions", "m", prompts=("a",), suffix=WORD), "suffix", "user"),
    ],
)
def test_every_place_for_words_is_a_passage(asked: Turn, where: str, voice: str) -> None:
    """Tools, formats, template arguments, summaries of thinking, suffixes: an engine reads them all."""
    (found,) = [passage for passage in passages(asked) if WORD in passage.text]
    assert (found.where, found.voice) == (where, voice)
    assert size_chars(asked) >= len(WORD)


def test_prompts_of_token_numbers_are_named() -> None:
    """Nobody here can read them, and the engine can."""
    assert list(unread(Turn("x", "completions", "m", prompts=((1, 2), (3,))))) == ["prompts[0]", "prompts[1]"]
    assert list(unread(Turn("x", "completions", "m", prompts=("text",)))) == []


def test_what_is_shown_holds_what_the_verdict_rests_on() -> None:
    """A person who reads `Go on.` alone cannot decide about what stands three messages before."""
    asked = turn(user("my diagnosis, please"), user("thanks"), user("Go on."))
    verdict = Verdict(
        "escalate", "medical", findings=(Finding("rule", "r", "medical", "escalate", "low", "messages[0]"),)
    )
    assert shown(asked, verdict) == "[messages[0]] my diagnosis, please\n\nGo on."
    assert shown(asked, Verdict("allow")) == "Go on."
    alone = turn(user("my diagnosis, please"))
    assert shown(alone, verdict) == "my diagnosis, please"


def test_all_raw_prompts_are_the_request() -> None:
    """Each of them gets an answer."""
    assert last_request(Turn("x", "completions", "m", prompts=("one", "two"))) == "one\ntwo"


def test_a_long_passage_is_shown_in_part() -> None:
    """A tool's result of a megabyte does not bury the request."""
    asked = turn(Message("tool", (ToolResult("c", (Text("x" * 1_000_000),)),)), user("Summarise."))
    finding = Finding("rule", "r", "injection", "refuse", "high", "messages[0]")
    text = shown(asked, Verdict("refuse", "injection", findings=(finding,)))
    assert len(text) < 5_000
    assert text.endswith("…\n\nSummarise.")


def test_what_an_agent_wraps_is_told_apart_and_still_judged_whole() -> None:
    """Context in a tag beside a request: the request alone as the caller's words, and all of it once more."""
    context = f"<environment_context>\n<cwd>/{WORD}</cwd>\n</environment_context>"
    asked = turn(Message("user", (Text(context),)), Message("user", (Text(context), Text("Fix it."))))
    found = [(passage.where, passage.voice) for passage in passages(asked)]
    assert found == [
        ("messages[0]", "wrapped"),
        ("messages[1]", "wrapped"),
        ("messages[1]", "user"),
        ("messages", "wrapped"),
    ]
    assert last_request(asked) == "Fix it."


@pytest.mark.parametrize("text", [f"<b>{WORD}</i>", f"x <tag>{WORD}</tag>", f"<tag>{WORD}</tag> x", f"<a>{WORD}</a>"])
def test_what_is_not_whole_in_one_tag_is_the_callers(text: str) -> None:
    """Words beside the tag, two different tags, markup of one letter."""
    (passage,) = passages(turn(user(text)))
    assert passage.voice == "user"
