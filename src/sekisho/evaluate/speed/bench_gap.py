"""The difference between one place and the one before it on the way, pair by pair, and where it comes from in words."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import msgspec

from sekisho.evaluate.client.target import Place
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.speed.bench import Bench
from sekisho.evaluate.speed.bench_plan import PLACES
from sekisho.evaluate.speed.samples import Sample
from sekisho.evaluate.statistics import quantile

Words = tuple[str, str]
"""English, Japanese."""

Compared = Callable[[Sample, Sample], float | None]


class Gap(msgspec.Struct, frozen=True):
    """The pairs of two places: the same request of the same cell, both a success. `cell`: as `p1.t256`."""

    place: Place
    before: Place
    cell: str
    pairs: tuple[tuple[Sample, Sample], ...]


def gaps(bench: Bench) -> list[Gap]:
    """One for each place after the first, at the fewest askers and the shortest answers: there nobody waits."""
    found = []
    there = [place for place in PLACES if any(run.cell.place == place for run in bench.runs)]
    closed = [each for each in bench.samples if each.loop == "closed" and each.prompt_wanted is None]
    for before, place in pairwise(there):
        levels = sorted({(each.parallel, each.tokens) for each in closed if each.place == place})
        if levels:
            found.append(_gap(closed, before, place, *levels[0]))
    return found


def gap_figures(bench: Bench, command: str = "", held_characters: int | None = None) -> list[Figure]:
    figures = []
    for gap in gaps(bench):
        note = explain(gap, bench, held_characters)[0]
        for what, unit, compared in _COMPARED:
            figures.append(_figure(gap, what, unit, compared, command, note))
    return figures


def explain(gap: Gap, bench: Bench, held_characters: int | None = None) -> Words:
    """Where the difference comes from, as far as this measurement shows it."""
    parts = [_pairs_words(gap), _way_words(gap, bench), _crowd_words(gap, bench)]
    if gap.place == "gateway":
        parts.insert(1, _held_words(gap, held_characters))
    kept = [part for part in parts if part is not None]
    return " ".join(part[0] for part in kept), "".join(part[1] for part in kept)


def _gap(closed: Sequence[Sample], before: Place, place: Place, parallel: int, tokens: int) -> Gap:
    cells: dict[Place, dict[int, Sample]] = {before: {}, place: {}}
    for each in closed:
        if each.place in cells and each.ok and (each.parallel, each.tokens) == (parallel, tokens):
            cells[each.place][each.index] = each
    ours, theirs = cells[place], cells[before]
    pairs = tuple((theirs[index], ours[index]) for index in sorted(ours.keys() & theirs.keys()))
    return Gap(place, before, f"p{parallel}.t{tokens}", pairs)


def _ttft_s(one: Sample, other: Sample) -> float | None:
    return None if one.ttft_ms is None or other.ttft_ms is None else (other.ttft_ms - one.ttft_ms) / 1e3


def _total_s(one: Sample, other: Sample) -> float:
    return (other.total_ms - one.total_ms) / 1e3


def _tok_s_ratio(one: Sample, other: Sample) -> float | None:
    return None if one.tok_s is None or other.tok_s is None else other.tok_s / one.tok_s


_COMPARED: tuple[tuple[str, Unit, Compared], ...] = (
    ("ttft_p50_s", "s", _ttft_s),
    ("total_p50_s", "s", _total_s),
    ("tok_s_ratio", "ratio", _tok_s_ratio),
)


def _figure(gap: Gap, what: str, unit: Unit, compared: Compared, command: str, note: str) -> Figure:
    values = [value for one, other in gap.pairs if (value := compared(one, other)) is not None]
    found = quantile(values, 50)
    why = f"no request of {gap.cell} was answered at both {gap.before} and {gap.place}"
    if gap.pairs:
        why = f"the answers at {gap.before} or {gap.place} do not show it: they came in one piece"
    return Figure(
        id=f"bench.gap.{gap.place}.{what}",
        value=found.value,
        unit=unit,
        n=len(values),
        interval=found.interval,
        interval_missing=found.interval_missing if values else "",
        why_null="" if values else why,
        command=command,
        file="bench.csv",
        note=note,
    )


def _pairs_words(gap: Gap) -> Words:
    count = len(gap.pairs)
    return (
        f"Median of the differences of {count} pairs of the same prompt, {gap.place} less {gap.before}, at {gap.cell}.",
        f"同じプロンプトの{count}組について、{gap.place} から {gap.before} を引いた差の中央値（{gap.cell}）。",
    )


def _held_words(gap: Gap, held_characters: int | None) -> Words | None:
    """A guard that judges answers holds them back: short ones come whole."""
    if not gap.pairs:
        return None
    whole = sum(other.moments == 1 for _, other in gap.pairs)
    before = sum(one.moments == 1 for one, _ in gap.pairs)
    newest = ("the newest characters", "最新の文字")
    if held_characters is not None:
        newest = (f"the newest {held_characters} characters", f"最新の {held_characters} 文字")
    return (
        f"The gateway judges an answer before it leaves, and holds back {newest[0]} until they are judged: "
        f"{whole} of {len(gap.pairs)} answers came in one piece here, {before} at the place before. In those the first "
        "token comes with the last one, and no decode speed can be seen.",
        f"ゲートウェイは応答を送り出す前に判定し、判定が済むまで{newest[1]}を保留します。ここでは "
        f"{len(gap.pairs)} 件のうち {whole} 件（手前では {before} 件）が一度に届きました。"
        "その場合、最初のトークンは最後と同時に届き、生成速度は観測できません。",
    )


def _way_words(gap: Gap, bench: Bench) -> Words | None:
    """What the way takes without a model."""
    here, there = (_trips(bench, place) for place in (gap.place, gap.before))
    if not here or not there:
        return None
    connects = [each for run in bench.runs if run.cell.place == gap.place for each in run.connects_ms]
    trip, before, connect = median(here), median(there), median(connects)
    anew = sum(other.connect_ms is not None for _, other in gap.pairs)
    anew_before = sum(one.connect_ms is not None for one, _ in gap.pairs)
    return (
        f"A request that needs no model takes {trip:.1f} ms here and {before:.1f} ms at the place before. Opening a "
        f"connection takes {connect:.1f} ms here, which {anew} of {len(gap.pairs)} requests had to do "
        f"({anew_before} at the place before).",
        f"モデルを使わない要求の往復は、ここで {trip:.1f} ミリ秒、手前で {before:.1f} ミリ秒。"
        f"ここでの接続の確立は {connect:.1f} ミリ秒で、{len(gap.pairs)} 件のうち {anew} 件"
        f"（手前では {anew_before} 件）が新しい接続でした。",
    )


def _crowd_words(gap: Gap, bench: Bench) -> Words | None:
    """The same difference with the most askers: what is more there, is waiting for a free slot or for the processor."""
    closed = [each for each in bench.samples if each.loop == "closed" and each.prompt_wanted is None]
    tokens = gap.pairs[0][0].tokens if gap.pairs else 0
    most = max((each.parallel for each in closed if each.place == gap.place and each.tokens == tokens), default=0)
    if not gap.pairs or most == gap.pairs[0][0].parallel:
        return None
    crowded = [_total_s(*pair) for pair in _gap(closed, gap.before, gap.place, most, tokens).pairs]
    alone = median(_total_s(*pair) for pair in gap.pairs)
    if not crowded or median(crowded) <= alone:
        return None
    return (
        f"With {most} askers the whole answer takes {median(crowded):+.3f} s against {alone:+.3f} s: what is more is "
        "waiting for a free slot and for the processor.",
        f"{most} 並列では応答全体の差が {median(crowded):+.3f} 秒（上記の並列数では {alone:+.3f} 秒）で、"
        "その増分は空きスロットとプロセッサーの待ちです。",
    )


def _trips(bench: Bench, place: Place) -> list[float]:
    return [each for run in bench.runs if run.cell.place == place for each in run.round_trips_ms]
