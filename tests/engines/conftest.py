"""Engines to test against: a server process that misbehaves on demand, llama.cpp with a tiny random model, and the
torch engine with another one."""

import asyncio
import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import aiohttp
import gguf
import msgspec
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from kept_port import kept_port

from sekisho.engines import lifeline, llama_worker, torch_worker, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_cpp import LlamaCppEngine
from sekisho.engines.torch_engine import TorchEngine
from sekisho.engines.worker_engine import WorkerEngine

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 8192


def write_tiny_gguf(path: Path, width: int = 128, layers: int = 2) -> Path:
    """A model of llama's shape with random weights, a token a byte: it talks nonsense, the way llama.cpp does."""
    heads = 4
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


@contextlib.contextmanager
def _llama_worker(config: ModelConfig, log: Path) -> Iterator[tuple[str, str, Path]]:
    number, key = kept_port(), llama_worker.new_key()
    with Process(llama_worker.argv(config, number), env=llama_worker.environment(key), log=log):
        yield f"http://127.0.0.1:{number}/v1", key, log


@pytest.fixture(scope="session")
def llama_worker_address(
    llama_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A running worker: its address, its key, its log."""
    with _llama_worker(llama_config, tmp_path_factory.mktemp("logs") / "worker.log") as worker:
        yield worker


@pytest.fixture(scope="session")
def slow_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, but large enough that no context is full within half a minute: what goes on is still going on when
    somebody looks, however late he comes."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "slow.gguf", width=512, layers=8)


@pytest.fixture(scope="session")
def slow_worker_address(
    slow_gguf: Path, llama_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A worker with it."""
    config = msgspec.structs.replace(llama_config, path=str(slow_gguf))
    with _llama_worker(config, tmp_path_factory.mktemp("logs") / "slow.log") as worker:
        yield worker


Worker = TypeVar("Worker", bound=WorkerEngine)


@contextlib.asynccontextmanager
async def _ready(engine: Worker) -> AsyncIterator[Worker]:
    async with asyncio.timeout(100 if isinstance(engine, LlamaCppEngine) else 200):
        while (health := await engine.health()).state != "ready":
            assert health.state in ("starting", "down"), health
            await asyncio.sleep(0.05)
    yield engine
    await engine.close()


@pytest.fixture
def open_slow_llama(
    slow_worker_address: tuple[str, str, Path], llama_config: ModelConfig
) -> Callable[[], contextlib.AbstractAsyncContextManager[LlamaCppEngine]]:
    """Opens the engine in front of the slow worker, ready."""
    url, key, log = slow_worker_address
    return lambda: _ready(LlamaCppEngine(llama_config, url, api_key=key, log_path=log))


@pytest.fixture
async def llama(
    llama_worker_address: tuple[str, str, Path], llama_config: ModelConfig
) -> AsyncIterator[LlamaCppEngine]:
    """The engine in front of the worker, ready."""
    url, key, log = llama_worker_address
    async with _ready(LlamaCppEngine(llama_config, url, api_key=key, log_path=log)) as engine:
        yield engine


def write_tiny_folder(folder: Path) -> Path:
    """A model folder of random weights with grouped query heads, and a tokenizer of bytes and a few words."""
    torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
        pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")
        import tokenizers
        import transformers
        from transformers import LlamaForCausalLM

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *letters, "th", "the", "lo"])}
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("t", "h"), ("th", "e"), ("l", "o")]))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    plain.add_special_tokens(special)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="session")
def torch_config(tiny_folder: Path) -> ModelConfig:
    return ModelConfig(
        "m", engine="torch", path=str(tiny_folder), context=CONTEXT, slots=8, embeddings=True, threads=1, devices="cpu"
    )


@pytest.fixture(scope="session")
def torch_worker_address(
    torch_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, Path]]:
    """A running worker: its address, its key, its log."""
    number, key = kept_port(), worker_process.new_key()
    log = tmp_path_factory.mktemp("logs") / "worker.log"
    with Process(torch_worker.argv(torch_config, number), env=worker_process.environment(key), log=log):
        yield f"http://127.0.0.1:{number}/v1", key, log


@pytest.fixture
def open_torch(
    torch_worker_address: tuple[str, str, Path], torch_config: ModelConfig
) -> Callable[[], contextlib.AbstractAsyncContextManager[TorchEngine]]:
    """Opens the engine in front of the worker, ready."""
    url, key, log = torch_worker_address
    return lambda: _ready(TorchEngine(torch_config, url, api_key=key, log_path=log))


@pytest.fixture
async def torch_engine(
    open_torch: Callable[[], contextlib.AbstractAsyncContextManager[TorchEngine]],
) -> AsyncIterator[TorchEngine]:
    async with open_torch() as engine:
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
