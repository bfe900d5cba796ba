"""A llama.cpp worker in a process of its own, for a gateway to stand in front of."""

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_harness import LiveGateway
from kept_port import kept_port

from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.serve import Worker

ENGINE_TESTS = Path(__file__).parent.parent / "engines"


def write_tiny_gguf(path: Path, context: int = 8192) -> Path:
    """The engines' tests' model of random weights, a token a byte: it talks nonsense, the way llama.cpp does."""
    spec = importlib.util.spec_from_file_location("engine_fixtures", ENGINE_TESTS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CONTEXT = context
    written: Path = module.write_tiny_gguf(path)
    return written


@contextmanager
def served(launch: Callable[..., LiveGateway], folder: Path, model: ModelConfig) -> Iterator[LiveGateway]:
    """A gateway with a local model, both running."""
    port, key, log = kept_port(), llama_worker.new_key(), folder / "worker.log"
    worker = Worker(f"http://127.0.0.1:{port}/v1", log)
    environment = os.environ | llama_worker.environment(key) | lifeline.environment()
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as errors:
        child = subprocess.Popen(llama_worker.argv(model, port), stdin=subprocess.PIPE, stderr=errors, env=environment)
        try:
            for name, value in llama_worker.environment(key).items():
                patch.setenv(name, value)
            live = launch(model, workers={model.name: worker})
            yield live
            live.stop()
        finally:
            child.kill()
            child.communicate()
