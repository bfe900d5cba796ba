"""The handlers that generate: chat, completions, messages, Ollama's chat and generate."""

from types import ModuleType
from typing import Protocol

import msgspec

from sekisho.core import ids
from sekisho.core.turn import Turn
from sekisho.gateway.answer import Answer
from sekisho.gateway.app import Call, Gateway
from sekisho.gateway.exchange import estimate_tokens
from sekisho.gateway.roster import check_fits
from sekisho.wire import chat, completions, messages, ollama
from sekisho.wire.base import Encoder


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


async def chat_completions(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, chat, "chatcmpl-")


async def text_completions(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, completions, "cmpl-")


async def anthropic_messages(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, messages, "msg_")


async def ollama_chat(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, ollama.chat, "ollama_")


async def ollama_generate(gateway: Gateway, call: Call) -> None:
    await generate(gateway, call, ollama.generate, "ollama_")


async def count_tokens(gateway: Gateway, call: Call) -> None:
    """Anthropic's `/v1/messages/count_tokens`: the engine's own count, not billed."""
    assert call.holder is not None
    turn = messages.decode_count(await gateway.body(call), ids.new("msg_"))
    entry = gateway.roster.find(turn.model, call.holder)
    count = await entry.engine.count_tokens(msgspec.structs.replace(turn, model=entry.name, caller=call.caller))
    await call.request.respond(200, msgspec.json.encode({"input_tokens": count}))
