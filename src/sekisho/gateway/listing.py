"""Models as each protocol lists them, and embeddings."""

import msgspec

from sekisho.core import ids
from sekisho.core.errors import SekishoError
from sekisho.core.events import Usage
from sekisho.core.turn import EmbedRequest
from sekisho.engines.base import Embeddings
from sekisho.gateway.app import Gateway
from sekisho.gateway.exchange import estimate_tokens
from sekisho.gateway.http import ClientGone
from sekisho.gateway.roster import Entry
from sekisho.gateway.router import Call
from sekisho.gateway.running import Running
from sekisho.wire import embeddings as embeddings_codec
from sekisho.wire import models as models_codec
from sekisho.wire.ollama import embed as ollama_codec
from sekisho.wire.ollama import models as ollama_models
from sekisho.wire.ollama.models import OllamaModel


def _entries(gateway: Gateway, call: Call) -> list[Entry]:
    assert call.holder is not None
    return [gateway.roster.entries[name] for name in gateway.roster.permitted(call.holder)]


async def list_models(gateway: Gateway, call: Call) -> None:
    views = [_view(gateway, entry, entry.name) for entry in _entries(gateway, call)]
    await call.request.respond(200, models_codec.encode_list(views))


async def show_model(gateway: Gateway, call: Call) -> None:
    assert call.holder is not None
    name = call.params["model"]
    entry = gateway.roster.find(name, call.holder)
    await call.request.respond(200, models_codec.encode_model(_view(gateway, entry, name)))


def _view(gateway: Gateway, entry: Entry, name: str) -> models_codec.ModelView:
    return models_codec.ModelView(name, int(gateway.started_unix_s), context_length=entry.context_tokens)


async def embed(gateway: Gateway, call: Call) -> None:
    body = await gateway.body(call)
    asked = embeddings_codec.decode(body, ids.new("embd"))
    result = await _embed(gateway, call, asked, len(body))
    await call.request.respond(200, embeddings_codec.encode_result(asked, result.vectors, result.usage))


async def ollama_embed(gateway: Gateway, call: Call) -> None:
    body = await gateway.body(call)
    asked = ollama_codec.decode(body, ids.new("embd"))
    result = await _embed(gateway, call, asked, len(body))
    await call.request.respond(200, ollama_codec.encode(asked, result.vectors, result.usage))


async def ollama_embeddings(gateway: Gateway, call: Call) -> None:
    """Ollama's older embeddings path."""
    body = await gateway.body(call)
    asked = ollama_codec.decode_legacy(body, ids.new("embd"))
    result = await _embed(gateway, call, asked, len(body))
    await call.request.respond(200, ollama_codec.encode(asked, result.vectors, result.usage))


async def _embed(gateway: Gateway, call: Call, asked: EmbedRequest, body_bytes: int) -> Embeddings:
    assert call.holder is not None
    entry = gateway.roster.find(asked.model, call.holder)
    if not asked.inputs:  # Ollama's way to have a model loaded: ours are
        return Embeddings([], Usage(0, 0))
    exchange = gateway.admit(call, asked.id, entry.name, asked.protocol, estimate_tokens(body_bytes, None), asked.user)
    running = Running(exchange.record)
    gateway.answers[asked.id] = (call.caller.key_id, running)
    try:
        request = msgspec.structs.replace(asked, model=entry.name, caller=call.caller)
        async with running.watched(call.request):
            try:
                result = await gateway.roster.embed(request)
            except SekishoError as error:
                exchange.record("failed", error.status, error)
                raise
            exchange.usage = result.usage
            exchange.record("completed", 200)
            return result
        raise ClientGone
    finally:
        gateway.answers.pop(asked.id, None)
        exchange.close()


def _ollama_model(entry: Entry) -> OllamaModel:
    card = entry.card
    capabilities = ["completion", "tools"]
    if card is not None and card.vision:
        capabilities.append("vision")
    if card is not None and card.embeddings:
        capabilities.append("embedding")
    return OllamaModel(
        entry.name,
        size_bytes=card.size_bytes if card else None,
        family=card.family if card else None,
        parameter_size=_billions(card.parameters) if card and card.parameters else None,
        quantisation=card.quantisation if card else None,
        context_length=entry.context_tokens,
        capabilities=tuple(capabilities),
    )


def _billions(parameters: int) -> str:
    """As Ollama writes it: 2.8M, 8.0B."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"


async def ollama_tags(gateway: Gateway, call: Call) -> None:
    models = [_ollama_model(entry) for entry in _entries(gateway, call)]
    await call.request.respond(200, ollama_models.tags(models))


async def ollama_ps(gateway: Gateway, call: Call) -> None:
    models = [_ollama_model(entry) for entry in _entries(gateway, call) if entry.health.state == "ready"]
    await call.request.respond(200, ollama_models.ps(models))


async def ollama_show(gateway: Gateway, call: Call) -> None:
    assert call.holder is not None
    name = ollama_models.decode_show(await gateway.body(call))
    entry = gateway.roster.find(name, call.holder)
    await call.request.respond(200, ollama_models.show(_ollama_model(entry)))


async def ollama_version(gateway: Gateway, call: Call) -> None:
    await call.request.respond(200, ollama_models.version())
