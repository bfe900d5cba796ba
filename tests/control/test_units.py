import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.policy_problem import PolicyProblem
from sekisho.control.units import LARGEST_BYTES, human, memory_bytes

SIZES = {
    "100B": 100,
    "4KB": 4_000,
    "4kib": 4_096,
    "2048 MiB": 2**31,
    "2048MIB": 2**31,
    "2GiB": 2**31,
    "1.5gb": 1_500_000_000,
    "0.1 TB": 100_000_000_000,
    "1TiB": 2**40,
    "1.7GiB": 1_825_361_100,
    "0B": 0,
    "9007199254740992 B": LARGEST_BYTES,
}
JUNK = (
    *("", " ", "12", "1024", "GiB", "2 GiB ", " 2GiB", "2  GiB", "2GiB2", "-2GiB", "+2GiB", "2,5GB", ".5GB", "5.GB"),
    *("1e3MB", "0x10B", "nanB", "infGB", "2Gi", "2G", "2 PB", "2GiB\n", "٢GiB", "2\u212aB", "9007199254740993B"),
    "99999999TiB",
    "1" * 17 + "B",
)


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_are_read(text: str, size: int) -> None:
    """KB goes by 1000 and KiB by 1024, in any case, with a space or without."""
    assert memory_bytes(text, "io.dml_pool_bytes") == size


@pytest.mark.parametrize("text", JUNK)
def test_what_is_no_size_is_refused_with_its_field(text: str) -> None:
    """Bare numbers in a string, signs, exponents, other units and other alphabets are refused."""
    with pytest.raises(PolicyProblem) as refused:
        memory_bytes(text, "io.dml_pool_bytes")
    assert refused.value.field == "io.dml_pool_bytes"
    assert "bytes" in refused.value.message


@pytest.mark.parametrize("value", [True, False, None, 1.0, math.nan, math.inf, -1, LARGEST_BYTES + 1, [], b"2GiB"])
def test_only_whole_bytes_within_bounds_are_numbers_of_bytes(value: object) -> None:
    """Booleans, fractions, negatives and absurd sizes are refused."""
    with pytest.raises(PolicyProblem):
        memory_bytes(value, "x")  # type: ignore[arg-type]


@given(st.integers(0, LARGEST_BYTES))
def test_integers_are_bytes(size: int) -> None:
    """Within its bounds an integer is what it says."""
    assert memory_bytes(size, "x") == size


def around(power: int) -> st.SearchStrategy[int]:
    return st.builds(lambda times, off: max(0, times * power + off), st.integers(1, 2000), st.integers(-1, 1))


@given(
    st.integers(0, LARGEST_BYTES)
    | around(2**10)
    | around(2**20)
    | around(2**30)
    | around(10**3)
    | around(10**6)
    | around(10**9)
)
def test_human_is_exact_or_says_about(size: int) -> None:
    """What does not begin with `about` reads back as the very number; what does is within 1 %."""
    told = human(size)
    if told.startswith("about "):
        assert memory_bytes(told.removeprefix("about "), "x") == pytest.approx(size, rel=0.01)
    else:
        assert memory_bytes(told, "x") == size
    assert len(told) <= 17


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (2**31, "2 GiB"), (1_500_000_000, "1.5 GB"), (999, "999 B"), (123_456_789, "about 117.74 MiB")],
)
def test_human_takes_the_unit_that_fits(size: int, told: str) -> None:
    """Round sizes are told in the unit in which they are round."""
    assert human(size) == told
