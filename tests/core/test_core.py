"""The nouns."""

from contextlib import aclosing

from hypothesis import given
from hypothesis import strategies as st

from sekisho.core import errors, ids
from sekisho.core.events import Batch, EventStream, Finished, Handler, TextDelta, compose
from sekisho.core.turn import Turn


def _all(kind: type[errors.SekishoError]) -> list[type[errors.SekishoError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _all(child))]


def test_every_error_is_the_callers_or_ours() -> None:
    """Request errors are 4xx and service errors 5xx; no trouble of ours can be taken for a wrong key."""
    for kind in _all(errors.RequestError):
        assert 400 <= kind.status < 500, kind
    for kind in _all(errors.ServiceError):
        assert 500 <= kind.status < 600, kind


@given(st.lists(st.sampled_from(["chatcmpl-", "resp", "msg_"]), min_size=50, max_size=50))
def test_ids_are_distinct_and_safe_in_a_url(prefixes: list[str]) -> None:
    """No two alike, and nothing in them that a URL, a header or a file name minds."""
    made = [ids.new(prefix) for prefix in prefixes]
    assert len(set(made)) == len(made)
    assert all(name.replace("-", "").replace("_", "").isalnum() and name.isascii() for name in made)


async def test_stages_wrap_the_engine_from_the_outside_in_and_are_closed_with_it() -> None:
    """The first stage sees the last event last; closing the outermost stream closes every inner one."""
    closed = []

    def stage(name: str) -> object:
        async def run(turn: Turn, inner: Handler) -> EventStream:
            try:
                async with aclosing(inner(turn)) as events:
                    async for batch in events:
                        yield [*batch, TextDelta(name)]
            finally:
                closed.append(name)

        return run

    async def engine(turn: Turn) -> EventStream:
        try:
            while True:
                yield [Finished("stop")]
        finally:
            closed.append("engine")

    handler = compose([stage("outer"), stage("inner")], engine)  # type: ignore[list-item]
    stream = handler(Turn(id="1", protocol="chat", model="m"))
    first: Batch = await anext(stream)
    assert first == [Finished("stop"), TextDelta("inner"), TextDelta("outer")]
    await stream.aclose()
    assert closed == ["engine", "inner", "outer"]
