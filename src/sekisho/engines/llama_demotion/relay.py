"""Passes a request on to the keeper and its answer back: streams as they come, status and headers as they are, and
whoever leaves is seen by the keeper at once."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sekisho.engines.llama_demotion.usage import Heard, Reading, StreamCorrection, corrected

# Of one connection, not of what it carries; and lengths, which the next one counts itself.
_OF_A_CONNECTION: Final = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
_STREAM: Final = "text/event-stream"


class _Data(Protocol):
    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class _Unchanged:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class Relay:
    """To `root`. `open` it first and `close` it. A connection for each request: llama.cpp ends idle ones after five
    seconds, and a request that meets that moment would be lost."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._session: aiohttp.ClientSession

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        await self._session.close()

    def _asked(self, request: web.Request, body: bytes) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        url, headers = URL(self._root + request.raw_path, encoded=True), _passed_on(request.headers)
        return self._session.request(request.method, url, headers=headers, data=body or None, allow_redirects=False)

    async def extended(self, request: web.Request, more: Callable[[], bytes]) -> web.StreamResponse:
        """The answer, with `more` at its end where it is none of trouble."""
        try:
            async with self._asked(request, b"") as answer:
                whole = await answer.read()
                whole += more() if answer.status == 200 else b""
                return web.Response(body=whole, status=answer.status, headers=_passed_on(answer.headers))
        except aiohttp.ClientError as error:
            return _unavailable(error)

    async def answered(
        self, request: web.Request, body: bytes, reading: Reading | None = None
    ) -> tuple[web.StreamResponse, Heard | None]:
        """The answer as it went to the client, and what was heard of it: None for a refusal, or what broke off.
        `reading`: what the answer is put right by."""
        response: web.StreamResponse | None = None
        try:
            async with self._asked(request, body) as answer:
                heard = Heard()
                if reading is not None and answer.content_type != _STREAM:
                    whole = await answer.read()
                    heard.feed(whole)
                    response = web.Response(
                        body=corrected(whole, reading), status=answer.status, headers=_passed_on(answer.headers)
                    )
                else:
                    response = _begun(answer, keeps_length=reading is None)
                    await response.prepare(request)
                    await _pass(answer, response, heard, _Unchanged() if reading is None else StreamCorrection(reading))
                return response, heard if answer.status == 200 else None
        except aiohttp.ClientError as error:
            if response is None:
                return _unavailable(error), None
            if request.transport is not None:
                request.transport.abort()  # it is not whole, and must not look so
            return response, None


def _begun(answer: aiohttp.ClientResponse, *, keeps_length: bool) -> web.StreamResponse:
    headers = _passed_on(answer.headers)
    if keeps_length and answer.content_length is not None:
        headers["Content-Length"] = str(answer.content_length)
    return web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)


async def _pass(answer: aiohttp.ClientResponse, response: web.StreamResponse, heard: Heard, through: _Data) -> None:
    async for data in answer.content.iter_any():
        heard.feed(data)
        if changed := through.feed(data):
            await response.write(changed)
    if rest := through.finish():
        await response.write(rest)
    await response.write_eof()


def _unavailable(error: aiohttp.ClientError) -> web.Response:
    """In llama.cpp's own form."""
    message = f"llama.cpp does not answer: {error or type(error).__name__}"
    return web.json_response({"error": {"code": 503, "message": message, "type": "unavailable_error"}}, status=503)


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _OF_A_CONNECTION)
