"""What every engine promises (`engines.base`), on each of them: in process, over HTTP, through llama.cpp and torch."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from sekisho.core.errors import ContextTooLong, EngineUnavailable
from sekisho.core.events import Batch, Event, Failed, Finished, TextDelta, Usage
from sekisho.core.turn import EmbedRequest, Message, Sampling, Text, Turn
from sekisho.engines.base import Engine
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.engines.llama_cpp import LlamaCppEngine
from sekisho.engines.openai_http import OpenAiHttpEngine
from sekisho.engines.torch_engine import TorchEngine

CONTEXT = 8192  # of the tiny model


def say(
    text: str,
    *,
    stream: bool = False,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    **fields: object,
) -> Turn:
    """A chat turn of one user message."""
    sampling = sampling or Sampling(max_tokens=max_tokens)
    messages = (Message("user", (Text(text),)),)
    return Turn("turn_1", "chat", "m", messages=messages, sampling=sampling, stream=stream, **fields)  # type: ignore[arg-type]


class Subject(msgspec.Struct):
    """An engine, a turn that goes on until it is stopped, and a way to count the slots in use."""

    engine: Engine
    endless: Turn
    busy: Callable[[], Awaitable[int]]


@pytest.fixture(
    params=["fake", "openai_http", "llama_cpp", pytest.param("torch", marks=[pytest.mark.kv, pytest.mark.timeout(300)])]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "llama_cpp":
        async with request.getfixturevalue("open_slow_llama")() as llama:

            async def slots() -> int:
                return sum(bool(slot["is_processing"]) for slot in await llama.slots())

            endless = Sampling(max_tokens=CONTEXT - 100, ignore_eos=True)
            yield Subject(llama, say("hello", sampling=endless), slots)
    elif request.param == "torch":
        async with request.getfixturevalue("open_torch")() as torch:

            async def admitted() -> int:
                state = await torch.kv_state()
                return int(state["running"]) + int(state["prefilling"])

            endless = Sampling(max_tokens=CONTEXT - 100, ignore_eos=True)
            yield Subject(torch, say("hello", sampling=endless), admitted)
    elif request.param == "fake":
        fake = FakeEngine(ModelConfig("m", engine="fake"))

        async def active() -> int:
            return fake.active

        yield Subject(fake, say("a b stall:1"), active)
    else:
        url: str = request.getfixturevalue("fake_url")
        stats = request.getfixturevalue("fake_stats")
        engine = OpenAiHttpEngine(ModelConfig("m", engine="openai_http"), url)

        async def running() -> int:
            return int((await stats())["active"])

        yield Subject(engine, say("a b stall:1"), running)
        await engine.close()


async def collect(engine: Engine, turn: Turn) -> list[Batch]:
    return [batch async for batch in engine.generate(turn)]


def flat(batches: list[Batch]) -> list[Event]:
    return [event for batch in batches for event in batch]


async def until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Long enough for a machine that stands still for a while, too short for an endless turn to end by itself."""
    async with asyncio.timeout(20):
        while await count() != wanted:  # noqa: ASYNC110 - another process, no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_turn_ends_once_with_usage(subject: Subject, stream: bool) -> None:
    """Text comes, then usage, then exactly one end; batches are never empty."""
    greedy = Sampling(max_tokens=3, temperature=0.0, ignore_eos=True)  # random weights may draw an end and no text
    batches = await collect(subject.engine, say("one two three", stream=stream, sampling=greedy))
    events = flat(batches)
    assert all(batches)
    assert any(isinstance(event, TextDelta) and event.text for event in events)
    assert [type(event) for event in events if isinstance(event, Finished | Failed)] == [Finished]
    assert isinstance(events[-1], Finished)
    (usage,) = (event for event in events if isinstance(event, Usage))
    assert 0 < usage.output_tokens <= 3
    assert usage.input_tokens >= 3


async def test_the_same_request_says_the_same_streamed_or_whole(subject: Subject) -> None:
    """Streaming changes the portions and nothing else."""
    greedy = Sampling(max_tokens=3, temperature=0.0, seed=1)
    turns = [say("one two three", stream=stream, sampling=greedy) for stream in (True, False)]
    said = [flat(await collect(subject.engine, turn)) for turn in turns]
    texts = ["".join(event.text for event in events if isinstance(event, TextDelta)) for events in said]
    assert texts[0] == texts[1]
    assert said[0][-1] == said[1][-1]


async def test_a_length_limit_is_told(subject: Subject) -> None:
    """What is cut at `max_tokens` ends with `length`."""
    turn = say("one two three", sampling=Sampling(max_tokens=2, ignore_eos=True))
    assert flat(await collect(subject.engine, turn))[-1] == Finished("length")


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_frees_the_slot(subject: Subject, stream: bool) -> None:
    """A caller that goes away frees the engine's slot, streaming or not, long before the answer would have ended."""
    await until(subject.busy, 0)
    turn = msgspec.structs.replace(subject.endless, stream=stream)
    task = asyncio.create_task(collect(subject.engine, turn))
    await until(subject.busy, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(subject.busy, 0)


async def test_closing_the_stream_frees_the_slot(subject: Subject) -> None:
    """`aclose` after the first events frees the slot, too."""
    await until(subject.busy, 0)
    stream = subject.engine.generate(msgspec.structs.replace(subject.endless, stream=True))
    await anext(stream)
    assert await subject.busy() == 1
    await stream.aclose()
    await until(subject.busy, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_too_long_a_prompt_is_the_callers_error(subject: Subject, stream: bool) -> None:
    """A prompt beyond the context is `context_length_exceeded`, before any event."""
    with pytest.raises(ContextTooLong) as caught:
        await collect(subject.engine, say("word " * 9000, stream=stream))
    assert caught.value.status == 400


async def test_token_counts_are_those_that_are_billed(subject: Subject) -> None:
    """`count_tokens` says what `usage.input_tokens` will say."""
    turn = say("How many tokens are these?", max_tokens=1)
    (usage,) = (event for event in flat(await collect(subject.engine, turn)) if isinstance(event, Usage))
    assert await subject.engine.count_tokens(turn) == usage.input_tokens


async def test_a_raw_prompt_is_completed_and_counted(subject: Subject) -> None:
    """Turns with `prompts` run, too."""
    turn = Turn("turn_1", "completions", "m", prompts=("once upon a time",), sampling=Sampling(max_tokens=2))
    events = flat(await collect(subject.engine, turn))
    assert isinstance(events[-1], Finished)
    (usage,) = (event for event in events if isinstance(event, Usage))
    assert await subject.engine.count_tokens(turn) == usage.input_tokens


async def test_every_prompt_and_choice_is_said_and_billed(subject: Subject) -> None:
    """Two prompts with two choices are four ends; each prompt is billed once, each choice's tokens all."""
    greedy = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
    one = Turn("turn_1", "completions", "m", prompts=("once upon a time",), sampling=greedy)
    other = msgspec.structs.replace(one, prompts=("in a land",))
    twice = msgspec.structs.replace(greedy, n=2)
    both = msgspec.structs.replace(one, prompts=(*one.prompts, *other.prompts), sampling=twice, stream=True)
    inputs = [
        next(e for e in flat(await collect(subject.engine, turn)) if isinstance(e, Usage)) for turn in (one, other)
    ]
    events = flat(await collect(subject.engine, both))
    assert [event.choice for event in events if isinstance(event, Finished)] == [0, 1, 2, 3]
    assert {event.choice for event in events if isinstance(event, TextDelta)} == {0, 1, 2, 3}
    (usage,) = (event for event in events if isinstance(event, Usage))
    assert usage.input_tokens == sum(single.input_tokens for single in inputs)
    assert usage.output_tokens == 2 * sum(single.output_tokens for single in inputs)


async def test_embeddings_keep_the_order_of_the_inputs(subject: Subject) -> None:
    """One vector per input, in order; the same text gives the same vector."""
    result = await subject.engine.embed(EmbedRequest("emb_1", "m", ("one", "two words", "one")))
    assert len(result.vectors) == 3
    assert result.vectors[0] == pytest.approx(result.vectors[2], abs=1e-4)
    assert result.vectors[0] != pytest.approx(result.vectors[1], abs=1e-4)
    assert result.usage.input_tokens > 0


async def test_too_long_an_input_to_embed_is_the_callers_error(subject: Subject) -> None:
    """A text beyond the context is `context_length_exceeded`, as it is for a turn, and no failure of the engine."""
    with pytest.raises(ContextTooLong) as caught:
        await subject.engine.embed(EmbedRequest("emb_1", "m", ("short", "word " * 9000)))
    assert caught.value.status == 400


async def test_a_ready_engine_lists_its_models(subject: Subject) -> None:
    """`ready` goes with a list of models."""
    assert (await subject.engine.health()).state == "ready"
    assert await subject.engine.models()


async def test_many_turns_at_once_each_end(subject: Subject) -> None:
    """Twenty turns at once, more than there are slots, each end with their own text."""
    turns = [say("one two three", stream=number % 2 == 0, max_tokens=2) for number in range(20)]
    for batches in await asyncio.gather(*(collect(subject.engine, turn) for turn in turns)):
        assert isinstance(flat(batches)[-1], Finished)


async def test_closing_twice_is_harmless(subject: Subject) -> None:
    """`close` may be called twice, and the engine can be used again."""
    await subject.engine.close()
    await subject.engine.close()
    assert (await subject.engine.health()).state == "ready"


@pytest.mark.parametrize("engine_class", [OpenAiHttpEngine, LlamaCppEngine, TorchEngine])
@pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid:80"])
async def test_nobody_there_is_unavailable(
    engine_class: type[OpenAiHttpEngine], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection and an unknown host are 503 with `Retry-After`, and `health` says down without raising."""
    resolve = socket.getaddrinfo

    def unknown(name: Any, *more: Any, **fields: Any) -> Any:
        if name == "no-such-host.invalid":  # whatever this machine's resolver says of it, and however long it takes
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(name, *more, **fields)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    engine = engine_class(ModelConfig("m"), f"http://{host}/v1")
    try:
        for attempt in (collect(engine, say("hi")), engine.models(), engine.count_tokens(say("hi"))):
            with pytest.raises(EngineUnavailable) as caught:
                await attempt
            assert caught.value.retry_after_s
        assert (await engine.health()).state == "down"
    finally:
        await engine.close()
