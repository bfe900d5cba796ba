"""`/v1/responses`: generation with state. What a key stored only that key can see, continue, cancel or delete."""

import asyncio
from functools import partial
from typing import Any

import msgspec

from sekisho.core import ids
from sekisho.core.errors import InvalidRequest, NotFound, RequestError
from sekisho.core.turn import Turn
from sekisho.gateway import envelope
from sekisho.gateway.answer import Answer
from sekisho.gateway.app import Gateway
from sekisho.gateway.exchange import Exchange, estimate_tokens
from sekisho.gateway.roster import check_fits
from sekisho.gateway.router import Call
from sekisho.store import ResponseRecord
from sekisho.wire import responses as codec
from sekisho.wire.responses import ResponsesEncoder, ResponsesRequest


class Cancelled(RequestError):
    """Somebody with the same key cancelled the response."""

    status = 409
    code = "response_cancelled"


async def create(gateway: Gateway, call: Call) -> None:
    """`POST /v1/responses`, streaming, whole, or in the background."""
    body = await gateway.body(call)
    asked = codec.decode(body, ids.new("resp"))
    assert call.holder is not None
    entry = gateway.roster.find(asked.turn.model, call.holder)
    check_fits(asked.turn, entry)
    history = await _history(gateway, asked, call.caller.key_id)
    owner = call.caller.key_id
    heard = codec.with_history(asked, history, lambda sealed: gateway.sealer.unseal(sealed, owner))
    turn = msgspec.structs.replace(heard, model=entry.name, caller=call.caller)
    encoder = codec.encoder(
        asked, asked.turn, asked.turn.id, int(gateway.clock.now()), lambda text: gateway.sealer.seal(text, owner)
    )
    exchange = gateway.admit(
        call,
        asked.turn.id,
        entry.name,
        "responses",
        estimate_tokens(len(body), asked.turn.sampling.max_tokens),
        asked.turn.user,
    )
    answer = Answer(exchange, encoder)
    if asked.store:
        answer.on_complete = partial(_keep, gateway, asked, encoder, answer, owner)
    gateway.answers[asked.turn.id] = (owner, answer)
    if asked.background:
        await _start_background(gateway, call, asked, encoder, answer, exchange, turn)
        return
    try:
        events, headers = gateway.roster.run(turn), gateway.limit_headers(call.holder)
        if asked.turn.stream:
            await answer.send_stream(call.request, events, headers, gateway.config.keepalive_s)
        else:
            await answer.send_whole(call.request, events, headers)
    finally:
        gateway.answers.pop(asked.turn.id, None)
        exchange.close()


async def _history(gateway: Gateway, asked: ResponsesRequest, key_id: str) -> list[dict[str, Any]]:
    """Every item of the chain that the request continues, oldest first. Raises NotFound, StoreUnavailable."""
    if asked.previous_response_id is None:
        return []
    chain = await gateway.store.response_chain(asked.previous_response_id, key_id, gateway.clock.now())
    if chain and chain[-1].status in ("queued", "in_progress"):
        raise InvalidRequest(
            f"The response {asked.previous_response_id} has not ended yet: wait for it, then continue.",
            param="previous_response_id",
        )
    items: list[dict[str, Any]] = []
    for record in chain:
        items += _opened(gateway, record, record.input_items)
        items += _opened(gateway, record, record.response).get("output", [])
    return items


async def _keep(
    gateway: Gateway, asked: ResponsesRequest, encoder: ResponsesEncoder, answer: Answer, key_id: str
) -> None:
    """Stores the response as it stands now, sealed: what was said stands in no file in the clear."""
    response = _cancelled(encoder.stored()) if isinstance(answer.aborted, Cancelled) else encoder.stored()
    now, sealer, owner = gateway.clock.now(), gateway.sealer, _owner(key_id, asked.turn.id)
    items = codec.sealed_items(asked.input_items, lambda text: sealer.seal(text, key_id))
    await gateway.store.put_response(
        ResponseRecord(
            id=asked.turn.id,
            key_id=key_id,
            created_at=now,
            expires_at=now + gateway.responses_ttl_s,
            status=response["status"],
            previous_response_id=asked.previous_response_id,
            model=asked.turn.model,
            response=envelope.close(sealer, owner, response),
            input_items=envelope.close(sealer, owner, items),
        )
    )


def _opened(gateway: Gateway, record: ResponseRecord, body: bytes) -> Any:
    return envelope.read(gateway.sealer, _owner(record.key_id, record.id), body)


def _owner(key_id: str, response_id: str) -> str:
    return f"{key_id}.{response_id}"


def _cancelled(response: dict[str, Any]) -> dict[str, Any]:
    """Not a failure, whatever the stream was told."""
    return codec.cancelled({**response, "status": "in_progress", "error": None})


async def _start_background(
    gateway: Gateway,
    call: Call,
    asked: ResponsesRequest,
    encoder: ResponsesEncoder,
    answer: Answer,
    exchange: Exchange,
    turn: Turn,
) -> None:
    """Answers with the response as queued; the work goes on without the client."""

    async def work() -> None:
        try:
            await answer.run_unattended(gateway.roster.run(turn))
        finally:
            gateway.answers.pop(asked.turn.id, None)
            exchange.close()

    try:
        await _keep(gateway, asked, encoder, answer, call.caller.key_id)
        body = msgspec.json.encode(encoder.response())
    except BaseException:
        gateway.answers.pop(asked.turn.id, None)
        exchange.close()
        raise
    task = asyncio.get_running_loop().create_task(work(), name=f"background {asked.turn.id}")
    gateway.background.add(task)
    task.add_done_callback(gateway.background.discard)
    await call.request.respond(200, body)


async def _stored(gateway: Gateway, call: Call) -> ResponseRecord:
    """The record of the path's id. Raises NotFound, also for another key's."""
    response_id = call.params["response_id"]
    record = await gateway.store.get_response(response_id, call.caller.key_id, gateway.clock.now())
    if record is None:
        raise NotFound(f"Response with id '{response_id[:100]}' not found.", param="response_id")
    return record


async def retrieve(gateway: Gateway, call: Call) -> None:
    query = call.request.query()
    if query.get("stream") == "true":
        raise InvalidRequest("A stored response is given whole: leave out 'stream'.", param="stream")
    record = await _stored(gateway, call)
    await call.request.respond(200, msgspec.json.encode(_opened(gateway, record, record.response)))


def _running(gateway: Gateway, call: Call) -> Answer | None:
    """The answer of the path's id, where it is this key's and still being made."""
    owner, answer = gateway.answers.get(call.params["response_id"], ("", None))
    if owner == call.caller.key_id and isinstance(answer, Answer) and isinstance(answer.encoder, ResponsesEncoder):
        return answer
    return None


async def delete(gateway: Gateway, call: Call) -> None:
    """Forgets a response. A running one is ended first: it would be stored again when it is done. One that is being
    stored at this moment is forgotten after that (`Store.delete_response`)."""
    response_id = call.params["response_id"]
    running = _running(gateway, call)
    if running is not None:
        running.on_complete = None
        if not running.ended:
            running.abort(Cancelled("The response was deleted."))
            await running.done()
    if not await gateway.store.delete_response(response_id, call.caller.key_id) and running is None:
        raise NotFound(f"Response with id '{response_id[:100]}' not found.", param="response_id")
    await call.request.respond(200, msgspec.json.encode(codec.deleted(response_id)))


async def cancel(gateway: Gateway, call: Call) -> None:
    """Ends a running response of this key; the engine's slot is free at once. A finished one is an error, as it is
    at OpenAI."""
    answer = _running(gateway, call)
    if answer is not None:
        assert isinstance(answer.encoder, ResponsesEncoder)
        if answer.ended and not isinstance(answer.aborted, Cancelled):
            raise _too_late(answer.encoder.response()["status"])
        answer.abort(Cancelled("The response was cancelled."))
        response = _cancelled(answer.encoder.response())
        await answer.done()
        await call.request.respond(200, msgspec.json.encode(response))
        return
    record = await _stored(gateway, call)
    if record.status != "cancelled":
        raise _too_late(record.status)
    await call.request.respond(200, msgspec.json.encode(_opened(gateway, record, record.response)))


def _too_late(status: str) -> InvalidRequest:
    return InvalidRequest(f"The response has ended ({status}): it cannot be cancelled any more.")


async def input_items(gateway: Gateway, call: Call) -> None:
    """One page of what was given to the response, newest first unless `order=asc`."""
    record = await _stored(gateway, call)
    query = call.request.query()
    order, text = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' is 'asc' or 'desc'.", param="order")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):
        raise InvalidRequest("'limit' is a number from 1 to 100.", param="limit")
    items = _opened(gateway, record, record.input_items)
    page = codec.input_items_page(items, query.get("after"), int(text), order)
    await call.request.respond(200, msgspec.json.encode(page))
