"""Check digits: Luhn, My Number, IBAN; and which card numbers issuers give out."""

import re

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_ISSUER = re.compile(
    r"4\d{15}(?:\d{3})?"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[68]\d)\d{11}(?:\d{2})?"  # Diners
    r"|35(?:2[89]|[3-8]\d)\d{12}(?:\d{3})?"  # JCB
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12}(?:\d{3})?"  # Discover
    r"|62\d{14,17}"  # UnionPay
)


def luhn(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of those before it."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        total += _DOUBLED[value] if place & 1 else value
    return total % 10 == 0


def issued(digits: str) -> bool:
    """Whether a card network gives out numbers of this beginning and length."""
    return _ISSUER.fullmatch(digits) is not None


def my_number(digits: str) -> bool:
    """Whether the last of 12 digits is right. From the right without it, the n-th digit weighs n + 1 up to n = 6 and
    n - 5 beyond; the sum mod 11 gives 0 for 0 and 1, else 11 less it. One in ten random numbers passes."""
    total = sum(
        (ord(digit) - 48) * (place + 1 if place <= 6 else place - 5)
        for place, digit in enumerate(reversed(digits[:11]), 1)
    )
    rest = total % 11
    return len(digits) == 12 and ord(digits[11]) - 48 == (0 if rest <= 1 else 11 - rest)


def iban(text: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as numbers, mod 97 is 1. Without spaces."""
    if not 15 <= len(text) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1
