"""The OpenAPI 3.1 document, made from the route table and the types, and a page that shows it."""

import html
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from aiohttp import web

from sekisho import __version__
from sekisho.control.capabilities import CapabilitiesAnswer
from sekisho.control.config import ControlConfig
from sekisho.control.policy import Policy

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Routes = Mapping[str, Mapping[str, tuple[Handler, str | None]]]
"""By path and method: the handler, whose docstring is the summary, and the name of the body's schema."""

_QUERIES: Final[Mapping[tuple[str, str], tuple[tuple[str, str], ...]]] = {
    ("GET", "/v1/metrics"): (("model", "string"),),
    ("GET", "/v1/policy"): (("model", "string"),),
    ("POST", "/v1/policy"): (("dry_run", "boolean"),),
    ("GET", "/v1/history"): (("kind", "string"), ("since", "number"), ("limit", "integer")),
    ("GET", "/v1/decisions"): (("limit", "integer"),),
}


class RollBack(msgspec.Struct):
    """Without `version`: one step back."""

    version: int | None = None


class Baseline(msgspec.Struct):
    enabled: bool = True


class Measure(msgspec.Struct):
    model: str | None = None
    kind: Literal["light", "full"] = "light"


class Nothing(msgspec.Struct):
    """No fields."""


class ErrorBody(msgspec.Struct):
    """`id` is in the agent's log."""

    code: int
    message: str
    details: Any
    id: str


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


_ANSWERS: Final[Mapping[str, type[msgspec.Struct]]] = {"/v1/capabilities": CapabilitiesAnswer}
"""By path, the shape of what it answers, where that is a type."""
_BODIES: Final = {"RollBack": RollBack, "Baseline": Baseline, "Measure": Measure, "Nothing": Nothing}


def document(routes: Routes) -> dict[str, Any]:
    """The document; types are described as they are checked."""
    types = (Policy, ControlConfig, *_BODIES.values(), *_ANSWERS.values(), ErrorAnswer)
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    components["Config"] = components.pop("ControlConfig")
    paths = {
        path: {method.lower(): _operation(method, path, handler, body) for method, (handler, body) in handlers.items()}
        for path, handlers in routes.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sekisho control agent", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Inferos-Token"}},
        },
    }


def _operation(method: str, path: str, handler: Handler, body: str | None) -> dict[str, Any]:
    error = {
        "description": "What went wrong.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}},
    }
    operation: dict[str, Any] = {
        "operationId": getattr(handler, "__name__", path),
        "summary": _summary(handler),
        "responses": {
            "200": {"description": "As the summary says.", "content": {_media(path): _shape(path)}},
            "4XX": error,
            "503": error,
            "507": error,
        },
    }
    if method == "POST":
        operation["security"] = [{"token": []}]
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body}"}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    queries = _QUERIES.get((method, path), ())
    if queries:
        operation["parameters"] = [{"name": n, "in": "query", "schema": {"type": kind}} for n, kind in queries]
    return operation


def _media(path: str) -> str:
    special = {"/v1/events": "text/event-stream", "/v1/metrics/prometheus": "text/plain", "/": "text/html"}
    return special.get(path, "application/json")


def _shape(path: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{_ANSWERS[path].__name__}"}} if path in _ANSWERS else {}


def _summary(handler: Handler) -> str:
    return " ".join((handler.__doc__ or "").split())


def page(routes: Routes) -> str:
    """One table: method, path, what it does, whether it needs the token."""
    rows = "".join(
        f"<tr><td>{method}</td><td><code>{html.escape(path)}</code></td><td>{html.escape(_summary(handler))}</td>"
        f"<td>{'X-Inferos-Token' if method == 'POST' else ''}</td></tr>"
        for path, handlers in routes.items()
        for method, (handler, _) in handlers.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Sekisho control agent</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.3rem .8rem;"
        "border-bottom:1px solid #8884}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}</style>"
        f"<h1>Sekisho control agent {html.escape(__version__)}</h1>"
        "<p>The same for machines: <a href='/openapi.json'>/openapi.json</a></p>"
        f"<table><tr><th>Method</th><th>Path</th><th>What</th><th>Needs</th></tr>{rows}</table></html>"
    )
