"""The table of injected faults: tests add rows, and at the end of the session it is written as JSON and Markdown."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

FOLDER = "SEKISHO_FAULT_TABLE"
Time = Literal["simulated", "real"]
_HEAD = ("fault", "injected", "detected after", "detected by", "action", "recovered after", "clients")


class Row(msgspec.Struct, frozen=True):
    """`detected_s`: after the injection; None: it was not. `recovered_s` after what `recovered_since` says."""

    fault: str
    time: Time
    injected: str
    detected_s: float | None
    detected_by: str
    action: str
    recovered_s: float | None
    recovered_since: str
    clients: str


class Table:
    """Rows of one kind of time; those of the other kind stay as an earlier session wrote them."""

    def __init__(self, folder: Path, time: Time) -> None:
        self._folder, self._time = folder, time
        self._rows: list[Row] = []

    def add(
        self,
        fault: str,
        *,
        injected: str,
        detected_s: float | None,
        detected_by: str,
        action: str,
        recovered_s: float | None,
        recovered_since: str,
        clients: str,
    ) -> None:
        told = [None if each is None else round(each, 1) for each in (detected_s, recovered_s)]
        self._rows.append(
            Row(fault, self._time, injected, told[0], detected_by, action, told[1], recovered_since, clients)
        )

    def write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        body = msgspec.json.format(msgspec.json.encode(self._rows))
        (self._folder / f"faults-{self._time}.json").write_bytes(body + b"\n")
        (self._folder / "faults.md").write_text(markdown(read(self._folder)), encoding="utf-8")


def read(folder: Path) -> list[Row]:
    """The rows of both kinds that are there."""
    files = [folder / f"faults-{time}.json" for time in ("simulated", "real")]
    return [row for file in files if file.is_file() for row in msgspec.json.decode(file.read_bytes(), type=list[Row])]


def markdown(rows: list[Row]) -> str:
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD))]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    unit = "s" if row.time == "simulated" else "s (real)"
    detected = "not" if row.detected_s is None else f"{row.detected_s:g} {unit}"
    recovered = "not by itself" if row.recovered_s is None else f"{row.recovered_s:g} {unit}"
    since = f"{recovered} {row.recovered_since}".strip()
    return [row.fault, row.injected, detected, row.detected_by, row.action, since, row.clients]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def table_of(time: Time, factory: pytest.TempPathFactory) -> Iterator[Table]:
    """What a session-scoped fixture yields."""
    chosen = os.environ.get(FOLDER)
    table = Table(Path(chosen) if chosen else factory.mktemp("faults"), time)
    yield table
    table.write()
