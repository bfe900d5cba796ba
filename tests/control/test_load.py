import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
from aiohttp import web

from sekisho.control.load import (
    Load,
    LoadPlan,
    Stream,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    resident_bytes,
    run_load,
)
from sekisho.control.measured import MeasurementFailed
from sekisho.core.clock import ManualClock, SystemClock
from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import ModelConfig

EXTRA = {"ignore_eos": True, "cache_prompt": False}


@contextlib.asynccontextmanager
async def serving(answer: "Engine") -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer.chat)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class SeenClock(ManualClock):
    """`seen` is set whenever somebody looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = asyncio.Event()

    def monotonic(self) -> float:
        self.seen.set()
        return super().monotonic()


class Engine:
    """Speaks OpenAI's streams on a clock of its own: 10 ms a prompt token, then 100 ms a piece of two tokens. The time
    goes on once the reader has looked at which moment a piece came."""

    def __init__(self, *, status: int = 200, broken: bool = False, silent: bool = False) -> None:
        self.clock, self.status, self.broken, self.silent = SeenClock(), status, broken, silent
        self.bodies: list[dict[str, object]] = []

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.status != 200:
            return web.Response(status=self.status, text="no such model")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        prompt_tokens = 5 + 2 * len(body["messages"][0]["content"].split())
        self.clock.advance(prompt_tokens / 100)
        for _ in range(0 if self.silent else -(-body["max_tokens"] // 2)):
            self.clock.seen.clear()
            await self._send(response, {"choices": [{"index": 0, "delta": {"content": "ab"}}]})
            await self.clock.seen.wait()
            self.clock.advance(0.1)
        if self.broken:
            await self._send(response, {"error": {"message": "out of memory"}})
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}
        await self._send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, chunk: dict[str, object]) -> None:
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


async def test_prompts_have_the_wanted_size_and_no_common_beginning() -> None:
    """The two calibration prompts tell what a word costs; then each prompt has the asked tokens, and a new start."""
    engine = Engine()
    async with serving(engine) as address:
        plan = LoadPlan("m", contexts=3, prompt_tokens=405, answer_tokens=6, repeats=2, extra={"ignore_eos": True})
        load = await run_load(address, "key", plan, engine.clock)
    assert {each.prompt_tokens for each in (*load.alone, *load.together)} == {405}
    starts = [body["messages"][0]["content"].split()[0] for body in engine.bodies]  # type: ignore[index]
    assert len(starts) == len(set(starts)) == 7
    assert all(body["ignore_eos"] is True and body["model"] == "m" for body in engine.bodies)
    assert load.resident_bytes is None


async def test_the_same_seed_asks_the_same() -> None:
    asked = []
    for seed in (1, 1, 2):
        engine = Engine()
        async with serving(engine) as address:
            await run_load(address, None, LoadPlan("m", 1, 50, 2, seed=seed), engine.clock)
        asked.append(engine.bodies)
    assert asked[0] == asked[1] != asked[2]


async def test_reading_alone_is_timed_to_the_first_token() -> None:
    """10 ms a token on the engine's clock are 100 tokens a second."""
    engine = Engine()
    async with serving(engine) as address:
        load = await run_load(address, None, LoadPlan("m", 1, 400, 4), engine.clock)
    assert prefill_tokens_per_s(load.alone) == pytest.approx(100.0)


def test_decoding_is_counted_while_all_streams_answer() -> None:
    """Two streams of a token a second; they overlap from the second one's first token to the first one's end."""
    first = Stream(0.0, tuple(float(at) for at in range(1, 11)), 10, 10)
    second = Stream(0.0, tuple(5.0 + at for at in range(10)), 10, 20)
    assert decode_tokens_per_s([first, second]) == pytest.approx((5 + 10) / 5)
    late = Stream(0.0, (11.0, 12.0), 10, 2)
    assert decode_tokens_per_s([first, late]) is None
    figures = Load(LoadPlan("m"), (), (first, late), None).measured()
    assert figures.decode_tokens_per_s is None
    assert figures.notes == ("decode: some streams had ended before the last one began",)
    assert decode_tokens_per_s([]) is None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"status": 404}, "refused with 404: no such model"),
        ({"broken": True}, "broke off: .*out of memory"),
        ({"silent": True}, "stream had no text"),
    ],
)
async def test_what_the_engine_says_is_told(fault: dict[str, object], said: str) -> None:
    engine = Engine(**fault)  # type: ignore[arg-type]
    async with serving(engine) as address:
        with pytest.raises(MeasurementFailed, match=said):
            await run_load(address, None, LoadPlan("m", 1, 50, 2), engine.clock)


async def test_nobody_there_is_a_failed_measurement(unused_tcp_port: int) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}/v1"
    with pytest.raises(MeasurementFailed, match="does not answer"):
        await run_load(address, None, LoadPlan("m"), SystemClock())
    with pytest.raises(MeasurementFailed, match="did not end within"):
        await run_load(address, None, LoadPlan("m", timeout_s=0.0), SystemClock())


def test_memory_is_that_of_a_process() -> None:
    mine = resident_bytes(os.getpid())
    assert mine is not None
    assert 2**20 < mine < 2**40
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(MeasurementFailed, match="cannot be looked at"):
        resident_bytes(child.pid)


def test_a_child_that_ends_meanwhile_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of an engine's processes and the look at each; the engine itself is there."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended = psutil.Process(child.pid)
    child.communicate(b"\n")
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [ended])
    mine = resident_bytes(os.getpid())
    assert mine is not None
    assert mine > 2**20


async def test_a_real_engine_is_measured(unused_tcp_port: int) -> None:
    """The built-in model in its worker: every figure is there, the streams ran at once, each prompt is of its size."""
    config = ModelConfig("m", path="builtin", context=512, slots=3, threads=1)
    key = llama_worker.new_key()
    environment = os.environ | llama_worker.environment(key) | lifeline.environment()
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *llama_worker.argv(config, unused_tcp_port), stdin=pipe, env=environment
    )
    try:
        load = await _when_ready(f"http://127.0.0.1:{unused_tcp_port}/v1", key, child)
    finally:
        child.kill()
        await child.communicate()
    figures = load.measured(kv_bytes=7, delta_ppl=0.1)
    assert (figures.contexts, figures.kv_bytes, figures.delta_ppl) == (3, 7, 0.1)
    assert figures.memory_bytes is not None
    assert figures.memory_bytes > 2**20
    assert figures.prefill_tokens_per_s is not None
    assert figures.first_token_ms is not None
    assert figures.decode_tokens_per_s is not None
    for stream in (*load.alone, *load.together):
        assert abs(stream.prompt_tokens - 200) <= 30
    assert all(stream.answer_tokens == 128 for stream in load.together)


async def _when_ready(address: str, key: str, child: asyncio.subprocess.Process) -> Load:
    """Of streams that were seen side by side: who is held up himself may find one whole before another begins."""
    plan = LoadPlan("m", contexts=3, prompt_tokens=200, answer_tokens=128, extra=EXTRA)
    while child.returncode is None:
        try:
            load = await run_load(address, key, plan, SystemClock(), child.pid)
            if decode_tokens_per_s(load.together) is not None:
                return load
        except MeasurementFailed as error:
            if "503" not in str(error) and "does not answer" not in str(error):
                raise
            await asyncio.sleep(0.1)
    raise AssertionError(f"the worker ended with exit code {child.returncode}")
