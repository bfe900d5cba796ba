"""The handlers that generate: chat, completions, messages, Ollama's chat and generate."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Protocol

import msgspec

from sekisho.core import ids
from sekisho.core.events import Finished
from sekisho.core.turn import Turn
from sekisho.gateway.answer import Answer
from sekisho.gateway.app import Gateway
from sekisho.gateway.exchange import estimate_tokens
from sekisho.gateway.identity import Holder
from sekisho.gateway.roster import check_fits
from sekisho.gateway.router import Call
from sekisho.gateway.running import Running
from sekisho.wire import chat, completions, messages, think
from sekisho.wire.base import Encoder
from sekisho.wire.ollama import chat as ollama_chat_codec
from sekisho.wire.ollama import generate as ollama_generate_codec
from sekisho.wire.ollama.encoder import is_load


class Codec(Protocol):
    """What `generate` needs of a protocol's module (see `wire.base`)."""

    def decode(self, body: bytes, request_id: str) -> Turn: ...

    def encoder(self, turn: Turn, created: int) -> Encoder: ...


async def generate(gateway: Gateway, call: Call, codec: Codec | ModuleType, prefix: str) -> None:
    """Decodes, meters, runs and answers one turn."""
    body = await gateway.body(call)
    asked: Turn = codec.decode(body, ids.new(prefix))
    assert call.holder is not None
    entry = gateway.roster.find(asked.model, call.holder)
    check_fits(asked, entry)
    if is_load(asked):
        await _answer_load(gateway, call, codec.encoder(asked, int(gateway.clock.now())), asked.stream)
        return
    exchange = gateway.admit(
        call,
        asked.id,
        entry.name,
        asked.protocol,
        estimate_tokens(len(body), asked.sampling.max_tokens),
        asked.user,
    )
    try:
        # The client reads the name it used; the road knows the model's own.
        turn = msgspec.structs.replace(asked, model=entry.name, caller=call.caller)
        answer = Answer(exchange, codec.encoder(asked, int(gateway.clock.now())))
        gateway.answers[asked.id] = (call.caller.key_id, answer)
        headers = gateway.limit_headers(call.holder)
        events = gateway.roster.run(turn)
        if asked.stream:
            await answer.send_stream(call.request, events, headers, gateway.config.keepalive_s)
        else:
            await answer.send_whole(call.request, events, headers)
    finally:
        gateway.answers.pop(asked.id, None)
        exchange.close()


async def _answer_load(gateway: Gateway, call: Call, encoder: Encoder, stream: bool) -> None:
    """Ollama's request without words only loads the model; ours are loaded, so no engine is asked."""
    done = [Finished("stop")]
    if stream:
        body = encoder.start() + encoder.feed(done) + encoder.end()
        await call.request.respond(200, body, encoder.content_type.encode())
        return
    encoder.feed(done)
    await call.request.respond(200, encoder.whole())


async def chat_completions(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, chat, "chatcmpl-")


async def think_first(gateway: Gateway, call: Call) -> None:
    """`/v1/think`: a chat completion of which only the final part is shown."""
    await generate(gateway, call, _Think(), "chatcmpl-")


async def text_completions(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, completions, "cmpl-")


async def anthropic_messages(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, messages, "msg_")


async def ollama_chat(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, _OllamaTimed(ollama_chat_codec, gateway), "ollama_")


async def ollama_generate(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, _OllamaTimed(ollama_generate_codec, gateway), "ollama_")


class _Think:
    """Chat with the instruction to think in parts; the checkpoint lets out the final one."""

    def decode(self, body: bytes, request_id: str) -> Turn:
        return think.asking(chat.decode(body, request_id))

    def encoder(self, turn: Turn, created: int) -> Encoder:
        return chat.encoder(turn, created)


class _OllamaTimed:
    """Ollama's answers tell durations: this hands the codec our clock."""

    def __init__(self, codec: ModuleType, gateway: Gateway) -> None:
        self._codec = codec
        self._clock = gateway.clock

    def decode(self, body: bytes, request_id: str) -> Turn:
        turn: Turn = self._codec.decode(body, request_id)
        return turn

    def encoder(self, turn: Turn, created: int) -> Encoder:
        encoder: Encoder = self._codec.encoder(turn, created, self._clock.monotonic)
        return encoder


async def count_tokens(gateway: Gateway, call: Call) -> None:
    """Anthropic's `/v1/messages/count_tokens`: the engine's own count, not billed."""
    assert call.holder is not None
    body = await gateway.body(call)
    turn = messages.decode_count(body, ids.new("msg_"))
    entry = gateway.roster.find(turn.model, call.holder)
    running = Running(lambda *_: None)
    gateway.answers[turn.id] = (call.caller.key_id, running)
    try:
        async with running.watched(call.request):
            with _metered(gateway, call.holder, len(body)) if entry.engine.count_takes_slot else nullcontext():
                asked = msgspec.structs.replace(turn, model=entry.name, caller=call.caller)
                count = await gateway.roster.count_tokens(asked)
            await call.request.respond(200, msgspec.json.encode({"input_tokens": count}))
    finally:
        gateway.answers.pop(turn.id, None)


@contextmanager
def _metered(gateway: Gateway, holder: Holder, body_bytes: int) -> Iterator[None]:
    """A count that is a run of the engine stands in its key's windows as one. Raises RateLimited, QuotaSpent."""
    estimate, spent = estimate_tokens(body_bytes, None), gateway.ledger.spending(holder.record.id)
    reservation = holder.meter.admit(gateway.clock.monotonic(), estimate, spent)
    try:
        yield
    finally:
        holder.meter.settle(reservation, estimate)
