"""Any engine behind an OpenAI-compatible address: LM Studio, vLLM, llama-server, Ollama's /v1, another Sekisho.

This is the gateway's hot path: `http_client` keeps connections alive and does not limit them (the gateway's queue
does), and every read of the engine's stream becomes one batch of events.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from sekisho.core.errors import (
    EngineFailed,
    EngineTimeout,
    EngineUnavailable,
    SekishoError,
    UnsupportedParameter,
)
from sekisho.core.events import (
    Batch,
    EventStream,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import EmbedRequest, Sampling, Turn
from sekisho.engines.base import Embeddings, EngineModel, Health
from sekisho.engines.config import ModelConfig
from sekisho.engines.http_client import Broken, HttpClient, NotConnected, Response, Silent
from sekisho.engines.idle_watch import IdleWatch
from sekisho.wire import chat_client, embeddings
from sekisho.wire.instructions import leading_only

log = logging.getLogger(__name__)

_KEEPALIVE_S: Final = 4.0  # llama.cpp and uvicorn drop an idle connection after 5 s; we must be first
_QUESTION_TIMEOUT_S: Final = 10.0  # for what costs the engine nothing: lists, health, token counts
_RETRY_AFTER_S: Final = 2.0
_SAID = TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta


def upstream_key(config: ModelConfig) -> str | None:
    """The key for the engine, from the environment or a file. Raises `EngineUnavailable` where it is missing."""
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "")
        if not key:
            raise EngineUnavailable(f"{config.name}: the environment variable {config.api_key_env} is not set")
        return key
    if config.api_key_file is not None:
        try:
            return Path(config.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise EngineUnavailable(f"{config.name}: api_key_file cannot be read: {error.strerror}") from error
    return None


class OpenAiHttpEngine:
    """An `Engine` behind `base_url`, which ends in `/v1` or whatever stands before `/chat/completions` there.

    Raises ValueError for an address that is none, or a key that cannot be sent.
    """

    def __init__(self, config: ModelConfig, base_url: str, *, api_key: str | None = None) -> None:
        self.name = config.name
        self._config = config
        self._model = config.upstream_model or config.name
        # For engines that see a client leave only when they write to it: they stream whatever the caller asked for.
        self._always_stream = bool(config.options.get("always_stream", False))
        headers = {"Content-Type": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = HttpClient(base_url, headers, connect_timeout_s=config.connect_timeout_s, keepalive_s=_KEEPALIVE_S)
        self._base = urlsplit(base_url).path.rstrip("/") or "/v1"  # a bare address is what people type
        self._root = self._base.removesuffix("/v1")
        self._counter: Callable[[Turn], Any] | None = None
        self._leading_only = False  # learned from the first refusal

    # --- turns ------------------------------------------------------------------------------------------------------

    async def generate(self, turn: Turn) -> EventStream:
        stream = turn.stream or self._always_stream
        response = await self._accepted(turn, stream)
        try:
            if not stream:
                yield self._decode_whole(turn, await self._read(response, self._config.first_byte_timeout_s))
                return
            if response.headers.get(b"content-type", b"").startswith(
                b"application/json"
            ):  # it does not stream, whatever it was asked
                yield self._decode_whole(turn, await self._read(response, self._config.first_byte_timeout_s))
                return
            async with contextlib.aclosing(self._events(turn, response)) as events:
                async for batch in events:
                    yield batch
        finally:
            response.let_go()

    async def _accepted(self, turn: Turn, stream: bool) -> Response:
        """Sends the turn; the response of an engine that took it. The caller must let go of it."""
        while True:
            asked = self._placed(turn)
            if turn.prompts:
                path, body = "/completions", chat_client.encode_completion(asked, model=self._model, stream=stream)
            else:
                path, body = "/chat/completions", chat_client.encode_request(asked, model=self._model, stream=stream)
            response = await self._send("POST", self._base + path, body, self._config.first_byte_timeout_s)
            if response.status == 200:
                return response
            try:
                error = await self._refusal(response)
            finally:
                response.let_go()
            if not self._learns(turn, asked, error):
                raise error

    def _placed(self, turn: Turn) -> Turn:
        """The turn with its instructions where this engine takes them."""
        return leading_only(turn) if self._leading_only else turn

    def _learns(self, turn: Turn, asked: Turn, error: SekishoError) -> bool:
        """Whether the refusal of `asked` taught something, so that the turn is to be asked again: coding agents put
        instructions into the middle of a conversation, and many templates take them at its beginning only."""
        if not isinstance(error, chat_client.MisplacedInstructions) or asked is not turn or leading_only(turn) is turn:
            return False
        self._leading_only = True
        log.info("%s takes instructions at the beginning only: later ones are told as the user's", self.name)
        return True

    def _decode_whole(self, turn: Turn, body: bytes) -> Batch:
        decode = chat_client.decode_completion_whole if turn.prompts else chat_client.decode_whole
        return decode(body, turn)

    async def _events(self, turn: Turn, response: Response) -> AsyncGenerator[Batch, None]:
        """Events of a streaming answer, a batch a read, to its end."""
        decoder = chat_client.CompletionStreamDecoder(turn) if turn.prompts else chat_client.ChatStreamDecoder(turn)
        config = self._config
        watch = IdleWatch(response, config.first_byte_timeout_s)
        begun = False
        try:
            while True:
                watch.waiting()
                data = await response.read_any()
                watch.arrived(config.idle_timeout_s)
                batch = decoder.feed(data) if data else decoder.finish()
                if decoder.error is not None:
                    self._note(decoder.error)
                    if not begun and not any(isinstance(event, _SAID) for event in batch):
                        raise decoder.error
                if batch:
                    begun = True
                    yield batch
                if not data or (batch and isinstance(batch[-1], Finished | Failed)):
                    break
        except Broken as cause:
            error: SekishoError
            if watch.expired:
                error = EngineTimeout(f"The engine of {self.name} said nothing for {watch.limit_s:g} s")
            elif begun:
                error = EngineFailed(f"The engine of {self.name} went away in the middle of its answer")
            else:
                error = self._unavailable("closed the connection before it answered")
            self._note(error, cause)
            if not begun:
                raise error from cause
            yield [chat_client.failed(error)]
        finally:
            watch.stop()
        await response.finish()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _send(
        self, method: str, path: str, body: bytes, timeout_s: float, level: int = logging.WARNING
    ) -> Response:
        """Sends a request and waits for the head of the answer. The caller must let go of the response."""
        try:
            return await self._http.send(method, path, body, timeout_s)
        except NotConnected as error:
            raise self._trouble(error, "is not running", level) from error
        except Silent as error:
            timeout = EngineTimeout(f"The engine of {self.name} did not answer within {timeout_s:g} s")
            self._note(timeout, error, level)
            raise timeout from error
        except Broken as error:
            raise self._trouble(error, "closed the connection before it answered", level) from error

    async def _read(self, response: Response, timeout_s: float) -> bytes:
        try:
            if response.has_come:
                return await response.read()
            async with asyncio.timeout(timeout_s):
                return await response.read()
        except TimeoutError as error:
            timeout = EngineTimeout(f"The engine of {self.name} did not finish its answer within {timeout_s:g} s")
            self._note(timeout, error)
            raise timeout from error
        except Broken as error:
            raise self._trouble(error, "went away in the middle of its answer") from error

    async def _refusal(self, response: Response) -> SekishoError:
        """The error that an answer other than 200 stands for."""
        body = await self._read(response, _QUESTION_TIMEOUT_S)
        error = chat_client.upstream_error(
            response.status, body, response.headers.get(b"retry-after", b"").decode("latin-1")
        )
        if error.status >= 500:
            self._note(error)
        return error

    async def _ask(self, method: str, path: str, body: bytes = b"", level: int = logging.WARNING) -> tuple[int, Any]:
        """A question with a small JSON answer (None where it is not JSON)."""
        try:
            response = await self._send(method, path, body, _QUESTION_TIMEOUT_S, level)
            try:
                answer = await self._read(response, _QUESTION_TIMEOUT_S)
            finally:
                response.let_go()
        except EngineTimeout as error:
            raise self._unavailable("does not answer") from error
        try:
            return response.status, msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return response.status, None

    def _unavailable(self, message: str) -> EngineUnavailable:
        return EngineUnavailable(f"The engine of {self.name} {message}", retry_after_s=_RETRY_AFTER_S)

    def _trouble(self, cause: Exception, message: str, level: int = logging.WARNING) -> EngineUnavailable:
        error = self._unavailable(message)
        self._note(error, cause, level)
        return error

    def _note(self, error: SekishoError, cause: Exception | None = None, level: int = logging.WARNING) -> None:
        """The cause goes into the log, under the id that the client is told."""
        why = [] if cause is None else [f"{type(cause).__name__}: {cause}"]
        log.log(level, "%s: %s: %s (%s)", error.id, self.name, error.message, "; ".join(why + _notes(error)))

    # --- questions --------------------------------------------------------------------------------------------------

    async def embed(self, request: EmbedRequest) -> Embeddings:
        body = embeddings.encode_request(request, model=self._model)
        timeout_s = self._config.first_byte_timeout_s
        response = await self._send("POST", self._base + "/embeddings", body, timeout_s)
        try:
            if response.status != 200:
                raise await self._refusal(response)
            vectors, usage = embeddings.decode_vectors(await self._read(response, timeout_s), request)
        finally:
            response.let_go()
        if usage is None:
            log.warning("%s: the engine does not count the tokens of embeddings; none are billed", self.name)
        return Embeddings(vectors, usage or Usage(0, 0))

    async def models(self) -> list[EngineModel]:
        return await self._list(logging.WARNING)

    async def _list(self, level: int) -> list[EngineModel]:
        status, answer = await self._ask("GET", self._base + "/models", level=level)
        if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise self._unavailable(f"does not list its models (status {status})")
        return [_model(entry) for entry in answer["data"] if isinstance(entry, dict) and "id" in entry]

    async def health(self) -> Health:
        """Asked every moment while an engine starts, so what it finds is told and not logged."""
        try:
            await self._list(logging.DEBUG)
        except EngineUnavailable as error:
            return Health("down", error.message)
        return Health("ready")

    @property
    def count_takes_slot(self) -> bool:
        """Until it is known how this engine counts, it may turn out to be by a run."""
        return self._counter is None or self._counter == self._count_by_run

    async def count_tokens(self, turn: Turn) -> int:
        asked = self._placed(turn)
        try:
            return await self._count_tokens(asked)
        except chat_client.MisplacedInstructions as error:
            if not self._learns(turn, asked, error):
                raise
        return await self._count_tokens(self._placed(turn))

    async def _count_tokens(self, turn: Turn) -> int:
        if self._counter is not None:
            count: int | None = await self._counter(turn)
            if count is not None:
                return count
        for counter in (self._count_by_question, self._count_by_tokenizer, self._count_by_run):
            count = await counter(turn)
            if count is not None:
                self._counter = counter
                return count
        raise UnsupportedParameter(f"{self.name}: this engine does not tell how many tokens a prompt has")

    async def _count_by_question(self, turn: Turn) -> int | None:
        """llama.cpp counts a whole chat request, tools and template included."""
        if turn.prompts:
            return None
        body = chat_client.encode_request(turn, model=self._model, stream=False)
        return await self._count("/chat/completions/input_tokens", self._base, body, "input_tokens")

    async def _count_by_tokenizer(self, turn: Turn) -> int | None:
        """vLLM's `/tokenize` takes the messages or the prompt of a request."""
        if len(turn.prompts) > 1 or (turn.prompts and not isinstance(turn.prompts[0], str)):
            return None
        encode = chat_client.encode_completion if turn.prompts else chat_client.encode_request
        request = msgspec.json.decode(encode(turn, model=self._model, stream=False))
        kept = ("model", "prompt", "messages", "tools", "chat_template_kwargs")
        body = msgspec.json.encode({name: request[name] for name in kept if name in request})
        return await self._count("/tokenize", self._root, body, "count")

    async def _count(self, path: str, base: str, body: bytes, field: str) -> int | None:
        status, answer = await self._ask("POST", base + path, body)
        if status == 400:
            raise chat_client.upstream_error(status, msgspec.json.encode(answer))
        count = answer.get(field) if status == 200 and isinstance(answer, dict) else None
        return count if isinstance(count, int) else None

    async def _count_by_run(self, turn: Turn) -> int | None:
        """Asks for one token and reads what the engine bills for the prompt."""
        sampling = Sampling(max_tokens=1)
        usage = None
        async for batch in self.generate(msgspec.structs.replace(turn, sampling=sampling, stream=False)):
            for event in batch:
                if isinstance(event, Failed):
                    raise EngineFailed(event.message)
                usage = event if isinstance(event, Usage) else usage
        return usage.input_tokens if usage else None

    async def close(self) -> None:
        await self._http.close()


def _notes(error: SekishoError) -> list[str]:
    notes: list[str] = getattr(error, "__notes__", [])
    return notes


def _model(entry: dict[str, Any]) -> EngineModel:
    """A line of a model list; what only some engines tell is read where it is there."""
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    contexts = (meta.get("n_ctx"), entry.get("max_model_len"), entry.get("context_length"), meta.get("n_ctx_train"))
    architecture = entry.get("architecture")
    inputs = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return EngineModel(
        str(entry["id"]),
        context_tokens=next((context for context in contexts if isinstance(context, int)), None),
        parameters=_whole_number(meta.get("n_params")),
        size_bytes=_whole_number(meta.get("size")),
        quantisation=meta.get("ftype") if isinstance(meta.get("ftype"), str) else None,
        vision="image" in inputs if isinstance(inputs, list) else None,
    )


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
