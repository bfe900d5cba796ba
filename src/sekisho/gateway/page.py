"""Files of the web pages, as routes. The files themselves are the console's; `serve` brings the two together."""

from collections.abc import Callable, Mapping
from typing import Protocol

from sekisho.core.errors import NotFound
from sekisho.gateway.app import Gateway
from sekisho.gateway.router import Call, Route


class File(Protocol):
    """A file that is ready to be sent. `etag` comes with its quotes."""

    @property
    def body(self) -> bytes: ...

    @property
    def content_type(self) -> str: ...

    @property
    def etag(self) -> str: ...


def routes(find: Callable[[str], File | None], security_headers: Mapping[str, str]) -> tuple[Route, ...]:
    """The chat page at `/`, the page of an escalation's link, and their files at `/static/`. `find` gives None for
    an unknown name."""
    common = [(name.encode(), value.encode()) for name, value in security_headers.items()]

    async def send(call: Call, name: str) -> None:
        found = find(name)
        if found is None:
            raise NotFound(f"There is no file '{name[:100]}'.")
        etag = found.etag.encode()
        headers = [(b"etag", etag), (b"cache-control", b"no-cache"), *common]
        unchanged = call.request.headers.get(b"if-none-match") == etag
        body = b"" if unchanged else found.body
        await call.request.respond(304 if unchanged else 200, body, found.content_type.encode(), headers)

    async def chat_page(gateway: Gateway, call: Call) -> None:
        await send(call, "index.html")

    async def static_file(gateway: Gateway, call: Call) -> None:
        await send(call, call.params["name"])

    async def escalation_page(gateway: Gateway, call: Call) -> None:
        await send(call, "escalation.html")

    return (
        Route("GET", "/escalation/{ticket_id}", escalation_page, "The page of a single-use link", public=True),
        Route("GET", "/", chat_page, "The chat page", public=True),
        Route("GET", "/static/{name}", static_file, "Files of the chat page", public=True),
    )
