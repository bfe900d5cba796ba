"""Make the guard's linear model from nothing: rows, training, thresholds, card, and the held-out split."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

import msgspec  # noqa: E402  the project's own modules need the path above
import numpy as np  # noqa: E402

from guard import compose, evasion, train  # noqa: E402
from sekisho.core.verdict import DECISIONS  # noqa: E402
from sekisho.guard import band as bands  # noqa: E402
from sekisho.guard.classifier import CATEGORIES, PACKAGED, Classifier  # noqa: E402
from sekisho.guard.language import language as language_of  # noqa: E402
from sekisho.guard.text import plain  # noqa: E402

STATE = ROOT / "build" / "guard"
HELD_OUT = ROOT / "tests" / "guard" / "heldout.jsonl"
FOLDS = 4
LINES_A_FAMILY = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-core", type=int, default=3, help="alternatives of a hand-written line that are used")
    parser.add_argument("--variants", type=int, default=1, help="of each alternative, with context and style")
    parser.add_argument("--penalty", type=float, default=1e-5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.04)
    plan = parser.parse_args()
    STATE.mkdir(parents=True, exist_ok=True)
    cores = compose.cores()
    composer = compose.Composer(plan.seed)
    rows = [
        row for number, core in enumerate(cores) for row in composer.rows(number, core, plan.per_core, plan.variants)
    ]
    held_out = evasion.held_out_rows(plan.seed)
    write(HELD_OUT, [asdict(row) for row in held_out])
    families = compose.small_families(cores, LINES_A_FAMILY)
    folds = np.array([compose.fold(families[row.core], FOLDS) for row in rows])
    write(STATE / "rows.jsonl", [asdict(row) | {"fold": int(fold)} for row, fold in zip(rows, folds, strict=True)])
    print(f"{len(cores)} hand-written requests, {len(rows)} rows, {len(held_out)} held out", flush=True)
    scored = list(zip(rows, out_of_family(rows, folds, plan), strict=True))
    short = [point for row, point in scored if train.everyday(row)]
    others = [point for row, point in scored if not train.everyday(row)]
    band = bands.band_of([point for _, point in scored], plan.alpha)
    table, scale, bias = trained(rows, np.arange(len(rows)), plan)
    card = card_of(plan, cores, rows, (others, short), band)
    save(PACKAGED, table, scale, bias, card, band)
    print(f"{PACKAGED.name}: {PACKAGED.stat().st_size} bytes, version {Classifier.load(PACKAGED).version}", flush=True)


_matrices: dict[int, object] = {}


def trained(
    rows: list[compose.Row], chosen: np.ndarray, plan: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, scale and bias from the chosen rows alone."""
    if id(rows) not in _matrices:
        _matrices[id(rows)] = train.features([row.text for row in rows])
    matrix = _matrices[id(rows)][chosen]  # type: ignore[index]
    some = [rows[n] for n in chosen]
    decisions, categories = train.labels(some)
    columns = train.seen_often(matrix, np.array([row.core for row in some]), 2)
    weights = train.row_weights(some)
    rare = train.rarity(matrix)[columns]
    narrow = train.scaled(matrix[:, columns], rare)
    decide, decide_bias = train.fit(narrow, decisions, len(DECISIONS), weights, plan.penalty, plan.rounds)
    harmful = np.flatnonzero(decisions != DECISIONS.index("allow"))  # what is allowed has no category to be named
    name, name_bias = train.fit(
        narrow[harmful], categories[harmful], len(CATEGORIES), weights[harmful], plan.penalty, plan.rounds // 2
    )
    table, scale = train.quantised(columns, np.hstack([decide, name]) * rare[:, None])
    return table, scale, np.concatenate([decide_bias, name_bias]).astype(np.float32)


def out_of_family(rows: list[compose.Row], folds: np.ndarray, plan: argparse.Namespace) -> list[bands.Point]:
    """Every row scored by a model that has seen nothing of its family, in the order of the rows."""
    points: dict[int, bands.Point] = {}
    for fold in range(FOLDS):
        table, scale, bias = trained(rows, np.flatnonzero(folds != fold), plan)
        classifier = Classifier(table, scale, bias, {})
        for place in np.flatnonzero(folds == fold):
            text = plain(rows[place].text)
            language = language_of(text)
            points[place] = bands.Point(language, rows[place].decision, classifier.scores(text, language))
        print(f"fold {fold + 1} of {FOLDS}", flush=True)
    return [points[place] for place in range(len(rows))]


def card_of(
    plan: argparse.Namespace,
    cores: list[compose.Core],
    rows: list[compose.Row],
    points: tuple[list[bands.Point], list[bands.Point]],
    band: bands.Band,
) -> dict[str, object]:
    """Everything there is to know about the file. `points`: the calibration rows without the
    short everyday ones, and these; `out_of_family`: what the thresholds do on the former, `everyday` on the latter."""
    return {
        "name": "sekisho-guard-linear",
        "purpose": "triage of requests before a person or a guard model; no guard model by itself",
        "languages": list(compose.LANGUAGES),
        "seed": plan.seed,
        "per_core": plan.per_core,
        "variants": plan.variants,
        "penalty": plan.penalty,
        "alpha": plan.alpha,
        "hand_written": dict(sorted(Counter(core.language for core in cores).items())),
        "families": len({core.family for core in cores}),
        "rows": dict(sorted(Counter(f"{row.lang} {row.decision} {row.category}" for row in rows).items())),
        "calibration": f"{FOLDS} folds; every row is scored by a model that saw nothing of its family",
        "rounds": plan.rounds,
        "out_of_family": outcomes(points[0], band),
        "everyday": outcomes(points[1], band),
    }


def outcomes(points: list[bands.Point], band: bands.Band) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for point in points:
        decided = band.decide(point.scores, point.language).decision
        named = counted.setdefault(f"{point.language}: {point.decision} became", {})
        named[decided] = named.get(decided, 0) + 1
    return dict(sorted(counted.items()))


def save(
    path: Path, table: np.ndarray, scale: np.ndarray, bias: np.ndarray, card: dict[str, object], band: bands.Band
) -> None:
    np.savez_compressed(
        path,
        table=table,
        scale=scale,
        bias=bias,
        card=np.array(json.dumps(card, ensure_ascii=False)),
        band=np.array(msgspec.json.encode(band).decode()),
    )


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
