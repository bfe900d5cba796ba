"""The engines by name. A new engine is one file and one line here."""

from collections.abc import Callable
from pathlib import Path

from sekisho.engines import llama_worker, torch_worker
from sekisho.engines.base import Engine
from sekisho.engines.config import ModelConfig


def _llama_cpp(config: ModelConfig, base_url: str | None, api_key: str | None, log_path: Path | None) -> Engine:
    from sekisho.engines.llama_cpp import LlamaCppEngine

    if base_url is None:
        raise ValueError(f"{config.name}: engine llama_cpp needs the address of a worker that the supervisor started")
    return LlamaCppEngine(config, base_url, api_key=api_key, log_path=log_path)


def _torch(config: ModelConfig, base_url: str | None, api_key: str | None, log_path: Path | None) -> Engine:
    from sekisho.engines.torch_engine import TorchEngine

    if base_url is None:
        raise ValueError(f"{config.name}: engine torch needs the address of a worker that the supervisor started")
    return TorchEngine(config, base_url, api_key=api_key, log_path=log_path)


def _openai_http(config: ModelConfig, base_url: str | None, api_key: str | None, log_path: Path | None) -> Engine:
    from sekisho.engines.openai_http import OpenAiHttpEngine, upstream_key

    url = base_url or config.url
    if url is None:
        raise ValueError(f"{config.name}: engine openai_http needs `url`, for example http://127.0.0.1:1234/v1")
    return OpenAiHttpEngine(config, url, api_key=api_key or upstream_key(config))


def _fake(config: ModelConfig, base_url: str | None, api_key: str | None, log_path: Path | None) -> Engine:
    from sekisho.engines.fake import FakeEngine

    return FakeEngine(config)


ENGINES: dict[str, Callable[[ModelConfig, str | None, str | None, Path | None], Engine]] = {
    "llama_cpp": _llama_cpp,
    "torch": _torch,
    "openai_http": _openai_http,
    "fake": _fake,
}

WORKERS: dict[str, Callable[[ModelConfig, int], tuple[str, ...]]] = {
    "llama_cpp": llama_worker.argv,
    "torch": torch_worker.argv,
}
"""The command line of the worker at a port, for each of `config.WORKER_ENGINES`."""


def create(
    config: ModelConfig, base_url: str | None = None, api_key: str | None = None, log_path: Path | None = None
) -> Engine:
    """The engine that the settings name; opens no connection yet. Raises ValueError where settings do not suffice and
    `EngineUnavailable` where its key is missing."""
    if config.engine not in ENGINES:
        raise ValueError(f"{config.name}: unknown engine {config.engine!r}; there are {', '.join(sorted(ENGINES))}")
    return ENGINES[config.engine](config, base_url, api_key, log_path)
