"""Whether the figures of `sekisho bench` are those of an independent tool: guidellm, on the same servers, in turns.

    python bench/agreement.py                            a canned server and the built-in model; about eight minutes
    python bench/agreement.py --guidellm PATH --repetitions 5

Servers: `canned.py`, whose delay and pace are known, and a llama.cpp worker with the built-in model. A repetition has
both tools at each server once, in alternating order, with the same number of requests in flight, the same texts and
the same length of answers; the marks before the texts differ, so that neither finds its prompts in the server's cache.
Both ask through `relay.py`, which notes what crosses the wire: a tool that takes more of the processor can make a
server slower, and only the wire knows. Success must agree, and TTFT, total and throughput, each over the wire's own of
the same turn, within 5 %, by the median over the repetitions. Ours must be within 5 % of the wire as well.

Where guidellm means something else: its TPOT has the first token's wait in it (latency / tokens), ours is the time
after the first token (MLPerf); what we call that is its inter-token latency. Both are printed.

Without `--guidellm` it is installed into build/guidellm-venv (with PyTorch, which it needs: some minutes, 2 GB).
"""

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

import report
from candidates import LOAD_CORE, PROXY_CORE, CannotRun, free_port, on_core, spawned, wait_until_ready
from generator import canned, wait_until_idle
from load import Target as Probed
from sekisho.evaluate.client.asking import Question
from sekisho.evaluate.client.exchange import Connections
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.speed import load, prompts
from sekisho.evaluate.speed.bench_plan import requests_per_s
from sekisho.evaluate.speed.samples import Cell, Request, Sample, ok_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "out"
VENV = ROOT / "build" / "guidellm-venv"
PACKAGES = ("guidellm==0.8.1", "torch==2.13.0")
WITHIN = 0.05
ON_THE_WIRE = ("ttft_ms", "total_ms", "requests_per_s")
CANNED_DELAY_MS, CANNED_PACE_MS = 100.0, 10.0
NOTE_CHARACTERS = 450  # a prompt of some hundred tokens: a wait that can be told from the noise

Figures = dict[str, float]


@dataclass(frozen=True)
class Server:
    """One server, and what is asked of it. `ignore_eos`: it would end its answers earlier."""

    name: str
    target: Target
    tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class Work:
    """One turn of one tool: its own texts."""

    server: Server
    parallel: int
    texts: tuple[str, ...]


def texts(count: int, *name: object) -> tuple[str, ...]:
    """Japanese and English in turns, behind notes that are marked by `name`."""
    found = []
    for index in range(count):
        prompt = prompts.pick(index)
        found.append(prompts.notes(prompt.language, NOTE_CHARACTERS, 7, *name, index) + "\n\n" + prompt.text)
    return tuple(found)


def on_the_wire(url: str) -> Figures:
    """What the relay has noted since it was asked last."""
    with urllib.request.urlopen(f"{url}/times") as answer:
        times: list[tuple[float, float, float]] = json.loads(answer.read())
    return {
        "wire_ttft_ms": median((first_s - asked_s) * 1e3 for asked_s, first_s, _ in times),
        "wire_total_ms": median((ended_s - asked_s) * 1e3 for asked_s, _, ended_s in times),
        "wire_requests_per_s": len(times) / (max(each[2] for each in times) - min(each[0] for each in times)),
    }


def ours(work: Work) -> Figures:
    """Our generator: a closed loop."""
    requests = _requests(work)
    cell = _cell(work)

    async def measure() -> load.Measured:
        async with Connections(work.server.target) as connections:
            return await load.run(cell, connections, requests, load.Options())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return _our_figures(runner.run(measure()).samples) | on_the_wire(work.server.target.url)


def theirs(work: Work, program: Path) -> Figures:
    """guidellm."""
    with tempfile.TemporaryDirectory(prefix="sekisho-agreement-") as name:
        command, environment = _guidellm(work, program, Path(name))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        result = _result(Path(name), done.returncode, done.stderr)
    return _their_figures(result["metrics"]) | on_the_wire(work.server.target.url)


def _requests(work: Work) -> list[Request]:
    server, requests = work.server, []
    more: dict[str, Any] = {"temperature": 0.0, "seed": 7} | ({"ignore_eos": True} if server.ignore_eos else {})
    for index, text in enumerate(work.texts):
        question = Question(api="chat", said=(("user", text),), max_tokens=server.tokens, stream=True, more=more)
        requests.append(Request(index, "agreement", "en", question.body(server.target.model)))
    return requests


def _cell(work: Work) -> Cell:
    count = len(work.texts)
    return Cell(place="engine", loop="closed", tokens=work.server.tokens, requests=count, parallel=work.parallel)


def _our_figures(samples: list[Sample]) -> Figures:
    ok = ok_of(samples)
    if not ok:
        raise CannotRun(f"no success with our generator: {[(each.faults, each.detail) for each in samples[:1]]}")
    return {
        "success_rate": len(ok) / len(samples),
        "ttft_ms": median(each.ttft_ms for each in ok if each.ttft_ms is not None),
        "requests_per_s": requests_per_s(samples) or 0.0,
        "total_ms": median(each.total_ms for each in ok),
        "itl_ms": median(1e3 / each.tok_s for each in ok if each.tok_s is not None),
        "tpot_ms": median(each.tpot_ms for each in ok if each.tpot_ms is not None),
        "output_tokens": median(each.completion_tokens for each in ok if each.completion_tokens is not None),
    }


def _guidellm(work: Work, program: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Its command and environment. What it shall do is in a file: a key is on no command line."""
    server = work.server
    backend: dict[str, Any] = {
        "kind": "openai_http",
        "target": server.target.url,
        "model": server.target.model,
        "extras": {"body": {"temperature": 0.0, "seed": 7}},
    }
    if server.target.key is not None:
        backend["api_key"] = server.target.key.reveal()
    lines = (json.dumps({"prompt": text, "output_tokens_count": server.tokens}) for text in work.texts)
    (folder / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    spec = {
        "backend": backend,
        "profile": {"kind": "concurrent", "streams": [work.parallel]},
        "constraints": [{"kind": "max_requests", "count": len(work.texts)}],
        "data": [{"kind": "json_file", "path": str(folder / "prompts.jsonl")}],
        "outputs": [{"kind": "json", "path": str(folder / "result.json")}],
    }
    settings = folder / "settings.json"
    settings.touch(mode=0o600)
    settings.write_text(json.dumps({"spec": spec}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    return [str(program), "run", "-c", str(settings), "--disable-console"], environment


def _result(folder: Path, code: int, told: str) -> dict[str, Any]:
    if code or not (folder / "result.json").exists():
        raise CannotRun(f"guidellm ended with {code}: {told[-800:]}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())["benchmarks"][0]
    return result


def _their_figures(metrics: dict[str, Any]) -> Figures:
    totals = metrics["request_totals"]

    def middle(name: str) -> float:
        return float(metrics[name]["successful"]["median"])

    return {
        "success_rate": totals["successful"] / max(1, totals["successful"] + totals["errored"]),
        "ttft_ms": middle("time_to_first_token_ms"),
        "requests_per_s": float(metrics["requests_per_second"]["successful"]["mean"]),
        "total_ms": middle("request_latency") * 1e3,
        "itl_ms": middle("inter_token_latency_ms"),
        "tpot_ms": middle("time_per_output_token_ms"),
        "output_tokens": middle("output_token_count"),
    }


@contextmanager
def relayed(target: Target) -> Iterator[Target]:
    """The same server behind a relay."""
    command = [sys.executable, str(ROOT / "bench" / "relay.py"), "--upstream", str(target.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Target("engine", process.stdout.readline().strip(), target.model, target.key)
        finally:
            process.terminate()


@contextmanager
def worker() -> Iterator[Target]:
    """The built-in model as our server starts it, but with one thread, on a core of its own: a tool that takes more of
    the processor must not slow down what it measures."""
    port, key = free_port(), "worker-" + secrets.token_hex(16)
    config = json.dumps({"name": "sekisho-mini", "path": "builtin", "slots": 4, "threads": 1})
    command = [sys.executable, "-m", "sekisho.engines.llama_worker", "--config", config, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="sekisho-agreement-") as folder:
        log = Path(folder) / "worker.log"
        with spawned(command, log, {"SEKISHO_WORKER_KEY": key}, core=PROXY_CORE) as child:
            wait_until_ready(child, Probed(port, key, "sekisho-mini"), log, 120)
            yield Target("engine", f"http://127.0.0.1:{port}", "sekisho-mini", Key(key))


def program(given: Path | None) -> Path:
    """The guidellm to run; installed first where there is none."""
    if given is not None:
        return given
    found = VENV / "bin" / "guidellm"
    if not found.exists():
        print(f"installing {' '.join(PACKAGES)} into {VENV.relative_to(ROOT)} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, *PACKAGES], check=True)
    return found


def compare(server: Server, parallel: int, given: argparse.Namespace, tool: Path) -> list[tuple[Figures, Figures]]:
    """Pairs (ours, guidellm's), one a repetition, in alternating order."""
    pairs: list[tuple[Figures, Figures]] = []
    for number in range(given.repetitions):

        def work(name: str, number: int = number) -> Work:
            return Work(server, parallel, texts(given.requests, server.name, parallel, number, name))

        wait_until_idle()
        if number % 2:
            other = theirs(work("guidellm"), tool)
            wait_until_idle()
            mine = ours(work("ours"))
        else:
            mine = ours(work("ours"))
            wait_until_idle()
            other = theirs(work("guidellm"), tool)
        pairs.append((mine, other))
        ratios = "  ".join(f"{what} {mine[what] / other[what]:.4f}" for what in ("success_rate", *ON_THE_WIRE))
        print(f"{server.name}, {parallel} in flight, {number + 1}: ours / guidellm  {ratios}", file=sys.stderr)
    return pairs


def table(server: Server, parallel: int, pairs: list[tuple[Figures, Figures]]) -> tuple[str, bool]:
    """Lines to print, and whether all that is judged agrees."""
    lines = [f"\n{server.name}, {parallel} in flight, {len(pairs)} repetitions: median (lowest to highest)"]
    for what in pairs[0][0]:
        mine, other = ([pair[side][what] for pair in pairs] for side in (0, 1))
        lines.append(
            f"  {what:20} ours {_spread(mine)}  guidellm {_spread(other)}  ratio {_spread(_over(mine, other))}"
        )
    successes = _over(*([pair[side]["success_rate"] for pair in pairs] for side in (0, 1)))
    agrees = abs(median(successes) - 1) <= WITHIN
    for what in ON_THE_WIRE:
        mine, other = (_over([pair[side][what] for pair in pairs], _wire(pairs, side, what)) for side in (0, 1))
        both = _over(mine, other)
        held = all(abs(median(ratios) - 1) <= WITHIN for ratios in (mine, both))
        agrees &= held
        lines.append(
            f"  {what + ' / wire':20} ours {_spread(mine)}  guidellm {_spread(other)}  ratio {_spread(both)}  "
            + ("agrees" if held else "DOES NOT AGREE")
        )
    return "\n".join(lines), agrees


def _wire(pairs: list[tuple[Figures, Figures]], side: int, what: str) -> list[float]:
    return [pair[side][f"wire_{what}"] for pair in pairs]


def _over(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _spread(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", type=Path, help="the program; default: build/guidellm-venv, installed if need be")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--parallels", default="1,2")
    parser.add_argument("--only", choices=["canned", "engine"])
    given = parser.parse_args()
    tool, good, results = program(given.guidellm), True, []
    try:
        with (
            canned(CANNED_DELAY_MS, CANNED_PACE_MS, 32) as url,
            worker() as engine,
            relayed(Target("engine", url, "canned")) as known,
            relayed(engine) as real,
        ):
            servers = [
                Server("canned", known, 32, ignore_eos=False),
                Server("engine", real, 192, ignore_eos=True),
            ]
            for server in servers:
                for parallel in map(int, given.parallels.split(",")) if given.only in (None, server.name) else ():
                    with on_core(LOAD_CORE):
                        pairs = compare(server, parallel, given, tool)
                    text, agrees = table(server, parallel, pairs)
                    print(text)
                    good &= agrees
                    results.append({"server": server.name, "parallel": parallel, "agrees": agrees, "pairs": pairs})
    except CannotRun as reason:
        sys.exit(f"cannot measure: {reason}")
    OUT.mkdir(exist_ok=True)
    result = {"machine": report.machine(), "packages": PACKAGES, "load": report.load_average(), "results": results}
    (OUT / "agreement.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not good)


if __name__ == "__main__":
    main()
