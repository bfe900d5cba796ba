"""Health, readiness, metrics."""

import msgspec

from sekisho.core.errors import Forbidden
from sekisho.gateway.app import Gateway
from sekisho.gateway.identity import check_scope
from sekisho.gateway.metrics import CONTENT_TYPE
from sekisho.gateway.router import Call


async def healthz(gateway: Gateway, call: Call) -> None:
    """The process lives."""
    await call.request.respond(200, b'{"status":"ok"}')


async def readyz(gateway: Gateway, call: Call) -> None:
    """At least one model can answer, store and book are open, and nobody is draining. Details only for a live key."""
    ready = gateway.roster.ready() and gateway.store_open and gateway.guarding.keeper.is_open and not gateway.draining
    told: dict[str, object] = {"status": "draining" if gateway.draining else "ready" if ready else "not_ready"}
    if await _knows(gateway, call):
        told["store"] = "open" if gateway.store_open else "unreachable"
        told["book"] = "open" if gateway.guarding.keeper.is_open else "closed"
        told["guard"] = gateway.guarding.mode()
        told["uptime_s"] = round(gateway.clock.monotonic() - gateway.started_s, 1)
        told["models"] = {
            entry.name: {
                "state": entry.health.state,
                "reason": entry.health.reason,
                "running": entry.queue.running,
                "waiting": entry.queue.waiting,
                "context_tokens": entry.context_tokens,
            }
            for entry in gateway.roster.entries.values()
        }
    await call.request.respond(200 if ready else 503, msgspec.json.encode(told))


async def _knows(gateway: Gateway, call: Call) -> bool:
    """Whether the caller may have details: a live key, from where it may be used. Waits for no store."""
    if gateway.ring.known(call.request.headers) is None:
        return False
    try:
        await gateway.identify(call.request)
    except Forbidden:
        return False
    return True


async def metrics(gateway: Gateway, call: Call) -> None:
    """Prometheus' text format, for a key with the scope `control` or `admin`, or by `metrics_public` for all networks
    that may use the server."""
    if gateway.config.metrics_public:
        gateway.address(call.request)
    else:
        holder = await gateway.identify(call.request)
        try:
            check_scope(holder, "control")
        except Forbidden:
            check_scope(holder, "admin")
    for entry in gateway.roster.entries.values():
        gateway.metrics.running.labels(entry.name).set(entry.queue.running)
        gateway.metrics.waiting.labels(entry.name).set(entry.queue.waiting)
        gateway.metrics.engine_ready.labels(entry.name).set(entry.health.state == "ready")
    gateway.metrics.book_open.set(gateway.guarding.keeper.is_open)
    await call.request.respond(200, gateway.metrics.text(), CONTENT_TYPE)
