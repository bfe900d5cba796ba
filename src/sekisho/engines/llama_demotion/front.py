"""What listens on the worker's port: passes everything to the keeper, and has long prompts read by the reader first."""

import hmac
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from sekisho.engines.http_client import HttpClient, HttpTrouble
from sekisho.engines.llama_demotion import prompts
from sekisho.engines.llama_demotion.counters import Counters
from sekisho.engines.llama_demotion.reader import Reader
from sekisho.engines.llama_demotion.relay import Relay
from sekisho.engines.llama_demotion.slots import Slot, Slots, Tokens, common_prefix

_BODY_BYTES: Final = 1 << 30  # llama.cpp has limits of its own
_QUESTION_S: Final = 60.0
_LEAVE_SLOTS_ALONE: Final = frozenset(
    {"/tokenize", "/detokenize", "/apply-template", "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"}
)


class Front:
    """`keeper` asks with the worker's key; `relay` passes on with whatever the client sent, and llama.cpp judges it."""

    def __init__(
        self, keeper: HttpClient, relay: Relay, reader: Reader, slots: Slots, counters: Counters, api_key: str
    ) -> None:
        self._keeper, self._relay, self._reader = keeper, relay, reader
        self._slots, self._counters = slots, counters
        self._expected = f"Bearer {api_key}".encode()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES)
        app.cleanup_ctx.append(self._connected)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _connected(self, app: web.Application) -> AsyncIterator[None]:
        await self._relay.open()
        yield
        await self._relay.close()
        await self._reader.close()
        await self._keeper.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.path
        if request.method == "GET" and path == "/metrics":
            return await self._relay.extended(request, self._counters.lines)
        if request.method == "POST" and path in prompts.KINDS and self._knows(request):
            prompt = await prompts.tokens(prompts.KINDS[path], body, self._ask)
            if prompt is not None:
                return await self._complete(request, body, prompt)
        if request.method == "POST" and path not in _LEAVE_SLOTS_ALONE:
            self._slots.forget()
        return (await self._relay.answered(request, body))[0]

    def _knows(self, request: web.Request) -> bool:
        """Whoever has not the key gets no work done before llama.cpp refuses it."""
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        return hmac.compare_digest(given, self._expected)

    async def _ask(self, path: str, body: bytes) -> bytes | None:
        try:
            response = await self._keeper.send("POST", path, body, _QUESTION_S)
            try:
                said = await response.read()
            finally:
                response.let_go()
        except HttpTrouble:
            return None  # passing the request on will tell
        return said if response.status == 200 else None

    async def _complete(self, request: web.Request, body: bytes, prompt: Tokens) -> web.StreamResponse:
        async with self._slots.taken(prompt) as slot:
            reading = await self._reader.read(prompt, slot)
            if reading is None:
                self._only_what_stays(slot, prompt)
            answer, heard = await self._relay.answered(request, prompts.in_slot(body, slot.number), reading)
            if heard is not None:
                slot.hold(prompt, heard.said)
            return answer

    def _only_what_stays(self, slot: Slot, prompt: Tokens) -> None:
        """However the request ends: what the slot holds of the prompt is not read anew."""
        slot.hold(prompt[: common_prefix(slot.tokens, prompt)])
