"""A benchmark as files: `bench.csv` for a spreadsheet, `bench.json` with everything, a summary in lines, and the steps
of its charts."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.speed.bench import Bench
from sekisho.evaluate.speed.samples import Sample, ok_of
from sekisho.evaluate.statistics import ecdf, percentile

SEED_COLUMNS = ("parallel", "tokens", "req_id", "http", "total", "ttfb", "completion_tokens", "tok_per_sec")
"""The two-week evaluation's own table: seconds; http 0 where no status came; tok_per_sec over the decode window, empty
where an answer does not show it."""

_IN_SEED = ("parallel", "tokens", "index", "http", "total_ms", "ttfb_ms", "completion_tokens", "tok_s")
_LEFT_OUT = ("detail",)  # a server's words: in the JSON
_OWN = tuple(name for name in Sample.__struct_fields__ if name not in (*_IN_SEED, *_LEFT_OUT))
COLUMNS = (*SEED_COLUMNS, *_OWN)
_TYPES: dict[str, Any] = get_type_hints(Sample)


def write_csv(samples: Iterable[Sample]) -> str:
    """One line a request, warm-ups too if they are given. Read back, it is the same but for `detail`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in samples:
        writer.writerow((*_seed_row(each), *(_cell(getattr(each, name)) for name in _OWN)))
    return text.getvalue()


def read_csv(text: str) -> list[Sample]:
    """What `write_csv` wrote. Raises InvalidRequest with the line that cannot be read."""
    reader = csv.reader(io.StringIO(text))
    if tuple(next(reader, ())) != COLUMNS:
        raise InvalidRequest("This is no table of a benchmark: its first line has other columns.")
    samples = []
    for row in reader:
        try:
            samples.append(_sample(dict(zip(COLUMNS, row, strict=True))))
        except (ValueError, msgspec.ValidationError) as error:
            raise InvalidRequest(f"line {reader.line_num} of the table cannot be read: {error}") from error
    return samples


def write_json(bench: Bench) -> bytes:
    return msgspec.json.format(msgspec.json.encode(bench), indent=1) + b"\n"


def read_json(body: bytes) -> Bench:
    """Raises InvalidRequest."""
    try:
        return decoded(body, Bench)
    except Undecodable as error:
        raise InvalidRequest(f"This is no benchmark: {error}") from error


def summary(samples: Sequence[Sample]) -> str:
    """A line a cell, as the two-week evaluation writes them; quantiles over successes, nan where there is none."""
    cells = dict.fromkeys(each.cell for each in samples)
    return "".join(f"{_line([each for each in samples if each.cell == cell])}\n" for cell in cells)


_SERIES: dict[str, Callable[[Sample], float | None]] = {
    "ttfb_s": lambda sample: None if sample.ttfb_ms is None else sample.ttfb_ms / 1e3,
    "ttft_s": lambda sample: None if sample.ttft_ms is None else sample.ttft_ms / 1e3,
    "total_s": lambda sample: sample.total_ms / 1e3,
    "tok_s": lambda sample: sample.tok_s,
    "itl_p95_ms": lambda sample: sample.itl_p95_ms,
    "late_ms": lambda sample: sample.late_ms,
}
SERIES = tuple(_SERIES)


def series(samples: Iterable[Sample], cell: str, what: str) -> tuple[tuple[float, float], ...]:
    """The cumulative share of a cell's successes by `what` (one of `SERIES`), as steps for a chart."""
    values = (_SERIES[what](each) for each in samples if each.cell == cell and each.ok)
    return ecdf([value for value in values if value is not None])


def _line(cell: Sequence[Sample]) -> str:
    first, ok = cell[0], ok_of(cell)
    level = f"parallel={first.parallel}" if first.rate is None else f"rate={first.rate:g}/s"
    prompt = "" if first.prompt_wanted is None else f" prompt_tokens={first.prompt_wanted}"
    ttfb, total = ([ms / 1e3 for ms in kind if ms is not None] for kind in _times(ok))
    speeds = [each.tok_s for each in ok if each.tok_s is not None]
    return (
        f"place={first.place} loop={first.loop} {level}{prompt} tokens={first.tokens} reqs={len(cell)} "
        f"success_rate={100 * len(ok) / len(cell):.2f}% ok={len(ok)} fail={len(cell) - len(ok)} "
        f"p95_ttfb={_number(ttfb, 95)}s p95_total={_number(total, 95)}s tokps_median={_number(speeds, 50)}"
    )


def _times(ok: Sequence[Sample]) -> tuple[list[float | None], list[float | None]]:
    return [each.ttfb_ms for each in ok], [each.total_ms for each in ok]


def _number(values: Sequence[float], percent: float) -> str:
    found = percentile(values, percent)
    return "nan" if found is None else f"{found:.3f}"


def _seed_row(each: Sample) -> tuple[object, ...]:
    return (
        "" if each.rate is not None else each.parallel,
        each.tokens,
        each.index,
        each.http or 0,
        f"{each.total_ms / 1e3:.6f}",
        "" if each.ttfb_ms is None else f"{each.ttfb_ms / 1e3:.6f}",
        "" if each.completion_tokens is None else each.completion_tokens,
        "" if each.tok_s is None else f"{each.tok_s:.6f}",
    )


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    return " ".join(value) if isinstance(value, tuple) else value


def _sample(row: dict[str, str]) -> Sample:
    values: dict[str, Any] = {name: _value(row[name], _TYPES[name]) for name in _OWN}
    values["detail"] = ""
    values["parallel"] = int(row["parallel"] or 1)
    values["tokens"], values["index"] = int(row["tokens"]), int(row["req_id"])
    values["http"] = int(row["http"]) or None
    values["total_ms"] = round(float(row["total"]) * 1e3, 3)
    values["ttfb_ms"] = round(float(row["ttfb"]) * 1e3, 3) if row["ttfb"] else None
    values["completion_tokens"] = _value(row["completion_tokens"], int | None)
    values["tok_s"] = _value(row["tok_per_sec"], float | None)
    return msgspec.convert(values, Sample)


def _value(text: str, kind: Any) -> Any:
    """One cell of the table, by the field's type."""
    if get_origin(kind) is tuple:
        return tuple(text.split())
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if not text and NoneType in options:
        return None
    known = next(option for option in options if option is not NoneType)
    if known is bool:
        return bool(int(text))
    return known(text) if known in (int, float) else text
