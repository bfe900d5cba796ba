"""Who stands in a comparison, and at which share of the bytes."""

from collections.abc import Iterable, Sequence

import msgspec

from sekisho.kv.bench.contenders import Contender


class Entry(msgspec.Struct, frozen=True):
    """A contender in a comparison: at a target share of the 16-bit bytes, or (None) at its natural point."""

    name: str
    target: float | None = None


def label(entry: Entry) -> str:
    """`kivi-2bit-g32 at 25 %`"""
    return entry.name if entry.target is None else f"{entry.name} at {entry.target * 100:g} %"


def entries(contenders: Iterable[Contender], targets: Sequence[float]) -> list[tuple[Entry, Contender]]:
    """Each at its natural point, then at every target that its dial may reach."""
    found = list(contenders)
    natural = [(Entry(each.name), each) for each in found]
    return natural + [(Entry(each.name, target), each) for target in targets for each in found if each.dial]
