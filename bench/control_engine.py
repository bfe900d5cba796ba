"""The engines of bench/control_tuner.py: llama.cpp workers that can save and restore slots, and what is measured there.

A context is read once, at 16 bits, and its slot file kept; each measurement puts it back at its own KV types. Speeds do
not depend on what the numbers are, so only the time of the first reading is saved, nothing else.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import psutil

from sekisho.control.load import Stream, decode_tokens_per_s
from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import kv_types
from sekisho.engines import lifeline, llama_worker, native_build, slot_file
from sekisho.engines.config import ModelConfig
from sekisho.engines.http_client import HttpClient, HttpTrouble
from sekisho.engines.kv_size import KvShape
from sekisho.wire.sse import SseDecoder

START_S, ANSWER_S = 120.0, 900.0
_FIRST_WORD, _LAST_WORD = 40, 250  # tokens of the random vocabulary that are bytes
_SAID = [[_FIRST_WORD, 100.0]]  # what every answer consists of: random bytes would be no text, and not be streamed


class Bench(msgspec.Struct, frozen=True):
    """`context`: tokens a slot. `chunk`: prompt tokens that are timed at both ends of it. `answer`: tokens of each
    stream. Both are at effort 1. `folder`: for slot files, in memory if possible. `native`: a folder of builds for this
    machine, of which all but the default take the chosen one."""

    model: Path
    shape: KvShape
    context: int
    chunk: int
    answer: int
    folder: Path
    native: Path | None = None

    @property
    def depth(self) -> int:
        """Tokens that are in every context before anything is timed."""
        return self.context - 4 * self.chunk - 4 * self.answer - 8

    @property
    def tokens(self) -> list[int]:
        chance = Random(11)
        return [chance.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(self.depth)]


class _Timings(msgspec.Struct):
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0


class _Piece(msgspec.Struct):
    tokens: list[int] = []
    timings: _Timings | None = None
    error: Any = None


class Engine:
    """One worker, ready."""

    def __init__(self, config: ModelConfig, client: HttpClient, process: int) -> None:
        self.config, self._client, self.process = config, client, process

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        response = await self._client.send("POST", path, msgspec.json.encode(body), ANSWER_S)
        said = await response.read()
        if response.status != 200:
            raise MeasurementFailed(f"{path}: {response.status} {said[:200].decode(errors='replace')}")
        return said

    async def restore(self, slot: int, name: str) -> None:
        await self.post(f"/slots/{slot}?action=restore", {"filename": name})

    async def read(self, slot: int, prompt: list[int]) -> _Timings:
        """Reads a prompt and says one token."""
        body = {"prompt": prompt, "n_predict": 1, "id_slot": slot, "cache_prompt": True, "temperature": 0.0}
        return msgspec.json.decode(await self.post("/completion", body), type=_Piece).timings or _Timings()

    async def stream(self, slot: int, prompt: list[int], answer: int) -> Stream:
        body = {"prompt": prompt, "n_predict": answer, "id_slot": slot, "cache_prompt": True, "temperature": 0.0}
        body |= {"stream": True, "ignore_eos": True, "return_tokens": True, "logit_bias": _SAID}
        started_s = time.monotonic()
        response = await self._client.send("POST", "/completion", msgspec.json.encode(body), ANSWER_S)
        decoder, arrivals_s, said = SseDecoder(), list[float](), _Timings()
        while data := await response.read_any():
            now_s = time.monotonic()
            for event in decoder.feed(data):
                piece = msgspec.json.decode(event.data, type=_Piece)
                if piece.error is not None:
                    raise MeasurementFailed(f"the stream broke off: {piece.error}")
                said = piece.timings or said
                arrivals_s += [now_s] * len(piece.tokens)
        if said.cache_n < len(prompt) - 1 or not arrivals_s:
            told = f"{said.cache_n} of {len(prompt)} tokens in its memory, and said {len(arrivals_s)}"
            raise MeasurementFailed(f"slot {slot} had {told}")
        return Stream(started_s, tuple(arrivals_s), len(prompt), len(arrivals_s))


@asynccontextmanager
async def engine(
    bench: Bench, key_type: str, value_type: str, slots: int, threads: int | None, native: bool = False
) -> AsyncIterator[Engine]:
    """Starts a worker and ends it. Raises MeasurementFailed where it does not start."""
    config = ModelConfig(
        "bench", path=str(bench.model.resolve()), context=bench.context, slots=slots, threads=threads,
        kv_type_k=key_type, kv_type_v=value_type, options={"cache_ram_mib": 0},  # type: ignore[arg-type]
    )  # fmt: skip
    port, key = llama_worker.free_port(), secrets.token_hex(16)
    order = [sys.executable, __file__, msgspec.json.encode(config).decode(), str(port), str(bench.folder)]
    builds = bench.native if native else None
    environment = os.environ | llama_worker.environment(key, builds) | lifeline.environment()
    with (bench.folder / "worker.log").open("ab") as log:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*order, stdin=pipe, stdout=log, stderr=log, env=environment)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    client = HttpClient(f"http://127.0.0.1:{port}", headers)
    try:
        await _ready(client, child)
        yield Engine(config, client, child.pid)
    except HttpTrouble as error:
        raise MeasurementFailed(f"the worker does not answer: {error or type(error).__name__}") from error
    finally:
        await client.close()
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def _ready(client: HttpClient, child: asyncio.subprocess.Process) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and child.returncode is None:
        with contextlib.suppress(HttpTrouble):  # not listening yet
            response = await client.send("GET", "/health", b"", 5.0)
            await response.read()
            if response.status == 200:
                return
        await asyncio.sleep(0.1)
    raise MeasurementFailed(f"the worker did not start (code {child.returncode})")


class Contexts:
    """The long context at 16 bits, and at other types as they are asked for."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._made = bench, dict[tuple[str, str, int], str]()
        self.read_s = self.demote_s = 0.0

    async def prepare(self) -> None:
        """Reads it, where a former run has not left its file."""
        file = self._bench.folder / f"f16-{self._bench.model.stem}-{self._bench.depth}.bin"
        if not file.exists():
            async with engine(self._bench, "f16", "f16", 1, None) as reader:
                started_s = time.monotonic()
                await reader.read(0, self._bench.tokens)
                self.read_s = time.monotonic() - started_s
                await reader.post("/slots/0?action=save", {"filename": file.name})
        self._slot = slot_file.read(file.read_bytes())

    def file(self, key_type: Any, value_type: Any, slots: int) -> str:
        """Its name for a context with so many slots."""
        made = (key_type, value_type, slots)
        if made not in self._made:
            name = "-".join(map(str, made)) + ".bin"
            shape = self._bench.shape
            started_s = time.monotonic()
            stored = slot_file.stored_at(self._slot, key_type, value_type, shape.key_size, shape.value_size)
            (self._bench.folder / name).write_bytes(slot_file.write(stored, slots))
            self.demote_s = time.monotonic() - started_s
            self._made[made] = name
        return self._made[made]


async def measured(
    bench: Bench, contexts: Contexts, policy: Policy, effort: float, losses: dict[Any, float], native: bool = False
) -> Measured:
    """One policy. Where it demotes after reading, a second engine reads at 16 bits, and what saving, storing anew and
    restoring takes counts as reading."""
    try:
        return await _measured(bench, contexts, policy, effort, losses, native)
    except (HttpTrouble, msgspec.DecodeError) as error:
        raise MeasurementFailed(f"the worker does not answer as it should: {error or type(error).__name__}") from error


async def _measured(
    bench: Bench, contexts: Contexts, policy: Policy, effort: float, losses: dict[Any, float], native: bool = False
) -> Measured:
    kinds, slots, demotes = kv_types(policy), policy.engine.slots or 1, policy.kv.demote_after_prefill
    native = native or kinds != ("f16", "f16")
    async with AsyncExitStack() as running:
        main = await running.enter_async_context(engine(bench, *kinds, slots, policy.engine.threads, native))
        reader, reader_file = main, contexts.file(*kinds, slots)
        if demotes:
            reader = await running.enter_async_context(engine(bench, "f16", "f16", 1, policy.engine.threads, native))
            reader_file = contexts.file("f16", "f16", 1)
        per_token_s = await _reading_s(bench, reader, reader_file, effort)
        demotion_s = await _demotion_s(bench, contexts, reader, main) if demotes else 0.0
        together = await _together(bench, main, contexts.file(*kinds, slots), effort)
        memory = sum(_own_bytes(each) for each in {main.process, reader.process})
    staging = bench.shape.token_bytes("f16", "f16") * bench.context if demotes else 0
    return Measured(
        decode_tokens_per_s=decode_tokens_per_s(together),
        prefill_tokens_per_s=bench.context / (bench.context * per_token_s + demotion_s),
        memory_bytes=memory,
        kv_bytes=int(bench.shape.token_bytes(*kinds) * bench.context * slots + staging),
        contexts=slots,
        delta_ppl=losses.get(kinds),
        notes=(f"demotion of a full context {demotion_s:.2f} s",) if demotes else (),
    )


def _own_bytes(process: int) -> int:
    """What a process takes; pages that two engines map from the same file are shared out between them."""
    sizes = psutil.Process(process).memory_full_info()
    return int(getattr(sizes, "pss", sizes.rss))


async def _reading_s(bench: Bench, reader: Engine, file: str, effort: float) -> float:
    """Seconds a prompt token, over a whole context: what a token costs grows evenly with what stands before it, so the
    mean is between the two ends."""
    size = round(bench.chunk * min(effort, 4))
    chance = Random(size)
    fresh = [chance.randrange(_FIRST_WORD, _LAST_WORD) for _ in range(size)]
    await reader.read(0, fresh[:32][::-1])  # warm
    first = await reader.read(0, fresh)
    await reader.restore(0, file)
    last = await reader.read(0, [*bench.tokens, *fresh])
    if last.prompt_n > size + 1 or first.prompt_n < size - 1:
        raise MeasurementFailed(f"{last.prompt_n} and {first.prompt_n} tokens were read, not {size}")
    at_zero, at_end = first.prompt_ms / first.prompt_n / 1000, last.prompt_ms / last.prompt_n / 1000
    slope = (at_end - at_zero) / bench.depth
    return at_zero + slope * (bench.context - size) / 2


async def _demotion_s(bench: Bench, contexts: Contexts, reader: Engine, main: Engine) -> float:
    """Saving at 16 bits, storing anew, restoring: once, for the context as it is, scaled to a full one."""
    started_s = time.monotonic()
    await reader.post("/slots/0?action=save", {"filename": "saved.bin"})
    slot = slot_file.read((bench.folder / "saved.bin").read_bytes())
    kinds = (main.config.kv_type_k, main.config.kv_type_v)
    stored = slot_file.stored_at(slot, *kinds, bench.shape.key_size, bench.shape.value_size)  # type: ignore[arg-type]
    (bench.folder / "demoted.bin").write_bytes(slot_file.write(stored, main.config.slots))
    await main.restore(0, "demoted.bin")
    return (time.monotonic() - started_s) * bench.context / slot.length


async def _together(bench: Bench, main: Engine, file: str, effort: float) -> list[Stream]:
    """All contexts answer at once, each from its own full memory."""
    for slot in range(main.config.slots):
        await main.restore(slot, file)
    answer = round(bench.answer * min(effort, 4))
    streams = (main.stream(slot, bench.tokens, answer) for slot in range(main.config.slots))
    return list(await asyncio.gather(*streams))


def _serve(config: ModelConfig, port: int, folder: Path) -> None:
    """The worker of `sekisho.engines.llama_worker`, and slots can be saved."""
    lifeline.die_with_parent()
    native_build.activate()
    import xllamacpp

    parameters = llama_worker.parameters(config, Path(config.path or ""), port, os.environ[llama_worker.KEY_ENV])
    parameters.slot_save_path = f"{folder}/"
    server = xllamacpp.Server(parameters)
    print(f"serving on {server.listening_address}", file=sys.stderr, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    _serve(msgspec.json.decode(sys.argv[1], type=ModelConfig), int(sys.argv[2]), Path(sys.argv[3]))
