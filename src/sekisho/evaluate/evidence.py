"""What a step of an evaluation leaves: figures, and a tally of what was wrong. Kept in the run's folder as
`steps/<key>.json`, so that scorecard and report can be made from the folder alone, as often as wanted."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

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
    value: float
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
            found.append(msgspec.json.decode(path.read_bytes(), type=Evidence))
        except FileNotFoundError:
            continue
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NotFound(f"{path} cannot be read as a step's evidence: {error}") from error
    return merged(found)


def read_attested(folder: Path) -> tuple[Attested, ...]:
    """In the order in which they were told; none where there are none."""
    try:
        lines = (folder / ATTESTED).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    try:
        return tuple(msgspec.json.decode(line, type=Attested) for line in lines if line.strip())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotFound(f"{folder / ATTESTED} cannot be read: {error}") from error


def attested_figures(attested: Iterable[Attested], run: str) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            id=each.figure,
            value=int(each.value) if each.value.is_integer() else each.value,
            unit="count",
            n=each.n,
            attested_by=each.by,
            note=each.note,
            file=ATTESTED,
            command=f"sekisho evaluate attest {run} {each.figure} VALUE --by NAME",
        )
        for each in attested
    )


def _ordered(counts: dict[FaultKind, int], examples: dict[FaultKind, str]) -> tuple[Tally, ...]:
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return tuple(Tally(kind, counts[kind], examples.get(kind, "")) for kind in kinds)
