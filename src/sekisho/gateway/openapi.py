"""The OpenAPI 3.1 document, made from the route table and the request schemas."""

import re
from functools import cache
from typing import Any

import msgspec

from sekisho import __version__
from sekisho.gateway import request_schemas
from sekisho.gateway.app import Gateway
from sekisho.gateway.router import Call, Route

_ERROR = {
    "description": "What went wrong, with an id that is in the server's log.",
    "headers": {"x-error-id": {"schema": {"type": "string"}}, "x-request-id": {"schema": {"type": "string"}}},
    "content": {"application/json": {"schema": {"type": "object"}}},
}
_STREAMS = {"/v1/messages", "/v1/think", "/v1/chat/completions", "/v1/completions", "/v1/responses"}


async def document(gateway: Gateway, call: Call) -> None:
    await call.request.respond(200, _document(gateway.router.routes))


@cache
def _document(routes: tuple[Route, ...]) -> bytes:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Sekisho", "version": __version__, "description": "A private LLM server for a team."},
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                }
            },
        }
    )


def _operation(route: Route) -> dict[str, Any]:
    html = route.path == "/" or (route.method, route.path) == ("GET", "/escalation/{ticket_id}")
    media = "text/html" if html else "text/plain" if route.path == "/metrics" else "application/json"
    content: dict[str, Any] = {media: {}}
    if route.method == "POST" and route.path in _STREAMS:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if route.method == "POST" and route.path in ("/api/chat", "/api/generate"):
        content["application/x-ndjson"] = {"schema": {"type": "string"}}
    if route.path.startswith("/static/"):
        content = {"*/*": {}}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "responses": {
            "200": {"description": "As the protocol says.", "content": content},
            "4XX": _ERROR,
            "503": _ERROR,
            "502": _ERROR,
            "504": _ERROR,
        },
    }
    if not route.public:
        operation["security"] = [{"bearer": []}, {"x-api-key": []}]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    parameters += request_schemas.QUERIES.get((route.method, route.path), [])
    if parameters:
        operation["parameters"] = parameters
    body = request_schemas.BODIES.get(route.path) if route.method == "POST" else None
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
