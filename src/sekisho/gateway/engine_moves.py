"""How the supervisor exchanges a worker under running turns: it moves a model to another address, or holds its turns.

Orders are numbered by the supervisor, rising; one that comes after a later one is passed over, so that an order that
was given up and got through all the same undoes nothing.

A hold is a lease (the supervisor's is of 30 s, renewed every 5 s): a turn waits for `queue_timeout_s` of time in which
nothing is held, and beyond that only as long as somebody renews the hold.
"""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import EngineUnavailable, InvalidRequest, NotFound
from sekisho.engines import registry
from sekisho.engines.worker_process import KEY_ENV
from sekisho.gateway.app import Gateway
from sekisho.gateway.internal import require_worker_key
from sekisho.gateway.roster import Entry
from sekisho.gateway.router import Call
from sekisho.ops.engine_orders import HoldOrder, MoveOrder, TrafficState

Order = TypeVar("Order", MoveOrder, HoldOrder)


async def move(gateway: Gateway, call: Call) -> None:
    """New turns of a model go to another worker. Raises InvalidRequest, NotFound."""
    require_worker_key(gateway, call)
    order = _decoded(await gateway.body(call), MoveOrder)
    entry = _entry(gateway, order.model)
    if order.config.name != entry.name:
        raise InvalidRequest(f"config.name is not '{entry.name}'.", param="config.name")
    if _in_turn(entry, order.number) and (entry.use.url, entry.config) != (order.url, order.config):
        try:
            log_path = None if order.log_path is None else Path(order.log_path)
            engine = registry.create(order.config, order.url, os.environ.get(KEY_ENV), log_path)
        except (ValueError, EngineUnavailable) as error:
            raise InvalidRequest(str(error), param="config") from error
        entry.move(order.config, engine, order.url)
    await _tell(call, entry)


async def hold(gateway: Gateway, call: Call) -> None:
    """Turns of a model wait in the queue for at most `for_s` seconds; 0 lets them go on."""
    require_worker_key(gateway, call)
    order = _decoded(await gateway.body(call), HoldOrder)
    entry = _entry(gateway, order.model)
    waiting = entry.queue.waiting
    if _in_turn(entry, order.number):
        if order.for_s > 0:
            entry.hold(order.for_s)
        else:
            entry.release()
    await _tell(call, entry, waiting)


async def traffic(gateway: Gateway, call: Call) -> None:
    """Where each model's turns go, and how many run and wait."""
    require_worker_key(gateway, call)
    states = {entry.name: _state(entry) for entry in gateway.roster.entries.values()}
    await call.request.respond(200, msgspec.json.encode(states))


def _decoded(body: bytes, shape: type[Order]) -> Order:
    try:
        return decoded(body, shape)
    except Undecodable as error:
        raise InvalidRequest(f"The order cannot be read: {error}") from error


def _entry(gateway: Gateway, model: str) -> Entry:
    entry = gateway.roster.entries.get(model)
    if entry is None or not entry.config.has_worker:
        raise NotFound(f"This server starts no engine for '{model[:200]}'.", param="model")
    return entry


def _in_turn(entry: Entry, number: int) -> bool:
    """Whether no later order has been obeyed; notes this one."""
    if number <= entry.last_order:
        return False
    entry.last_order = number
    return True


async def _tell(call: Call, entry: Entry, waiting: int | None = None) -> None:
    await call.request.respond(200, msgspec.json.encode(_state(entry, waiting)))


def _state(entry: Entry, waiting: int | None = None) -> TrafficState:
    return TrafficState(
        url=entry.use.url,
        calls=entry.calls(),
        running=entry.queue.running,
        waiting=entry.queue.waiting if waiting is None else waiting,
        held=entry.queue.held,
        slots=entry.queue.slots,
        last_order=entry.last_order,
    )
