"""Make sekisho-mini from nothing: tokenizer, training, GGUF, measurement, card. Safe to stop and run again."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

import torch  # noqa: E402  the project's own modules need the path above
from tokenizers import Tokenizer  # noqa: E402

from mini import corpus, export, tokens, train  # noqa: E402
from mini.model import Shape  # noqa: E402

STATE = ROOT / "build" / "mini"
PACKAGE = ROOT / "src" / "sekisho" / "engines" / "builtin"
VOCABULARY = 1024
SHARPNESS = 1.5


def tokenizer_of(plan: train.Plan) -> Tokenizer:
    """The tokenizer, trained on the first conversations of the stream unless that is done already."""
    path = STATE / "tokenizer.json"
    if not path.exists():
        texts = (m.text for made in islice(corpus.stream(plan.seed, 400), 30_000) for m in made.messages)
        tokens.train(texts, VOCABULARY).save(str(path))
        print(f"tokenizer: {VOCABULARY} tokens", flush=True)
    return tokens.load(path)


def card(
    trainer: train.Trainer, model: Path, scores: dict[str, object], before: dict[str, object] | None
) -> dict[str, object]:
    """Everything there is to know about the file, for the package and the docs. `before`: the full training that a
    refinement went on from."""
    progress, plan = trainer.progress, trainer.plan
    return {
        "name": "sekisho-mini",
        "purpose": "trying and testing Sekisho; not for real work",
        "languages": ["ja", "en"],
        "file": model.name,
        "bytes": model.stat().st_size,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "quantisation": "F16",
        "parameters": sum(weight.size for weight in trainer.weights().values()),
        "shape": asdict(trainer.shape),
        "sharpness": SHARPNESS,
        "training": {
            **asdict(plan),
            "tokens_seen": progress.seen,
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 1),
            "machine": "2 CPU cores, no GPU",
            "torch": torch.__version__,
            "command": f"tools/mini/build.py --refine {plan.tokens}" if before else "make mini",
            **({"before": before} if before else {}),
        },
        "measured": scores,
    }


def main() -> None:
    plan = train.Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=plan.tokens, help="how many tokens to train on")
    parser.add_argument("--threads", type=int, default=2, help="how many CPU threads to train with")
    parser.add_argument("--to", type=Path, default=PACKAGE, help="where the GGUF and its card go")
    parser.add_argument(
        "--refine",
        type=int,
        metavar="TOKENS",
        help="go on from the last full training for so many tokens, at a third of its rate: for changed facts",
    )
    arguments = parser.parse_args()
    plan = train.Plan(tokens=arguments.tokens)
    if arguments.refine:
        plan = train.Plan(tokens=arguments.refine, copy_share=0.0, peak_rate=plan.peak_rate / 3)
    torch.set_num_threads(arguments.threads)
    STATE.mkdir(parents=True, exist_ok=True)
    arguments.to.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(plan)
    full = STATE / "checkpoint.pt"
    trainer = train.Trainer(tokenizer, Shape(VOCABULARY), plan, STATE / "refined.pt" if arguments.refine else full)
    if arguments.refine:
        trainer.start_from(full)
    trainer.run()
    model = STATE / "sekisho-mini.gguf"
    export.write(model, trainer.weights(), tokenizer, trainer.shape, SHARPNESS)
    print(f"export: {model.stat().st_size / 1e6:.2f} MB", flush=True)
    from mini import measure  # after training: it loads llama.cpp

    scores, wrong = measure.measure(model, tokenizer, trainer.shape.positions)
    (STATE / "wrong.txt").write_text("\n".join(wrong) + "\n", encoding="utf-8")
    model.replace(arguments.to / model.name)
    model = arguments.to / model.name
    before = train.history(full) if arguments.refine else None
    text = json.dumps(card(trainer, model, scores, before), ensure_ascii=False, indent=1)
    model.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
