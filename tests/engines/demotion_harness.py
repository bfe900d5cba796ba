"""Workers with the built-in model for the tests of demotion, and how they are asked."""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from kept_port import kept_port

from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_demotion.folder import PREFIX, SHARED_MEMORY

KEY = "k"
PLAIN = ModelConfig("m", path="builtin", context=2048, slots=2, threads=1, kv_type_k="q8_0", kv_type_v="q8_0")


def demoting(config: ModelConfig = PLAIN, **fields: Any) -> ModelConfig:
    return msgspec.structs.replace(config, options={"demote_after_prefill": True}, **fields)


def chat(*said: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A conversation that begins with the user and takes turns."""
    roles = ("user", "assistant") * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def letter(subject: str, sentences: int = 16) -> str:
    """Some 300 tokens that begin as no other letter does."""
    return f"{subject} writes a letter, and the lamp burns through the night. " * sentences


class Worker:
    """A worker that serves: asked with its key. `figure` of a counter is what was added since `begin`."""

    def __init__(self, root: str, session: aiohttp.ClientSession) -> None:
        self.root, self.session = root, session
        self._before = dict[str, float]()

    async def begin(self) -> None:
        self._before = {name: value for name, value in (await self._figures()).items() if name.endswith("_total")}

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self.session.post(self.root + path, json=body) as answer:
            said = await answer.read()
            assert answer.status == 200, said
            told: dict[str, Any] = json.loads(said)
            return told

    async def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """All events of a streamed answer, but for the mark at its end."""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self.session.post(self.root + path, json=body) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            frames = (await answer.text()).split("\n\n")
        assert frames[-2:] == ["data: [DONE]", ""]
        return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]

    async def figure(self, name: str) -> float:
        return (await self._figures())[name] - self._before.get(name, 0)

    async def _figures(self) -> dict[str, float]:
        async with self.session.get(self.root + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        pairs = (line.split(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    async def busy(self) -> int:
        async with self.session.get(self.root + "/slots") as answer:
            return sum(slot["is_processing"] for slot in await answer.json())


@contextlib.asynccontextmanager
async def asked(root: str) -> AsyncIterator[Worker]:
    """The worker at an address, once it serves."""
    await ready(root)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:
        worker = Worker(root, session)
        await worker.begin()
        yield worker


def begun(config: ModelConfig, log: Path, native: Path | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """A worker's process and its address; it does not serve yet. `native`: where its builds of llama.cpp are."""
    number = kept_port()
    environment = os.environ | llama_worker.environment(KEY, native) | lifeline.environment()
    with log.open("wb") as errors:
        child = subprocess.Popen(
            llama_worker.argv(config, number), stdin=subprocess.PIPE, stderr=errors, env=environment
        )
    return child, f"http://127.0.0.1:{number}"


async def ready(root: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(100):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(root + "/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def process(
    config: ModelConfig, log: Path, native: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker and its address, killed at the end."""
    child, root = begun(config, log, native)
    try:
        yield child, root
    finally:
        child.kill()
        child.communicate()


def folders(child: subprocess.Popen[bytes]) -> list[Path]:
    """Where this worker keeps its slot files, or left them."""
    return list(SHARED_MEMORY.glob(f"{PREFIX}{child.pid}-*"))
