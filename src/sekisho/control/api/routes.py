"""The routes of `/v1`: what each takes and answers."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from sekisho.control.agent import Agent
from sekisho.control.api import openapi
from sekisho.control.api.door import Door, Refused, json_response
from sekisho.control.config import ControlConfig
from sekisho.control.history import DECISIONS, METRICS, QUALITY
from sekisho.control.policy_changes import plain
from sekisho.control.policy_service import Cause, PolicyChange
from sekisho.control.prometheus import CONTENT_TYPE
from sekisho.core.decoding import Undecodable, decoded

AGENT: Final = web.AppKey("agent", Agent)
DOOR: Final = web.AppKey("door", Door)
_BODY_BYTES: Final = 256 * 2**10
_HISTORY_LIMIT: Final = 10_000
_KINDS: Final = (METRICS, DECISIONS, QUALITY)


def application(agent: Agent, door: Door) -> web.Application:
    """The agent's ASGI-less application; `agent` is started and stopped by its owner."""
    app = web.Application(middlewares=[door.middleware], client_max_size=_BODY_BYTES)
    app[AGENT], app[DOOR] = agent, door
    for path, handlers in ROUTES.items():
        resource = app.router.add_resource(path)
        for method, (handler, _) in handlers.items():
            resource.add_route(method, handler)
        resource.add_route("OPTIONS", _never)
    return app


async def _never(request: web.Request) -> web.StreamResponse:
    raise AssertionError("the door answers OPTIONS")


def _agent(request: web.Request) -> Agent:
    return request.app[AGENT]


async def _object(request: web.Request) -> dict[str, Any]:
    """The body, a JSON object. Raises Refused."""
    try:
        return cast("dict[str, Any]", decoded(await request.read() or b"{}", dict[str, Any]))  # type: ignore[redundant-cast]
    except Undecodable as error:
        raise Refused(400, "The body is no JSON object", str(error)) from error


def _take(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.pop(name, default)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise Refused(400, "Invalid request", f"{name} must be {kind.__name__}")
    return value


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "false").lower()
    if value not in ("", "0", "1", "true", "false", "yes", "no"):
        raise Refused(400, "Invalid request", f"{name} is true or false")
    return value in ("", "1", "true", "yes")


def _number(request: web.Request, name: str, default: float, low: float, high: float) -> float:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise Refused(400, "Invalid request", f"{name} must be a number from {low:g} to {high:g}")
    return value


def _cause(why: str) -> Cause:
    return Cause("api", "request", "api", why)


def _changed(change: PolicyChange) -> web.Response:
    """503 where no engine took it."""
    return json_response(change, 200 if change.outcome != "failed" else 503)


def _shown(config: ControlConfig) -> web.Response:
    """Whoever has the webhook's address can post there: it is not for every user of this machine."""
    hidden = None if config.webhook_url is None else "(hidden)"
    return json_response(msgspec.structs.replace(config, webhook_url=hidden))


# --- reading ----------------------------------------------------------------------------------------------------------


async def health(request: web.Request) -> web.Response:
    """Whether the agent's loops run and its engines answer."""
    told = _agent(request).health()
    return json_response(told, 200 if told.status != "failing" else 503)


async def metrics(request: web.Request) -> web.Response:
    """Throughput, latency, quality, memory, devices of the last window; null with a reason where not measured."""
    return json_response(_agent(request).metrics(request.query.get("model")))


async def metrics_prometheus(request: web.Request) -> web.Response:
    """The same in Prometheus' text format."""
    response = web.Response(body=_agent(request).prometheus())
    response.headers["Content-Type"] = CONTENT_TYPE
    return response


async def policy(request: web.Request) -> web.Response:
    """The policy in force, of all engines or with `model` of one, and its version."""
    agent = _agent(request)
    model = request.query.get("model")
    current = plain(agent.policies.current(model))
    return json_response({**current, "version": agent.policies.book.version, "model": model})


async def policy_versions(request: web.Request) -> web.Response:
    """Every version: when, by whom, why, what changed."""
    return json_response({"versions": _agent(request).policies.book.versions()})


async def policy_presets(request: web.Request) -> web.Response:
    """Presets by model size and by use, with the reason of each."""
    from sekisho.control.presets import PRESETS

    return json_response({"presets": PRESETS})


async def config(request: web.Request) -> web.Response:
    """The agent's own settings in force; the webhook's address is hidden."""
    return _shown(_agent(request).config)


async def history(request: web.Request) -> web.Response:
    """Records of one `kind`, the newest `limit` of those since `since` (seconds since 1970)."""
    kind = request.query.get("kind", METRICS)
    if kind not in _KINDS:
        raise Refused(400, "Invalid request", f"kind is one of {', '.join(_KINDS)}")
    since = _number(request, "since", 0.0, 0.0, 1e12)
    limit = int(_number(request, "limit", 200, 1, _HISTORY_LIMIT))
    records = await asyncio.to_thread(_agent(request).history.read, kind, since, limit)
    return json_response({"kind": kind, "records": records})


async def decisions(request: web.Request) -> web.Response:
    """The last decisions: which signal, which rule, what was applied, what the engine answered."""
    limit = int(_number(request, "limit", 50, 1, _HISTORY_LIMIT))
    entries = await asyncio.to_thread(_agent(request).history.read, DECISIONS, 0.0, limit)
    return json_response({"decisions": [entry.record for entry in entries]})


async def capabilities(request: web.Request) -> web.Response:
    """Which execution providers, KV types and quantisations really run here, as probed, and in `fallback` what there is
    instead of what does not: devices, precisions and KV types, each in the order in which they are tried."""
    return json_response(await _agent(request).capabilities(refresh=False))


async def events(request: web.Request) -> web.StreamResponse:
    """Server-sent events: decisions, policy, metrics, quality, alerts. `Last-Event-ID` goes on where it broke."""
    agent = _agent(request)
    text = request.headers.get("Last-Event-ID", "")
    after = int(text) if text.isdecimal() and len(text) < 16 else None
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    request.app[DOOR].dress(request, response)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        async with contextlib.aclosing(agent.bus.stream(after)) as stream:
            async for chunk in stream:
                await response.write(chunk)
    return response


async def page(request: web.Request) -> web.Response:
    """The interface as a page."""
    return web.Response(text=openapi.page(ROUTES), content_type="text/html")


async def document(request: web.Request) -> web.Response:
    """The OpenAPI document."""
    return json_response(openapi.document(ROUTES))


# --- changing ---------------------------------------------------------------------------------------------------------


async def change_policy(request: web.Request) -> web.Response:
    """Changes the named fields of the policy; `?dry_run=true` answers what would change on which engine. In the body
    beside the policy's parts: `model` (one engine only), `why`, `preset`."""
    body = await _object(request)
    model = _take(body, "model", str, None)
    why = _take(body, "why", str, "by request")
    preset = _take(body, "preset", str, None)
    dry_run = _flag(request, "dry_run")
    change = await _agent(request).change_policy(
        body, _cause(why), by="api", model=model, preset=preset, dry_run=dry_run
    )
    return _changed(change)


async def roll_back(request: web.Request) -> web.Response:
    """Puts an earlier version in force, as a new one: `{"version": 3}`; without, one step back."""
    body = await _object(request)
    to = _take(body, "version", int, None)
    _nothing_more(body)
    return _changed(await _agent(request).policies.roll_back(to, _cause("roll back by request"), by="api"))


async def baseline(request: web.Request) -> web.Response:
    """`{"enabled": true}`: everything at 16 bits, to compare with; `false`: back to the policy before."""
    body = await _object(request)
    enabled = _take(body, "enabled", bool, True)
    _nothing_more(body)
    return _changed(await _agent(request).baseline(bool(enabled), _cause("baseline by request")))


async def change_config(request: web.Request) -> web.Response:
    """Changes the agent's own settings until its next start: `loops`, `act`."""
    return _shown(_agent(request).change_config(await _object(request)))


async def measure_quality(request: web.Request) -> web.Response:
    """Measures the perplexity under the policy in force now: `{"model": …, "kind": "light" | "full"}`."""
    body = await _object(request)
    model, kind = _take(body, "model", str, None), _take(body, "kind", str, "light")
    _nothing_more(body)
    if kind not in ("light", "full"):
        raise Refused(400, "Invalid request", "kind is light or full")
    return json_response(await _agent(request).measure_quality(model, kind))


async def probe_capabilities(request: web.Request) -> web.Response:
    """Probes again what runs here."""
    _nothing_more(await _object(request))
    return json_response(await _agent(request).capabilities(refresh=True))


def _nothing_more(body: Mapping[str, Any]) -> None:
    if body:
        raise Refused(400, "Invalid request", f"unknown field: {', '.join(sorted(body))}")


ROUTES: Final[openapi.Routes] = {
    "/v1/health": {"GET": (health, None)},
    "/v1/metrics": {"GET": (metrics, None)},
    "/v1/metrics/prometheus": {"GET": (metrics_prometheus, None)},
    "/v1/policy": {"GET": (policy, None), "POST": (change_policy, "Policy")},
    "/v1/policy/versions": {"GET": (policy_versions, None)},
    "/v1/policy/presets": {"GET": (policy_presets, None)},
    "/v1/policy/rollback": {"POST": (roll_back, "RollBack")},
    "/v1/baseline": {"POST": (baseline, "Baseline")},
    "/v1/config": {"GET": (config, None), "POST": (change_config, "Config")},
    "/v1/history": {"GET": (history, None)},
    "/v1/decisions": {"GET": (decisions, None)},
    "/v1/events": {"GET": (events, None)},
    "/v1/quality": {"POST": (measure_quality, "Measure")},
    "/v1/capabilities": {"GET": (capabilities, None), "POST": (probe_capabilities, "Nothing")},
    "/openapi.json": {"GET": (document, None)},
    "/": {"GET": (page, None)},
}
