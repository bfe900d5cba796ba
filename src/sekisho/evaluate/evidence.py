"""What a step of an evaluation leaves: figures, and a tally of what was wrong. Kept in the run's folder as
`steps/<key>.json`, so that scorecard and report can be made from the folder alone, as often as wanted."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from sekisho.audit.files import Files, append_line
from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import NotFound
from sekisho.evaluate.client.faults import MEANINGS, FaultKind
from sekisho.evaluate.figures import Figure, Figures

STEPS = "steps"
ATTESTED = "attested.jsonl"


class Tally(msgspec.Struct, frozen=True):
    """How often a fault was met, with one example."""

    kind: FaultKind
    count: int
    example: str = ""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """`exchanges`: of how many requests the tally speaks."""

    figures: tuple[Figure, ...] = ()
    tally: tuple[Tally, ...] = ()
    exchanges: int = 0


class Attested(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that a person counted. `at`: seconds since 1970."""

    figure: str
    value: Annotated[float, msgspec.Meta(ge=0.0)]
    n: int | None
    by: str
    note: str = ""
    at: float


_KINDS: dict[str, FaultKind] = {kind: kind for kind in MEANINGS}


def tally(faults: Iterable[Sequence[tuple[str, str]]]) -> tuple[Tally, ...]:
    """From the (kind, detail) pairs of each request, the most frequent first; what is no kind of fault is left out."""
    counts: dict[FaultKind, int] = {}
    examples: dict[FaultKind, str] = {}
    for of_one in faults:
        for name, detail in of_one:
            kind = _KINDS.get(name)
            if kind is None:
                continue
            counts[kind] = counts.get(kind, 0) + 1
            if detail:
                examples.setdefault(kind, detail)
    return _ordered(counts, examples)


def merged(all_of: Iterable[Evidence]) -> Evidence:
    """One evidence of many. Of one figure's values the latest counts; tallies add up."""
    figures, exchanges = Figures(), 0
    counts: dict[FaultKind, int] = {}
    examples: dict[FaultKind, str] = {}
    for evidence in all_of:
        figures = figures.with_(evidence.figures)
        exchanges += evidence.exchanges
        for each in evidence.tally:
            counts[each.kind] = counts.get(each.kind, 0) + each.count
            if each.example:
                examples.setdefault(each.kind, each.example)
    return Evidence(figures=figures.all, tally=_ordered(counts, examples), exchanges=exchanges)


def read_steps(folder: Path, keys: Iterable[str]) -> Evidence:
    """The evidence of those steps that there are, in the order of `keys`. Raises NotFound for a file that is none."""
    found = []
    for key in keys:
        path = folder / STEPS / f"{key}.json"
        try:
            found.append(decoded(path.read_bytes(), Evidence))
        except FileNotFoundError:
            continue
        except (OSError, Undecodable) as error:
            raise NotFound(f"{path} cannot be read as a step's evidence: {error}") from error
    return merged(found)


def missing_steps(folder: Path, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if not (folder / STEPS / f"{key}.json").exists())


def read_attested(folder: Path) -> tuple[Attested, ...]:
    """In the order in which they were told; none where there are none. A torn last line is passed over. Raises
    NotFound for another one that is damaged: what it said may have been a correction."""
    path = folder / ATTESTED
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return ()
    attested: list[Attested] = []
    for number, line in enumerate(body[: _sound_bytes(body)].split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            attested.append(decoded(line, Attested))
        except Undecodable as error:
            raise NotFound(
                f"{path}:{number} is damaged ({error}): put the file back from a backup, or take that line out"
            ) from error
    return tuple(attested)


def keep_attested(folder: Path, attested: Attested) -> None:
    """Durable when it returns. A torn last line goes first: it must not end up between sound ones, and nobody was told
    that it is kept. Raises OSError."""
    path = folder / ATTESTED
    if path.exists():
        body = path.read_bytes()
        if _sound_bytes(body) < len(body):
            os.truncate(path, _sound_bytes(body))
    append_line(Files(), path, msgspec.json.encode(attested) + b"\n")


def _sound_bytes(body: bytes) -> int:
    """The length without a last line whose writing was broken off: it has no end, and says nothing."""
    begin = body.rfind(b"\n") + 1
    try:
        decoded(body[begin:], Attested)
    except Undecodable:
        return begin
    return len(body)


def attested_figures(attested: Iterable[Attested], run: str) -> tuple[Figure, ...]:
    """The last one of each, with what was told before."""
    told: dict[str, list[Attested]] = {}
    for each in attested:
        told.setdefault(each.figure, []).append(each)
    return tuple(
        Figure(
            id=each.figure,
            value=int(each.value) if each.value.is_integer() else each.value,
            unit="count",
            n=each.n,
            attested_by=each.by,
            note="; ".join([each.note] * bool(each.note) + [f"before: {old.value:g} by {old.by}" for old in earlier]),
            file=ATTESTED,
            command=f"sekisho evaluate attest {run} {each.figure} VALUE --by NAME",
        )
        for *earlier, each in told.values()
    )


def _ordered(counts: dict[FaultKind, int], examples: dict[FaultKind, str]) -> tuple[Tally, ...]:
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return tuple(Tally(kind, counts[kind], examples.get(kind, "")) for kind in kinds)
