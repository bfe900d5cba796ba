"""What the control agent reads: the finished requests since it last asked, and how the models stand now."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from sekisho.control.base import EngineState
from sekisho.control.feed_answer import FeedAnswer
from sekisho.core.errors import InvalidRequest
from sekisho.gateway.internal import require_worker_key
from sekisho.gateway.router import Call
from sekisho.gateway.running import Running

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway
    from sekisho.gateway.roster import Entry

LONGEST_WAIT_S: Final = 30.0
# However many requests end, an agent that waits is answered at most so often: it shall not cost what it measures.
GATHER_S: Final = 0.2


async def control_feed(gateway: "Gateway", call: Call) -> None:
    """`GET /internal/control/feed?after=N&start=ID&wait_s=S`, for the worker key. With another `start` than its own the
    gateway begins at its first sample. `wait_s`: how long to wait for one that is not there yet."""
    require_worker_key(gateway, call)
    query = call.request.query()
    after = int(_number(query, "after", 2**53))
    wait_s = _number(query, "wait_s", LONGEST_WAIT_S)
    log = gateway.ledger.samples
    if query.get("start", log.start) != log.start:
        after = 0
    running = Running(lambda *_: None)
    async with running.watched(call.request):
        if wait_s > 0:
            await log.news(after, wait_s)
            await asyncio.sleep(GATHER_S)
        page = log.page(after)
        models = tuple(_state(entry) for entry in gateway.roster.entries.values())
        answer = FeedAnswer(log.start, log.lived_s, page.last, page.samples, page.ages_s, models)
        await call.request.respond(200, msgspec.json.encode(answer))


def _number(query: Mapping[str, str], name: str, largest: float) -> float:
    """A number from 0 to `largest`; 0 where it is not given. Raises InvalidRequest."""
    try:
        value = float(query.get(name, "0"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= largest:
        raise InvalidRequest(f"{name} must be a number from 0 to {largest:g}.", param=name)
    return value


def _state(entry: "Entry") -> EngineState:
    health, queue = entry.health, entry.queue
    return EngineState(
        entry.name, entry.config.engine, health.state, health.reason, queue.running, queue.waiting, queue.slots
    )
