"""The worker process of the torch engine: how it starts, what it refuses to start with, and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from kept_port import kept_port
from torch_worker_harness import GREEDY, events, say

from sekisho.core.events import Finished
from sekisho.core.turn import Message, Text, Turn
from sekisho.engines import lifeline, torch_worker, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_engine import TorchEngine

pytestmark = [pytest.mark.kv, pytest.mark.timeout(300)]  # PyTorch may take its time to load


def run_worker(config: ModelConfig, *, port: int | None = None, key: str = "k") -> tuple[int, str]:
    """Runs a worker that is expected to end by itself; its exit code and its last line."""
    argv = torch_worker.argv(config, port or kept_port())
    env = {name: value for name, value in os.environ.items() if name != worker_process.KEY_ENV}
    if key:
        env |= worker_process.environment(key)
    done = subprocess.run(argv, env=env, capture_output=True, timeout=200, check=False)
    return done.returncode, done.stderr.decode().splitlines()[-1]


def changed(tiny: Path, folder: Path, **settings: Any) -> str:
    """The tiny model's folder with another config.json."""
    folder.mkdir()
    for file in tiny.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((tiny / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    """A path that leads nowhere: one line with the path, and no second try."""
    code, line = run_worker(ModelConfig("m", engine="torch", path=str(tmp_path / "none")))
    assert (code, line) == (78, f"error: model folder {tmp_path / 'none'}: no such file or directory")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    """A folder of something else is named, with the file that is missing."""
    code, line = run_worker(ModelConfig("m", engine="torch", path=str(tmp_path)))
    assert code == 78
    assert f"{tmp_path}/config.json" in line


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"model_type": "never_heard_of", "architectures": None}, "never_heard_of"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
    ids=["unknown architecture", "missing weights", "layers that are no attention"],
)
def test_a_model_that_cannot_be_served_is_told(
    tiny_folder: Path, tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    """One line that says what it is about, exit code 78, before it serves anybody."""
    code, line = run_worker(ModelConfig("m", engine="torch", path=changed(tiny_folder, tmp_path / "new", **settings)))
    assert code == 78, line
    assert line.startswith("error: ")
    assert word in line


def test_weights_that_are_cut_off_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    """However much of the file came, it is told and not served."""
    path = changed(tiny_folder, tmp_path / "cut")
    weights = Path(path) / "model.safetensors"
    weights.unlink()
    weights.write_bytes((tiny_folder / "model.safetensors").read_bytes()[:5000])
    code, line = run_worker(ModelConfig("m", engine="torch", path=path))
    assert code == 78, line
    assert "cannot be loaded" in line


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"options": {"prefil_chunk": 8}}, "prefil_chunk"),
        ({"options": {"prefill_chunk": 0}}, "options.prefill_chunk"),
        ({"options": {"dtype": "int4"}}, "options.dtype"),
        ({"devices": "toaster"}, "devices"),
        ({"kv_limit_mib": 0.01}, "kv_limit_mib"),
    ],
)
def test_a_setting_that_cannot_be_is_told(tiny_folder: Path, fields: dict[str, Any], word: str) -> None:
    """The line names the setting."""
    code, line = run_worker(ModelConfig("m", engine="torch", path=str(tiny_folder), **fields))
    assert code == 78
    assert word in line


def test_a_worker_without_a_key_or_a_port_does_not_start(tiny_folder: Path) -> None:
    """No key would be a way round the gateway; a taken port may be free later."""
    config = ModelConfig("m", engine="torch", path=str(tiny_folder))
    code, line = run_worker(config, key="")
    assert code == 78
    assert worker_process.KEY_ENV in line
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = run_worker(config, port=port)
    assert code == 1
    assert line.startswith(f"error: port {port} on 127.0.0.1 is taken")


async def started(config: ModelConfig, log: Path) -> tuple[asyncio.subprocess.Process, TorchEngine]:
    port = kept_port()
    with log.open("wb") as errors:
        child = await asyncio.create_subprocess_exec(
            *torch_worker.argv(config, port),
            stdin=subprocess.PIPE,
            stderr=errors,
            env=os.environ | worker_process.environment("k") | lifeline.environment(),
        )
    engine = TorchEngine(config, f"http://127.0.0.1:{port}/v1", api_key="k", log_path=log)
    async with asyncio.timeout(200):
        while (health := await engine.health()).state != "ready":
            assert child.returncode is None, health
            await asyncio.sleep(0.02)
    return child, engine


@pytest.mark.parametrize("told", [True, False], ids=["signal", "parent"])
async def test_the_worker_ends_on_a_signal_and_with_its_parent(
    torch_config: ModelConfig, tmp_path: Path, told: bool
) -> None:
    """SIGTERM ends it at once; so does the end of its lifeline."""
    child, engine = await started(torch_config, tmp_path / "log")
    assert child.stdin is not None
    if told:
        child.send_signal(signal.SIGTERM)
    else:
        child.stdin.close()
    assert await asyncio.wait_for(child.wait(), 60) == (-signal.SIGTERM if told else 0)
    await engine.close()


PICKY_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


async def test_a_gguf_is_served_too(tiny_gguf: Path, tmp_path: Path) -> None:
    """A GGUF file with its own tokenizer, under a limit that shortens the context, and with a template that takes
    instructions at the beginning only: later ones are told as the user's, as for every engine."""
    template = tmp_path / "picky.jinja"
    template.write_text(PICKY_TEMPLATE)
    config = ModelConfig(
        "m", engine="torch", path=str(tiny_gguf), context=8192, threads=1, kv_limit_mib=4, chat_template=str(template)
    )
    child, engine = await started(config, tmp_path / "log")
    try:
        said = await events(engine, say("hello"))
        assert said[-1] == Finished("length")
        (model,) = await engine.models()
        assert model.context_tokens is not None
        assert 100 < model.context_tokens < 8192
        assert "hold" in (tmp_path / "log").read_text()
        late = Message("developer", (Text("be kind"),))
        turn = Turn("turn_1", "chat", "m", messages=(*say("hello").messages, late), sampling=GREEDY)
        assert (await events(engine, turn))[-1] == Finished("length")
    finally:
        await engine.close()
        child.kill()
        await child.communicate()


def test_nobody_but_the_worker_loads_torch() -> None:
    """Server, gateway, command line and the engine itself get by without torch and transformers, though they are
    installed."""
    modules = "sekisho.serve, sekisho.gateway.app, sekisho.cli, sekisho.engines.registry, sekisho.engines.torch_engine"
    code = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'numba'}} & set(sys.modules)))"
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.strip() == "[]"
