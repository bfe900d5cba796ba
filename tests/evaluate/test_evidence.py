"""What people counted is kept durably, and damage to it is told or costs nothing."""

from pathlib import Path

import pytest

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.conclusion import attest, read_plan
from sekisho.evaluate.evidence import ATTESTED, read_attested, read_steps

TORN = b'{"figure":"ui.fat'


def count(folder: Path, value: float) -> None:
    attest(folder, "ui.fatal_errors", value, by="hanako", n=30, note="", now=1.0)


def values(folder: Path) -> list[float]:
    return [each.value for each in read_attested(folder)]


@pytest.mark.parametrize("torn", [TORN, b"{\xff", b"\0\0\0"], ids=["cut", "bytes", "zeros"])
def test_a_torn_last_line_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    """Its writing was broken off: it is passed over, and gone once the next one is kept."""
    count(tmp_path, 2)
    file = tmp_path / ATTESTED
    file.write_bytes(file.read_bytes() + torn)
    assert values(tmp_path) == [2]
    count(tmp_path, 0)
    assert values(tmp_path) == [2, 0]
    assert len(file.read_bytes().splitlines()) == 2


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    """Only the line's end is missing: it is kept, and the next one has a line of its own."""
    count(tmp_path, 2)
    file = tmp_path / ATTESTED
    file.write_bytes(file.read_bytes().rstrip())
    count(tmp_path, 0)
    assert values(tmp_path) == [2, 0]


@pytest.mark.parametrize(
    "damaged", [TORN, b"\xff", b'{"figure":"ui.fatal_errors","value":-3.0,"n":30,"by":"x","at":1.0}']
)
def test_a_damaged_line_between_others_is_told(tmp_path: Path, damaged: bytes) -> None:
    """It may have corrected one that now would count: the line is named."""
    count(tmp_path, 2)
    file = tmp_path / ATTESTED
    file.write_bytes(file.read_bytes() + damaged + b"\n")
    count(tmp_path, 0)
    with pytest.raises(NotFound, match=r"attested\.jsonl:2 is damaged"):
        read_attested(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0])
def test_what_is_no_count_is_not_kept(tmp_path: Path, value: float) -> None:
    """A value that JSON cannot hold, or below zero, would spoil every later report."""
    with pytest.raises(InvalidRequest, match="no count"):
        count(tmp_path, value)
    assert values(tmp_path) == []


@pytest.mark.parametrize("body", [b"{", b'{"name": "\xff", "figures": [{"id": "\xff"}]}', b"[]"])
def test_a_damaged_plan_or_step_is_told(tmp_path: Path, body: bytes) -> None:
    """As no evaluation, with the folder or file named."""
    (tmp_path / "plan.json").write_bytes(body)
    with pytest.raises(NotFound, match="holds no evaluation"):
        read_plan(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "bench.json").write_bytes(body)
    with pytest.raises(NotFound, match=r"bench\.json cannot be read"):
        read_steps(tmp_path, ["bench"])
