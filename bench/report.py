"""From rounds to a table: medians with their spread, what is added over direct, ratios to the peers, the machine."""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

Figures = dict[str, float | None]

_ADDED = (
    "p50_1_ms",
    "p99_1_ms",
    "p50_prefill_ms",
    "p50_32_ms",
    "p99_32_ms",
    "first_chunk_p50_ms",
    "first_chunk_p99_ms",
)
_COLUMNS = {
    "p50_1_ms": "+p50 ms, 1 in flight",
    "p99_1_ms": "+p99 ms, 1",
    "p50_prefill_ms": "+p50 ms, 1 in flight, upstream thinks 20 ms",
    "p50_32_ms": "+p50 ms, 32",
    "p99_32_ms": "+p99 ms, 32",
    "requests_per_s": "req/s, 32",
    "requests_per_core_s": "req/s per core",
    "chunks_per_s": "SSE chunks/s, 50 streams",
    "chunks_per_core_s": "chunks/s per core",
    "first_chunk_p50_ms": "+first chunk ms p50, 50 paced",
    "first_chunk_p99_ms": "+first chunk p99",
    "start_s": "start s",
    "rss_mb": "RSS MB",
    "failures": "failures",
}
_MORE_IS_BETTER = ("requests_per_s", "requests_per_core_s", "chunks_per_s", "chunks_per_core_s")


@dataclass
class Round:
    """One candidate in one round. `samples` is the number of answers timed in each cell."""

    name: str
    figures: Figures
    samples: dict[str, int]
    failures: list[str] = field(default_factory=list)
    number: int = 0
    load_average: float = 0.0


def percentile(values: list[float], percent: float) -> float | None:
    """Nearest rank; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def progress(result: Round) -> str:
    shown = "  ".join(f"{key}={_number(value)}" for key, value in result.figures.items())
    lines = [f"round {result.number + 1} {result.name}: {shown}", *(f"  failed: {text}" for text in result.failures)]
    return "\n".join(lines)


def added(rounds: list[Round], name: str) -> dict[str, list[float]]:
    """Each figure of a candidate over the rounds; latencies less those of direct in the same round."""
    direct = {each.number: each.figures for each in rounds if each.name == "direct"}
    series: dict[str, list[float]] = {key: [] for key in _COLUMNS}
    for each in rounds:
        if each.name != name:
            continue
        for key, value in each.figures.items():
            base = direct.get(each.number, {}).get(key) if key in _ADDED and name != "direct" else 0.0
            if value is not None and base is not None:
                series[key].append(value - base)
    return series


def table(rounds: list[Round], versions: dict[str, str], notes: dict[str, str]) -> str:
    """Markdown: one row a figure, one column a candidate, then the ratios and the machine."""
    names = list(dict.fromkeys(["direct", *(each.name for each in rounds)]))
    series = {name: added(rounds, name) for name in names}
    count = len({each.number for each in rounds})
    lines = [f"median (min … max) over {count} rounds; `direct` is absolute, + is added over direct", ""]
    lines += _markdown(["", *names], ([title, *(_spread(series[n][key]) for n in names)] for key, title in _shown()))
    for peer in ("litellm", "nginx"):
        if peer in names and "ours" in names:
            lines += ["", f"ours against {peer} (times better; added latency, rates, start, memory)"]
            rows = ([title, _ratio(series["ours"][key], series[peer][key], key)] for key, title in _shown())
            lines += _markdown(["", f"× {peer}"], rows)
    lines += ["", *(f"- {name} {text}: {notes[name]}" for name, text in versions.items() if name in names)]
    lines += [f"- {key}: {value}" for key, value in machine().items()]
    busiest = max((each.load_average for each in rounds), default=0.0)
    lines += [f"- load average up to {busiest:.1f}; upstream and load generator alone make about 2"]
    return "\n".join(lines)


def _shown() -> list[tuple[str, str]]:
    return list(_COLUMNS.items())


def _markdown(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _ratio(ours: list[float], theirs: list[float], key: str) -> str:
    if not ours or not theirs or key == "failures":
        return "–"
    mine, other = median(ours), median(theirs)
    if mine <= 0 or other <= 0:
        return "–"  # a difference below the noise has no ratio
    return _number(mine / other if key in _MORE_IS_BETTER else other / mine)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{_number(median(values))} ({_number(min(values))} … {_number(max(values))})"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def machine() -> dict[str, str]:
    """What the figures depend on, without the machine's name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, uvloop {version('uvloop')}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "bench/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
