"""Thinking never leaves, whatever its format and however it was cut."""

import hashlib
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from sekisho.core.turn import Sampling, Turn
from sekisho.guard.thinking import ThinkingFilter, ThinkingOptions, final_text
from sekisho.wire.chat_client import ChatStreamDecoder

SECRET = frozenset("sＳ秘")  # the letters of every thought here; no visible text has them
FINAL_ONLY = ThinkingOptions(final_only=True)
OPENED = ThinkingOptions(start="thought")
UNKNOWN = ThinkingOptions(start="unknown")
CHANNELS = ThinkingOptions(channels=True)
ALL = [ThinkingOptions(), FINAL_ONLY, OPENED, UNKNOWN, CHANNELS]
HARMONY = (
    "<|channel|>analysis<|message|>sss<|end|><|start|>assistant<|channel|>commentary<|message|>ss<|end|>"
    "<|start|>assistant<|channel|>final<|message|>回答<|return|>"
)

# --- texts that are known part by part ---

PAIRS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("< think >", "< / think\n>"),
    ("<think\tkind='deep'>", "</think >"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("＜ｔｈｉｎｋ＞", "＜／ｔｈｉｎｋ＞"),
    ("〈think〉", "〈/think〉"),
    ("<th\u200bink>", "</\u2060think>"),
    ("◁think▷", "◁/think▷"),
    ("<thinkaloud>", "</thinkaloud>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>", "<channel|>"),
    ("<think>", "</reasoning>"),  # small models mix them up
]
PARTS = [("<think-task>", "</think-task>"), ("<think-safety >", "</THINK-safety>"), ("<think-odd>", "</think-odd>")]
DECOYS = [
    "<",
    "<b>",
    "</div>",
    "[1]",
    "[",
    "a < b",
    "<t",
    "`<p>`",
    "［",
    "<|im_end|>",
    "<reasoning_x>",
    "List<Thought>",
]
HIDDEN_DECOYS = [
    "<final>",
    "</final>",
    "</thin",
    "<|channel|>final<|message|>",
    "<|end|>",
    "<",
    "[/",
    "`<p>`",
    "<think/>",
]

visible = st.one_of(st.text("ab あ\n", max_size=6), st.sampled_from(DECOYS))
secret = st.one_of(st.text([*sorted(SECRET), " "], max_size=5), st.sampled_from(HIDDEN_DECOYS))


def thoughts(pairs: list[tuple[str, str]]) -> st.SearchStrategy[str]:
    """One thought with its tags, thoughts nested in it."""

    def wrap(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(st.sampled_from(pairs), st.lists(st.one_of(secret, inner), max_size=4)).map(
            lambda drawn: drawn[0][0] + "".join(drawn[1]) + drawn[0][1]
        )

    return st.recursive(wrap(secret), wrap, max_leaves=5)


Part = tuple[str, str]  # (kind, text): kind is `visible` or `hidden`
plain_texts = st.lists(
    st.one_of(visible.map(lambda text: ("visible", text)), thoughts(PAIRS).map(lambda text: ("hidden", text))),
    max_size=6,
)
divided_texts = st.tuples(
    st.lists(st.one_of(thoughts(PARTS + PAIRS), secret.filter(lambda text: "<" not in text)), max_size=4).map("".join),
    st.lists(visible, max_size=3).map("".join),
    st.text(sorted(SECRET), max_size=3),
)


def expected(parts: list[Part]) -> str:
    """The visible parts; once a mark has come, without the space before the first word."""
    shown = ""
    marked = False
    for kind, text in parts:
        if kind == "hidden":
            marked = True
        elif marked and not shown.strip():
            shown += text.lstrip()
        else:
            shown += text
    return shown


# --- ways to cut ---


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


def run(events: list[Event], options: ThinkingOptions | None = None, **hooks: Any) -> tuple[Batch, ThinkingFilter]:
    filter_ = ThinkingFilter(options, **hooks)
    out: Batch = []
    for event in events:
        out += filter_.feed([event])
    return out + filter_.end(), filter_


def text_of(batch: Batch, choice: int = 0) -> str:
    return "".join(event.text for event in batch if isinstance(event, TextDelta) and event.choice == choice)


def ended(deltas: list[str], reason: FinishReason = "stop") -> list[Event]:
    return [Started(), *(TextDelta(text) for text in deltas), Usage(3, 5), Finished(reason)]


# --- what leaves ---


@settings(max_examples=400)
@given(plain_texts, st.lists(st.integers(0, 400), max_size=12))
def test_only_the_answer_leaves_however_it_was_cut(parts: list[Part], cuts: list[int]) -> None:
    """Random answers and nested thoughts in every format: the text that leaves is the answer, for any cuts."""
    text = "".join(text for _, text in parts)
    batch, _ = run(ended(pieces(text, cuts)))
    assert text_of(batch) == expected(parts)
    assert text_of(run(ended(list(text)))[0]) == expected(parts)


@settings(max_examples=300)
@given(divided_texts, st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_of_a_divided_answer_only_the_final_part_leaves(
    parts: tuple[str, str, str], cuts: list[int], closed: bool
) -> None:
    """Whatever stands before and behind `<final>`, in tags known or unknown or in none, stays."""
    before, final, behind = parts
    text = f"{before}<final>{final}" + (f"</final>{behind}" if closed else "")
    batch, _ = run(ended(pieces(text, cuts)), FINAL_ONLY)
    assert text_of(batch) == final.lstrip()


@settings(max_examples=300)
@given(
    st.lists(st.one_of(thoughts(PAIRS + PARTS), secret), max_size=5).map("".join),
    st.sampled_from(["<think>", "<think-task>", "<reasoning>", "[THINK]", "<|channel|>analysis<|message|>"]),
    st.integers(0, 300),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_a_thought_cut_short_shows_nothing(thought: str, mark: str, length: int, cuts: list[int]) -> None:
    """Truncation in mid-thought, at any character: no letter of it leaves, and no finish reason changes."""
    hidden = (mark + thought)[: max(length, len(mark))]
    if mark.startswith("<|"):
        hidden = hidden.replace("<|", "")  # no other channel begins
        hidden = mark + hidden[len(mark) :]
    batch, _ = run(ended(pieces(hidden, cuts), "length"))
    assert not SECRET & set(text_of(batch))
    assert not SECRET & set(text_of(run(ended(pieces("s" + thought[:length], cuts), "length"), OPENED)[0]))
    assert not SECRET & set(text_of(run(ended(pieces("<think-a>" + thought[:length], cuts), "length"), FINAL_ONLY)[0]))


@pytest.mark.parametrize("options", ALL)
@given(data=st.data())
def test_the_cut_changes_nothing(data: st.DataObject, options: ThinkingOptions) -> None:
    """Marks in any order, sensible or not: what leaves, what is kept and what the hasher is told are the same for one
    delta and for any cuts."""
    marks = [mark for pair in PAIRS + PARTS for mark in pair] + DECOYS + HIDDEN_DECOYS
    marks += [
        "<|start|>",
        "assistant",
        "final",
        "analysis",
        "<|message|>",
        "<|channel|>",
        "<final>",
        "a",
        "秘",
        " ",
        "\n",
    ]
    text = "".join(data.draw(st.lists(st.sampled_from(marks), max_size=10)))
    whole, keeper = run(ended([text]), options)
    hashed = hashlib.sha256()
    events = ended(pieces(text, data.draw(st.lists(st.integers(0, 400), max_size=12))))
    batch, other = run(events, options, on_thought=lambda _, said: hashed.update(said.encode()))
    assert text_of(batch) == text_of(whole)
    assert other.thinking() == keeper.thinking()
    assert hashed.hexdigest() == hashlib.sha256(keeper.thinking().encode()).hexdigest()
    revealed, _ = run(events, ThinkingOptions(options.start, options.final_only, options.channels, reveal=True))
    assert text_of(revealed) == text_of(whole)
    assert "".join(event.text for event in revealed if isinstance(event, ReasoningDelta)) == keeper.thinking()


@pytest.mark.parametrize(
    "text",
    [
        "go <think>秘s</think>\n\n回答",
        "秘s</think>ok",
        pytest.param(HARMONY, marks=pytest.mark.slow),  # long: 10 s for each of the options
        "<think-task>s秘</think-task><final>答え</final>秘",
    ],
)
@pytest.mark.parametrize("options", ALL)
def test_every_byte_split_of_the_wire(text: str, options: ThinkingOptions) -> None:
    """Through the decoder of an engine's stream, cut in two at every byte, some characters a frame, escaped and not:
    the same text leaves as of the whole."""
    whole = text_of(run(ended([text]), options)[0])
    assert options == ThinkingOptions() or not SECRET & set(whole)
    for size, ascii_only in ((3, True), (5, False)):
        stream = b"".join(chunk({"content": text[at : at + size]}, ascii_only) for at in range(0, len(text), size))
        stream += chunk({}, ascii_only, "stop") + b"data: [DONE]\n\n"
        for place in range(len(stream) + 1):
            decoder = ChatStreamDecoder(Turn("req_1", "chat", "m"))
            filter_ = ThinkingFilter(options)
            batches = [decoder.feed(stream[:place]), decoder.feed(stream[place:]), decoder.finish()]
            out = [event for batch in batches for event in filter_.feed(batch)] + filter_.end()
            assert text_of(out) == whole


def chunk(delta: dict[str, Any], ascii_only: bool, finish: str | None = None) -> bytes:
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("text", "options", "shown"),
    [
        ("sss</think>\n\nanswer", OPENED, "answer"),
        ("sss</think>\n\nanswer", UNKNOWN, "answer"),
        ("<think>sss</think>answer", OPENED, "answer"),  # the model opens what its template has opened
        ("<think><think>s</think>s</think>answer", OPENED, "answer"),
        ("sss <think>s</think> s</think>answer", UNKNOWN, "answer"),
        ("no thought at all", UNKNOWN, "no thought at all"),
        ("  spaced\n", UNKNOWN, "  spaced\n"),
        ("sss", OPENED, ""),
        (HARMONY, ThinkingOptions(), "回答"),
        (HARMONY, CHANNELS, "回答"),
        (HARMONY, UNKNOWN, "回答"),
        ("<| channel |>final <|constrain|>json<｜message｜>{}<|end|>ss", CHANNELS, "{}"),
        ("sss", CHANNELS, ""),
        ("<|channel|>sss", ThinkingOptions(), ""),
        ("<|channel|>finally<|message|>sss", CHANNELS, ""),
        ("<|channel|>analysis<|message|>s <think> s<|end|><|channel|>final<|message|>ok", CHANNELS, "ok"),
        ("<|channel|>analysis<|message|>s<|end|>s<|channel|>final<|message|><think-task>s</think-task><final>ok</final>",
         FINAL_ONLY, "ok"),
        ("a <think-new>s</think-new>s<final>ok</final>s", ThinkingOptions(), "a ok"),
        ("<think-task>s<final>s</final>s</think-task><final>ok", FINAL_ONLY, "ok"),
        ("<think-task>s<think-safety>s</think-safety><final>s</final>", FINAL_ONLY, ""),  # never closed
        ("`<think>` s", ThinkingOptions(), "`"),
        ("```\n<think>s</think>\n```", ThinkingOptions(), "```\n\n```"),
        ("<thi", ThinkingOptions(), "<thi"),
        ("<think", ThinkingOptions(), ""),
        ("<think\nsss", ThinkingOptions(), ""),
        ("<think <b>s</think>ok", ThinkingOptions(), "ok"),
        ("<" + " " * 400 + "think>a", ThinkingOptions(), "<" + " " * 400 + "think>a"),
        ("[think about it](x)", ThinkingOptions(), "[think about it](x)"),
        ("a</think>b", ThinkingOptions(), "ab"),
    ],
)  # fmt: skip
def test_formats(text: str, options: ThinkingOptions, shown: str) -> None:
    """Each format, and what is done where it is broken."""
    assert final_text(text, options) == shown
    assert text_of(run(ended(list(text)), options)[0]) == shown


def test_plain_text_is_hardly_held_back() -> None:
    """A delta without the beginning of a mark leaves at once and as the same object; one that ends in such a beginning
    is held back by that much."""
    filter_ = ThinkingFilter()
    filter_.feed([TextDelta("Hello")])
    event = TextDelta(" world, f(x) {")
    assert filter_.feed([event])[0] is event
    assert text_of(filter_.feed([TextDelta(" a <")])) == " a "
    assert text_of(filter_.feed([TextDelta("b> [")])) == "<b> "
    assert text_of(filter_.feed([TextDelta("1] <t")])) == "[1] "
    assert text_of(filter_.feed([TextDelta("d>")])) == "<td>"


# --- events beside the text ---


def test_order_of_events() -> None:
    """A tool call between two halves of a tag waits for them; usage and end come last, whatever was held back."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    events: list[Event] = [Started(), TextDelta("a <thi"), call, TextDelta("s is b [th"), Usage(1, 2), Finished("stop")]
    batch, _ = run(events)
    assert batch == [
        *(Started(), TextDelta("a "), TextDelta("<thi"), call, TextDelta("s is b "), TextDelta("[th")),
        *(Usage(1, 2), Finished("stop")),
    ]
    events[3] = TextDelta("nk>s</think>b")
    assert run(events)[0] == [Started(), TextDelta("a "), call, TextDelta("b"), Usage(1, 2), Finished("stop")]
    assert run([TextDelta("a <thi"), call, TextDelta("nk>s"), Finished("stop")], UNKNOWN)[0] == [
        *(TextDelta("a "), call, Finished("stop")),
    ]


def test_choices_are_apart() -> None:
    """One choice thinks, the other answers; both end after the last word of both."""
    filter_ = ThinkingFilter(choices=2)
    batch = filter_.feed([TextDelta("<think>s"), TextDelta("ok <", 1), Finished("stop", 1), TextDelta("</think>b")])
    batch += filter_.feed([Finished("length")])
    assert (text_of(batch), text_of(batch, 1)) == ("b", "ok <")
    assert batch[-2:] == [Finished("stop", 1), Finished("length")]
    assert (filter_.thinking(), filter_.thinking(1)) == ("s", "")


def test_a_failure_leaves_at_once_and_ends_all() -> None:
    """What was held back is dropped with it, and nothing follows."""
    failed = Failed("err_1", "engine_failed", "server_error", "broke")
    filter_ = ThinkingFilter()
    assert filter_.feed([TextDelta("a <"), failed]) == [TextDelta("a "), failed]
    assert filter_.feed([TextDelta("b")]) + filter_.end() == []


@given(st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_no_logprob_of_a_thought_leaves(cuts: list[int], odd: bool) -> None:
    """Tokens leave only with characters that leave, alternatives included; of a plain text all of them leave."""
    text = "ab<think>sss</think>cd <秘"
    events: list[Event] = [TextDelta(piece, 0, scores(piece, odd)) for piece in pieces(text, cuts)]
    out, _ = run([*events, Finished("stop")])
    said = [score for event in out if isinstance(event, TextDelta) for score in event.logprobs]
    inside = [score for score in said for top in (score, *score.top_logprobs) if "s" in top.token]
    assert not inside
    plain: list[Event] = [TextDelta(piece, 0, scores(piece, odd)) for piece in pieces("ab < cd [e] f", cuts)]
    kept, _ = run([*plain, Finished("stop")])
    said = [score for event in kept if isinstance(event, TextDelta) for score in event.logprobs]
    assert said == [score for event in plain if isinstance(event, TextDelta) for score in event.logprobs]


def scores(piece: str, odd: bool) -> tuple[TokenLogprob, ...]:
    """A token a character; `odd`: one that names the piece in another spelling, as of half characters."""
    tokens = [f"\ufffd{piece}"] if odd else list(piece)
    return tuple(TokenLogprob(token, -0.1, None, [TopLogprob(token, -0.1)]) for token in tokens)


def test_a_token_without_a_character_waits_for_it() -> None:
    """Half a character stands for the character that follows: visible or not."""
    half = (TokenLogprob("\ufffd", -0.5, [0xE7]),)
    out, _ = run([TextDelta("", 0, half), TextDelta("a"), Finished("stop")])
    assert [event.logprobs for event in out if isinstance(event, TextDelta)] == [half]
    out, _ = run([TextDelta("<think>"), TextDelta("", 0, half), TextDelta("秘</think>a"), Finished("stop")])
    assert [event.logprobs for event in out if isinstance(event, TextDelta)] == [()]


# --- thinking that is kept, sealed or revealed ---


def test_thinking_of_every_kind_is_kept_together() -> None:
    """Tags and `reasoning_content` go to one hash, in order, bounded in what is kept and not in what is hashed."""
    told: list[tuple[int, str]] = []
    events: list[Event] = [ReasoningDelta("ss"), TextDelta("<think>s秘</think>a"), Finished("stop")]
    batch, filter_ = run(events, ThinkingOptions(keep_chars=3), on_thought=lambda *said: told.append(said))
    assert filter_.thinking() == "sss"
    assert "".join(text for _, text in told) == "sss秘"
    assert batch == [TextDelta("a"), Finished("stop")]


def test_sealed_thinking_has_no_text() -> None:
    """Each thought becomes one event that holds its seal alone, before what follows it."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    events: list[Event] = [
        ReasoningDelta("s"),
        ReasoningDelta("S"),
        call,
        TextDelta("a<think>秘</think>"),
        Finished("stop"),
    ]
    batch, _ = run(events, seal=lambda text: f"sealed {len(text)}")
    assert batch == [
        *(ReasoningDelta("", 0, "sealed 2"), call, TextDelta("a"), ReasoningDelta("", 0, "sealed 1"), Finished("stop")),
    ]


def test_revealed_thinking_is_never_in_the_text() -> None:
    """A key that may see thinking gets it as thinking, in its place."""
    events: list[Event] = [TextDelta("a<think>sS</think>b"), ReasoningDelta("秘"), Finished("stop")]
    batch, _ = run(events, ThinkingOptions(reveal=True))
    assert batch == [
        *(TextDelta("a"), ReasoningDelta("sS"), TextDelta("b"), ReasoningDelta("秘"), Finished("stop")),
    ]


# --- no final part ---


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_thinking_without_an_answer_is_a_clear_failure(reason: FinishReason) -> None:
    """In a divided answer without a final part: 422 `thinking_without_answer`, the usage before it, no word of it."""
    batch, _ = run(ended(["<think-task>s</think-task> sss"], reason), FINAL_ONLY)
    usage, failed = batch[1:]
    assert usage == Usage(3, 5)
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (422, "thinking_without_answer")
    assert ("token limit" in failed.message) == (reason == "length")


def test_one_choice_without_a_final_part() -> None:
    """Where another choice has one, it is refused alone."""
    filter_ = ThinkingFilter(FINAL_ONLY, choices=2)
    batch = filter_.feed([TextDelta("<final>ok</final>"), TextDelta("sss", 1), Finished("stop"), Finished("stop", 1)])
    assert [type(event) for event in batch] == [TextDelta, RefusalDelta, Finished, Finished]
    assert batch[-1] == Finished("content_filter", 1)


def test_a_tool_call_is_an_answer() -> None:
    """A model that calls a tool need not have written a final part."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    assert run([TextDelta("<think-task>s</think-task>"), call, Finished("tool_calls")], FINAL_ONLY)[0] == [
        *(call, Finished("tool_calls")),
    ]


def test_the_decoder_knows_other_fields() -> None:
    """`reasoning_content`, `reasoning` and `thinking` of an engine's delta never reach the text."""
    turn = Turn("req_1", "chat", "m", sampling=Sampling())
    for field in ("reasoning_content", "reasoning", "thinking"):
        decoder = ChatStreamDecoder(turn)
        stream = chunk({field: "sss", "content": "ok"}, True, "stop") + b"data: [DONE]\n\n"
        batch, filter_ = run(decoder.feed(stream))
        assert (text_of(batch), filter_.thinking()) == ("ok", "sss")
