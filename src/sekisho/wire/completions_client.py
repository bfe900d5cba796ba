"""The legacy completions protocol as a client: for turns that hold raw prompts."""

from typing import Any

import msgspec

from sekisho.core.errors import EngineFailed
from sekisho.core.events import Batch, TextDelta, TokenLogprob, TopLogprob
from sekisho.core.turn import Turn
from sekisho.wire import jsonio
from sekisho.wire.chat_sampling import sampling_fields
from sekisho.wire.chat_stream import UNREADABLE, StreamReader, Timings, UsagePart
from sekisho.wire.sse import DEFAULT_LIMIT_BYTES, SseEvent


class Logprobs(msgspec.Struct):
    """OpenAI's old parallel lists, or `content` as in chat, which llama.cpp sends here too."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[TokenLogprob] | None = None


class ChoicePart(msgspec.Struct):
    index: int | None = 0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct):
    choices: list[ChoicePart] | None = None
    usage: UsagePart | None = None
    timings: Timings | None = None
    model: str | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def encode_completion(turn: Turn, *, model: str, stream: bool) -> bytes:
    """The body for an engine's `/completions`. `echo` is not asked for: our own encoder adds the prompt."""
    request = {key: value for key, value in turn.extra.items() if not key.startswith("sekisho.")}
    request.update(sampling_fields(turn.sampling))
    request["model"] = model
    request["prompt"] = turn.prompts[0] if len(turn.prompts) == 1 else turn.prompts
    if turn.suffix is not None:
        request["suffix"] = turn.suffix
    if turn.sampling.logprobs:
        request["logprobs"] = max(turn.sampling.top_logprobs or 0, 1)  # llama.cpp takes 0 for none at all
    request["stream"] = stream
    if stream:
        request["stream_options"] = {"include_usage": True}
    return jsonio.dump(request)


class CompletionStreamDecoder(StreamReader):
    """As `ChatStreamDecoder`. Choice numbers run over the prompts, `n` for each."""

    def __init__(self, turn: Turn, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        super().__init__(turn.sampling.n * max(len(turn.prompts), 1), turn.sampling.n, limit_bytes)

    def _take(self, data: bytes, out: Batch) -> None:
        chunk = _decode_chunk(data)
        if chunk.error or (chunk.choices is None and chunk.usage is None):
            self._take_odd(data, chunk.error, out)
            return
        if not self._started:
            self._start(chunk.model, out)
        self._count(chunk.usage, chunk.timings)
        for choice in chunk.choices or ():
            index = choice.index or 0
            if not 0 <= index < len(self._finished):
                self._fail(out, EngineFailed(UNREADABLE), f"choice {index} of {len(self._finished)}")
                return
            logprobs = tuple(_token_logprobs(choice.logprobs)) if choice.logprobs is not None else ()
            if choice.text or logprobs:
                out.append(TextDelta(choice.text or "", index, logprobs))
            if choice.finish_reason:
                self._finish_choice(index, choice.finish_reason, choice.stop_reason, False, out)

    def read_whole(self, body: bytes) -> Batch:
        return self._read([SseEvent(body), SseEvent(b"[DONE]")], [])


def decode_completion_whole(body: bytes, turn: Turn) -> Batch:
    """As `decode_whole`."""
    decoder = CompletionStreamDecoder(turn)
    batch = decoder.read_whole(body)
    if decoder.error is not None:
        raise decoder.error
    return batch


def _token_logprobs(logprobs: Logprobs) -> list[TokenLogprob]:
    if logprobs.content is not None:
        return logprobs.content
    out = []
    tops = logprobs.top_logprobs or []
    for number, (token, logprob) in enumerate(zip(logprobs.tokens or (), logprobs.token_logprobs or (), strict=False)):
        if logprob is None:
            continue  # a first token has no probability
        top = (tops[number] if number < len(tops) else None) or {}
        out.append(TokenLogprob(token, logprob, None, [TopLogprob(word, value) for word, value in top.items()]))
    return out
