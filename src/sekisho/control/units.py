"""Sizes of memory as people write them. B, KB, MB, GB, TB go by 1000, KiB, MiB, GiB, TiB by 1024, in any case."""

import re
from fractions import Fraction
from typing import Final

from sekisho.control.policy_problem import PolicyProblem, shown

LARGEST_BYTES: Final = 2**53  # what every reader of JSON can hold exactly
_BINARY: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DECIMAL: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES: Final = {name.lower(): size for name, size in {"B": 1, **_DECIMAL, **_BINARY}.items()}
_TEXT: Final = re.compile(r"(\d{1,16}(?:\.\d{1,16})?) ?([kmgt]i?b|b)", re.IGNORECASE | re.ASCII)
_READABLE: Final = 10_240  # the most of a unit that is still written in it


def memory_bytes(value: int | str, field: str) -> int:
    """Whole bytes, or a number and a unit: `2GiB`, `2048 MiB`, `1.5gb`. Parts of a byte are cut off. Raises
    PolicyProblem for all else, and for more than 2**53."""
    if isinstance(value, str) and (parts := _TEXT.fullmatch(value)):
        size = int(Fraction(parts[1]) * _BYTES[parts[2].lower()])
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise PolicyProblem(
            field, f"must be whole bytes, or a number with one of B, KB … TB, KiB … TiB (`2GiB`), not {shown(value)}"
        )
    if not 0 <= size <= LARGEST_BYTES:
        raise PolicyProblem(field, f"must be between 0 and {LARGEST_BYTES} bytes, not {shown(value)}")
    return size


def human(size_bytes: int) -> str:
    """For messages. What does not begin with `about` is exact, and `memory_bytes` reads it back."""
    for name, unit in reversed(_BINARY.items()):
        if size_bytes and size_bytes % unit == 0 and size_bytes // unit < _READABLE:
            return f"{size_bytes // unit} {name}"
    for name, unit in reversed(_DECIMAL.items()):
        if size_bytes >= unit and size_bytes * 1000 % unit == 0:
            return f"{_decimals(size_bytes, unit)} {name}"
        if size_bytes >= unit:
            break
    if size_bytes < 1000:
        return f"{size_bytes} B"
    name, unit = next((each for each in reversed(_BINARY.items()) if size_bytes >= each[1]), ("KiB", 2**10))
    return f"about {size_bytes / unit:.2f} {name}"


def _decimals(size_bytes: int, unit: int) -> str:
    whole, rest = divmod(size_bytes * 1000 // unit, 1000)
    return f"{whole}.{rest:03}".rstrip("0").rstrip(".")
