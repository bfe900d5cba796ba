"""A worker as the gateway sees it: it streams its own name, a word whenever it is told to."""

import asyncio
import json
import threading
from typing import Any

from aiohttp import web


class WorkerDouble:
    """Answers stream `name`, a word for each `speak`, and end after `words`. In a thread of its own."""

    def __init__(self, name: str, words: int = 3) -> None:
        self.name = name
        self.words = words
        self.asked = 0
        self.whole = 0
        self._loop = asyncio.new_event_loop()
        self._permits = asyncio.Semaphore(0)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(60)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._begin())
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _begin(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/chat/completions/input_tokens", self._count)
        app.router.add_post("/v1/embeddings", self._embed)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        self._started.set()

    def speak(self, words: int) -> None:
        """So many more words may be said, by whoever is first."""
        self._loop.call_soon_threadsafe(lambda: [self._permits.release() for _ in range(words)])

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name, "meta": {"n_ctx": 1000 + self.words}}]})

    async def _count(self, request: web.Request) -> web.Response:
        return web.json_response({"input_tokens": self.words})

    async def _embed(self, request: web.Request) -> web.Response:
        data = [{"index": 0, "object": "embedding", "embedding": [float(self.words)]}]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(self.words):
            await self._permits.acquire()
            await response.write(_frame({"delta": {"content": f"{self.name} "}, "finish_reason": None}))
        await response.write(_frame({"delta": {}, "finish_reason": "stop"}))
        usage = {"prompt_tokens": 1, "completion_tokens": self.words, "total_tokens": 1 + self.words}
        await response.write(b"data: " + json.dumps({"id": "1", "choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        self.whole += 1
        return response


def _frame(choice: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "1", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"
