"""The table of injected faults: tests add rows, and at the end of the session it is written as JSON and Markdown."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

FOLDER = "SEKISHO_FAULT_TABLE"
Time = Literal["simulated", "real"]
_TITLES: dict[Time, str] = {
    "simulated": "Simulated seconds: a whole agent in virtual time, its loops at their usual periods.",
    "real": "Real seconds: processes on one machine.",
}
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
    """Rows of one kind of time. Other rows in the folder stay as an earlier writer left them."""

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
        clients: str = "none in this test",
    ) -> None:
        told = [None if each is None else round(each, 1) for each in (detected_s, recovered_s)]
        self._rows.append(
            Row(fault, self._time, injected, told[0], detected_by, action, told[1], recovered_since, clients)
        )

    def write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        mine = {row.fault for row in self._rows}
        others = [row for row in read(self._folder) if row.time == self._time and row.fault not in mine]
        body = msgspec.json.format(msgspec.json.encode([*others, *self._rows]))
        (self._folder / f"faults-{self._time}.json").write_bytes(body + b"\n")
        (self._folder / "faults.md").write_text(markdown(read(self._folder)), encoding="utf-8")


def read(folder: Path) -> list[Row]:
    """The rows of both kinds that are there."""
    files = [folder / f"faults-{time}.json" for time in ("simulated", "real")]
    return [row for file in files if file.is_file() for row in msgspec.json.decode(file.read_bytes(), type=list[Row])]


def markdown(rows: list[Row]) -> str:
    """One table for each kind of time; clients are there in the real one only."""
    parts = []
    for time, title in _TITLES.items():
        mine = [row for row in rows if row.time == time]
        columns = len(_HEAD) if time == "real" else len(_HEAD) - 1
        lines = [_line(_HEAD[:columns]), _line(["---"] * columns)]
        lines += [_line(_cells(row)[:columns]) for row in mine]
        if mine:
            parts.append(f"{title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _cells(row: Row) -> list[str]:
    detected = "not" if row.detected_s is None else f"{row.detected_s:g} s"
    recovered = "not by itself" if row.recovered_s is None else f"{row.recovered_s:g} s"
    since = f"{recovered} {row.recovered_since}".strip()
    return [row.fault, row.injected, detected, row.detected_by, row.action, since, row.clients]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def table_of(time: Time, factory: pytest.TempPathFactory) -> Iterator[Table]:
    """What a fixture yields."""
    chosen = os.environ.get(FOLDER)
    table = Table(Path(chosen) if chosen else factory.mktemp("faults"), time)
    yield table
    table.write()
