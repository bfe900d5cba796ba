"""The worker process, with a real llama.cpp and a tiny model."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from kept_port import kept_port

from sekisho.core.errors import RequestError, SekishoError
from sekisho.core.events import Failed, Finished, TextDelta, Usage
from sekisho.core.turn import Image, Message, OutputFormat, Sampling, Text, Turn
from sekisho.engines import gguf_header, lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_cpp import LlamaCppEngine, log_tail


def say(text: str, sampling: Sampling, **fields: Any) -> Turn:
    return Turn("turn_1", "chat", "m", messages=(Message("user", (Text(text),)),), sampling=sampling, **fields)


def run_worker(config: ModelConfig, *, port: int | None = None, key: str = "k") -> tuple[int, str]:
    """Runs a worker that is expected to end by itself; its exit code and its own word on why. llama.cpp writes from a
    thread of its own, at times after that."""
    argv = llama_worker.argv(config, port or kept_port())
    env = {name: value for name, value in os.environ.items() if name != llama_worker.KEY_ENV}
    if key:
        env |= llama_worker.environment(key)
    done = subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False)
    (line,) = (line for line in done.stderr.decode().splitlines() if line.startswith("error: "))
    return done.returncode, line


def without_end(tiny: Path, folder: Path, size: int) -> Path:
    cut = folder / f"cut-{size}.gguf"
    cut.write_bytes(tiny.read_bytes()[:size])
    return cut


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A path that leads nowhere: one line with the path, and no second try."""
    code, line = run_worker(ModelConfig("m", path=str(tmp_path / "none.gguf")))
    assert code == 78
    assert line == f"error: model file {tmp_path / 'none.gguf'}: no such file or directory"


def test_a_file_that_is_no_gguf_is_told(tmp_path: Path) -> None:
    """Another kind of file is named as that."""
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" * 100)
    code, line = run_worker(ModelConfig("m", path=str(tmp_path / "model.gguf")))
    assert (code, line) == (78, f"error: {tmp_path / 'model.gguf'}: not a GGUF file")


def test_a_port_in_use_is_told(tiny_gguf: Path) -> None:
    """A taken port is told and tried again later: whoever has it may go."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, line = run_worker(ModelConfig("m", path=str(tiny_gguf)), port=port)
    assert code == 1
    assert line.startswith(f"error: port {port} on 127.0.0.1 is taken")


def test_a_worker_without_a_key_does_not_start(tiny_gguf: Path) -> None:
    """No key would be a way round the gateway."""
    code, line = run_worker(ModelConfig("m", path=str(tiny_gguf)), key="")
    assert code == 78
    assert llama_worker.KEY_ENV in line


def test_an_impossible_setting_ends_in_one_line(tiny_gguf: Path) -> None:
    """What llama.cpp refuses is told with the settings in question."""
    config = ModelConfig("m", path=str(tiny_gguf), context=512, slots=1, kv_type_k="q8_0", mmproj=str(tiny_gguf))
    code, line = run_worker(config)
    assert code == 1
    assert "llama.cpp could not start tiny.gguf (context 512 x 1 slots, KV q8_0/f16)" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": 1}, "options: cache unknown; there are cache_ram_mib, demote_after_prefill, speculation"),
        ({"cache_ram_mib": "much"}, "options.cache_ram_mib: must be MiB of memory"),
        ({"cache_ram_mib": True}, "options.cache_ram_mib: must be MiB of memory"),
        ({"speculation": "eagle"}, "options.speculation: 'eagle' is none of off, ngram"),
    ],
)
def test_options_that_are_none_are_told(tiny_gguf: Path, options: dict[str, Any], said: str) -> None:
    """With those that there are; starting again cannot help."""
    code, line = run_worker(ModelConfig("m", path=str(tiny_gguf), context=512, slots=1, options=options))
    assert code == 78
    assert line.startswith(f"error: {said}")


def test_weights_that_cannot_fit_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    """More weights than free memory is refused before the system begins to kill processes."""
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(tiny_gguf.read_bytes())
    os.truncate(huge, psutil.virtual_memory().total * 2)  # sparse: takes no disk
    with pytest.raises(llama_worker.WorkerError, match=r"huge\.gguf needs at least .* GiB of memory"):
        llama_worker.check_memory(huge, ModelConfig("m", gpu_layers=0))


@pytest.mark.parametrize("size", [3, 10, 200, 5_000, 40_000, 400_000])
def test_a_cut_off_download_is_recognised(tiny_gguf: Path, tmp_path: Path, size: int) -> None:
    """However little of the file came, it is not handed to llama.cpp."""
    assert gguf_header.problem(without_end(tiny_gguf, tmp_path, size)) is not None
    assert gguf_header.problem(tiny_gguf) is None


def test_threads_are_cores_that_we_may_use() -> None:
    """At least one thread, no more than the machine's processors, and one for a small model."""
    assert 1 <= llama_worker.default_threads(10**10) <= (os.cpu_count() or 1)
    assert llama_worker.default_threads(10**7) == 1


async def test_the_worker_answers_nobody_without_the_key(
    llama: LlamaCppEngine, llama_worker_address: tuple[str, str, Path]
) -> None:
    """Other users of the machine get 401 from everything that shows or uses the model."""
    root = llama_worker_address[0].removesuffix("/v1")
    assert (await llama.health()).state == "ready"
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/models", "/slots", "/props", "/metrics"):
            async with session.get(root + path) as answer:
                assert answer.status == 401, path
        async with session.post(root + "/v1/chat/completions", json={"messages": []}) as answer:
            assert answer.status == 401


async def test_the_key_is_not_in_the_command_line(llama_worker_address: tuple[str, str, Path]) -> None:
    """Any user can list command lines; the key is in none of them."""
    _, key, _ = llama_worker_address
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert key not in " ".join(process.cmdline())


async def test_the_model_list_tells_the_context_of_a_slot(llama: LlamaCppEngine) -> None:
    """`context` is per slot, whatever the number of slots; the slots are as many as asked for."""
    (model,) = await llama.models()
    assert (model.id, model.context_tokens, model.embeddings, model.vision) == ("m", 8192, True, False)
    assert model.parameters == 395_648
    assert len(await llama.slots()) == 2


async def test_a_json_schema_reaches_the_sampler(llama: LlamaCppEngine) -> None:
    """Even a model of random weights answers in the asked-for schema: llama.cpp's grammar sees to it."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    turn = say("ok?", Sampling(max_tokens=400, seed=1), format=OutputFormat("json_schema", "answer", schema))
    events = [event async for batch in llama.generate(turn) for event in batch]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert events[-1] == Finished("stop")
    assert set(msgspec.json.decode(text)) == {"ok"}


async def test_an_image_to_a_text_model_is_the_callers_error(llama: LlamaCppEngine) -> None:
    """llama.cpp says 500 where the model cannot see; the caller is told 400 and why."""
    picture = Image("data:image/png;base64,AAAA")
    turn = Turn("turn_1", "chat", "m", messages=(Message("user", (Text("what is this"), picture)),))
    with pytest.raises(RequestError, match="images"):
        [batch async for batch in llama.generate(turn)]


async def test_counts_follow_the_template(llama: LlamaCppEngine) -> None:
    """Token counts include what the template makes of system messages."""
    short = say("hi", Sampling())
    long = msgspec.structs.replace(short, messages=(Message("system", (Text("be kind"),)), *short.messages))
    assert await llama.count_tokens(long) > await llama.count_tokens(short)


async def started(config: ModelConfig, log: Path) -> tuple[asyncio.subprocess.Process, LlamaCppEngine]:
    port = kept_port()
    with log.open("wb") as errors:
        child = await asyncio.create_subprocess_exec(
            *llama_worker.argv(config, port),
            stdin=subprocess.PIPE,
            stderr=errors,
            env=os.environ | llama_worker.environment("k") | lifeline.environment(),
        )
    engine = LlamaCppEngine(config, f"http://127.0.0.1:{port}/v1", api_key="k", log_path=log)
    async with asyncio.timeout(100):
        while (health := await engine.health()).state != "ready":
            assert child.returncode is None, health
            await asyncio.sleep(0.02)
        while b"serving m " not in log.read_bytes():  # noqa: ASYNC110, ASYNC240 - it is ready before it says so
            await asyncio.sleep(0.02)
    return child, engine


@pytest.fixture
def small(tiny_gguf: Path) -> ModelConfig:
    return ModelConfig("m", path=str(tiny_gguf), context=2048, slots=2, threads=1)


async def test_a_full_context_ends_with_length(small: ModelConfig, tmp_path: Path) -> None:
    """No silent shifting of the context: an answer that does not fit ends with `length`, every token counted."""
    child, engine = await started(msgspec.structs.replace(small, context=256), tmp_path / "log")
    turn = say("x" * 200, Sampling(max_tokens=1000, ignore_eos=True))
    events = [event async for batch in engine.generate(turn) for event in batch]
    assert events[-1] == Finished("length")
    (usage,) = (event for event in events if isinstance(event, Usage))
    assert usage.input_tokens + usage.output_tokens <= 256
    await engine.close()
    child.kill()
    await child.communicate()


async def test_kill_9_of_the_worker_ends_every_stream(slow_gguf: Path, tmp_path: Path) -> None:
    """Twenty streams on a worker that is killed: each ends with one `Failed` with an id, or is refused; none hangs."""
    config = ModelConfig("m", path=str(slow_gguf), context=8192, slots=2, threads=1)
    child, engine = await started(config, tmp_path / "log")
    first = asyncio.Event()

    async def one() -> str:
        turn = say("go on", Sampling(max_tokens=8000, ignore_eos=True), stream=True)
        try:
            async for batch in engine.generate(turn):
                first.set()
                if isinstance(batch[-1], Failed):
                    return batch[-1].id
        except SekishoError as error:
            return error.id
        return "finished"

    tasks = [asyncio.create_task(one()) for _ in range(20)]
    await asyncio.wait_for(first.wait(), 60)
    child.kill()
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*tasks)
    assert [end for end in ends if not end.startswith("err_")] == []
    assert len(set(ends)) == 20
    health = await engine.health()
    assert health.state == "down"
    assert any("serving m" in line for line in health.log_tail)
    await engine.close()
    await child.communicate()


PICKY_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


async def test_late_instructions_reach_a_model_whose_template_refuses_them(small: ModelConfig, tmp_path: Path) -> None:
    """Instructions behind the user's words, as coding agents put them, are answered and counted, by a template that
    takes them at the beginning only, whichever is asked for first."""
    template = tmp_path / "picky.jinja"
    template.write_text(PICKY_TEMPLATE)
    child, engine = await started(msgspec.structs.replace(small, chat_template=str(template)), tmp_path / "log")
    turn = say("hello", Sampling(max_tokens=2, ignore_eos=True))
    late = msgspec.structs.replace(turn, messages=(*turn.messages, Message("developer", (Text("be kind"),))))
    assert await engine.count_tokens(late) > await engine.count_tokens(turn)
    engine._leading_only = False  # as if it had not met the refusal yet
    for _ in range(2):
        events = [event async for batch in engine.generate(late) for event in batch]
        assert events[-1] == Finished("length")
    await engine.close()
    child.kill()
    await child.communicate()


async def test_the_worker_ends_on_a_signal_and_with_its_parent(small: ModelConfig, tmp_path: Path) -> None:
    """SIGTERM ends it at once; so does the end of its lifeline."""

    async def told(child: asyncio.subprocess.Process) -> None:
        child.send_signal(signal.SIGTERM)

    async def alone(child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        child.stdin.close()

    for end, code in ((told, -signal.SIGTERM), (alone, 0)):
        child, engine = await started(small, tmp_path / "log")
        await end(child)
        assert await asyncio.wait_for(child.wait(), 60) == code
        await engine.close()


def test_a_log_tail_is_short_and_never_fails(tmp_path: Path) -> None:
    """The last twenty lines that say something; nothing where there is no log."""
    assert log_tail(None) == log_tail(tmp_path / "none") == ()
    (tmp_path / "log").write_text("\n".join(f"line {number}\n" for number in range(5000)))
    assert log_tail(tmp_path / "log") == tuple(f"line {number}" for number in range(4980, 5000))


def test_the_builtin_model_is_found_by_name(monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> None:
    """`path: builtin` is the model of the package."""
    from sekisho.engines import builtin

    monkeypatch.setattr(builtin, "path", lambda: tiny_gguf)
    assert llama_worker.model_path(ModelConfig("m", path="builtin")) == tiny_gguf
