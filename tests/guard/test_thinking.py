"""Thinking never leaves, whatever its format and however it was cut."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinking_harness import FINAL_ONLY, UNKNOWN, chunk, ended, pieces, run, text_of

from sekisho.core.events import ReasoningDelta, TextDelta
from sekisho.core.turn import Turn
from sekisho.guard.thinking import ThinkingFilter, ThinkingOptions, final_text
from sekisho.wire.chat_client import ChatStreamDecoder

SECRET = frozenset("sＳ秘")  # the letters of every thought here; no visible text has them
OPENED = ThinkingOptions(start="thought")
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
