"""What the tuner makes of one machine: contexts, decode and prefill under a fixed KV budget, default against tuned.

The engine is the embedded llama.cpp with a model of Llama-3.2-1B's shape (bench/llama_shape.py), 1 GiB of KV at 4,096
tokens a slot. The default keeps KV at 16 bits. The tuner chooses KV types and whether a prompt is read at 16 bits by a
second engine and stored at the chosen types afterwards; its memory for one context counts against the same budget.
With --native all but the default run a build for this machine (`sekisho engine build-native`).
What the types cost in quality is measured on the built-in model. The figures at the end come from interleaved pairs.

python bench/control_tuner.py            about 25 minutes on two quiet cores
python bench/control_tuner.py --quick    a small scale, to see that it runs
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from control_engine import Bench, Contexts, engine, measured
from llama_shape import Shape, write
from report import load_average, machine
from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.perplexity.base import delta
from sekisho.control.perplexity.measure import Job
from sekisho.control.perplexity.measure import Target as Weighed
from sekisho.control.perplexity.measure import measure as perplexity_of
from sekisho.control.perplexity.texts import Text, own
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.control.policy_changes import kv_types
from sekisho.control.tuner import tune
from sekisho.control.tuner_limits import Budget, Limits
from sekisho.control.tuner_report import TuningReport, lines
from sekisho.control.tuner_space import Axis, Space, contexts_that_fit
from sekisho.control.tuner_target import Goal, Target
from sekisho.core.clock import SystemClock
from sekisho.engines import builtin
from sekisho.engines.config import ModelConfig
from sekisho.engines.kv_size import KvShape

SHAPE = KvShape(Shape.layers * Shape.kv_heads, Shape.head_size, Shape.head_size)
TARGET = Target("decode_tokens_per_s", (Goal("contexts", times=3), Goal("decode_tokens_per_s", times=1.25)))
MODEL = Path("build/random-llama-1b-q4_0.gguf")
_BEGINNINGS = ("The gate on the old road ", "今日の予定は、", "Please write a letter ", "1. ", "昨日、")
_PAIRS = {"q8_0": ("q8_0", "q8_0"), "q4_0": ("q4_0", "q4_0"), "q8_0-q4_0": ("q8_0", "q4_0")}


def space(budget_bytes: int, context: int, beside: bool) -> Space:
    """`beside`: memory for reading at 16 bits does not count."""
    base = Policy(
        kv=KvSection(mode="disabled", key_type="f16", value_type="f16"),
        engine=EngineSection(slots=contexts_that_fit(budget_bytes, SHAPE, context, "f16", "f16"), context=context),
    )
    staging = int(SHAPE.token_bytes("f16", "f16") * context)

    def fitted(policy: Policy) -> Policy | None:
        reserved = staging if policy.kv.demote_after_prefill and not beside else 0
        slots = contexts_that_fit(budget_bytes, SHAPE, context, *kv_types(policy), reserved)
        engine = msgspec.structs.replace(policy.engine, slots=slots)
        return msgspec.structs.replace(policy, engine=engine) if slots else None

    kinds = {name: {"kv": {"key_type": keys, "value_type": values}} for name, (keys, values) in _PAIRS.items()}
    ways = {name: {"kv": {"demote_after_prefill": on}} for name, on in (("direct", False), ("demoted", True))}
    return Space(base, [Axis("kv", kinds), Axis("prompt", ways)], fitted)


async def spoken(folder: Path) -> Text:
    """What the built-in model says by itself, seeded. Prose of the world is beyond it: there its perplexity is above
    20,000, and a difference says nothing."""
    mini = Bench(builtin.path(), SHAPE, 1024, 8, 8, folder)
    said = []
    async with engine(mini, "f16", "f16", 1, 1) as speaker:
        for seed in range(12):
            beginning = _BEGINNINGS[seed % len(_BEGINNINGS)]
            body = {"prompt": beginning, "n_predict": 400, "ignore_eos": True, "seed": seed}
            answer = await speaker.post("/completion", {**body, "temperature": 1.0, "top_k": 0, "top_p": 1})
            said.append(beginning + msgspec.json.decode(answer)["content"])
    file = folder / "spoken.txt"
    file.write_text("\n".join(said).replace("\ufffd", ""), encoding="utf-8")
    return own(file)


async def losses(kinds: Sequence[tuple[Any, Any]], folder: Path) -> dict[Any, float]:
    """Perplexity of the built-in model at these types, less that at 16 bits, on what it says itself."""
    job, clock = Job(await spoken(folder), "full"), SystemClock()
    found = {}
    for keys, values in (("f16", "f16"), *kinds):
        config = ModelConfig("mini", path="builtin", kv_type_k=keys, kv_type_v=values)
        found[keys, values] = await perplexity_of(Weighed(config), job, clock)
    base = found["f16", "f16"]
    print(f"built-in model: perplexity {base.perplexity:.3f} at 16 bits, on {base.tokens} predictions")
    return {kind: delta(each, base).value for kind, each in found.items()}


async def run(bench: Bench, budget_bytes: int, budget: Budget, arguments: argparse.Namespace) -> TuningReport:
    quality = await losses(list(_PAIRS.values()), bench.folder)
    contexts = Contexts(bench)
    await contexts.prepare()
    print(f"{bench.depth} tokens in every context" + (f", read in {contexts.read_s:.0f} s" if contexts.read_s else ""))

    async def measure(policy: Policy, effort: float) -> Measured:
        name = "/".join(kv_types(policy)) + (", demoted" if policy.kv.demote_after_prefill else "")
        try:
            figures = await measured(bench, contexts, policy, effort, quality)
        except MeasurementFailed as error:
            print(f"  {name}: failed: {error}", flush=True)
            raise
        decode, prefill = figures.decode_tokens_per_s or 0.0, figures.prefill_tokens_per_s or 0.0
        print(f"  {name} x {figures.contexts}: {decode:.1f} decode, {prefill:.1f} prefill tok/s", flush=True)
        return figures

    choices = space(budget_bytes, bench.context, arguments.staging == "beside")
    if bench.native is not None:
        alone = await measured(bench, contexts, choices.base, 1.0, quality, native=True)
        decode, prefill = alone.decode_tokens_per_s or 0.0, alone.prefill_tokens_per_s or 0.0
        print(f"  f16/f16, native build: {decode:.1f} decode, {prefill:.1f} prefill tok/s", flush=True)
    chance = Random(arguments.seed)
    return await tune(choices, measure, TARGET, Limits(0.5, 1.2), budget, chance, SystemClock())


def _spread(report: TuningReport) -> list[str]:
    """Every pair's ratio, so that the scatter can be seen."""
    shown = []
    for figure in ("contexts", "decode_tokens_per_s", "prefill_tokens_per_s", "memory_bytes"):
        pairs = [
            getattr(second, figure) / getattr(first, figure)
            for block in (report.comparison.blocks if report.comparison else ())
            for first, second in zip(block.first, block.second, strict=False)
            if getattr(first, figure) and getattr(second, figure)
        ]
        if pairs:
            shown.append(f"{figure}: {' '.join(f'{pair:.2f}' for pair in pairs)} times, pair by pair")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--staging", choices=("inside", "beside"), default="inside", help="of the KV budget")
    parser.add_argument("--seconds", type=float, default=1500.0, help="for the tuner")
    parser.add_argument("--budget", type=int, default=1024, help="MiB for KV")
    parser.add_argument("--native", type=Path, help="<home>/engines/native: all but the default run the build there")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not MODEL.exists():
        MODEL.parent.mkdir(exist_ok=True)
        write(MODEL, Shape())
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else MODEL.parent
    with tempfile.TemporaryDirectory(prefix="sekisho-slots-", dir=place) as name:
        bench = Bench(MODEL, SHAPE, 4096, 128, 16, Path(name), arguments.native)
        size, budget = arguments.budget * 2**20, Budget(26, arguments.seconds, (1.0,), 2, 6)
        if arguments.quick:
            bench = msgspec.structs.replace(bench, context=1024, chunk=32, answer=8)
            size, budget = 128 * 2**20, Budget(20, 400.0, (1.0,), 2, 3)
        print(f"load average at the start {load_average():.1f}")
        report = asyncio.run(run(bench, size, budget, arguments))
    print("\n".join([*lines(report), *_spread(report)]))
    print(f"load average at the end {load_average():.1f}; {machine()['cpu']}; {machine()['date']}")
    if arguments.out is not None:
        arguments.out.write_bytes(msgspec.json.encode(report))
    sys.exit(report.outcome == "not measured")


if __name__ == "__main__":
    main()
