"""What a gateway adds: latency, and what it carries, beside nginx as the limit and LiteLLM as the peer.

    python bench/gateway.py                       the whole comparison, five rounds
    python bench/gateway.py --quick --only ours,nginx
    python bench/gateway.py --engine              tokens/s through our gateway against the llama.cpp worker alone

All candidates stand before the same canned upstream and under the same load, in one alternating run: each round
starts every candidate fresh, in rotating order, gives it the same cells and stops it. The proxy has one core, upstream
and load generator another one. `direct` (no proxy) is measured in each round; "added" is over direct of that round.
"""

import argparse
import asyncio
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import uvloop

import candidates
import engine_speed
import report
from candidates import CANDIDATES, KEY, LOAD_CORE, Candidate, CannotRun, Running
from load import Cell, Result, Target, run

OUT = Path(__file__).resolve().parent / "out"


def cells(quick: bool) -> list[Cell]:
    """The same for every candidate. Streams are as long as a short answer; at least 100 first chunks are timed."""
    seconds = 1.0 if quick else 3.0
    return [
        Cell("warm-up", 8, duration_s=0.5),
        Cell("warm-up streams", 8, duration_s=0.5, chunks=50),
        Cell("one", 1, requests=200 if quick else 1000),
        Cell("prefill", 1, requests=50 if quick else 200, prefill_ms=20),
        Cell("crowd", 32, duration_s=seconds),
        Cell("streams", 50, duration_s=seconds, chunks=100),
        Cell("paced", 50, duration_s=2.0 if quick else 5.0, chunks=100, interval_ms=20, spread_s=2.0),
    ]


@contextmanager
def upstream(folder: Path) -> Iterator[int]:
    """The canned upstream on the load's core; yields its port."""
    port = candidates.free_port()
    script = Path(__file__).with_name("upstream.py")
    log = folder / "upstream.log"
    with candidates.spawned([sys.executable, str(script), "--port", str(port)], log, core=LOAD_CORE) as child:
        candidates.wait_until_ready(child, Target(port, KEY), log, 20)
        yield port


def measure(subject: Running, plan: list[Cell]) -> dict[str, Result]:
    """Runs all cells against one running candidate. The collector rests, so that its pauses are not measured."""
    results: dict[str, Result] = {}
    with candidates.on_core(LOAD_CORE), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for cell in plan:
            gc.collect()
            gc.disable()
            try:
                results[cell.name] = runner.run(run(subject.target, cell, subject.cpu_s))
            finally:
                gc.enable()
    return results


def figures(subject: Running, results: dict[str, Result], rss_mb: float) -> dict[str, float | None]:
    """One round of one candidate in numbers; latencies are absolute here. None where a cell gave nothing."""
    one, crowd, streams, paced = (results[name] for name in ("one", "crowd", "streams", "paced"))
    proxied = subject.process is not None
    return {
        "p50_1_ms": report.percentile(one.latencies_ms, 50),
        "p99_1_ms": report.percentile(one.latencies_ms, 99),
        "p50_prefill_ms": report.percentile(results["prefill"].latencies_ms, 50),
        "p50_32_ms": report.percentile(crowd.latencies_ms, 50),
        "p99_32_ms": report.percentile(crowd.latencies_ms, 99),
        "requests_per_s": crowd.answers / crowd.elapsed_s,
        "requests_per_core_s": crowd.answers / crowd.cpu_s if crowd.cpu_s else None,
        "chunks_per_s": streams.chunks / streams.elapsed_s,
        "chunks_per_core_s": streams.chunks / streams.cpu_s if streams.cpu_s else None,
        "first_chunk_p50_ms": report.percentile(paced.first_chunks_ms, 50),
        "first_chunk_p99_ms": report.percentile(paced.first_chunks_ms, 99),
        "start_s": subject.start_s if proxied else None,
        "rss_mb": rss_mb if proxied else None,
        "failures": float(sum(len(result.failures) for result in results.values())),
    }


def round_of(name: str, candidate: Candidate | None, port: int, folder: Path, plan: list[Cell]) -> report.Round:
    """One candidate, started fresh, through all cells. Raises CannotRun."""
    if candidate is None:
        subject = Running(Target(port, KEY), 0.0)
        results = measure(subject, plan)
        rss_mb = 0.0
    else:
        with candidates.running(candidate, port, folder) as subject:
            results = measure(subject, plan)
            rss_mb = subject.rss_mb()
    failures = [f"{cell}: {text}" for cell, result in results.items() for text in result.failures]
    samples = {cell: len(result.latencies_ms) for cell, result in results.items()}
    return report.Round(name, figures(subject, results, rss_mb), samples, failures[:5])


def compare(names: list[str], rounds: int, quick: bool) -> tuple[list[report.Round], dict[str, str]]:
    """The alternating run. A candidate that cannot start is left out, with the reason printed."""
    versions: dict[str, str] = {}
    taken: dict[str, Candidate | None] = {"direct": None}
    for name in names:
        try:
            versions[name] = CANDIDATES[name].version()
            taken[name] = CANDIDATES[name]
        except CannotRun as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    done: list[report.Round] = []
    plan = cells(quick)
    with tempfile.TemporaryDirectory(prefix="sekisho-bench-") as folder, upstream(Path(folder)) as port:
        for number in range(rounds):
            order = list(taken)
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                try:
                    result = round_of(name, taken[name], port, Path(folder) / f"{name}-{number}", plan)
                except CannotRun as reason:
                    print(f"{name} is left out: {reason}", file=sys.stderr)
                    del taken[name]
                    continue
                result.number, result.load_average = number, report.load_average()
                done.append(result)
                print(report.progress(result), file=sys.stderr)
    return done, versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short cells: a look, not a measurement")
    parser.add_argument("--only", default=",".join(CANDIDATES), help="candidates, by commas (direct is always there)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", action="store_true", help="tokens/s through the gateway against the engine alone")
    parser.add_argument("--model", type=Path, help="with --engine: a GGUF file instead of the built-in model")
    parser.add_argument("--guard", choices=["off", "basic"], default="basic", help="with --engine: judging or not")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in CANDIDATES]:
        parser.error(f"unknown candidate {', '.join(unknown)}; there are {', '.join(CANDIDATES)}")
    if arguments.engine:
        try:
            save(
                "engine.json",
                lambda: engine_speed.main(arguments.rounds, arguments.quick, arguments.model, arguments.guard),
            )
        except CannotRun as reason:
            sys.exit(f"cannot measure: {reason}")
        return

    def comparison() -> dict[str, object]:
        rounds, versions = compare(names, arguments.rounds, arguments.quick)
        print(report.table(rounds, versions, {name: each.note for name, each in CANDIDATES.items()}))
        place = "proxy on core 0, upstream and load on core 1" if candidates.pinned() else "cores not pinned: too few"
        print(f"- {place}")
        return {"rounds": [asdict(each) for each in rounds], "versions": versions, "quick": arguments.quick}

    save("gateway.json", comparison)


def save(name: str, work: Callable[[], dict[str, object]]) -> None:
    """Runs `work` and keeps what it returns beside the machine it ran on."""
    result = work()
    OUT.mkdir(exist_ok=True)
    text = json.dumps({"machine": report.machine(), "pinned": candidates.pinned(), **result}, indent=1)
    (OUT / name).write_text(text + "\n")
    print(f"\nsaved to bench/out/{name}")


if __name__ == "__main__":
    main()
