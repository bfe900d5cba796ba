"""Figures: the one form in which every measurement reaches scorecard and report.

A figure without a value says why. What it means, in both languages, is in `definitions`, found by its id.
"""

from typing import Literal

import msgspec

Unit = Literal["", "s", "ms", "tok/s", "req/s", "share", "count", "days", "bytes", "ratio", "nats", "currency"]


class Interval(msgspec.Struct, frozen=True):
    """`method` is its name in the literature: `wilson`, `order statistics`, `bootstrap`, …"""

    low: float
    high: float
    method: str
    level: float = 0.95


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured number.

    `id` is dotted, from the general to the special: `bench.gateway.closed.p3.t256.ttft_p95_s`. `value` None: not
    measured, and `why_null` says why; bool: held or did not. A `share` is 0 to 1. `n`: how many observations. Without
    an `interval`, `interval_missing` says why where there should be one. `command` measures it again; `file` holds the
    raw data, relative to the run's folder. `attested_by` is set where a person counted it.
    """

    id: str
    value: float | int | bool | None
    unit: Unit = ""
    n: int | None = None
    interval: Interval | None = None
    interval_missing: str = ""
    why_null: str = ""
    command: str = ""
    file: str = ""
    attested_by: str = ""
    note: str = ""


class Figures(msgspec.Struct, frozen=True):
    """Figures by id, in the order in which they came; a later one of the same id replaces the earlier."""

    all: tuple[Figure, ...] = ()

    def get(self, figure_id: str) -> Figure | None:
        return next((figure for figure in reversed(self.all) if figure.id == figure_id), None)

    def under(self, prefix: str) -> tuple[Figure, ...]:
        """Those whose id begins with `prefix` and a dot, or is it."""
        return tuple(f for f in self.all if f.id == prefix or f.id.startswith(f"{prefix}."))

    def with_(self, more: "tuple[Figure, ...] | list[Figure]") -> "Figures":
        new = {figure.id for figure in more}
        return Figures((*(f for f in self.all if f.id not in new), *more))
