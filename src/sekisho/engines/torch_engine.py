"""Any Hugging Face model with the tiered KV cache, in a worker process of ours (`torch_worker`)."""

from typing import Any

import msgspec

from sekisho.core.errors import EngineFailed, RequestError
from sekisho.core.turn import Turn
from sekisho.engines.base import EngineModel
from sekisho.engines.worker_engine import WorkerEngine
from sekisho.wire.chat_client import upstream_error


class TorchEngine(WorkerEngine):
    """The engine in front of a worker. What it adds: the KV cache's state, and its policy while it runs."""

    async def models(self) -> list[EngineModel]:
        """One model, under the name of the settings."""
        listed = await super().models()
        extra = {"embeddings": self._config.embeddings, "vision": False}
        return [msgspec.structs.replace(model, **extra) for model in listed]

    async def kv_state(self) -> dict[str, Any]:
        """Policy, bytes, pages by format, sequences. Raises `EngineUnavailable`."""
        return await self._told("GET", "/kv")

    async def change_kv_policy(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes the named fields, for what runs as well. Answers `policy`, and `changed`: by field, old and new.
        Raises `InvalidRequest` with the field that is wrong, `EngineUnavailable`."""
        return await self._told("PUT", "/kv/policy", msgspec.json.encode(changes))

    async def _told(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        status, answer = await self._ask(method, self._root + path, body)
        if status == 200 and isinstance(answer, dict):
            return answer
        error = upstream_error(400 if status == 409 else status, msgspec.json.encode(answer))
        raise error if isinstance(error, RequestError) else EngineFailed(error.message)

    async def _count_by_tokenizer(self, turn: Turn) -> int | None:
        """Raw prompts; chat is counted by question."""
        total = 0
        for prompt in turn.prompts:
            body = msgspec.json.encode({"prompt": prompt})
            count = await self._count("/tokenize", self._root, body, "count")
            if count is None:
                return None
            total += count
        return total if turn.prompts else None
