"""llama.cpp in a worker process of ours (`llama_worker`), or any llama-server that serves its whole interface."""

import contextlib
import itertools
import logging
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from sekisho.core.errors import EngineUnavailable, SekishoError
from sekisho.core.events import Batch, EventStream, Failed, Finished, Started, Usage
from sekisho.core.turn import Prompt, Turn
from sekisho.engines.base import EngineModel, Health
from sekisho.engines.config import ModelConfig
from sekisho.engines.openai_http import OpenAiHttpEngine
from sekisho.wire.chat_client import failed

_TAIL_LINES = 20
_TAIL_BYTES = 16_384


class LlamaCppEngine(OpenAiHttpEngine):
    """Always asks for a stream: llama.cpp sees a client leave when it writes a token, but a client that waits for the
    whole answer only seconds later, and the slot would stay taken."""

    def __init__(
        self, config: ModelConfig, base_url: str, *, api_key: str | None = None, log_path: Path | None = None
    ) -> None:
        super().__init__(config, base_url, api_key=api_key)
        self._always_stream = True
        self._log_path = log_path

    @property
    def count_takes_slot(self) -> bool:
        """llama.cpp counts beside its slots."""
        return False

    def generate(self, turn: Turn) -> EventStream:
        return super().generate(turn) if len(turn.prompts) < 2 and turn.sampling.n == 1 else self._one_by_one(turn)

    async def _one_by_one(self, turn: Turn) -> EventStream:
        """Several prompts or choices, one after the other: llama.cpp takes them at once, but then counts the tokens of
        one of them only, and takes slots that the gateway's queue does not know of. A prompt that is asked for
        several choices is billed once."""
        ends: Batch = []
        total = Usage(0, 0)
        begun = False
        prompts: tuple[tuple[Prompt, ...], ...] = tuple((prompt,) for prompt in turn.prompts) or ((),)
        for choice, (prompt, number) in enumerate(itertools.product(prompts, range(turn.sampling.n))):
            try:
                async with contextlib.aclosing(super().generate(_single(turn, prompt, number))) as events:
                    async for batch in events:
                        said: Batch = []
                        for event in batch:
                            if isinstance(event, Usage):
                                total = _sum(total, event, again=number > 0)
                            elif isinstance(event, Finished):
                                ends.append(msgspec.structs.replace(event, choice=choice))
                            elif isinstance(event, Failed):
                                yield [*said, event]
                                return
                            elif isinstance(event, Started):
                                said += [] if choice else [event]
                            else:
                                said.append(msgspec.structs.replace(event, choice=choice))
                        if said:
                            begun = True
                            yield said
            except SekishoError as error:
                if not begun:
                    raise
                yield [failed(error)]
                return
        yield [total, *ends]

    async def health(self) -> Health:
        """`ready` once it lists its model; `starting` while it loads; `down` comes with the worker's last lines."""
        try:
            await self._list(logging.DEBUG)
        except EngineUnavailable as error:
            return await self._why(error)
        return Health("ready")

    async def _why(self, error: EngineUnavailable) -> Health:
        try:
            status, _ = await self._ask("GET", self._root + "/health", level=logging.DEBUG)
        except EngineUnavailable:
            return Health("down", error.message, log_tail(self._log_path))
        if status == 503:
            return Health("starting", "the model is being loaded")
        return Health("down", error.message, log_tail(self._log_path))

    async def models(self) -> list[EngineModel]:
        """One model, under the name of the settings. What `/props` adds is optional."""
        listed = await super().models()
        props = await self.props()
        modalities = props.get("modalities")
        vision = modalities.get("vision") if isinstance(modalities, dict) else None
        extra = {"embeddings": self._config.embeddings, "vision": vision if isinstance(vision, bool) else None}
        return [msgspec.structs.replace(model, **extra) for model in listed]

    async def props(self) -> dict[str, Any]:
        """llama.cpp's own description of itself; empty where it is switched off."""
        status, answer = await self._ask("GET", self._root + "/props")
        return answer if status == 200 and isinstance(answer, dict) else {}

    async def slots(self) -> list[dict[str, Any]]:
        """The state of each slot; empty where it is switched off."""
        status, answer = await self._ask("GET", self._root + "/slots")
        return answer if status == 200 and isinstance(answer, list) else []

    async def _count_by_tokenizer(self, turn: Turn) -> int | None:
        """Raw prompts by `/tokenize`, the way `/completion` does: with the model's opening token."""
        if not turn.prompts:
            return None
        total = 0
        for prompt in turn.prompts:
            if not isinstance(prompt, str):
                total += len(prompt)
                continue
            body = msgspec.json.encode({"content": prompt, "add_special": True, "parse_special": True})
            status, answer = await self._ask("POST", self._root + "/tokenize", body)
            if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("tokens"), list):
                return None
            total += len(answer["tokens"])
        return total


def _single(turn: Turn, prompt: tuple[Prompt, ...], number: int) -> Turn:
    """One choice of a turn. With a seed, each choice gets its own, or all would say the same."""
    seed = turn.sampling.seed
    sampling = msgspec.structs.replace(turn.sampling, n=1, seed=None if seed is None else seed + number)
    return msgspec.structs.replace(turn, prompts=prompt, sampling=sampling)


def _sum(total: Usage, usage: Usage, *, again: bool) -> Usage:
    """`again`: the same prompt as before, which is not billed twice."""
    return Usage(
        total.input_tokens + (0 if again else usage.input_tokens),
        total.output_tokens + usage.output_tokens,
        total.cached_tokens + (0 if again else usage.cached_tokens),
        total.reasoning_tokens + usage.reasoning_tokens,
    )


def log_tail(path: Path | None) -> tuple[str, ...]:
    """The last lines of a worker's log; none where there is no log yet."""
    if path is None:
        return ()
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(deque((line for line in lines if line.strip()), maxlen=_TAIL_LINES))
