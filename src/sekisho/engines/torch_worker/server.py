"""The worker's HTTP side: OpenAI's interface on 127.0.0.1, for whoever has the key; `/health` for everybody."""

import asyncio
import concurrent.futures
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_worker import embeddings, perplexity, tiers
from sekisho.engines.torch_worker.answers import ChatForm, CompletionForm, Form
from sekisho.engines.torch_worker.batch import Answers
from sekisho.engines.torch_worker.prompts import Prompts
from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.requests import Ask, ChatBody, CompletionBody, EmbeddingsBody, TokenizeBody, ask, read
from sekisho.engines.torch_worker.runner import Runner
from sekisho.engines.torch_worker.sequence import End, News, Piece, Sequence

log = logging.getLogger(__name__)

_BODY_BYTES: Final = 64 * 2**20
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_SSE: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers 503 until `serve` has been told what to serve."""

    def __init__(self, config: ModelConfig, api_key: str) -> None:
        self._config = config
        self._expected = f"Bearer {api_key}".encode()
        self._runner: Runner | None = None
        self._prompts: Prompts | None = None
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, "tokenizer")
        self._queues: dict[Sequence, asyncio.Queue[News]] = {}
        self._loop = asyncio.get_running_loop()

    def serve(self, runner: Runner) -> None:
        self._prompts = Prompts(runner.loaded.encoder, runner.loaded.vocabulary, runner.context)
        self._runner = runner

    def publish(self, answers: Answers) -> None:
        """Called by the runner, from its thread: one wake-up for all that a round has brought."""
        self._loop.call_soon_threadsafe(self._hand_out, answers)

    def _hand_out(self, answers: Answers) -> None:
        for sequence, news in answers:
            queue = self._queues.get(sequence)
            for each in news if queue is not None else ():
                queue.put_nowait(each)  # type: ignore[union-attr]

    # --- routes ------------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/chat/completions/input_tokens", self._input_tokens)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/embeddings", self._embed)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/kv", self._kv)
        app.router.add_put("/kv/policy", self._change_policy)
        app.router.add_post("/perplexity", perplexity.Route(lambda: self._ready, self._tokens).answer)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The key before anything else, and every refusal in OpenAI's form."""
        try:
            if request.path == "/health":
                return await handler(request)
            given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(given, self._expected):
                raise Refused("the key is missing or wrong", status=401, code="invalid_api_key")
            if self._runner is None:
                raise Refused("loading the model", status=503, code="engine_unavailable")
            return await handler(request)
        except Refused as refused:
            return _json(refused.body(), refused.status)
        except web.HTTPException as error:
            code = _CODES.get(error.status, "invalid_request")
            return _json(Refused(error.reason, status=error.status, code=code).body(), error.status)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return _json(Refused("the engine failed", status=500, code="engine_failed").body(), 500)

    async def _health(self, request: web.Request) -> web.Response:
        """Without a key, for it tells nothing but whether the model is there."""
        return _json({"status": "ok"}) if self._runner is not None else _json({"status": "loading model"}, 503)

    async def _models(self, request: web.Request) -> web.Response:
        loaded, context = self._ready.loaded, self._ready.context
        meta = {"n_ctx": context, "n_params": loaded.parameters, "size": loaded.size_bytes}
        entry = {"id": loaded.name, "object": "model", "created": 0, "owned_by": "sekisho", "max_model_len": context}
        return _json({"object": "list", "data": [{**entry, "meta": meta}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = read(await request.read(), ChatBody)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        prompt = await self._tokens(lambda prompts: prompts.chat(body))
        wanted = ask(body, prompt, logprobs, self._ready.loaded.vocabulary, self._ready.loaded.defaults)
        form = ChatForm(self._config.name, with_logprobs=logprobs is not None)
        return await self._answer(request, wanted, form, body)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = read(await request.read(), CompletionBody)
        if body.suffix or body.echo:
            name = "suffix" if body.suffix else "echo"
            raise Refused(f"this engine knows no {name}", param=name, code="unsupported_parameter")
        prompt = await self._tokens(lambda prompts: prompts.raw(body.prompt))
        wanted = ask(body, prompt, body.logprobs, self._ready.loaded.vocabulary, self._ready.loaded.defaults)
        form = CompletionForm(self._config.name, with_logprobs=body.logprobs is not None)
        return await self._answer(request, wanted, form, body)

    async def _input_tokens(self, request: web.Request) -> web.Response:
        body = read(await request.read(), TokenizeBody)
        return _json({"input_tokens": await self._tokens(lambda prompts: prompts.counted(body))})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = read(await request.read(), TokenizeBody)
        return _json({"count": await self._tokens(lambda prompts: prompts.counted(body))})

    async def _embed(self, request: web.Request) -> web.Response:
        if not self._config.embeddings:
            raise Refused("this model makes no embeddings: set `embeddings: true`", code="unsupported_parameter")
        body = read(await request.read(), EmbeddingsBody)
        inputs = await self._tokens(lambda prompts: embeddings.tokens(body, prompts, self._ready.loaded.context))
        vectors = [await self._called(partial(self._ready.loaded.embedding, each)) for each in inputs]
        return _json(embeddings.answer(vectors, inputs, self._config.name))

    async def _kv(self, request: web.Request) -> web.Response:
        runner = self._ready
        return _json(await self._called(lambda: tiers.state(runner)))

    async def _change_policy(self, request: web.Request) -> web.Response:
        runner, body = self._ready, await request.read()

        def change() -> dict[str, Any]:
            old = runner.policy
            runner.change(tiers.merged(old, body))
            return {"policy": msgspec.to_builtins(runner.policy), "changed": tiers.differences(old, runner.policy)}

        return _json(await self._called(change))

    # --- answering ---------------------------------------------------------------------------------------------------

    @property
    def _ready(self) -> Runner:
        assert self._runner is not None  # `_guard` has seen to it
        return self._runner

    async def _tokens(self, work: Callable[[Prompts], Any]) -> Any:
        assert self._prompts is not None
        return await self._loop.run_in_executor(self._tokenizing, work, self._prompts)

    async def _called(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._ready.call(work))

    async def _answer(
        self, request: web.Request, wanted: Ask, form: Form, body: ChatBody | CompletionBody
    ) -> web.StreamResponse:
        with self._submitted(wanted) as queue:
            first = await queue.get()
            if isinstance(first, Refused):
                raise first
            if body.stream:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                return await _stream(request, form, first, queue, with_usage)
            pieces: list[Piece] = []
            news: News = first
            while isinstance(news, Piece):
                pieces.append(news)
                news = await queue.get()
            if isinstance(news, Refused):
                raise news
            return _json(form.whole(pieces, news))

    @contextmanager
    def _submitted(self, wanted: Ask) -> Iterator["asyncio.Queue[News]"]:
        """A sequence's news. Leaving takes it back, if it has not ended: aiohttp cancels us when the client goes."""
        sequence = self._ready.plan(wanted)
        queue: asyncio.Queue[News] = asyncio.Queue()
        self._queues[sequence] = queue
        self._ready.submit(sequence)
        try:
            yield queue
        finally:
            del self._queues[sequence]
            if sequence.end is None:
                self._ready.cancel(sequence)


async def _stream(
    request: web.Request, form: Form, first: News, queue: "asyncio.Queue[News]", with_usage: bool
) -> web.StreamResponse:
    """Frames until the end: what has come since the last write goes out in one."""
    response = web.StreamResponse(headers=_SSE)
    await response.prepare(request)
    opening = form.opening()
    frames = [] if opening is None else [opening]
    news: News | None = first
    while True:
        done = False
        while news is not None:
            if isinstance(news, Piece):
                frames.append(form.chunk(news))
            elif isinstance(news, End):
                frames += [form.last(news), *([form.usage(news)] if with_usage else [])]
                done = True
            else:
                frames.append(news.body())
                done = True
            news = queue.get_nowait() if not queue.empty() else None
        await response.write(b"".join(b"data: " + msgspec.json.encode(frame) + b"\n\n" for frame in frames))
        if done:
            break
        frames, news = [], await queue.get()
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")
