"""Check digits, against numbers that were published as examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.guard.personal.check_digits import iban, luhn, my_number


@pytest.mark.parametrize("number", ["4111111111111111", "378282246310005", "30569309025904", "6011111111111117"])
def test_test_cards_pass(number: str) -> None:
    """The networks' test numbers end in their Luhn digit, and in no other."""
    assert [digit for digit in "0123456789" if luhn(number[:-1] + digit)] == [number[-1]]


@given(st.integers(0, 10**11 - 1))
def test_one_last_digit_in_ten_is_right(body: int) -> None:
    """Every eleven digits have exactly one My Number check digit."""
    assert sum(my_number(f"{body:011d}{digit}") for digit in range(10)) == 1


def test_a_published_my_number_passes() -> None:
    """The example that forms print; and 4111 1111 1111, which is why context counts."""
    assert my_number("123456789018")
    assert my_number("411111111111")
    assert not my_number("123456789012")


def test_ibans() -> None:
    """Published examples pass, with one digit changed they do not."""
    assert iban("GB82WEST12345698765432")
    assert iban("DE89370400440532013000")
    assert not iban("DE89370400440532013001")
    assert not iban("DE8937")
