"""llama.cpp in a worker process of ours (`llama_worker`), or any llama-server that serves its whole interface."""

from pathlib import Path
from typing import Any

import msgspec

from sekisho.core.turn import Turn
from sekisho.engines.base import EngineModel
from sekisho.engines.config import ModelConfig
from sekisho.engines.worker_engine import WorkerEngine, log_tail

__all__ = ["LlamaCppEngine", "log_tail"]


class LlamaCppEngine(WorkerEngine):
    """Always asks for a stream: llama.cpp sees a client leave when it writes a token, but a client that waits for the
    whole answer only seconds later, and the slot would stay taken."""

    def __init__(
        self, config: ModelConfig, base_url: str, *, api_key: str | None = None, log_path: Path | None = None
    ) -> None:
        super().__init__(config, base_url, api_key=api_key, log_path=log_path)
        self._always_stream = True

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
