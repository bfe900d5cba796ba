"""Routes, and how a request finds its own: exact paths by dictionary, patterns by segments."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from sekisho.core.errors import MethodNotAllowed, NotFound
from sekisho.core.turn import Caller
from sekisho.gateway.http import Request
from sekisho.gateway.identity import Holder

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway


class Call(msgspec.Struct):
    """One identified request on its way to a handler. `holder` is None on public routes only."""

    request: Request
    params: dict[str, str]
    holder: Holder | None = None

    @property
    def caller(self) -> Caller:
        assert self.holder is not None, "a handler of a public route asked for the caller"
        return self.holder.caller


Handler = Callable[["Gateway", Call], Awaitable[None]]


class Route(msgspec.Struct, frozen=True):
    """`path` may hold `{name}` segments, of which `{model}` may hold slashes, as many models' names do. `scope` None
    means: any live key; `public` means: no key."""

    method: str
    path: str
    handler: Handler
    summary: str
    scope: str | None = None
    public: bool = False


class Router:
    """Exact paths by dictionary, patterns by segments."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[list[str], dict[str, Route]]] = []
        for route in routes:
            if "{" not in route.path:
                self._exact.setdefault(route.path, {})[route.method] = route
                continue
            segments = route.path.split("/")
            for known, methods in self._patterns:
                if known == segments:
                    methods[route.method] = route
                    break
            else:
                self._patterns.append((segments, {route.method: route}))

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Raises NotFound, or MethodNotAllowed naming the right methods."""
        methods = self._exact.get(path)
        params: dict[str, str] = {}
        if methods is None:
            methods, params = self._match(path.split("/"))
        if methods is None:
            raise NotFound(f"There is nothing at {path[:200]}.", code="unknown_path")
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if route is None:
            raise MethodNotAllowed(f"{path} takes {', '.join(sorted(methods))}, not {method}.")
        return route, params

    def methods(self, path: str) -> list[str]:
        found = self._exact.get(path) or self._match(path.split("/"))[0] or {}
        return sorted(found)

    def _match(self, segments: list[str]) -> tuple[dict[str, Route] | None, dict[str, str]]:
        for pattern, methods in self._patterns:
            count = len(pattern)
            given = segments
            if len(segments) > count and pattern[-1] == "{model}":
                given = [*segments[: count - 1], "/".join(segments[count - 1 :])]
            if len(given) != count:
                continue
            params = {}
            for want, have in zip(pattern, given, strict=True):
                if want.startswith("{"):
                    if not have:
                        break
                    params[want[1:-1]] = have
                elif want != have:
                    break
            else:
                return methods, params
        return None, {}
