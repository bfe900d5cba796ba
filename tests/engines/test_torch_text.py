"""Text comes in whole characters, and nothing of a stop string comes at all. Needs no torch."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from sekisho.engines.torch_worker.text import Detokeniser, StopFinder

TEXTS = st.text(st.sampled_from("abé漢🦊 \n"), max_size=24)


def pieces_of(text: str, cuts: list[int]) -> list[bytes]:
    """The bytes of a text, cut at these places."""
    raw = text.encode()
    places = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    return [raw[start:end] for start, end in pairwise(places) if end > start]


@given(TEXTS, st.lists(st.integers(0, 100), max_size=40))
def test_pieces_are_whole_characters_and_join_to_the_text(text: str, cuts: list[int]) -> None:
    """Whatever bytes the tokens have, no half character is said, and all of them together say the text."""
    tokens = pieces_of(text, cuts)
    detokeniser = Detokeniser(lambda ids: b"".join(tokens[each] for each in ids).decode(errors="replace"))
    said = [detokeniser.feed(number) for number in range(len(tokens))]
    assert not any("\ufffd" in piece for piece in said)
    assert "".join(said) + detokeniser.finish() == text


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=60))
def test_bytes_that_are_no_text_come_too(tokens: list[bytes]) -> None:
    """A model that says broken bytes is not held back for ever: they come as replacement characters, soon."""
    detokeniser = Detokeniser(lambda ids: b"".join(tokens[each] for each in ids).decode(errors="replace"))
    waiting = 0
    for number in range(len(tokens)):
        waiting = 0 if detokeniser.feed(number) else waiting + 1
        assert waiting < 16


def test_a_tokenizer_that_drops_a_leading_space_keeps_those_in_between() -> None:
    """The space that a word brings along is kept, except where the tokenizer itself drops it: at the beginning."""
    words = [" the", " quick", " fox"]
    detokeniser = Detokeniser(lambda ids: "".join(words[each] for each in ids).removeprefix(" "))
    assert "".join(detokeniser.feed(number) for number in range(3)) == "the quick fox"


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_are_found_at_every_split(text: str, stops: list[str], data: st.DataObject) -> None:
    """However the text is cut into pieces, what is shown is the text before the first stop string, or all of it."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=len(text))))
    places = [0, *[cut for cut in cuts if cut < len(text)], len(text)]
    finder = StopFinder(tuple(stops))
    shown = ""
    for start, end in pairwise(places):
        shown += finder.feed(text[start:end])
        assert not any(stop in shown for stop in stops)
    shown += finder.finish()
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    # A stop string that was complete first wins over a longer one that began before it.
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    assert (finder.found is not None) == bool(found)
    if not found:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert text[len(shown) :].startswith(str(finder.found))
        assert len(shown) + len(str(finder.found)) <= max(ends)


def test_what_may_begin_a_stop_string_waits() -> None:
    """Of `a</`, the last two characters wait for `</s>`, and come when something else follows."""
    finder = StopFinder(("</s>",))
    assert finder.feed("a</") == "a"
    assert finder.feed("b") == "</b"
    assert finder.feed("</s") == ""
    assert finder.feed("> more") == ""
    assert (finder.found, finder.feed("x"), finder.finish()) == ("</s>", "", "")
