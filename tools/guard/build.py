"""Make the guard's linear model from nothing: rows, training, thresholds, card, and the held-out split."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

import msgspec  # noqa: E402  the project's own modules need the path above
import numpy as np  # noqa: E402

from guard import compose, evasion, train  # noqa: E402
from sekisho.core.verdict import DECISIONS  # noqa: E402
from sekisho.guard import band as bands  # noqa: E402
from sekisho.guard.classifier import CATEGORIES, PACKAGED, PARTS, Classifier, Table  # noqa: E402
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
    parser.add_argument("--alpha-long", type=float, default=0.06, help="of texts of several windows")
    parser.add_argument("--around", type=float, default=0.8, help="share of requests that are also put into work text")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    parser.add_argument(
        "--reuse", nargs="*", default=[], choices=["short", "long"], help="weights of the last training"
    )
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
    places = [compose.fold(families[row.core], FOLDS) for row in rows]
    works = compose.works()
    desk = compose.Desk(plan.seed, works, FOLDS)
    of_work = desk.rows(len(cores))
    inside = inside_work(desk, rows, places, plan)
    taught = rows + of_work + [row for row, _ in inside]
    folds = np.array([*places, *(compose.fold(row.family, FOLDS) for row in of_work), *(place for _, place in inside)])
    write(STATE / "rows.jsonl", [asdict(row) | {"fold": int(fold)} for row, fold in zip(taught, folds, strict=True)])
    print(f"{len(cores)} hand-written requests, {len(works)} work texts, {len(taught)} rows", flush=True)
    short_weights = trainings("short", rows, np.array(places), plan)
    long_weights = trainings("long", taught, folds, plan)
    classifiers = [
        Classifier(*of_short, {}, Table(*of_long))
        for of_short, of_long in zip(short_weights[:FOLDS], long_weights[:FOLDS], strict=True)
    ]
    scored = [(row, point(row, classifiers[place])) for row, place in zip(rows, places, strict=True)]
    long = [point(row, classifiers[compose.fold(row.family, FOLDS)]) for row in desk.whole(len(cores))]
    long += [
        point(desk.buried(row, place), classifiers[place])
        for row, place in zip(rows, places, strict=True)
        if row.decision != "allow" and not row.varied
    ]
    short = [found for row, found in scored if train.everyday(row)]
    others = [found for row, found in scored if not train.everyday(row)]
    band = bands.band_of([*(found for _, found in scored), *long], plan.alpha, alpha_long=plan.alpha_long)
    card = card_of(plan, cores, taught, (others, short, long), band)
    card["work_texts"] = dict(sorted(Counter(work.language for work in works).items()))
    save(PACKAGED, short_weights[FOLDS], long_weights[FOLDS], card, band)
    print(f"{PACKAGED.name}: {PACKAGED.stat().st_size} bytes, version {Classifier.load(PACKAGED).version}", flush=True)


def inside_work(
    desk: compose.Desk, rows: list[compose.Row], places: list[int], plan: argparse.Namespace
) -> list[tuple[compose.Row, int]]:
    """A share of the plain requests, and half that share of the harmless ones, inside a window of work text."""
    made: list[tuple[compose.Row, int]] = []
    for row, place in zip(rows, places, strict=True):
        share = plan.around * (0.5 if row.decision == "allow" else 1)
        if not row.varied and random.Random(f"{plan.seed}:inside:{row.text}").random() < share:
            made.append((desk.around(row, place), place))
    return made


def trainings(
    name: str, rows: list[compose.Row], folds: np.ndarray, plan: argparse.Namespace
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The weights without each fold, and those of all rows; kept beside the rows for `--reuse`."""
    kept = STATE / f"{name}.npz"
    if name not in plan.reuse:
        _shared[:] = [rows, train.features([row.text for row in rows])]
        chosen = [np.flatnonzero(folds != fold) for fold in range(FOLDS)] + [np.arange(len(rows))]
        with ProcessPoolExecutor(plan.jobs, get_context("fork")) as pool:
            waiting = [pool.submit(trained, some, plan) for some in chosen]
            found = [one.result() for one in waiting]
        print(f"{name} texts: {len(chosen)} trainings", flush=True)
        np.savez(kept, **{f"{n}_{part}": array for n, one in enumerate(found) for part, array in enumerate(one)})
    with np.load(kept) as stored:
        return [tuple(stored[f"{n}_{part}"] for part in range(3)) for n in range(FOLDS + 1)]


def point(row: compose.Row, classifier: Classifier) -> bands.Point:
    text = plain(row.text)
    language = language_of(text)
    return bands.Point(language, row.decision, classifier.scores(text, language))


_shared: list[Any] = []  # rows and their features, which the children of a fork have without a copy


def trained(chosen: np.ndarray, plan: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, scale and bias from the chosen rows alone."""
    rows, features = _shared
    matrix = features[chosen]
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


def card_of(
    plan: argparse.Namespace,
    cores: list[compose.Core],
    rows: list[compose.Row],
    points: tuple[list[bands.Point], list[bands.Point], list[bands.Point]],
    band: bands.Band,
) -> dict[str, object]:
    """Everything there is to know about the file. `points`: the calibration rows without the
    short everyday ones, these, and the long texts; `out_of_family`: what the thresholds do on the first, `everyday` on
    the second, `work` on the third."""
    return {
        "name": "sekisho-guard-linear",
        "purpose": "triage of requests before a person or a guard model; no guard model by itself",
        "languages": list(compose.LANGUAGES),
        "seed": plan.seed,
        "per_core": plan.per_core,
        "variants": plan.variants,
        "penalty": plan.penalty,
        "alpha": plan.alpha,
        "alpha_long": plan.alpha_long,
        "hand_written": dict(sorted(Counter(core.language for core in cores).items())),
        "families": len({core.family for core in cores}),
        "rows": dict(sorted(Counter(f"{row.lang} {row.decision} {row.category}" for row in rows).items())),
        "calibration": f"{FOLDS} folds; every row is scored by a model that saw nothing of its family",
        "rounds": plan.rounds,
        "out_of_family": outcomes(points[0], band),
        "everyday": outcomes(points[1], band),
        "work": outcomes(points[2], band),
    }


def outcomes(points: list[bands.Point], band: bands.Band) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for point in points:
        cut = band.decide(point.scores, point.language)
        decided = cut.decision if cut.sure else f"{cut.decision} (unsure)"
        named = counted.setdefault(f"{point.language}: {point.decision} became", {})
        named[decided] = named.get(decided, 0) + 1
    return dict(sorted(counted.items()))


def save(
    path: Path,
    short: tuple[np.ndarray, np.ndarray, np.ndarray],
    long: tuple[np.ndarray, np.ndarray, np.ndarray],
    card: dict[str, object],
    band: bands.Band,
) -> None:
    np.savez_compressed(
        path,
        **dict(zip(PARTS, short, strict=True)),
        **{f"long_{part}": array for part, array in zip(PARTS, long, strict=True)},
        card=np.array(json.dumps(card, ensure_ascii=False)),
        band=np.array(msgspec.json.encode(band).decode()),
    )


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
