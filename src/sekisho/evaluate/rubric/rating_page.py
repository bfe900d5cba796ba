"""The rating page: a server for one rater on this machine, until the rating is handed in.

The link's token works once and is exchanged for a session, which the page sends in a header: no other page and no
other program that listens on this machine can send it, so a forged request has no session. `Host` is checked against
names that point here only, so a page of another name that was made to point here (DNS rebinding) gets nothing.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from sekisho.core.errors import Forbidden, InvalidRequest, NotFound, SekishoError, Unauthenticated
from sekisho.evaluate.rubric.sheets import MOST_NOTE_CHARS, Score
from sekisho.evaluate.rubric.sitting import Sitting

ADDRESS: Final = "127.0.0.1"
_MOST_BYTES = 16 * MOST_NOTE_CHARS
_CONTENT_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS: Final = {
    # `require-trusted-types-for` makes the browser itself refuse innerHTML: an answer can never become markup
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "sekisho",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


class _Token(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class _Rating(msgspec.Struct, forbid_unknown_fields=True):
    round: int
    task: str
    score: Score


class _Round(msgspec.Struct, forbid_unknown_fields=True):
    round: int


class _Memo(msgspec.Struct, forbid_unknown_fields=True):
    memo: str


async def serve(sitting: Sitting, opened: Callable[[str], None], port: int = 0) -> None:
    """Serves on 127.0.0.1 until this rater has nothing left to rate. `opened` gets the link; port 0 is any free one.

    Raises OSError where the port is taken. May be cancelled at any time: what was rated is on the disk.
    """
    page = RatingPage(sitting)
    runner = web.AppRunner(page.app(), access_log=None, shutdown_timeout=5, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, ADDRESS, port)
        await site.start()
        opened(page.listening_on(runner.addresses[0][1]))
        await page.finished.wait()
    finally:
        await runner.cleanup()


class RatingPage:
    """The routes. `finished` is set once the rating is handed in."""

    def __init__(self, sitting: Sitting) -> None:
        self.finished = asyncio.Event()
        self._sitting = sitting
        self._token: str | None = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        self._hosts: frozenset[str] = frozenset()

    def listening_on(self, port: int) -> str:
        """The link for the rater. The token stands in the fragment, which a browser sends to nobody."""
        self._hosts = frozenset({f"{ADDRESS}:{port}", f"localhost:{port}"})
        return f"http://{ADDRESS}:{port}/#{self._token}"

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded], client_max_size=_MOST_BYTES)
        app.router.add_get("/", _file)
        app.router.add_get("/static/{name}", _file)
        app.router.add_post("/api/open", self._open)
        app.router.add_get("/api/view", self._view)
        app.router.add_post("/api/rate", self._rate)
        app.router.add_post("/api/hand-in", self._hand_in)
        app.router.add_post("/api/memo", self._remember)
        app.router.add_post("/api/begin", self._begin)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request passes here: whose it is, and what every answer carries."""
        try:
            self._check(request)
            response = await handler(request)
        except web.HTTPException as error:  # no such route, wrong method, body too large
            response = _error(error.status, error.reason)
        except SekishoError as error:
            response = _error(error.status, error.message)
        response.headers.update(_HEADERS)
        return response

    def _check(self, request: web.Request) -> None:
        """Raises Forbidden for another name or another page, Unauthenticated without the session."""
        host = request.headers.get("Host", "")
        if host not in self._hosts:
            raise Forbidden("This address is for this machine alone.")
        if not request.path.startswith("/api/"):
            return
        if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise Forbidden("Another page may not ask here.")
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            raise Forbidden("Another page may not ask here.")
        if request.method == "POST" and request.content_type != "application/json":
            raise InvalidRequest("Bodies are JSON.")
        if request.path != "/api/open" and not self._known(request.headers.get("Authorization", "")):
            raise Unauthenticated("This link has ended: run sekisho rubric rate again and open the new one.")

    def _known(self, told: str) -> bool:
        return secrets.compare_digest(told.encode(errors="replace"), f"Bearer {self._session}".encode())

    async def _open(self, request: web.Request) -> web.Response:
        """The token for the session, once."""
        told = await _body(request, _Token)
        given = told.token.encode(errors="replace")
        if self._token is None or not secrets.compare_digest(given, self._token.encode()):
            raise Unauthenticated("This link was used already, or is not whole: run sekisho rubric rate again.")
        self._token = None
        return _json({"session": self._session})

    async def _view(self, request: web.Request) -> web.Response:
        return _json(self._sitting.view())

    async def _rate(self, request: web.Request) -> web.Response:
        told = await _body(request, _Rating)
        self._sitting.rate(told.round, told.task, told.score)
        return _json({"kept": True})

    async def _hand_in(self, request: web.Request) -> web.Response:
        told = await _body(request, _Round)
        self._sitting.hand_in(told.round)
        view = self._sitting.view()
        if view.stage == "done":
            self.finished.set()  # this answer still goes out: the server ends when its handlers have
        return _json(view)

    async def _remember(self, request: web.Request) -> web.Response:
        told = await _body(request, _Memo)
        self._sitting.remember(told.memo[:MOST_NOTE_CHARS])
        return _json({"kept": True})

    async def _begin(self, request: web.Request) -> web.Response:
        self._sitting.begin()
        return _json(self._sitting.view())


async def _file(request: web.Request) -> web.Response:
    name = request.match_info.get("name", "rating.html")
    body = _pages().get(name)
    if body is None:
        raise NotFound("There is no such file.")
    return web.Response(body=body, content_type=_CONTENT_TYPES[name.rpartition(".")[2]], charset="utf-8")


@cache
def _pages() -> dict[str, bytes]:
    """Names are looked up here, never opened as paths."""
    return {entry.name: entry.read_bytes() for entry in files(__package__).joinpath("page").iterdir()}


async def _body(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"That cannot be read: {error}") from error


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)
