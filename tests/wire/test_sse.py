"""Server-sent events: any portions, any line ends, any comments."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.wire import sse
from sekisho.wire.sse import SseDecoder, SseEvent

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x00"), max_size=12)
NAMES = WORDS.filter(bool)
EVENTS = st.builds(
    SseEvent,
    st.lists(WORDS, min_size=1, max_size=3).map(lambda lines: "\n".join(lines).encode()),
    st.none() | NAMES,
    st.none() | WORDS,
    st.none() | st.integers(0, 10_000),
)


def portions(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    return [body[a:b] for a, b in itertools.pairwise(places)]


def decode(chunks: list[bytes]) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@settings(deadline=None, max_examples=80)
@given(st.data(), st.lists(EVENTS, max_size=6), st.lists(st.integers(0, 400), max_size=12), st.booleans())
def test_any_portions_line_ends_and_comments_give_the_same_events(
    data: st.DataObject, events: list[SseEvent], cuts: list[int], mark: bool
) -> None:
    """Whatever line end each line has, wherever the bytes are cut and whatever comments stand between, the events
    are those that were written."""
    ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
    lines: list[bytes] = []
    for event in events:
        lines += sse.encode(event.data, event.event, event.id, event.retry_ms).split(b"\n")[:-1]
        lines += data.draw(
            st.sampled_from([[], [b": ping", b""], [b":", b"", b""], [b"other: x", b""], [b"event: y", b""]])
        )
    body = b"\xef\xbb\xbf" if mark else b""
    for line in lines:
        end = data.draw(ends)
        # an empty line ended by LF after a line ended by CR would read as one line ended by CRLF
        body += line + (b"\r" if not line and end == b"\n" and body.endswith(b"\r") else end)
    assert decode(portions(body, cuts)) == events
    assert decode([body[i : i + 1] for i in range(len(body))]) == events
    assert decode([body]) == events


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=6))
def test_encode_then_decode_gives_the_events_back(events: list[SseEvent]) -> None:
    """What the encoder writes, the decoder reads."""
    body = b"".join(sse.encode(event.data, event.event, event.id, event.retry_ms) for event in events)
    assert decode([body]) == events


def test_line_ends_inside_data_arrive_as_line_feeds() -> None:
    """Data with any line end cannot break out of its frame."""
    assert decode([sse.encode(b"a\r\nb\rc\nd\n\nevent: x")]) == [SseEvent(b"a\nb\nc\nd\n\nevent: x")]


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x00"])
def test_a_field_of_two_lines_is_refused(name: str) -> None:
    """An event name, an id or a comment cannot smuggle in another field."""
    with pytest.raises(ValueError, match="one line"):
        sse.encode(b"x", event=name)
    with pytest.raises(ValueError, match="one line"):
        sse.encode(b"x", id=name)
    with pytest.raises(ValueError, match="one line"):
        sse.comment(name)


def test_field_rules_of_the_standard() -> None:
    """One space after the colon is dropped, no colon means an empty value, an id with NUL and a retry that is no
    number are ignored, an event without data is not dispatched."""
    body = b"data:  two spaces\nid: a\x00b\nretry: 1x\n\ndata\n\nevent: nothing\n\ndata:x\nevent:\n\n"
    assert decode([body]) == [SseEvent(b" two spaces"), SseEvent(b""), SseEvent(b"x")]


def test_keepalive_changes_nothing() -> None:
    """The keep-alive comment gives no event, even between the halves of another frame's bytes."""
    assert decode([sse.KEEPALIVE, b"data: a\n\n", sse.KEEPALIVE, sse.comment("ping"), b"data: b\n\n"]) == [
        SseEvent(b"a"),
        SseEvent(b"b"),
    ]


def test_a_frame_beyond_the_limit_is_refused_in_any_portions() -> None:
    """A sender that never ends its frame cannot fill the memory."""
    decoder = SseDecoder(limit_bytes=100)
    assert decoder.feed(b"data: " + b"x" * 80 + b"\n\n") != []
    assert [decoder.feed(b"x") for _ in range(100)] == [[]] * 100
    with pytest.raises(sse.FrameTooLong):
        decoder.feed(b"x")
    with pytest.raises(sse.FrameTooLong):
        SseDecoder(limit_bytes=100).feed(b"data: a\n\n" + b"x" * 101)


def test_a_frame_without_its_empty_line_comes_at_the_end() -> None:
    """A stream that stops after its last data line still gives that line, and only when asked."""
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n\ndata: [DONE]\n") == [SseEvent(b"a")]
    assert decoder.finish() == [SseEvent(b"[DONE]")]
    assert decoder.finish() == []
    assert SseDecoder().finish() == []
