"""A benchmark's samples as figures. Pure. Quantiles are over successes; failures are in the success rate alone, and so
is what was not asked any more because nobody answered."""

from collections import Counter
from collections.abc import Callable, Sequence

from sekisho.evaluate.client.target import Place
from sekisho.evaluate.figures import Figure, Unit
from sekisho.evaluate.speed.bench import Bench, CellRun
from sekisho.evaluate.speed.bench_gap import gap_figures
from sekisho.evaluate.speed.bench_plan import requests_per_s
from sekisho.evaluate.speed.samples import Sample, ok_of
from sekisho.evaluate.statistics import percentile, quantile, share_interval

FILE = "bench.csv"
Value = Callable[[Sample], float | None]


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


QUANTILES: tuple[tuple[str, Unit, float, Value], ...] = (
    ("ttfb_p95_s", "s", 95, lambda sample: _s(sample.ttfb_ms)),
    ("ttft_p50_s", "s", 50, lambda sample: _s(sample.ttft_ms)),
    ("ttft_p95_s", "s", 95, lambda sample: _s(sample.ttft_ms)),
    ("total_p50_s", "s", 50, lambda sample: _s(sample.total_ms)),
    ("total_p95_s", "s", 95, lambda sample: _s(sample.total_ms)),
    ("tok_s_median", "tok/s", 50, lambda sample: sample.tok_s),
    ("tpot_p50_ms", "ms", 50, lambda sample: sample.tpot_ms),
    ("itl_p95_ms", "ms", 50, lambda sample: sample.itl_p95_ms),
)
"""What is told of every cell. `itl_p95_ms` is the median over answers of each answer's own 95th percentile: pauses
within one answer depend on each other, so that no interval would hold for them all together."""


def summarise(bench: Bench, *, command: str = "", held_characters: int | None = None) -> list[Figure]:
    """All figures of a benchmark. `held_characters`: how much of an answer the gateway's guard holds back."""
    figures: list[Figure] = []
    wanted: Counter[str] = Counter()
    for run in bench.runs:
        if run.cell.loop != "warmup":
            wanted[run.cell.id] += run.cell.requests
    for cell, count in wanted.items():
        samples = [each for each in bench.samples if each.cell == cell]
        figures += cell_figures(_name(cell), samples, count, command)
        lags = [lag for run in bench.runs if run.cell.id == cell for lag in run.lags_ms]
        figures.append(_lag(f"{_name(cell)}.lag_p95_ms", lags, command))
    for place in dict.fromkeys(run.cell.place for run in bench.runs):
        runs = [run for run in bench.runs if run.cell.place == place]
        figures += [_crashes(place, runs, command), *_way_figures(place, runs, command)]
    return figures + gap_figures(bench, command, held_characters)


def cell_figures(name: str, samples: Sequence[Sample], wanted: int, command: str = "") -> list[Figure]:
    """The figures `name`.* of one cell of `wanted` requests. Warm-ups must not be among the samples."""
    ok = ok_of(samples)
    note = _trouble(samples, wanted)
    count = max(wanted, len(samples)) if samples else 0
    figures = [
        Figure(
            id=f"{name}.success_rate",
            value=len(ok) / count if count else None,
            unit="share",
            n=count,
            interval=share_interval(len(ok), count),
            why_null="" if samples else "nothing was asked",
            command=command,
            file=FILE,
            note=note,
        )
    ]
    nothing = "" if ok else f"no success in {len(samples)} requests" + (f": {note}" if note else "")
    for what, unit, percent, value in QUANTILES:
        figures.append(_quantile(f"{name}.{what}", unit, percent, [value(each) for each in ok], nothing, command))
    figures.append(
        Figure(
            id=f"{name}.requests_per_s",
            value=requests_per_s(samples),
            unit="req/s",
            n=len(ok),
            interval_missing="a cell gives one value",
            why_null=nothing,
            command=command,
            file=FILE,
        )
    )
    if samples and samples[0].loop == "open":
        late = [each.late_ms for each in samples]
        figures.append(_quantile(f"{name}.late_p95_ms", "ms", 95, late, "", command))
    return figures


def _name(cell: str) -> str:
    """Grid cells are apart: no threshold is about them."""
    return f"grid.{cell.replace('.closed.', '.')}" if ".i" in cell else f"bench.{cell}"


def _quantile(
    name: str, unit: Unit, percent: float, values: Sequence[float | None], nothing: str, command: str
) -> Figure:
    known = [value for value in values if value is not None]
    found = quantile(known, percent)
    missing = len(values) - len(known)
    return Figure(
        id=name,
        value=found.value,
        unit=unit,
        n=len(known),
        interval=found.interval,
        interval_missing=found.interval_missing if known else "",
        why_null="" if known else nothing or _UNSEEN.get(name.rpartition(".")[2], "no answer shows it"),
        note=f"not seen in {missing} of {len(values)} answers" if known and missing else "",
        command=command,
        file=FILE,
    )


def _lag(name: str, lags_ms: Sequence[float], command: str) -> Figure:
    return Figure(
        id=name,
        value=percentile(lags_ms, 95),
        unit="ms",
        n=len(lags_ms),
        interval_missing="one look depends on the next" if lags_ms else "",
        why_null="" if lags_ms else "the cell ended too soon to look",
        command=command,
        file=FILE,
    )


_IN_ONE_PIECE = "every answer came in one piece or without its number of tokens"
_UNSEEN = {
    "tok_s_median": _IN_ONE_PIECE,
    "tpot_p50_ms": _IN_ONE_PIECE,
    "itl_p95_ms": "every answer came in one piece",
    "late_p95_ms": "nothing was asked",
}


def _trouble(samples: Sequence[Sample], wanted: int) -> str:
    """`3 cut, 1 rate_limited`; and what was not asked any more."""
    kinds = Counter(each.faults[0] for each in samples if not each.ok and each.faults)
    words = [f"{count} {kind}" for kind, count in kinds.most_common()]
    if len(samples) < wanted:
        words.append(f"{wanted - len(samples)} of {wanted} were not asked, as nobody answered any more")
    early = sum(each.read_early for each in samples)
    if early:
        words.append(f"{early} were read while others were measured, for want of memory")
    return ", ".join(words)


def _crashes(place: Place, runs: Sequence[CellRun], command: str) -> Figure:
    known = [run.crashes for run in runs if run.crashes is not None]
    seen = len(known) == len(runs)
    return Figure(
        id=f"bench.{place}.crashes",
        value=sum(known) if seen else None,
        unit="count",
        why_null="" if seen else "the server's processes cannot be seen from here",
        command=command,
        file=FILE,
    )


def _way_figures(place: Place, runs: Sequence[CellRun], command: str) -> list[Figure]:
    connects = [each for run in runs for each in run.connects_ms]
    trips = [each for run in runs for each in run.round_trips_ms]
    return [
        _quantile(f"bench.{place}.connect_p50_ms", "ms", 50, connects, "no connection came about", command),
        _quantile(f"bench.{place}.round_trip_p50_ms", "ms", 50, trips, "no connection came about", command),
    ]
