"""Tokens per second through our gateway against the llama.cpp worker alone: the same worker, the same questions.

Blocks alternate direct, gateway, gateway, direct (ABBA), so that a machine that grows slower or faster favours neither.
Tokens are those of the engine's `usage`. Nothing is pinned: gateway and engine share the cores as they do in use.
The built-in model is the hardest case, because its tokens cost so little that the gateway's share is largest.
"""

import asyncio
import re
import secrets
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec
import uvloop

from candidates import KEY, Site, free_port, gateway_command, spawned, wait_until_ready
from load import Target

SLOTS = 4
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_QUESTIONS = (
    "Write a short list of things to take on a walk.",
    "今日の予定を三つ、短く書いてください。",
    "Tell me about the gate on the old road.",
    "Count from one to thirty in words.",
)


class WrongAnswer(Exception):
    """A stream that did not end as it must."""


@dataclass(frozen=True)
class Block:
    """One block: all streams of one side."""

    tokens: int
    seconds: float
    first_token_ms: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


async def _stream(target: Target, question: str, max_tokens: int) -> tuple[int, float]:
    """One streamed answer: its tokens and the time to its first content, in ms."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    fields = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0, "ignore_eos": True}
    started = perf_counter()
    writer.write(target.request(question, **{**fields, "max_tokens": max_tokens}))
    received = bytearray()
    first_ms = 0.0
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(65536)
        if not data:
            break
        received += data
        if not first_ms and b'"content":"' in received.replace(b'"content":""', b""):
            first_ms = (perf_counter() - started) * 1000
    writer.close()
    found = _COMPLETION_TOKENS.findall(received)
    if not received.startswith(b"HTTP/1.1 200") or b"[DONE]" not in received[-60:] or not found:
        raise WrongAnswer(f"{len(received)} bytes, ending {bytes(received[-400:])!r}")
    return int(found[-1]), first_ms


async def _block(target: Target, parallel: int, answers: int, max_tokens: int) -> Block:
    """`parallel` callers with `answers` questions each, one after another."""

    async def caller(offset: int) -> list[tuple[int, float]]:
        return [await _stream(target, _QUESTIONS[(offset + i) % 4], max_tokens) for i in range(answers)]

    started = perf_counter()
    results = await asyncio.gather(*(caller(i) for i in range(parallel)))
    seconds = perf_counter() - started
    flat = [each for result in results for each in result]
    return Block(sum(tokens for tokens, _ in flat), seconds, median(first for _, first in flat))


def _worker_command(model: Path | None, port: int) -> list[str]:
    config = {"name": "bench", "path": str(model.resolve()) if model else "builtin", "context": 1024, "slots": SLOTS}
    text = msgspec.json.encode(config).decode()
    return [sys.executable, "-m", "sekisho.engines.llama_worker", "--config", text, "--port", str(port)]


def main(rounds: int, quick: bool, model: Path | None, guard: str) -> dict[str, object]:
    """Measures and prints; returns every block. Raises CannotRun when worker or gateway do not start."""
    with tempfile.TemporaryDirectory(prefix="sekisho-bench-") as name:
        folder = Path(name)
        direct = Target(free_port(), "worker-" + secrets.token_hex(16))
        gateway = Target(free_port(), KEY)
        worker_log, gateway_log = folder / "worker.log", folder / "gateway.log"
        worker_key = folder / "worker-key"
        worker_key.write_text(direct.key)
        command = [
            *gateway_command(Site(gateway.port, direct.port, folder), guard),
            "--upstream-key-file",
            str(worker_key),
        ]
        environment = {"SEKISHO_WORKER_KEY": direct.key}
        with spawned(_worker_command(model, direct.port), worker_log, environment) as worker:
            wait_until_ready(worker, direct, worker_log, 120)
            with spawned(command, gateway_log) as child:
                wait_until_ready(child, gateway, gateway_log, 30)
                return _compare(direct, gateway, rounds, quick)


def _compare(direct: Target, gateway: Target, rounds: int, quick: bool) -> dict[str, object]:
    answers, max_tokens = (2, 64) if quick else (6, 192)
    kept: dict[str, object] = {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for parallel in (1, SLOTS):
            for target in (direct, gateway):
                runner.run(_block(target, parallel, 1, max_tokens))  # warm-up
            sides: dict[str, list[Block]] = {"direct": [], "gateway": []}
            ratios: list[float] = []
            for _ in range(rounds * (1 if quick else 4)):
                order = ("direct", "gateway", "gateway", "direct")
                targets = {"direct": direct, "gateway": gateway}
                blocks = [(side, runner.run(_block(targets[side], parallel, answers, max_tokens))) for side in order]
                for side, block in blocks:
                    sides[side].append(block)
                ratios.append(_rate(blocks, "gateway") / _rate(blocks, "direct"))
            kept[f"parallel_{parallel}"] = {"ratios": ratios, **{k: [asdict(b) for b in v] for k, v in sides.items()}}
            print(_line(parallel, sides, ratios))
    return kept


def _rate(blocks: list[tuple[str, Block]], side: str) -> float:
    mine = [block for name, block in blocks if name == side]
    return sum(block.tokens for block in mine) / sum(block.seconds for block in mine)


def _line(parallel: int, sides: dict[str, list[Block]], ratios: list[float]) -> str:
    speed = {side: median(block.tokens_per_s for block in blocks) for side, blocks in sides.items()}
    first = {side: median(block.first_token_ms for block in blocks) for side, blocks in sides.items()}
    return (
        f"{parallel} in flight: worker alone {speed['direct']:,.1f} tokens/s, through the gateway "
        f"{speed['gateway']:,.1f}; ratio {median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f}) over "
        f"{len(ratios)} ABBA blocks; first token {first['direct']:.1f} and {first['gateway']:.1f} ms"
    )
