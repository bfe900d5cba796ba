"""Whether the load generator of `sekisho bench` measures what happened: against the clock of the server itself.

    python bench/generator.py                            500 requests a second for 12 s, three times
    python bench/generator.py --rate 800 --loop asyncio
    python bench/generator.py --real-time                on a machine that others use meanwhile (Linux, root)

A canned server (`canned.py`, a process of its own) tells for each request when it had read it and when it handed the
first content chunk to its socket. Between these two lies the true TTFT; the generator's TTFT, from the moment at which
the request left, must be no more than 1 ms longer (median and P99). `late` is how long after its scheduled moment a
request left: the generator counts that as waiting, because to whoever is scheduled it is. Server and generator have a
core each where there are two; with `--real-time` they get it before other programs (SCHED_FIFO), so that those are not
what is measured.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec
import psutil
import uvloop

import report
from candidates import LOAD_CORE, PROXY_CORE, on_core
from sekisho.evaluate.client.exchange import Connections
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.speed import load
from sekisho.evaluate.speed.samples import Cell, Request
from sekisho.evaluate.statistics import percentile

OUT = Path(__file__).resolve().parent / "out"
LIMIT_MS = 1.0


def wait_until_idle(patience_s: float = 60.0, at_most_percent: float = 15.0) -> None:
    """Waits, as long as patience lasts, for other programs to leave the processor alone."""
    deadline = time.monotonic() + patience_s
    while psutil.cpu_percent(interval=2.0) > at_most_percent and time.monotonic() < deadline:
        pass


@contextmanager
def canned(delay_ms: float, pace_ms: float, tokens: int) -> Iterator[str]:
    """The server's address."""
    command = [sys.executable, str(Path(__file__).with_name("canned.py"))]
    command += ["--delay-ms", str(delay_ms), "--pace-ms", str(pace_ms), "--tokens", str(tokens)]
    with on_core(PROXY_CORE):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def requests(count: int, tokens: int) -> list[Request]:
    """Each with its number, by which the server names it."""

    def body(index: int) -> bytes:
        said = [{"role": "user", "content": "What is said does not matter here."}]
        options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens}
        return msgspec.json.encode({"model": "canned", "messages": said, **options, "user": f"n-{index}"})

    return [Request(index, "canned", "en", body(index)) for index in range(count)]


async def measure(url: str, rate: float, seconds: float, tokens: int) -> dict[str, float | None]:
    """One run of the open loop, held against the server's times."""
    count = round(rate * seconds)
    cell = Cell(place="engine", loop="open", tokens=tokens, requests=count, rate=rate)
    moments_s = load.departures(count, rate, "poisson", seed=7)
    async with Connections(Target("engine", url, "canned")) as connections:
        opened = [connections.exchange("GET", "/v1/models", fresh=True) for _ in range(64)]
        await asyncio.gather(*opened)
        measured = await load.run(cell, connections, requests(count, tokens), load.Options(), moments_s)
        told = await connections.exchange("GET", "/times")
    server = {number: (arrived_s, wrote_s) for number, arrived_s, wrote_s in json.loads(told.body)}
    errors_ms, true_ms = [], []
    for each in measured.samples:
        if each.ok and each.ttft_ms is not None:
            arrived_s, wrote_s = server[each.index]
            true_ms.append((wrote_s - arrived_s) * 1e3)
            errors_ms.append(each.ttft_ms - each.late_ms - true_ms[-1])
    span_s = max(arrived_s for arrived_s, _ in server.values()) - min(arrived_s for arrived_s, _ in server.values())
    late_ms = [each.late_ms for each in measured.samples]
    return {
        "requests": count,
        "successes": len(errors_ms),
        "arrived_per_s": (len(server) - 1) / span_s,
        "true_ttft_p50_ms": percentile(true_ms, 50),
        **{f"error_p{percent}_ms": percentile(errors_ms, percent) for percent in (1, 50, 95, 99)},
        **{f"late_p{percent}_ms": percentile(late_ms, percent) for percent in (50, 95, 99)},
        "lag_p95_ms": percentile(measured.lags_ms, 95),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--pace-ms", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    parser.add_argument("--real-time", action="store_true")
    given = parser.parse_args()
    if given.real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    factory = uvloop.new_event_loop if given.loop == "uvloop" else None
    runs = []
    with canned(given.delay_ms, given.pace_ms, given.tokens) as url:
        for number in range(given.runs):
            wait_until_idle()
            with on_core(LOAD_CORE), asyncio.Runner(loop_factory=factory) as runner:
                figures = runner.run(measure(url, given.rate, given.seconds, given.tokens))
            figures["load_average"] = report.load_average()
            runs.append(figures)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
            print(f"run {number + 1}: {figures['successes']} of {figures['requests']} ok  {shown}")
    middle = {name: median(run[name] or 0.0 for run in runs) for name in ("error_p50_ms", "error_p99_ms")}
    good = sum(max(run["error_p50_ms"] or 0.0, run["error_p99_ms"] or 0.0) < LIMIT_MS for run in runs)
    print(f"median of the runs: error at P50 {middle['error_p50_ms']:.3f} ms, at P99 {middle['error_p99_ms']:.3f} ms")
    print(f"{good} of {len(runs)} runs within {LIMIT_MS:g} ms at the median and at P99")
    OUT.mkdir(exist_ok=True)
    result = {"machine": report.machine(), "options": vars(given), "runs": runs}
    (OUT / "generator.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(max(middle.values()) >= LIMIT_MS)


if __name__ == "__main__":
    main()
