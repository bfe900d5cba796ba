"""A small measured load on one engine's OpenAI address: how fast it reads a prompt, how fast it answers several long
contexts at once, and what memory its process takes.

Prompts are made from a seed, and no two of a run have a beginning in common, so that no cache answers for the engine.
Tokens are those of the engine's `usage`; moments are those at which the pieces of real streams arrive.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from statistics import median
from typing import Any, Final

import msgspec
import psutil

from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.http_client import HttpClient, HttpTrouble, Response
from sekisho.wire.sse import FrameTooLong, SseDecoder

_WORDS: Final = (
    "gate", "road", "river", "keeper", "letter", "seal", "lamp", "market", "winter", "bridge", "stone", "paper",
    "horse", "night", "valley", "bell", "door", "salt", "garden", "mountain", "boat", "rope", "tea", "rain",
)  # fmt: skip
_CALIBRATION_WORDS: Final = 60
_WARM_UP_TOKENS: Final = 8
_SHOWN: Final = 300


class LoadPlan(msgspec.Struct, frozen=True):
    """`contexts`: streams at once. `prompt_tokens`: of each, reached within some percent. `extra` goes into every
    request's body; for llama.cpp `{"ignore_eos": True, "cache_prompt": False}` keeps answers equally long and caches
    out of it. `repeats`: prompts that are read alone, for the speed of reading."""

    model: str
    contexts: int = 4
    prompt_tokens: int = 1024
    answer_tokens: int = 64
    repeats: int = 1
    seed: int = 1
    timeout_s: float = 600.0
    extra: dict[str, Any] = {}


class Stream(msgspec.Struct, frozen=True):
    """One streamed answer. `arrivals_s`: when its pieces came, on the clock's monotonic time."""

    started_s: float
    arrivals_s: tuple[float, ...]
    prompt_tokens: int
    answer_tokens: int

    @property
    def first_token_ms(self) -> float:
        return (self.arrivals_s[0] - self.started_s) * 1000

    def tokens_between(self, start_s: float, end_s: float) -> float:
        """Tokens that came after `start_s` and by `end_s`, each piece counted as an equal share of the answer."""
        pieces = sum(start_s < moment <= end_s for moment in self.arrivals_s)
        return self.answer_tokens * pieces / len(self.arrivals_s)


class Load(msgspec.Struct, frozen=True):
    """`alone`: prompts that were read one at a time; `together`: the streams that ran at once. `resident_bytes`: the
    process's memory while all contexts were full; None without a process to look at."""

    plan: LoadPlan
    alone: tuple[Stream, ...]
    together: tuple[Stream, ...]
    resident_bytes: int | None

    def measured(self, *, kv_bytes: int | None = None, delta_ppl: float | None = None) -> Measured:
        """As figures; what the load cannot see is handed in."""
        decode = decode_tokens_per_s(self.together)
        notes = () if decode is not None else ("decode: some streams had ended before the last one began",)
        return Measured(
            decode_tokens_per_s=decode,
            prefill_tokens_per_s=prefill_tokens_per_s(self.alone),
            first_token_ms=median(each.first_token_ms for each in self.together),
            memory_bytes=self.resident_bytes,
            kv_bytes=kv_bytes,
            contexts=len(self.together),
            delta_ppl=delta_ppl,
            notes=notes,
        )


def prefill_tokens_per_s(alone: Sequence[Stream]) -> float | None:
    """Prompt tokens over the time to the first token, over all prompts read alone."""
    seconds = sum(each.first_token_ms for each in alone) / 1000
    return sum(each.prompt_tokens for each in alone) / seconds if seconds > 0 else None


def decode_tokens_per_s(together: Sequence[Stream]) -> float | None:
    """Tokens of all streams while all of them were answering: from the last one's first token to the first one's end.
    None where there was no such time."""
    if not together:
        return None
    start_s = max(each.arrivals_s[0] for each in together)
    end_s = min(each.arrivals_s[-1] for each in together)
    if end_s <= start_s:
        return None
    return sum(each.tokens_between(start_s, end_s) for each in together) / (end_s - start_s)


async def run_load(address: str, key: str | None, plan: LoadPlan, clock: Clock, process: int | None = None) -> Load:
    """`address` ends in /v1, `process` is the engine's process id. Warms up, reads `repeats` prompts alone, then lets
    `contexts` streams run at once. Raises MeasurementFailed, with what the engine said."""
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    client = HttpClient(address, headers)
    asker = _Asker(client, "/" + address.partition("://")[2].partition("/")[2].strip("/"), plan, clock)
    try:
        async with asyncio.timeout(plan.timeout_s):
            words = await asker.calibrated()
            alone = [await asker.ask(words, 1) for _ in range(plan.repeats)]
            asked = (asker.ask(words, plan.answer_tokens) for _ in range(plan.contexts))
            together = await asyncio.gather(*asked)
            return Load(plan, tuple(alone), tuple(together), resident_bytes(process))
    except TimeoutError as error:
        raise MeasurementFailed(f"the load did not end within {plan.timeout_s:g} s") from error
    finally:
        await client.close()


def resident_bytes(process: int | None) -> int | None:
    """Of a process and its children. None where there is none to look at. Raises MeasurementFailed where it is gone."""
    if process is None:
        return None
    try:
        parent = psutil.Process(process)
        found = int(parent.memory_info().rss)
        for child in parent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                found += int(child.memory_info().rss)
        return found
    except psutil.Error as error:
        raise MeasurementFailed(f"the engine's process {process} cannot be looked at: {error}") from error


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Asker:
    """Asks with a new prompt each time; the same plan gives the same prompts in the same order."""

    def __init__(self, client: HttpClient, base: str, plan: LoadPlan, clock: Clock) -> None:
        self._client, self._plan, self._clock = client, plan, clock
        self._path = base.rstrip("/") + "/chat/completions"
        self._chance = Random(plan.seed)

    async def calibrated(self) -> int:
        """Warms the engine up, and tells how many words make a prompt of the wanted size: two lengths tell what a word
        costs and what the chat template adds."""
        short = await self.ask(_CALIBRATION_WORDS, _WARM_UP_TOKENS)
        long = await self.ask(2 * _CALIBRATION_WORDS, _WARM_UP_TOKENS)
        per_word = max(0.1, (long.prompt_tokens - short.prompt_tokens) / _CALIBRATION_WORDS)
        beside = short.prompt_tokens - per_word * _CALIBRATION_WORDS
        return max(1, round((self._plan.prompt_tokens - beside) / per_word))

    async def ask(self, words: int, answer_tokens: int) -> Stream:
        text = " ".join(self._chance.choice(_WORDS) for _ in range(words))
        body = {
            "model": self._plan.model,
            "messages": [{"role": "user", "content": f"{self._chance.getrandbits(64):x} {text}"}],
            "max_tokens": answer_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._plan.extra,
        }
        started_s = self._clock.monotonic()
        try:
            response = await self._client.send("POST", self._path, msgspec.json.encode(body), self._plan.timeout_s)
            try:
                return await self._stream(response, started_s)
            finally:
                response.let_go()
        except (HttpTrouble, FrameTooLong, Undecodable) as error:
            raise MeasurementFailed(f"the engine does not answer: {error or type(error).__name__}") from error

    async def _stream(self, response: Response, started_s: float) -> Stream:
        if response.status != 200:
            said = (await response.read())[:_SHOWN].decode(errors="replace")
            raise MeasurementFailed(f"the engine refused with {response.status}: {said}")
        decoder, arrivals_s, usage = SseDecoder(), list[float](), None
        while data := await response.read_any():
            now_s = self._clock.monotonic()
            for event in decoder.feed(data):
                chunk = _Chunk() if event.data == b"[DONE]" else decoded(event.data, _Chunk)
                if chunk.error is not None:
                    raise MeasurementFailed(f"the engine broke off: {str(chunk.error)[:_SHOWN]}")
                usage = chunk.usage or usage
                if any(each.delta.content or each.delta.reasoning_content for each in chunk.choices):
                    arrivals_s.append(now_s)
        if usage is None or not arrivals_s:
            raise MeasurementFailed("the engine's stream had no text" if usage else "the engine told no usage")
        return Stream(started_s, tuple(arrivals_s), usage.prompt_tokens, usage.completion_tokens)
