"""An engine that runs in a worker process which the supervisor starts: its health comes with the worker's last lines,
and several prompts or choices run one after the other."""

import contextlib
import itertools
import logging
from collections import deque
from pathlib import Path

import msgspec

from sekisho.core.errors import EngineUnavailable, SekishoError
from sekisho.core.events import Batch, EventStream, Failed, Finished, Started, Usage
from sekisho.core.turn import Prompt, Turn
from sekisho.engines.base import Health
from sekisho.engines.config import ModelConfig
from sekisho.engines.openai_http import OpenAiHttpEngine
from sekisho.wire.chat_client import failed

_TAIL_LINES = 20
_TAIL_BYTES = 16_384


class WorkerEngine(OpenAiHttpEngine):
    """Subclasses say what their worker can tell beyond OpenAI's interface."""

    def __init__(
        self, config: ModelConfig, base_url: str, *, api_key: str | None = None, log_path: Path | None = None
    ) -> None:
        super().__init__(config, base_url, api_key=api_key)
        self._log_path = log_path

    @property
    def count_takes_slot(self) -> bool:
        """Workers count beside their slots."""
        return False

    def generate(self, turn: Turn) -> EventStream:
        return super().generate(turn) if len(turn.prompts) < 2 and turn.sampling.n == 1 else self._one_by_one(turn)

    async def _one_by_one(self, turn: Turn) -> EventStream:
        """Several prompts or choices, one after the other: at once they would take slots that the gateway's queue does
        not know of (and llama.cpp would count the tokens of one of them only). A prompt that is asked for several
        choices is billed once."""
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
