"""What an engine tells on `/metrics`, in Prometheus' text format."""

from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, tuple[tuple[Mapping[str, str], float], ...]]
"""By name, each value with its labels."""


def samples(text: str) -> Samples:
    """Empty for text that is none of that format."""
    found: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name].append((sample.labels, float(sample.value)))
    except (ValueError, KeyError, IndexError):
        return {}
    return {name: tuple(values) for name, values in found.items()}


def total(told: Samples, *names: str, label: tuple[str, str] | None = None) -> float | None:
    """The sum over all labels, or over those with this one, of the first of these names that is there."""
    for name in names:
        values = [value for labels, value in told.get(name, ()) if label is None or labels.get(label[0]) == label[1]]
        if values:
            return sum(values)
    return None


def accept_rate(drafted: float | None, accepted: float | None) -> tuple[float | None, str | None]:
    """Of all drafted tokens since the engine's start the share that was kept, or why there is none."""
    if drafted is None or accepted is None:
        return None, "it does not count drafted tokens"
    if not drafted:
        return None, "no token was drafted yet"
    return accepted / drafted, None
