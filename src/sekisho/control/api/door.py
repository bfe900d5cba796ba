"""Who may come in: the token, the host name, the origin; and the headers and errors that every answer has.

Reading needs no token from this machine; everything that changes something does. A page of another origin, or a name
that was bent to point at this machine (DNS rebinding), gets nothing.
"""

import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from sekisho.control.base import ActuatorFailed
from sekisho.control.policy_book import BookUnwritable
from sekisho.control.policy_changes import PolicyProblem
from sekisho.core import ids
from sekisho.core.errors import SekishoError

log = logging.getLogger("sekisho.control.api")

TOKEN_HEADER: Final = "X-Inferos-Token"
_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """An answer with an error. `details` says what was expected, or which field is wrong."""

    def __init__(self, status: int, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = details


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_response(status: int, message: str, details: Any = None) -> web.Response:
    """The error object of the published interface, with an id that is in the log."""
    error_id = ids.new("err")
    if status >= 500:
        log.error("%s: %d %s (%s)", error_id, status, message, details)
    response = json_response(
        {"error": {"code": status, "message": message, "details": details, "id": error_id}}, status
    )
    response.headers["X-Error-Id"] = error_id
    return response


class Door:
    """The middleware. `token`: what a change needs. `origins`: other pages that may call, exactly as browsers name
    them."""

    def __init__(self, token: str, origins: tuple[str, ...] = ()) -> None:
        self._token = token.encode()
        self._origins = frozenset(origins)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await self._answer(request, handler)
        if not response.prepared:
            self.dress(request, response)
        return response

    def dress(self, request: web.Request, response: web.StreamResponse) -> None:
        """Security headers, and those for a page that may call."""
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        origin = request.headers.get("Origin")
        if origin is not None and origin in self._origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Error-Id"
            response.headers["Vary"] = "Origin"

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check(request)
            if request.method == "OPTIONS":
                return self._preflight(request)
            return await handler(request)
        except Refused as refused:
            return error_response(refused.status, refused.message, refused.details)
        except PolicyProblem as problem:
            return error_response(400, "Invalid policy configuration", str(problem))
        except ActuatorFailed as failed:
            return error_response(503, "The engine did not take the change", str(failed))
        except BookUnwritable as unwritable:
            return error_response(507, "The policy could not be written", str(unwritable))
        except SekishoError as error:
            return error_response(error.status, error.message)
        except web.HTTPException as error:
            return error_response(error.status, error.reason, _advice(error))
        except Exception as error:
            response = error_response(500, "The agent failed")
            log.exception("%s: %s %s", response.headers["X-Error-Id"], request.method, request.path, exc_info=error)
            return response

    def _check(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if _name(host) not in _NAMES:
            raise Refused(403, "Wrong host", "the agent answers to 127.0.0.1, localhost and [::1] only")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self._origins and origin != f"http://{host}":
            raise Refused(403, "Pages of this origin may not call", "control.cors_origins lists those that may")
        if request.method == "OPTIONS":
            return
        given = request.headers.get(TOKEN_HEADER)
        if given is None and request.method in _SAFE and _is_loopback(request.remote):
            return
        if given is None or not hmac.compare_digest(given.encode(errors="surrogateescape"), self._token):
            raise Refused(401, "Unauthorized", f"this needs the header {TOKEN_HEADER} with the agent's token")

    def _preflight(self, request: web.Request) -> web.Response:
        response = web.Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = "GET, POST"
        response.headers["Access-Control-Allow-Headers"] = f"{TOKEN_HEADER}, Content-Type"
        response.headers["Access-Control-Max-Age"] = "600"
        return response


def _advice(error: web.HTTPException) -> str | None:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"allowed here: {', '.join(sorted(error.allowed_methods))}"
    if error.status == 404:
        return "GET /openapi.json lists what there is"
    return None


def _name(host: str) -> str:
    """The host of a Host header without its port."""
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()


def _is_loopback(remote: str | None) -> bool:
    try:
        return ipaddress.ip_address(remote or "").is_loopback
    except ValueError:
        return False
