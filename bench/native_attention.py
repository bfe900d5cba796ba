"""Sekisho's attention against llama.cpp's own, in the same native build: reading a long prompt, and decode after it.

Two processes of one build, one with SEKISHO_NATIVE_ATTENTION=0, take turns on a model of Llama-3.2-1B's shape
(bench/llama_shape.py). A turn reads a prompt that is in no cache and says tokens after it. Ratios are of neighbours.

python bench/native_attention.py --native ~/.sekisho/engines/native     about 15 minutes on two quiet cores
"""

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llama_shape import Shape, write
from report import load_average, machine
from sekisho.engines import native_build, native_machine, native_trial
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_check import Order, Told

MODEL = Path("build/random-llama-1b-q4_0.gguf")


def pairs(site: Path, config: ModelConfig, tokens: int, answer: int, repeats: int) -> list[tuple[Told, Told]]:
    """llama.cpp's and ours, by turns; the first turn warms up."""
    with ExitStack() as stack:
        runners = []
        for ours in (False, True):
            order = Order("speed", config, attention=ours, prompt_tokens=tokens, answer_tokens=answer)
            runner = stack.enter_context(native_trial.Runner.start(order, site))
            runner.read()
            runners.append(runner)
        turns = [(runners[0].measure(), runners[1].measure()) for _ in range(repeats + 1)]
    return turns[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", type=Path, required=True, help="<home>/engines/native, with a build chosen")
    parser.add_argument("--tokens", type=int, default=3500, help="of the prompt")
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default="f16,q8_0,q4_0")
    arguments = parser.parse_args()
    if not MODEL.exists():
        MODEL.parent.mkdir(exist_ok=True)
        write(MODEL, Shape())
    root: Path = arguments.native
    build = native_build.chosen(root)
    if build is None:
        sys.exit(f"no build is chosen in {root}: sekisho engine build-native, then sekisho engine use native")
    known = native_build.usable(root, build, native_build.installed(), native_machine.here())
    if not known.attention:
        sys.exit(f"{build} has llama.cpp's attention only")
    print(f"{build}, {known.compiler}; load average at the start {load_average():.1f}")
    for kind in arguments.kinds.split(","):
        kinds: dict[str, Any] = {"kv_type_k": kind, "kv_type_v": kind}
        context = -(-(arguments.tokens + arguments.answer + 8) // 256) * 256
        config = ModelConfig("1b", path=str(MODEL), context=context, slots=1, **kinds)
        told = pairs(root / build / native_build.SITE, config, arguments.tokens, arguments.answer, arguments.repeats)
        for speed in ("prefill", "decode"):
            theirs, ours = ([getattr(each[side], speed) for each in told] for side in (0, 1))
            ratios = [after / before for before, after in zip(theirs, ours, strict=True)]
            middle = f"{statistics.median(theirs):.1f} -> {statistics.median(ours):.1f} tokens/s"
            spread = f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} ... {max(ratios):.2f})"
            print(f"{kind:5} {speed:8} {middle:32} {spread}", flush=True)
    print(f"load average at the end {load_average():.1f}; {machine()['cpu']}; {machine()['date']}")


if __name__ == "__main__":
    main()
