"""Engines to test against: a server process that misbehaves on demand, and llama.cpp with a tiny random model."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import gguf
import numpy as np
import pytest

from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_cpp import LlamaCppEngine

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 8192


def write_tiny_gguf(path: Path) -> Path:
    """A model of llama's shape with random weights, a token a byte: it talks nonsense, the way llama.cpp does."""
    width, layers, heads = 128, 2, 4
    random = np.random.default_rng(7)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
    tokens = [*special, *(letters[byte] for byte in range(256)), "ab"]
    kinds = [gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * 257
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(width * 2)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width)}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}": (width * 2, width) for name in ("gate", "up")}
        shapes[f"blk.{layer}.ffn_down"] = (width, width * 2)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(width, np.float32))
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Process:
    """A child that dies with us, for as long as a `with` lasts."""

    def __init__(self, argv: tuple[str, ...], *, env: dict[str, str] | None = None, log: Path | None = None) -> None:
        self._argv = argv
        self._env = os.environ | (env or {}) | lifeline.environment()
        self._log = log

    def __enter__(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") if self._log else open(os.devnull, "wb") as errors:
            self.child = subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=self._env
            )
        return self.child

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.communicate()


@pytest.fixture(scope="session")
def fake_url() -> Iterator[str]:
    """The address of a fake server in a process of its own."""
    with Process((sys.executable, "-m", "sekisho.engines.fake_server")) as child:
        assert child.stdout is not None
        yield child.stdout.readline().decode().strip()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def llama_config(tiny_gguf: Path) -> ModelConfig:
    return ModelConfig("m", path=str(tiny_gguf), context=CONTEXT, slots=2, embeddings=True, threads=1)


@pytest.fixture(scope="session")
def llama_worker_address(
    llama_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A running worker: its address, its key, its log."""
    port, key = llama_worker.free_port(), llama_worker.new_key()
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    with Process(llama_worker.argv(llama_config, port), env=llama_worker.environment(key), log=log):
        yield f"http://127.0.0.1:{port}/v1", key, log


@contextlib.asynccontextmanager
async def _ready(config: ModelConfig, url: str, key: str, log: Path) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(config, url, api_key=key, log_path=log)
    async with asyncio.timeout(30):
        while (health := await engine.health()).state != "ready":
            assert health.state in ("starting", "down"), health
            await asyncio.sleep(0.05)
    yield engine
    await engine.close()


@pytest.fixture
def open_llama(
    llama_worker_address: tuple[str, str, Path], llama_config: ModelConfig
) -> Callable[[], contextlib.AbstractAsyncContextManager[LlamaCppEngine]]:
    """Opens the engine in front of the worker, ready."""
    return lambda: _ready(llama_config, *llama_worker_address)


@pytest.fixture
async def llama(
    open_llama: Callable[[], contextlib.AbstractAsyncContextManager[LlamaCppEngine]],
) -> AsyncIterator[LlamaCppEngine]:
    async with open_llama() as engine:
        yield engine


@pytest.fixture
def fake_stats(fake_url: str) -> Callable[[], Awaitable[dict[str, int]]]:
    """Asks the fake server for its counters."""

    async def ask() -> dict[str, int]:
        address = fake_url.removesuffix("/v1") + "/fake/stats"
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            counts: dict[str, int] = await answer.json()
            return counts

    return ask
