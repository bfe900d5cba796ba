"""`POST /perplexity`: what the model would have said of a text, with the cache kept as the policy in force keeps it.

Between two rounds of the traffic one block of the text is read, as a portion of a prompt is: its tokens see each other
in full precision and the past as the cache has it. What the measurement holds is counted with what the traffic holds;
where somebody waits for that memory, the measurement gives up.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import torch
import transformers
from aiohttp import web
from torch.nn.functional import cross_entropy

from sekisho.engines import stretches
from sekisho.engines.torch_worker.admission import sequence_bytes
from sekisho.engines.torch_worker.prompts import Prompts
from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.requests import read
from sekisho.engines.torch_worker.runner import Runner
from sekisho.kv.policy import KVPolicy, LevelThresholds

_BLOCK: Final = 64  # tokens: a page
_LONGEST_STRETCH: Final = 65_536
_EVERYTHING_DENSE: Final = LevelThresholds(0, 0, 0)
_BUSY: Final = "measurement_gave_way"
Tokens = Callable[[Callable[[Prompts], Any]], Awaitable[Any]]


class PerplexityBody(msgspec.Struct, forbid_unknown_fields=True):
    """`only`: the number of one stretch, counted round and round. `full_precision`: at 16 bits instead of under the
    policy in force."""

    text: str
    stretch: int = 1024
    only: int | None = None
    full_precision: bool = False


class Reading:
    """One stretch while it is read. Its methods run in the runner's thread."""

    def __init__(self, runner: Runner, policy: KVPolicy, tokens: list[int]) -> None:
        self.tokens, self.nll = tokens, list[float]()
        self._runner, self._policy = runner, policy
        self._cache: Any = None
        self._position = self._bytes = 0

    def begin(self) -> None:
        cost = sequence_bytes(self._runner.loaded.layers, self._policy, len(self.tokens))
        self._bytes = cost
        self._runner.held_bytes += cost
        self._give_way()
        self._cache = self._runner.loaded.cache(self._policy)

    def step(self) -> bool:
        """One block; whether it was the last. Raises `Refused` where traffic needs the room."""
        self._give_way()
        part = self.tokens[self._position : self._position + _BLOCK]
        targets = self.tokens[self._position + 1 : self._position + 1 + len(part)]
        logits = _logits(self._runner.loaded.model, self._cache, part, self._position, self._runner.loaded.device)
        wanted = torch.tensor(targets, device=logits.device)
        self.nll += cross_entropy(logits[: len(targets)].float(), wanted, reduction="none").tolist()
        self._position += len(part)
        return self._position >= len(self.tokens) - 1

    def end(self) -> None:
        """Frees what it holds. May be called twice."""
        self._cache = None
        self._runner.held_bytes -= self._bytes
        self._bytes = 0

    def _give_way(self) -> None:
        runner = self._runner
        wanted = 0
        if runner.waiting and len(runner.admitted) < runner.slots:
            wanted = sequence_bytes(runner.loaded.layers, runner.policy, runner.waiting[0].tokens)
        if runner.reserved_bytes + wanted > runner.limit_bytes:
            raise Refused("the traffic needs the KV cache's memory: measure later", status=409, code=_BUSY)


def _logits(model: Any, cache: Any, tokens: list[int], start: int, device: torch.device) -> torch.Tensor:
    """(n, vocabulary), after each of the tokens."""
    named = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in named else "past_key_values"
    ids = torch.tensor([tokens], device=device)
    positions = torch.arange(start, start + len(tokens), device=device)[None]
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=True, **{name: cache}).logits[0]
    return logits


def parts(body: PerplexityBody, prompts: Prompts, longest: int) -> list[list[int]]:
    """The stretches to read. Raises `Refused`."""
    if not 2 <= body.stretch <= _LONGEST_STRETCH:
        raise Refused(f"must be 2 to {_LONGEST_STRETCH}, is {body.stretch}", param="stretch")
    opening = prompts.raw("")[:1]
    tokens = prompts.raw(body.text)[len(opening) :]
    try:
        return stretches.cut(tokens, opening, min(body.stretch, longest), body.only)
    except ValueError as error:
        raise Refused(str(error), param="text") from None


class Route:
    """One measurement at a time. `runner` and `tokens` are the server's."""

    def __init__(self, runner: Callable[[], Runner], tokens: Tokens) -> None:
        self._runner, self._tokens = runner, tokens
        self._lock = asyncio.Lock()

    async def answer(self, request: web.Request) -> web.Response:
        body = read(await request.read(), PerplexityBody)
        if self._lock.locked():
            raise Refused("a measurement runs already", status=409, code=_BUSY)
        async with self._lock:
            runner = self._runner()
            found = await self._tokens(lambda prompts: parts(body, prompts, runner.context))
            policy = runner.policy
            if body.full_precision:
                policy = msgspec.structs.replace(policy, budget=None, level_thresholds=_EVERYTHING_DENSE, evict=False)
            told = [await self._read(runner, policy, tokens) for tokens in found]
        answer = {"stretches": told, "policy": msgspec.to_builtins(policy), "software": _software()}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _read(self, runner: Runner, policy: KVPolicy, tokens: list[int]) -> dict[str, Any]:
        reading = Reading(runner, policy, tokens)
        try:
            await asyncio.wrap_future(runner.call(reading.begin))
            while not await asyncio.wrap_future(runner.call(reading.step)):
                continue
        finally:
            runner.call(reading.end)
        return {"tokens": reading.tokens, "nll": reading.nll}


def _software() -> str:
    return f"torch {torch.__version__}, transformers {transformers.__version__}"
